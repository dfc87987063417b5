"""A TCP relay between a device and its broker: it counts bytes, and where asked to it repeats, reorders and forgets."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator

_PUBLISH, _PUBACK = 0x3, 0x4
Send = Callable[[bytes], None]


class Mischief:
    """What happens to messages on the way, drawn from a seed; connections and acknowledgements are left alone.

    Args:
        seed: of everything that is drawn.
        forget: share of messages that are acknowledged to their sender and then dropped.
        repeat: share that arrive twice.
        reorder: share that arrive after the one that follows.
    """

    def __init__(self, seed: int, *, forget: float = 0.2, repeat: float = 0.2, reorder: float = 0.2) -> None:
        self._rng = random.Random(seed)
        self._shares = {"forget": forget, "repeat": repeat, "reorder": reorder}
        self._lock = threading.Lock()
        self.counts = dict.fromkeys(self._shares, 0)

    def draw(self) -> str:
        """What happens to the next message; empty for nothing."""
        with self._lock:
            left = self._rng.random()
            for name, share in self._shares.items():
                left -= share
                if left < 0:
                    self.counts[name] += 1
                    return name
            return ""


class Relay:
    """Listens on a free port and passes everything on to the broker's.

    Args:
        port: of the broker, on this machine.
        mischief: done to messages in both directions; None passes bytes on as they come.
    """

    def __init__(self, port: int, mischief: Mischief | None = None) -> None:
        self._target = port
        self._mischief = mischief
        self.from_device_bytes = self.to_device_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open = []

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                broker = socket.create_connection(("127.0.0.1", self._target), 10)
            except OSError:
                device.close()
                continue
            broker.settimeout(None)
            self._open += [device, broker]
            locks = {device: threading.Lock(), broker: threading.Lock()}
            for source, sink, is_up in ((device, broker, True), (broker, device, False)):
                arguments = (source, sink, locks, is_up)
                threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, locks: dict[socket.socket, threading.Lock], is_up: bool
    ) -> None:
        def send(end: socket.socket, data: bytes) -> None:
            with locks[end]:
                end.sendall(data)

        held: list[bytes] = []
        with contextlib.suppress(OSError):
            for packet in self._packets(source, is_up):
                if self._mischief is None or packet[0] >> 4 != _PUBLISH or not packet[0] & 0x06:
                    send(sink, packet)
                    continue
                what = self._mischief.draw()
                if what == "forget":
                    send(source, _puback(packet))
                elif what == "reorder" and not held:
                    held.append(packet)
                else:
                    send(sink, packet * (2 if what == "repeat" else 1))
                    while held:
                        send(sink, held.pop())
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with locks[source]:
            source.close()

    def _packets(self, source: socket.socket, is_up: bool) -> Iterator[bytes]:
        """Whole MQTT packets, or whatever came where nothing is done to them."""
        waiting = b""
        while data := source.recv(1 << 16):
            if is_up:
                self.from_device_bytes += len(data)
            else:
                self.to_device_bytes += len(data)
            if self._mischief is None:
                yield data
                continue
            waiting += data
            while (size := _packet_bytes(waiting)) and len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]


def _packet_bytes(data: bytes) -> int:
    """Length of the packet that begins here; 0 where its header is not complete. Source: MQTT 5.0, 1.5.5 and 2.1.4."""
    length = 0
    for index, byte in enumerate(data[1:5]):
        length |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return 2 + index + length
    return 0


def _puback(packet: bytes) -> bytes:
    """The acknowledgement of a message of QoS 1. Source: MQTT 5.0, 3.3.2 and 3.4."""
    start = 2
    while packet[start - 1] & 0x80:
        start += 1
    topic_bytes = int.from_bytes(packet[start : start + 2], "big")
    identity = packet[start + 2 + topic_bytes : start + 4 + topic_bytes]
    return bytes([_PUBACK << 4, 2]) + identity
