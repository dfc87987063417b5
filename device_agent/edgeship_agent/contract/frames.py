"""What applications and the inference service say to each other over the Unix socket.

A frame is a 4-byte little-endian length and a MessagePack array. Tensors travel by name, as C-ordered bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    Buffer = bytes | memoryview
else:
    #: Read as a view into the frame, without a copy; anything with a buffer may be written.
    Buffer = memoryview

#: Longest frame that a peer accepts, in bytes.
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
#: Of what follows, in bytes.
LENGTH: Final = struct.Struct("<I")
LENGTH_BYTES: Final = LENGTH.size
#: Tensors of more bytes than this go through shared memory.
SHARED_ABOVE_BYTES: Final = 32_768


class Tensor(Struct, frozen=True, kw_only=True, array_like=True):
    """One named array.

    Attributes:
        dtype: numpy's name of the type, such as ``uint8`` or ``float32``.
        data: C-ordered little-endian bytes, ``prod(shape) × itemsize`` of them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Buffer


class InferRequest(Struct, frozen=True, kw_only=True, array_like=True, tag="infer"):
    """Run a model on raw application inputs (before the manifest's preprocessing).

    Attributes:
        request_id: chosen by the client, repeated in the reply.
        model: name of the model, or empty for the only one (where there are several: the first by name).
        deadline_us: how long the answer is of use, in µs from receipt; 0 for no deadline.
        split_key: what A/B arms are chosen by; empty for none.
        arm: name of the arm that has to answer; empty where the agent's own split decides.
    """

    request_id: int
    model: str
    tensors: tuple[Tensor, ...]
    deadline_us: int = 0
    split_key: str = ""
    arm: str = ""


class SharedTensor(Struct, frozen=True, kw_only=True, array_like=True):
    """One named array in memory that the application shares with the inference service.

    Attributes:
        dtype, shape: as in :class:`Tensor`.
        offset: where its bytes begin in the shared memory.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SharedInferRequest(Struct, frozen=True, kw_only=True, array_like=True, tag="infer_shared"):
    """An :class:`InferRequest` whose tensors lie in shared memory instead of the frame.

    The memory is the memfd that was last passed on this connection (``SCM_RIGHTS``), with this frame or before it. It
    must be sealed against shrinking. Its bytes must stay as they are until the answer to the *next* request is there,
    or the connection is closed: signals are measured after the answer.
    """

    request_id: int
    model: str
    tensors: tuple[SharedTensor, ...]
    deadline_us: int = 0
    split_key: str = ""
    arm: str = ""


class StatusRequest(Struct, frozen=True, kw_only=True, array_like=True, tag="status"):
    """Ask which model is served.

    Attributes:
        model: as in :class:`InferRequest`.
    """

    request_id: int
    model: str = ""


class LabelRequest(Struct, frozen=True, kw_only=True, array_like=True, tag="label"):
    """Say what the right answer to an earlier prediction was.

    Attributes:
        prediction_id: from the answer.
        label: index of the class, or its name where the output contract names the classes.
        arm: as in :class:`InferRequest`.
    """

    request_id: int
    prediction_id: str
    label: int | str
    arm: str = ""


class OutcomeRequest(Struct, frozen=True, kw_only=True, array_like=True, tag="outcome"):
    """Say what became of an earlier prediction in the application's own figures.

    Attributes:
        name: of the figure, its unit last, such as ``rework_minutes``.
        value: a finite number.
        prediction_id: from the answer.
        arm: as in :class:`InferRequest`.
    """

    request_id: int
    name: str
    value: float
    prediction_id: str
    arm: str = ""


class DelayRequest(Struct, frozen=True, kw_only=True, array_like=True, tag="delays"):
    """Say how late the answers of a stream were that ran this model in a process of its own.

    Attributes:
        model, release_digest: that answered; counted only where this worker serves the same release.
        counts: bucket → answers, of an exponential sketch in µs (scale 3), since the last such request.
    """

    request_id: int
    model: str
    release_digest: str
    counts: dict[int, int]


class InferReply(Struct, frozen=True, kw_only=True, array_like=True, tag="answer"):
    """The answer to an :class:`InferRequest`.

    Attributes:
        prediction_id: unique on this device; names this prediction in a later label.
        release_digest: digest of the bundle that answered.
        latency_us: time from the frame's receipt to the answer, preprocessing included.
        error: empty, or one sentence; then ``tensors`` is empty.
        arm: that answered.
    """

    request_id: int
    prediction_id: str
    model: str
    version: str
    release_digest: str
    latency_us: int
    tensors: tuple[Tensor, ...] = ()
    error: str = ""
    arm: str = ""


class StatusReply(Struct, frozen=True, kw_only=True, array_like=True, tag="status_reply"):
    """The answer to a :class:`StatusRequest`.

    Attributes:
        siblings: name and release digest of the models that were switched together with this one.
    """

    request_id: int
    model: str
    version: str
    arm: str
    release_digest: str
    variant: str
    inferences: int
    errors: int
    siblings: tuple[tuple[str, str], ...] = ()


class NotedReply(Struct, frozen=True, kw_only=True, array_like=True, tag="noted"):
    """The answer to a :class:`LabelRequest`, an :class:`OutcomeRequest` or a :class:`DelayRequest`.

    Attributes:
        is_known: whether the prediction is still remembered; otherwise the label was counted as unknown. Of delays:
            whether that release is served; otherwise they were not counted.
        error: empty, or one sentence; then nothing was counted.
    """

    request_id: int
    is_known: bool
    error: str = ""


AnyInferRequest = InferRequest | SharedInferRequest
NoteRequest = LabelRequest | OutcomeRequest | DelayRequest
Request = InferRequest | SharedInferRequest | StatusRequest | LabelRequest | OutcomeRequest | DelayRequest
Reply = InferReply | StatusReply | NotedReply


class TensorFile(Struct, frozen=True, kw_only=True):
    """Named tensors of several samples on disk: golden inputs and golden outputs of a bundle (MessagePack map)."""

    schema_version: int = 1
    samples: tuple[tuple[Tensor, ...], ...]
