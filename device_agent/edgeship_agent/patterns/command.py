"""``edgeship-agent stream``: puts source, model and sink together."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.patterns.ends import Lines, MqttEnd, read_pipe, watch_folder
from edgeship_agent.patterns.model import OpenModel, open_model
from edgeship_agent.patterns.stream import Message, Queue, Stream
from edgeship_agent.patterns.telling import DelayTeller


class _Source:
    """Fills a queue from a thread of its own until it is stopped."""

    def __init__(self, options: argparse.Namespace, model: OpenModel) -> None:
        is_topic = options.source.startswith(("mqtt:", "mqtts:"))
        self.queue = Queue(options.queue, drops=options.drop or is_topic)
        self._stop = threading.Event()
        self._topic: MqttEnd | None = None
        self._number = 0
        if is_topic:
            self._topic = MqttEnd(options.source, options.queue).start(self._came)
        elif options.source == "-":
            self._begin(lambda: read_pipe(sys.stdin.buffer, self.queue, framed=options.bytes))
        else:
            folder = Path(options.source)
            if not folder.is_dir():
                raise ConfigError("no such folder", file=folder, key="SOURCE", expected="-, a folder, mqtt://…")
            self._begin(lambda: watch_folder(folder, model.manifest, self.queue, self._stop))

    def _begin(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="source", daemon=True).start()

    def _came(self, payload: bytes) -> None:
        self.queue.put(Message(key=str(self._number), time_s=time.time(), data=payload))
        self._number += 1

    def close(self) -> None:
        """Take no more messages; those that wait are still answered."""
        self._stop.set()
        self.queue.end()
        if self._topic is not None:
            self._topic.close()


def run_stream(
    options: argparse.Namespace, place: Path, say: Callable[[str], None], agent_socket: Path | None = None
) -> int:
    """Run until the source ends, the count is reached or a signal comes; the exit code.

    Args:
        options: of the command line.
        place: of the model.
        say: takes a line of progress.
        agent_socket: of the agent that is told the delays; None for none.

    Raises:
        ConfigError: a source, sink or model that cannot be used.
        InputError: stdin holds no lines or frames.
        KeyboardInterrupt: after the summary.
    """
    with open_model(place, variant=options.variant, threads=options.threads) as model:
        is_topic = options.sink != "-"
        sink = MqttEnd(options.sink, options.queue).start() if is_topic else Lines(sys.stdout.buffer)
        source = _Source(options, model)
        stream = Stream(model, sink, source.queue, time.time, is_bytes=options.bytes)
        signal.signal(signal.SIGTERM, lambda *_: source.queue.end())
        teller = None if agent_socket is None else DelayTeller(stream.delays, model.slot.slot, agent_socket).start()
        report = _Reports(stream, sink, options.report_s, say)
        try:
            stream.run(options.count, report.tell)
        finally:
            source.close()
            sink.close()
            if teller is not None:
                teller.close()
            report.last(as_json=options.json, told=None if teller is None else teller.told)
    return InputError.exit_code if stream.bad else 0


class _Reports:
    """Says in between how the stream fares; on a topic beside the answers too."""

    def __init__(self, stream: Stream, sink: Lines | MqttEnd, every_s: float, say: Callable[[str], None]) -> None:
        self._stream, self._sink, self._every_s, self._say = stream, sink, every_s, say
        self._said_s = time.monotonic()

    def tell(self) -> None:
        """After an answer: a report where one is due."""
        if time.monotonic() - self._said_s < self._every_s:
            return
        self._said_s = time.monotonic()
        self._say(self._words())
        if isinstance(self._sink, MqttEnd):
            self._sink.publish_beside("summary", self._stream.summary())

    def last(self, *, as_json: bool, told: int | None) -> None:
        """The summary; ``told`` is how many delays the agent took, None where none was asked."""
        known = self._stream.summary() | {"told_agent": told}
        untold = 0 if told is None else known["published"] - told
        self._say(self._words() + (f" · {untold} delays not in the agent's telemetry" if untold else ""))
        if as_json:
            sys.stdout.buffer.write(msgspec.json.encode(known) + b"\n")
            sys.stdout.buffer.flush()

    def _words(self) -> str:
        known = self._stream.summary()
        return (
            f"{known['predictions']} predictions of {known['messages']} messages · {known['bad']} bad · "
            f"{known['dropped']} dropped · {known['unpublished']} not published · "
            f"delay p50 {known['delay_p50_ms']} ms, "
            f"p99 {known['delay_p99_ms']} ms"
        )
