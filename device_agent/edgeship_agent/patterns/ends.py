"""The two ends of a stream: stdin, a watched folder or an MQTT topic; stdout or a topic."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import unquote, urlsplit

import msgspec

from edgeship_agent.contract.errors import ConfigError, EdgeshipError, InputError
from edgeship_agent.contract.manifest import BundleManifest
from edgeship_agent.link.address import Address, parse_address
from edgeship_agent.patterns.rows import read_file
from edgeship_agent.patterns.stream import Message, Queue
from edgeship_agent.processing.arrays import Array

#: Longest line, frame or message, in bytes.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_LENGTH_BYTES: Final = 4
_LOOK_S: Final = 0.1
_QOS: Final = 1
_RECONNECT_S: Final = (1, 30)
_LAST_WORDS_S: Final = 2.0
_READS: Final = frozenset({".npy", ".npz", ".wav", ".png", ".jpg", ".jpeg", ".bmp", ".webp"})


def read_pipe(file: BinaryIO, queue: Queue, *, framed: bool) -> None:
    """Lines of JSON, or frames (length in four bytes, little-endian, then the bytes), until the pipe ends."""
    failure: EdgeshipError | None = None
    number = 0
    try:
        while (data := _frame(file) if framed else _line(file)) is not None:
            message = Message(key=str(number), time_s=time.time(), data=data)
            number += 1
            if (framed or data.strip()) and not queue.put(message):
                break
    except EdgeshipError as error:
        failure = error
    queue.end(failure)


def _line(file: BinaryIO) -> bytes | None:
    line = file.readline(MAX_MESSAGE_BYTES + 1)
    if len(line) > MAX_MESSAGE_BYTES:
        raise InputError("a line that is too long", file="stdin", expected=f"≤ {MAX_MESSAGE_BYTES} bytes")
    return line or None


def _frame(file: BinaryIO) -> bytes | None:
    head = file.read(_LENGTH_BYTES)
    if not head:
        return None
    length = int.from_bytes(head, "little")
    if len(head) < _LENGTH_BYTES or length > MAX_MESSAGE_BYTES:
        raise InputError("not a frame", file="stdin", expected=f"a length ≤ {MAX_MESSAGE_BYTES}", got=length)
    data = file.read(length)
    if len(data) != length:
        raise InputError("a frame that ended early", file="stdin", expected=length, got=len(data))
    return data


def watch_folder(folder: Path, manifest: BundleManifest, queue: Queue, stop: threading.Event) -> None:
    """Every file that appears, once, when its length stood still between two looks; those already there first."""
    seen: dict[str, tuple[int, int]] = {}
    taken: set[str] = set()
    while not stop.wait(_LOOK_S):
        for path, facts in _files(folder):
            if path.name in taken:
                continue
            if seen.get(path.name) != facts:
                seen[path.name] = facts
                continue
            taken.add(path.name)
            if not queue.put(_of_file(path, manifest, facts[1] / 1e9)):
                return
    queue.end()


def _files(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file() and Path(entry.name).suffix.lower() in _READS:
                    facts = entry.stat()
                    found.append((Path(entry.path), (facts.st_size, facts.st_mtime_ns)))
    except OSError:
        return []  # gone, or not there yet: the next look tells
    return sorted(found, key=lambda each: (each[1][1], each[0].name))


def _of_file(path: Path, manifest: BundleManifest, time_s: float) -> Message:
    try:
        arrays: dict[str, Array] = read_file(path, manifest)
    except EdgeshipError as error:
        return Message(key=path.name, time_s=time_s, error=error)
    return Message(key=path.name, time_s=time_s, data=arrays)


class Lines:
    """Documents as lines on a file.

    Args:
        file: such as stdout.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def publish(self, document: Mapping[str, Any], done: Callable[[], None]) -> bool:
        """Write a line and push it out."""
        self._file.write(msgspec.json.encode(document) + b"\n")
        self._file.flush()
        done()
        return True

    def close(self) -> None:
        """Nothing is under way."""


class MqttEnd:
    """A topic of a broker, to hear or to speak on; it connects again by itself.

    Args:
        url: ``mqtt://[USER:PASSWORD@]HOST[:PORT]/TOPIC``; ``mqtts`` with the system's authorities.
        most: documents that may be under way; one more is dropped.

    Raises:
        ConfigError: no such address, or no topic in it.
    """

    def __init__(self, url: str, most: int) -> None:
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

        self._full = MQTTErrorCode.MQTT_ERR_QUEUE_SIZE
        self._address, self.topic = parse_topic(url)
        parts = urlsplit(url)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self._client.reconnect_delay_set(*_RECONNECT_S)
        self._client.max_queued_messages_set(most)
        if parts.username:
            self._client.username_pw_set(unquote(parts.username), unquote(parts.password or ""))
        if self._address.tls:
            self._client.tls_set_context(ssl.create_default_context())
        self._lock = threading.Lock()
        self._under_way: dict[int, Callable[[], None]] = {}
        self._out: set[int] = set()
        self.connections = 0
        self._client.on_publish = lambda _client, _data, number, *_: self._is_out(number)
        self._client.on_connect = lambda *arguments: self._connected(arguments[3])
        self._on_message: Callable[[bytes], None] | None = None

    def start(self, on_message: Callable[[bytes], None] | None = None) -> MqttEnd:
        """Connect in the background, and hear the topic where somebody listens."""
        self._on_message = on_message
        self._client.on_message = lambda _client, _data, message: self._came(bytes(message.payload))
        self._client.connect_async(self._address.host, self._address.port, keepalive=30)
        self._client.loop_start()
        return self

    def publish(self, document: Mapping[str, Any], done: Callable[[], None]) -> bool:
        """Hand a document over with QoS 1; it is out when the broker has it."""
        sent = self._client.publish(self.topic, msgspec.json.encode(document), qos=_QOS)
        if sent.rc == self._full:
            return False
        with self._lock:
            if sent.mid not in self._out:
                self._under_way[sent.mid] = done
                return True
            self._out.discard(sent.mid)
        done()
        return True

    def publish_beside(self, name: str, document: Mapping[str, Any]) -> None:
        """A document on a topic below this one; it may be lost."""
        self._client.publish(f"{self.topic}/{name}", msgspec.json.encode(document))

    def close(self) -> None:
        """Wait a moment for what is under way, then go."""
        end_s = time.monotonic() + _LAST_WORDS_S
        while self._under_way and time.monotonic() < end_s:
            time.sleep(0.01)
        self._client.disconnect()
        self._client.loop_stop()

    def _is_out(self, number: int) -> None:
        with self._lock:
            done = self._under_way.pop(number, None)
            if done is None:
                self._out.add(number)  # it was out before its publisher knew its number
        if done is not None:
            done()

    def _connected(self, reason: Any) -> None:
        if not reason.is_failure:
            self.connections += 1
            if self._on_message is not None:
                self._client.subscribe(self.topic, qos=_QOS)

    def _came(self, payload: bytes) -> None:
        if self._on_message is not None and len(payload) <= MAX_MESSAGE_BYTES:
            self._on_message(payload)


def parse_topic(url: str) -> tuple[Address, str]:
    """Broker and topic of an address.

    Raises:
        ConfigError: no such address, or no topic in it.

    >>> parse_topic("mqtt://127.0.0.1:1883/line/4/sound")[1]
    'line/4/sound'
    """
    topic = unquote(urlsplit(url).path.lstrip("/"))
    if urlsplit(url).scheme not in {"mqtt", "mqtts"} or not topic:
        raise ConfigError("not a topic of a broker", expected="mqtt://HOST:PORT/TOPIC", got=url)
    return parse_address(url), topic
