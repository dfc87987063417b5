"""Several arms, several models: every worker passes on what another one has to answer, and mirrors inputs to a shadow.

Applications open one socket, whichever worker is behind it. What cannot be passed on to another arm, since its worker
has just died, is answered here: a test never costs an application its answer. Another model's answer nobody else can
give: there the connection is closed, as by a worker that died itself, and the application asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
from msgspec import structs

from edgeship_agent.contract.errors import ContractError, EdgeshipError
from edgeship_agent.contract.frames import (
    LENGTH_BYTES,
    AnyInferRequest,
    DelayRequest,
    InferReply,
    InferRequest,
    LabelRequest,
    OutcomeRequest,
    Request,
    StatusRequest,
)
from edgeship_agent.contract.messages import ShadowTally
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime.tensors import to_array, to_tensor
from edgeship_agent.serving.connection import Connection
from edgeship_agent.serving.control import ArmShare, Neighbour, Split
from edgeship_agent.serving.dividing import arm_of, place_of
from edgeship_agent.serving.loop import Loop
from edgeship_agent.serving.requests import Answer, Memory
from edgeship_agent.serving.session import ModelSession
from edgeship_agent.serving.upstream import Upstream

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(InferReply)
#: A shadow may save up so much of the time that it did not use, in seconds.
_MOST_SAVED_S: Final = 1.0


class Splitter:
    """Passes requests on to other arms.

    Args:
        loop: of this worker.
        session: of this worker.
        boot_id: names this start of the agent.
        answer_here: answers a request with this worker's own model after all.
        on_settled: called when a request that was passed on is answered.
    """

    def __init__(
        self,
        loop: Loop,
        session: ModelSession,
        boot_id: str,
        answer_here: Callable[[Connection, Request, int], None],
        on_settled: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._session = session
        self._boot_id = boot_id
        self._answer_here = answer_here
        self._on_settled = on_settled
        self._split = Split(salt="", order=(), others=())
        self._is_alone = True
        self._neighbours: dict[str, Neighbour] = {}
        self._upstreams: dict[tuple[Connection, str], Upstream] = {}
        self._shadow: Mirror | None = None
        self._requests = 0
        #: Requests that were passed on and not answered yet.
        self.outstanding = 0

    def change(self, split: Split) -> None:
        """Take another division of the traffic; what was passed on is still answered by whom it was passed to."""
        self._split = split
        self._is_alone = not split.others and not split.neighbours
        self._neighbours = {each.model: each for each in split.neighbours}
        mirrored = next((arm for arm in split.others if arm.mirror > 0.0), None)
        if self._shadow is None or mirrored != self._shadow.arm:
            if self._shadow is not None:
                self._shadow.close()
            self._shadow = None if mirrored is None else Mirror(self._loop, self._session, mirrored)

    @property
    def is_alone(self) -> bool:
        """Whether nobody else is there, so that nothing here need be asked."""
        return self._is_alone

    def passes_on(self, door: Connection, request: Request, received_ns: int) -> bool:
        """Pass a request on if another arm has to answer it; False where it is this worker's."""
        other = self._other_for(request)
        if other is None:
            return False
        upstream, is_neighbour = self._upstream(door, other.socket), isinstance(other, Neighbour)
        if upstream is None and is_neighbour:
            door.drop()
            return True
        frame = None if upstream is None else _frame_for(request, other, door.memory, received_ns)
        if upstream is None or frame is None:
            return False
        self.outstanding += 1
        upstream.send(frame, lambda reply: self._settle(door, request, received_ns, reply, is_neighbour=is_neighbour))
        return True

    def _other_for(self, request: Request) -> ArmShare | Neighbour | None:
        """Who else has to answer a request, or None."""
        if isinstance(request, (LabelRequest, OutcomeRequest)):
            return self._who_knows(request)
        model, own = request.model or self._split.first, self._session.slot.slot.model
        if model != own and model in self._neighbours:
            return self._neighbours[model]
        if isinstance(request, (StatusRequest, DelayRequest)) or not self._split.others:
            return None
        return self._arm_of(request)

    def mirror(self, request: Request, answer: Answer) -> None:
        """Show an answered request to the shadow, if one is there and the budget allows it."""
        if self._shadow is not None and answer.raw is not None and answer.outputs is not None:
            self._shadow.show(request, answer.raw, answer.outputs)

    def forget(self, door: Connection) -> None:
        """A connection is gone."""
        for key in [key for key in self._upstreams if key[0] is door]:
            upstream = self._upstreams.pop(key)
            was_busy = upstream.is_busy
            upstream.close()
            if was_busy:
                self.outstanding -= 1
                self._on_settled()

    def close(self) -> None:
        """Close every connection to other arms."""
        for door, _ in list(self._upstreams):
            self.forget(door)
        if self._shadow is not None:
            self._shadow.close()

    def _settle(
        self, door: Connection, request: Request, received_ns: int, reply: bytes | None, *, is_neighbour: bool
    ) -> None:
        self.outstanding -= 1
        if reply is None and is_neighbour:
            door.drop()
        elif reply is None:
            self._answer_here(door, request, received_ns)
        else:
            door.reply(reply)
            door.finish()
        self._on_settled()

    def _arm_of(self, request: AnyInferRequest) -> ArmShare | None:
        if request.arm:  # asked for by name, or passed on by another worker already; nobody may ask for a shadow
            return next((arm for arm in self._split.others if arm.arm == request.arm and arm.mirror == 0.0), None)
        if request.model not in ("", self._session.slot.slot.model):
            return None
        self._requests += 1
        key = request.split_key or f"{self._boot_id}.{self._requests}"
        shares = {arm.arm: arm.share for arm in self._split.others}
        own = self._session.slot.slot.arm
        shares[own] = max(1.0 - sum(shares.values()), 0.0)
        chosen = arm_of(place_of(self._split.salt, key), [(arm, shares[arm]) for arm in self._split.order[1:]])
        chosen = chosen or self._split.order[0]
        return next((arm for arm in self._split.others if arm.arm == chosen), None)

    def _who_knows(self, request: LabelRequest | OutcomeRequest) -> ArmShare | Neighbour | None:
        if request.arm or self._session.predictions.locate(request.prediction_id) is not None:
            return None
        for neighbour in self._split.neighbours:
            if request.prediction_id.startswith(neighbour.prefixes):
                return neighbour
        return next((arm for arm in self._split.others if arm.mirror == 0.0), None)

    def _upstream(self, door: Connection, path: str) -> Upstream | None:
        key = (door, path)
        known = self._upstreams.get(key)
        if not path:
            return None
        if known is None or not known.is_open:
            try:
                known = self._upstreams[key] = Upstream(self._loop, path)
            except OSError:
                self._upstreams.pop(key, None)
                return None
        return None if known.is_busy else known


class Mirror:
    """Shows inputs to a shadow, within its part of the time, and compares what it says.

    Args:
        loop: of this worker.
        session: the champion; takes the figures.
        arm: the shadow, its share of the inputs and of the time.
    """

    def __init__(self, loop: Loop, session: ModelSession, arm: ArmShare) -> None:
        self.arm = arm
        self._loop = loop
        self._session = session
        self._upstream: Upstream | None = None
        self._seen = 0
        self._saved_s = 0.0
        self._looked_s = time.monotonic()

    def show(self, request: Request, raw: dict[str, Array], outputs: dict[str, Array]) -> None:
        """Draw an input with the shadow's share; drop and count it where the shadow has no time for it."""
        self._seen += 1
        if place_of(self.arm.digest, str(self._seen)) >= self.arm.mirror:
            return
        if not self._has_time() or not self._is_reachable():
            self._tell(dropped=1)
            return
        assert self._upstream is not None
        name, first = next(iter(outputs.items()))
        champion = np.array(first, np.float64)  # a copy: the engine writes its outputs to the same place again
        tensors = tuple(to_tensor(tensor, array) for tensor, array in raw.items())
        mirrored = InferRequest(
            request_id=request.request_id, model=self._session.slot.slot.model, tensors=tensors, arm=self.arm.arm
        )
        self._upstream.send(_framed(mirrored), lambda reply: self._compare(name, champion, reply))

    def close(self) -> None:
        """Let the shadow go."""
        if self._upstream is not None:
            self._upstream.close()

    def _has_time(self) -> bool:
        now_s = time.monotonic()
        self._saved_s = min(self._saved_s + (now_s - self._looked_s) * self.arm.cpu_ratio, _MOST_SAVED_S)
        self._looked_s = now_s
        return self._saved_s > 0.0 and not (self._upstream is not None and self._upstream.is_busy)

    def _is_reachable(self) -> bool:
        if self._upstream is None or not self._upstream.is_open:
            try:
                self._upstream = Upstream(self._loop, self.arm.socket)
            except OSError:
                self._upstream = None
                return False
        return True

    def _compare(self, name: str, champion: Array, reply: bytes | None) -> None:
        try:
            answer = None if reply is None else _decoder.decode(memoryview(reply)[LENGTH_BYTES:])
            if not isinstance(answer, InferReply) or answer.error:
                self._tell(failed=1)
                return
            found = {tensor.name: to_array(tensor) for tensor in answer.tensors}
            candidate = found[name].astype(np.float64).reshape(champion.shape)
        except (msgspec.MsgspecError, EdgeshipError, KeyError, ValueError):
            self._tell(failed=1)
            return
        self._saved_s -= answer.latency_us / 1e6
        is_class = self._session.slot.manifest.output.kind == "classification" and champion.size > 0
        difference = (candidate - champion).ravel()
        self._tell(
            compared=1,
            disagreed=int(is_class and candidate.argmax() != champion.argmax()),
            error_square_sum=_finite(float(difference @ difference)),
            champion_square_sum=_finite(float(champion.ravel() @ champion.ravel())),
            busy_us=answer.latency_us,
        )

    def _tell(self, **sums: float) -> None:
        nothing = ShadowTally(
            version=self.arm.version, digest=self.arm.digest, compared=0, disagreed=0, failed=0, dropped=0
        )
        self._session.count_shadow(structs.replace(nothing, **sums))


def _finite(value: float) -> float:
    """NaN and infinity would spoil every sum: such an answer disagrees, and adds nothing else."""
    return value if np.isfinite(value) else 0.0


def _frame_for(request: Request, other: ArmShare | Neighbour, memory: Memory, received_ns: int) -> bytearray | None:
    """The request as another worker reads it: named for it, its tensors inside, its deadline what is left of it.

    Returns:
        None where it cannot be passed on: this worker then says why.
    """
    named = {"model": other.model} if isinstance(other, Neighbour) else {"arm": other.arm}
    if isinstance(request, (LabelRequest, OutcomeRequest)):  # these name no model, and the neighbour knows its arms
        return _framed(request if isinstance(other, Neighbour) else structs.replace(request, **named))
    if isinstance(request, (StatusRequest, DelayRequest)):
        return _framed(structs.replace(request, **named))
    waited_us = (time.perf_counter_ns() - received_ns) // 1000
    left_us = request.deadline_us - waited_us if request.deadline_us else 0
    inside = None if request.deadline_us and left_us <= 0 else _with_tensors(request, memory)
    return None if inside is None else _framed(structs.replace(inside, deadline_us=left_us, **named))


def _with_tensors(request: AnyInferRequest, memory: Memory) -> InferRequest | None:
    """The request with its tensors inside; None where the memory that they lie in cannot be used."""
    if isinstance(request, InferRequest):
        return request
    if memory is None or isinstance(memory, ContractError):
        return None
    try:
        tensors = tuple(to_tensor(name, array) for name, array in memory.arrays(request.tensors).items())
    except ContractError:
        return None
    return InferRequest(
        request_id=request.request_id,
        model=request.model,
        tensors=tensors,
        split_key=request.split_key,
        arm=request.arm,
    )


def _framed(request: Request) -> bytearray:
    frame = bytearray(LENGTH_BYTES)
    _encoder.encode_into(request, frame, LENGTH_BYTES)
    frame[:LENGTH_BYTES] = (len(frame) - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little")
    return frame
