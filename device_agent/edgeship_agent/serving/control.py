"""What the supervisor and a worker say to each other over their socket pair.

A message is a 4-byte little-endian length and a MessagePack array. End of file on either side means that the other one
died: a worker then exits at once.
"""

from __future__ import annotations

from typing import Final, Union

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.frames import LENGTH_BYTES
from edgeship_agent.contract.messages import Window
from edgeship_agent.serving.looking import LONGEST_LOOK_US

#: Longest control message: a window with 64 classes and some hundred signals stays far below, and what a worker hands
#: on is cut to it (:data:`edgeship_agent.telemetry.ring.MOST_HANDED_ON_BYTES`).
MAX_CONTROL_BYTES: Final = 4 * 1024 * 1024


class Ready(Struct, frozen=True, kw_only=True, array_like=True, tag="ready"):
    """Worker: the model is loaded, warmed up, and the socket is listening."""

    digest: str
    model: str
    version: str
    variant: str
    memory_bytes: int
    arm: str = ""


class WindowClosed(Struct, frozen=True, kw_only=True, array_like=True, tag="window"):
    """Worker: a window, with ``seq`` 0; the supervisor numbers and stores it."""

    window: Window


class Counters(Struct, frozen=True, kw_only=True, array_like=True, tag="counters"):
    """Worker, every second: totals since it was started.

    Attributes:
        latency_p99_ms: upper bound of its bucket (9 % wide), so never too low; 0 before the first call.
        hard_stops: those seen so far, from closed windows.
    """

    inferences: int
    failures: int
    deadline_misses: int
    shed: int
    latency_p99_ms: float
    memory_bytes: int = 0
    hard_stops: tuple[str, ...] = ()


class Failed(Struct, frozen=True, kw_only=True, array_like=True, tag="failed"):
    """Worker: it could not serve and is about to exit.

    Attributes:
        reason: ``slot``, ``engine``, ``warmup`` or ``socket``.
        detail: one sentence for people.
    """

    reason: str
    detail: str


class Replayed(Struct, frozen=True, kw_only=True, array_like=True, tag="replayed"):
    """Worker: the answer to :class:`Replay`.

    Attributes:
        relative_rms: -1 where it has no value.
        inferences: golden inputs that were run; they count as no traffic and are in no window.
        reason: empty where passed.
    """

    passed: bool
    relative_rms: float
    inferences: int
    reason: str = ""


class Drained(Struct, frozen=True, kw_only=True, array_like=True, tag="drained"):
    """Worker: every accepted request is answered and every connection is closed; it waits for :class:`Stop`."""

    inferences: int


class HandOn(Struct, frozen=True, kw_only=True, array_like=True, tag="hand_on"):
    """Worker, before :class:`Drained` and when asked; and supervisor to the worker that takes its place.

    Attributes:
        predictions: what labels may still come for, as :mod:`edgeship_agent.telemetry.ring` writes it.
        lost: how the ids of predictions begin that were lost with a worker that died.
    """

    predictions: tuple[bytes, ...]
    lost: tuple[str, ...] = ()


class Recall(Struct, frozen=True, kw_only=True, array_like=True, tag="recall"):
    """Supervisor: say what is remembered so far; another worker is about to take over."""


class Drain(Struct, frozen=True, kw_only=True, array_like=True, tag="drain"):
    """Supervisor: take no new requests, finish those in flight, close the connections."""


class Replay(Struct, frozen=True, kw_only=True, array_like=True, tag="replay"):
    """Supervisor: run the golden inputs through the live engine.

    Attributes:
        inferences: repeat them until at least so many were run; once at least.
    """

    inferences: int = 0


class ArmShare(Struct, frozen=True, kw_only=True, array_like=True):
    """Another arm of the same model.

    Attributes:
        share: of the requests that it answers, 0–1.
        socket: where its worker listens.
        mirror: of the requests that it answers beside this arm, unseen by the application, 0–1: a shadow.
        cpu_ratio: of the time that a shadow may be busy, 0–1.
    """

    arm: str
    version: str
    digest: str
    share: float
    socket: str
    mirror: float = 0.0
    cpu_ratio: float = 1.0


class Neighbour(Struct, frozen=True, kw_only=True, array_like=True):
    """Another model of this device.

    Attributes:
        socket: where its worker listens; empty while it has none that is ready.
        digest: of the bundle that answers; empty likewise.
        prefixes: how the ids of predictions begin that labels may still come for.
        is_sibling: it was switched together with this model: they are of one release.
    """

    model: str
    socket: str
    digest: str
    prefixes: tuple[str, ...] = ()
    is_sibling: bool = False


class Split(Struct, frozen=True, kw_only=True, array_like=True, tag="split"):
    """Supervisor: the table of who else answers; what is nobody else's is this worker's.

    Attributes:
        salt: keeps the split of one experiment apart from that of the next.
        order: names of all arms of this model, this one too, in the order in which they share the keys.
        others: the other arms of this model.
        neighbours: the other models of this device.
        first: the model that is meant where a request names none; empty for this worker's.
    """

    salt: str
    order: tuple[str, ...]
    others: tuple[ArmShare, ...]
    neighbours: tuple[Neighbour, ...] = ()
    first: str = ""


class Open(Struct, frozen=True, kw_only=True, array_like=True, tag="open"):
    """Supervisor: answer what waits at the door; a worker that was started ``held`` takes nothing before."""


class Stop(Struct, frozen=True, kw_only=True, array_like=True, tag="stop"):
    """Supervisor: exit now."""


FromWorker = Union[Ready, WindowClosed, Counters, Failed, Replayed, HandOn, Drained]
FromSupervisor = Union[Drain, Recall, Replay, HandOn, Split, Open, Stop]
ControlMessage = Union[FromWorker, FromSupervisor]


class WorkerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker serves; travels as JSON on its command line.

    Attributes:
        threads: of one inference.
        window_s, window_inferences: when a window closes.
        deadline_ms: of requests that name none; 0 for none.
        max_waiting: requests that may wait for the engine; one more is shed.
        max_frame_bytes: longest frame that is taken.
        socket_mode: permissions of the socket.
        clock_quality: written into every window.
        counters_s: how often :class:`Counters` is sent.
        remembered_predictions: how many predictions labels and outcomes may still come for.
        spin_us: how long the worker looks for the next request, after an answer, before it sleeps; at most.
        held: applications wait at the door until the supervisor says :class:`Open`.
    """

    threads: int = 1
    window_s: float = 60.0
    window_inferences: int = 500
    deadline_ms: float = 0.0
    max_waiting: int = 64
    max_frame_bytes: int = 64 * 1024 * 1024
    socket_mode: int = 0o660
    clock_quality: str = "unknown"
    counters_s: float = 1.0
    remembered_predictions: int = 10_000
    spin_us: int = LONGEST_LOOK_US
    held: bool = False


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[ControlMessage]] = msgspec.msgpack.Decoder(ControlMessage)


def encode_control(message: ControlMessage) -> bytes:
    """A message with its length in front."""
    data = _encoder.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


class ControlReader:
    """Puts received bytes together into messages.

    >>> reader = ControlReader()
    >>> data = encode_control(Replay(inferences=3)) + encode_control(Stop())
    >>> reader.feed(data[:5]), reader.feed(data[5:])
    ([], [Replay(inferences=3), Stop()])
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[ControlMessage]:
        """The messages that are complete with these bytes.

        Raises:
            ContractError: too long, or not a control message.
        """
        self._buffer += data
        messages: list[ControlMessage] = []
        while len(self._buffer) >= LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:LENGTH_BYTES], "little")
            if length > MAX_CONTROL_BYTES:
                raise ContractError("control message too long", expected=f"≤ {MAX_CONTROL_BYTES}", got=length)
            end = LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            data = bytes(self._buffer[LENGTH_BYTES:end])
            del self._buffer[:end]
            try:
                messages.append(_decoder.decode(data))
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise ContractError(f"unreadable control message: {error}") from error
        return messages
