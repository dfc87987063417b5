"""Answers frames with a model session: no socket, no loop; bytes become a request, a request becomes bytes."""

from __future__ import annotations

import time
from typing import Final, Union

import msgspec

from edgeship_agent.contract.errors import ContractError, EdgeshipError
from edgeship_agent.contract.frames import (
    LENGTH,
    LENGTH_BYTES,
    AnyInferRequest,
    DelayRequest,
    InferReply,
    InferRequest,
    LabelRequest,
    NotedReply,
    NoteRequest,
    OutcomeRequest,
    Reply,
    Request,
    StatusReply,
    StatusRequest,
    Tensor,
)
from edgeship_agent.processing.arrays import Array, dtype_name
from edgeship_agent.runtime.tensors import to_array, to_tensor, travelling_dtype
from edgeship_agent.serving.control import Neighbour
from edgeship_agent.serving.session import ModelSession
from edgeship_agent.serving.shared import PassedMemory

Memory = Union[PassedMemory, ContractError, None]
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)


#: Outputs of at most so many bytes are copied into the answer.
_SMALL_OUTPUT_BYTES: Final = 4096
#: What is answered without running the model.
_OTHERS: Final = (StatusRequest, LabelRequest, OutcomeRequest, DelayRequest)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A reply's frame, and what is still to be counted once it was sent."""

    frame: bytes | bytearray
    raw: dict[str, Array] | None = None
    outputs: dict[str, Array] | None = None
    latency_ns: int = 0
    late: bool = False


#: The request in a frame's payload, of which its tensors are views. Called for every request: no frame around it.
decode_request: Final = _decoder.decode
#: What :func:`decode_request` raises for bytes that are no request.
MALFORMED: Final = (msgspec.MsgspecError, ValueError, RecursionError)


class RequestHandler:
    """Turns requests into answers, one at a time, and counts them.

    Args:
        session: the model.
        deadline_us: of requests that name none; 0 for none.
    """

    def __init__(self, session: ModelSession, deadline_us: int = 0) -> None:
        self._session = session
        self._deadline_us = deadline_us
        self._prefix = session.prediction_prefix
        self._predictions = 0
        self._neighbours: tuple[Neighbour, ...] = ()

    def take_neighbours(self, neighbours: tuple[Neighbour, ...]) -> None:
        """Know the other models of the device; requests for them come here only where they cannot be passed on."""
        self._neighbours = neighbours

    def _why_not(self, request: AnyInferRequest, received_ns: int, memory: Memory) -> str:
        """Why a request for another model is not answered, as a sentence."""
        if request.model not in [each.model for each in self._neighbours]:
            return f"the model {request.model[:80]!r} is not served here, but {self._session.slot.slot.model!r}"
        if request.deadline_us and _elapsed_us(received_ns) > request.deadline_us:
            return f"shed: it waited longer than its deadline of {request.deadline_us / 1000:g} ms"
        return str(memory) if isinstance(memory, ContractError) else "the request cannot be passed on"

    def answer(self, request: Request, received_ns: int, memory: Memory = None) -> Answer:
        """Answer a request; whatever goes wrong inside becomes the reply's ``error``.

        Args:
            request: as decoded.
            received_ns: ``time.perf_counter_ns()`` when its last byte was here.
            memory: what the application shares, or why that cannot be used; None where nothing was passed.
        """
        if isinstance(request, _OTHERS):
            return self._answer_other(request)
        slot = self._session.slot.slot
        if request.model and request.model != slot.model:
            return self.refuse(request, self._why_not(request, received_ns, memory))
        deadline_us = request.deadline_us or self._deadline_us
        if deadline_us and _elapsed_us(received_ns) > deadline_us:
            self._session.count_shed()
            return self.refuse(request, f"shed: it waited longer than its deadline of {deadline_us / 1000:g} ms")
        raw: dict[str, Array] | None = None
        try:
            raw = _raw_inputs(request, memory)
            outputs = self._session.predict(raw)
            tensors = tuple([_output(name, array) for name, array in outputs.items()])
        except EdgeshipError as error:
            self._session.count_failure(raw, error)
            return self.refuse(request, str(error))
        except Exception as error:  # noqa: BLE001 (one call must never kill the worker)
            self._session.count_failure(raw, error)
            return self.refuse(request, f"internal error: {type(error).__name__}: {error}")
        latency_ns = time.perf_counter_ns() - received_ns
        self._predictions += 1
        reply = InferReply(
            request_id=request.request_id,
            prediction_id=f"{self._prefix}{self._predictions:x}",
            model=slot.model,
            version=slot.version,
            release_digest=slot.digest,
            latency_us=(latency_ns + 500) // 1000,
            tensors=tensors,
            arm=slot.arm,
        )
        late = 0 < deadline_us * 1000 < latency_ns
        return Answer(frame=_frame(reply), raw=raw, outputs=outputs, latency_ns=latency_ns, late=late)

    def shed(self, request: Request, reason: str) -> Answer:
        """Refuse an inference unseen and count it; other requests are answered."""
        if isinstance(request, _OTHERS):
            return self._answer_other(request)
        self._session.count_shed()
        return self.refuse(request, f"shed: {reason}")

    def refuse(self, request: AnyInferRequest, error: str) -> Answer:
        """An answer that holds nothing but an error."""
        slot = self._session.slot.slot
        reply = InferReply(
            request_id=request.request_id,
            prediction_id="",
            model=slot.model,
            version=slot.version,
            release_digest=slot.digest,
            latency_us=0,
            error=error,
            arm=slot.arm,
        )
        return Answer(frame=_frame(reply))

    def count(self, answer: Answer, *, pressed: bool = False) -> None:
        """Measure and count an answer that was sent; a signal that cannot be measured loses no answer.

        Args:
            answer: that was sent.
            pressed: see :meth:`CallRecorder.record`.
        """
        if answer.raw is None or answer.outputs is None:
            return
        self._session.count_answer(answer.raw, answer.outputs, answer.latency_ns, late=answer.late, pressed=pressed)

    def fail(self, request: Request, error: Exception) -> Answer:
        """The answer to a request whose answering failed as nobody foresaw."""
        sentence = f"internal error: {type(error).__name__}: {error}"
        if not isinstance(request, _OTHERS):
            return self.refuse(request, sentence)
        return Answer(frame=_frame(NotedReply(request_id=request.request_id, is_known=False, error=sentence)))

    def _answer_other(self, request: StatusRequest | NoteRequest) -> Answer:
        try:
            reply = self._status(request) if isinstance(request, StatusRequest) else self.note(request)
        except Exception as error:  # noqa: BLE001 (one call must never kill the worker)
            return self.fail(request, error)
        return Answer(frame=_frame(reply))

    def note(self, request: NoteRequest, *, final: bool = True) -> NotedReply:
        """Count a label, an outcome, or how late a stream's answers were.

        Args:
            request: as decoded.
            final: count a prediction that is not remembered here as unknown; else another arm is asked.
        """
        session = self._session
        try:
            if isinstance(request, LabelRequest):
                known = session.label(request.prediction_id, request.label, final=final)
            elif isinstance(request, DelayRequest):
                known = session.count_stream_delays(request.model, request.release_digest, request.counts)
            else:
                known = session.outcome(request.name, request.value, request.prediction_id, final=final)
        except EdgeshipError as error:
            return NotedReply(request_id=request.request_id, is_known=False, error=str(error))
        return NotedReply(request_id=request.request_id, is_known=known)

    def _status(self, request: StatusRequest) -> StatusReply:
        session = self._session
        return StatusReply(
            request_id=request.request_id,
            model=session.slot.slot.model,
            version=session.slot.slot.version,
            arm=session.slot.slot.arm,
            release_digest=session.slot.slot.digest,
            variant=session.slot.slot.variant,
            inferences=session.inferences,
            errors=session.failures,
            siblings=tuple((each.model, each.digest) for each in self._neighbours if each.is_sibling),
        )


def _raw_inputs(request: AnyInferRequest, memory: Memory) -> dict[str, Array]:
    if isinstance(request, InferRequest):
        return {tensor.name: to_array(tensor) for tensor in request.tensors}
    if memory is None:
        raise ContractError("no shared memory was passed on this connection")
    if isinstance(memory, ContractError):
        raise memory
    return memory.arrays(request.tensors)


def _output(name: str, array: Array) -> Tensor:
    """A tensor of the answer; of a small one the bytes are copied, which is quicker than to make a view of them."""
    dtype = travelling_dtype(name, array)
    if array.nbytes > _SMALL_OUTPUT_BYTES or array.dtype is not dtype:
        return to_tensor(name, array)
    return Tensor(name=name, dtype=dtype_name(dtype), shape=array.shape, data=array.tobytes())


def _frame(reply: Reply) -> bytearray:
    frame = bytearray(LENGTH_BYTES)
    _encoder.encode_into(reply, frame, LENGTH_BYTES)
    LENGTH.pack_into(frame, 0, len(frame) - LENGTH_BYTES)
    return frame


def _elapsed_us(since_ns: int) -> float:
    return (time.perf_counter_ns() - since_ns) / 1000.0
