"""A model over a stream: messages in, windows cut from them, predictions out, and the delay from end to end.

Between the source and the model is a queue of a fixed length. A source that can wait (a pipe, a folder) waits while it
is full; of one that cannot (a topic) the oldest message goes, and is counted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import numpy as np
from msgspec import UNSET, Struct

from edgeship_agent.contract.errors import ConfigError, EdgeshipError, InputError
from edgeship_agent.contract.manifest import BundleManifest, InputContract, StreamWindow
from edgeship_agent.contract.sketch import ExponentialSketch, bucket_index, quantile
from edgeship_agent.patterns.answers import Reader, fault
from edgeship_agent.patterns.model import OpenModel
from edgeship_agent.patterns.samples import array_of, from_bytes, from_json, parse_json
from edgeship_agent.processing.arrays import Array

SCHEMA_VERSION: Final = 1
#: A piece of a stream may be so many windows long.
_MOST_WINDOWS: Final = 64


class Message(Struct, frozen=True, kw_only=True, eq=False):
    """What a source hands over.

    Attributes:
        key: names it in the answer.
        data: JSON text or bytes; arrays by input name where the source has read them already.
        time_s: when it came about (UNIX time), as the source knows it.
        error: why the source could not read it.
        gap: whether messages before it were lost.
    """

    key: str
    time_s: float
    data: bytes | dict[str, Array] = b""
    error: EdgeshipError | None = None
    gap: bool = False


class Sink(Protocol):
    """Takes documents, and says when one is out."""

    def publish(self, document: dict[str, Any], done: Callable[[], None]) -> bool:
        """Hand a document over; ``done`` is called when it is out. False where it had to be dropped."""
        ...

    def close(self) -> None:
        """Bring what is under way out."""
        ...


class Queue:
    """Messages between a source's thread and the model's.

    Args:
        length: how many may wait.
        drops: whether the oldest goes where it is full; else ``put`` waits.
    """

    def __init__(self, length: int, *, drops: bool) -> None:
        self._waiting: deque[Message] = deque()
        self._length, self._drops = length, drops
        self._changed = threading.Condition()
        self._is_ended = False
        self._failure: EdgeshipError | None = None
        self.dropped = 0

    def put(self, message: Message) -> bool:
        """Let a message wait; False where nobody takes any more."""
        with self._changed:
            while len(self._waiting) >= self._length and not self._drops and not self._is_ended:
                self._changed.wait()
            if self._is_ended:
                return False
            if len(self._waiting) >= self._length:
                self._waiting.popleft()
                self.dropped += 1
                if self._waiting:
                    self._waiting[0] = _behind_a_gap(self._waiting[0])
                else:
                    message = _behind_a_gap(message)
            self._waiting.append(message)
            self._changed.notify_all()
            return True

    def end(self, failure: EdgeshipError | None = None) -> None:
        """No message comes any more; what waits is still taken."""
        with self._changed:
            self._is_ended = True
            self._failure = self._failure or failure
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Message]:
        while True:
            with self._changed:
                while not self._waiting and not self._is_ended:
                    self._changed.wait(0.2)  # a signal is looked at in between
                if not self._waiting:
                    if self._failure is not None:
                        raise self._failure
                    return
                message = self._waiting.popleft()
                self._changed.notify_all()
            yield message


def _behind_a_gap(message: Message) -> Message:
    return Message(key=message.key, time_s=message.time_s, data=message.data, error=message.error, gap=True)


class Windower:
    """Cuts windows from the pieces of a stream.

    Args:
        contract: of the input; its shape is that of one window.
        window: length and hop along the first axis.

    >>> contract = InputContract(tensor="x", dtype="int16", shape=(4,))
    >>> cut = Windower(contract, StreamWindow(length=4, hop=2))
    >>> [window.tolist() for piece in ([1, 2, 3], [4, 5, 6]) for window in cut.push(np.array(piece, np.int16))]
    [[1, 2, 3, 4], [3, 4, 5, 6]]
    """

    def __init__(self, contract: InputContract, window: StreamWindow) -> None:
        self._tail = contract.shape[1:]
        self._tensor = contract.tensor
        self._length, self._hop = window.length, window.hop
        self._held = np.zeros((0, *self._tail), contract.dtype)
        self._skip = 0

    def push(self, piece: Array) -> list[Array]:
        """The windows that a piece completes.

        Raises:
            InputError: another shape than the stream's, or too long.
        """
        if piece.ndim != 1 + len(self._tail) or piece.shape[1:] != self._tail:
            expected = ", ".join(["any", *map(str, self._tail)])
            raise InputError("wrong piece of a stream", key=self._tensor, expected=f"[{expected}]",
                             got=str(list(piece.shape)))  # fmt: skip
        if len(piece) > _MOST_WINDOWS * self._length:
            raise InputError("a piece that is too long", key=self._tensor, expected=f"≤ {_MOST_WINDOWS * self._length}",
                             got=len(piece))  # fmt: skip
        held = np.concatenate([self._held, piece])
        skipped = min(self._skip, len(held))
        self._skip -= skipped
        held, windows = held[skipped:], []
        while len(held) >= self._length and not self._skip:
            windows.append(held[: self._length].copy())
            self._skip = max(self._hop - len(held), 0)
            held = held[self._hop :]
        self._held = held.copy()
        return windows

    def clear(self) -> None:
        """Begin anew, behind a gap."""
        self._held, self._skip = self._held[:0], 0


class Delays:
    """Delays from the source's time to when an answer was out, in µs; used by several threads at once."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._untold: dict[int, int] = {}
        self._lock = threading.Lock()
        self.count = 0

    def add(self, delay_s: float) -> None:
        """One more; a clock that went back counts as no delay."""
        index = bucket_index(max(delay_s * 1e6, 1.0))
        with self._lock:
            self._counts[index] = self._counts.get(index, 0) + 1
            self._untold[index] = self._untold.get(index, 0) + 1
            self.count += 1

    def quantile_ms(self, share: float) -> float | None:
        """That quantile, or None before the first one."""
        with self._lock:
            found = quantile(ExponentialSketch(counts=dict(self._counts)), share) if self._counts else None
        return None if found is None else round(found / 1000.0, 3)

    def take_untold(self) -> dict[int, int]:
        """Bucket → delays since the last time; what :meth:`put_back` gave back is among them."""
        with self._lock:
            untold, self._untold = self._untold, {}
            return untold

    def put_back(self, counts: dict[int, int]) -> None:
        """These could not be told."""
        with self._lock:
            for index, count in counts.items():
                self._untold[index] = self._untold.get(index, 0) + count


class Stream:
    """Runs a model over a queue of messages.

    Args:
        model: opened.
        sink: takes the answers.
        queue: what the source fills.
        wall: UNIX time.
        is_bytes: whether a message is the bytes of the only input, rather than JSON.

    Attributes:
        delays: from the source's time until the answer was out.

    Raises:
        ConfigError: a window, for a model of several inputs.
    """

    def __init__(
        self, model: OpenModel, sink: Sink, queue: Queue, wall: Callable[[], float], *, is_bytes: bool = False
    ) -> None:
        self._model, self._sink, self._queue, self._wall, self._is_bytes = model, sink, queue, wall, is_bytes
        self._reader = Reader(model.manifest.output)
        self._windower = windower_of(model.manifest)
        self.delays = Delays()
        self.messages = self.predictions = self.bad = self.unpublished = self.gaps = 0

    def run(self, most: int = 0, on_answer: Callable[[], None] = lambda: None) -> None:
        """Answer until the source ends, or after ``most`` predictions."""
        for message in self._queue:
            self.messages += 1
            try:
                if message.error is not None:
                    raise message.error
                self._answer(message)
            except EdgeshipError as error:
                if isinstance(error, ConfigError):
                    raise
                self.bad += 1
                self._publish({"key": message.key, "error": fault(error)}, message.time_s)
            on_answer()
            if most and self.predictions >= most:
                return

    def summary(self) -> dict[str, Any]:
        """Counts so far, and the delay from end to end."""
        slot = self._model.slot.slot
        return {
            "schema_version": SCHEMA_VERSION,
            "model": slot.model,
            "version": slot.version,
            "release_digest": slot.digest,
            "messages": self.messages,
            "predictions": self.predictions,
            "bad": self.bad,
            "dropped": self._queue.dropped,
            "gaps": self.gaps,
            "unpublished": self.unpublished,
            "published": self.delays.count,
            "delay_p50_ms": self.delays.quantile_ms(0.5),
            "delay_p99_ms": self.delays.quantile_ms(0.99),
        }

    def _answer(self, message: Message) -> None:
        if message.gap and self._windower is not None:
            self._windower.clear()
            self.gaps += 1
        key, time_s, samples = self._samples(message)
        for raw in samples:
            outputs = self._model.predict(raw)
            self.predictions += 1
            self._publish({"key": key, "time_s": time_s, **self._reader.read(outputs)}, time_s)

    def _publish(self, document: dict[str, Any], time_s: float) -> None:
        def done() -> None:
            self.delays.add(self._wall() - time_s)

        self.unpublished += not self._sink.publish(document, done)

    def _samples(self, message: Message) -> tuple[str, float, list[dict[str, Array]]]:
        manifest, key, time_s = self._model.manifest, message.key, message.time_s
        if isinstance(message.data, dict):
            raw = message.data
            if self._windower is None:
                return key, time_s, [raw]
            return key, time_s, self._windows(next(iter(raw.values())))
        if self._is_bytes:
            if self._windower is None:
                return key, time_s, [from_bytes(message.data, manifest)]
            return key, time_s, self._windows(_piece(message.data, manifest.input_contracts[0]))
        document = parse_json(message.data, place=key)
        if not isinstance(document, dict) or "inputs" not in document:
            document = {"inputs": document}
        key, time_s = str(document.get("key", key)), document.get("time_s", time_s)
        if isinstance(time_s, bool) or not isinstance(time_s, int | float):
            raise InputError("not a time", key="time_s", expected="seconds since 1970", got=str(time_s)[:80])
        if self._windower is None:
            return key, float(time_s), [from_json(document["inputs"], manifest)]
        contract, inputs = manifest.input_contracts[0], document["inputs"]
        piece = inputs.get(contract.tensor) if isinstance(inputs, dict) else inputs
        return key, float(time_s), self._windows(array_of(piece, contract))

    def _windows(self, piece: Array) -> list[dict[str, Array]]:
        assert self._windower is not None
        tensor = self._model.manifest.input_contracts[0].tensor
        return [{tensor: window} for window in self._windower.push(piece)]


def windower_of(manifest: BundleManifest) -> Windower | None:
    """What cuts the model's windows; None where each message is one sample.

    Raises:
        ConfigError: a window, for a model of several inputs.
    """
    windows = [contract for contract in manifest.input_contracts if contract.window is not UNSET]
    if not windows:
        return None
    if len(manifest.input_contracts) != 1:
        raise ConfigError("windows of a stream are for a model of one input", key="window",
                          got=", ".join(contract.tensor for contract in manifest.input_contracts))  # fmt: skip
    window = windows[0].window
    assert isinstance(window, StreamWindow)
    return Windower(windows[0], window)


def _piece(data: bytes, contract: InputContract) -> Array:
    dtype = np.dtype(contract.dtype).newbyteorder("<")
    row_bytes = int(np.prod(contract.shape[1:])) * dtype.itemsize
    if not row_bytes or len(data) % row_bytes:
        raise InputError("wrong number of bytes", key=contract.tensor, expected=f"a multiple of {row_bytes}",
                         got=len(data))  # fmt: skip
    return np.frombuffer(data, dtype).reshape(-1, *contract.shape[1:]).astype(contract.dtype, copy=False)
