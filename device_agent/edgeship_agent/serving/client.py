"""How an application asks for a prediction: a blocking client of the agent's Unix socket.

::

    with Client("/var/lib/edgeship/run/infer.sock") as client:
        prediction = client.infer({"image": image})

The agent may switch to another version of the model at any moment. It then closes the connection after the answers in
flight; the client opens the new one by itself and asks again, which is safe, since a prediction changes nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Final

import msgspec
import numpy as np

from edgeship_agent.contract.errors import ContractError, EngineError, TransferError
from edgeship_agent.contract.frames import (
    LENGTH,
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    SHARED_ABOVE_BYTES,
    DelayRequest,
    InferReply,
    InferRequest,
    LabelRequest,
    NotedReply,
    NoteRequest,
    OutcomeRequest,
    Reply,
    Request,
    SharedInferRequest,
    SharedTensor,
    StatusReply,
    StatusRequest,
)
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime.tensors import dtype_of, is_possible_shape, to_array, to_tensor
from edgeship_agent.serving.looking import LONGEST_LOOK_US, Look, usable_cores
from edgeship_agent.serving.shared import OutgoingMemory, aligned_bytes, can_share

_SEND_BUFFER_BYTES: Final = 1 << 20
_RETRY_PAUSE_S: Final = 0.005
#: Source: unix(7), sun_path without its final zero byte.
MAX_SOCKET_PATH_BYTES: Final = 107
_FRAME_BYTES: Final = 4096
_RECEIVE_BYTES: Final = 64 * 1024
_AT_ONCE: Final = int(socket.MSG_DONTWAIT)
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)


class Prediction(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An answer.

    Attributes:
        prediction_id: names this prediction on this device, for a label that comes later.
        release_digest: digest of the bundle that answered.
        latency_us: in the agent, from the request's receipt to the answer.
        outputs: output name → read-only array with a batch axis of 1.
        arm: that answered: ``main``, or ``b`` for a version that shares the traffic with it.
        release_digests: in the prediction that ``on_release_change`` is called with: digest by model of all that was
            switched together with this one, itself included.
    """

    prediction_id: str
    model: str
    version: str
    release_digest: str
    latency_us: int
    outputs: dict[str, Array]
    arm: str = ""
    release_digests: Mapping[str, str] = MappingProxyType({})


class Client:
    """A connection to the agent of this device; not for use by several threads at once.

    Args:
        socket_path: ``run/infer.sock`` in the agent's state directory.
        timeout_s: how long one call may take, reconnecting included.
        spin_us: how long a call looks for its answer again and again, at most, before it sleeps until the answer comes,
            in µs; 0 for not at all. A thread that sleeps is late by what the system takes to wake it, some 10 to 50 µs;
            one that looks keeps a core busy for as long. So a client looks only where the last answers came so soon,
            where the application asks again at once, and where there is more than one core. The worker does likewise:
            ``serving.spin_us`` in the agent's configuration.
        on_release_change: called with the first prediction of every further release, before :meth:`infer` returns it.
            Two versions that share the traffic are two arms: each is told of once, not at every turn. So is a release
            of several models, whichever of them answers first; all of them answer with it from then on.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str],
        timeout_s: float = 5.0,
        on_release_change: Callable[[Prediction], None] | None = None,
        spin_us: float = LONGEST_LOOK_US,
    ) -> None:
        self._path = os.fspath(socket_path)
        self._timeout_s = timeout_s
        self._on_release_change = on_release_change
        self._releases: dict[str, str] = {}  # digest of what answers → its arm
        self._models: dict[str, str] = {}  # and its model
        self._socket: socket.socket | None = None
        self._frame = bytearray(_FRAME_BYTES)
        self._received = memoryview(bytearray(_RECEIVE_BYTES))
        self._look = Look(spin_us, usable_cores())
        self._answered_ns = self._waited_ns = 0
        self._memory: OutgoingMemory | None = None
        self._request_id = 0

    def infer(
        self, inputs: Mapping[str, Array], *, model: str = "", deadline_ms: float = 0.0, split_key: str = ""
    ) -> Prediction:
        """Run the model on one raw sample.

        Args:
            inputs: model input name → raw sample (no batch axis), before the manifest's preprocessing.
            model: its name, where the device serves several.
            deadline_ms: how long the answer is of use; a request that waits longer is refused unseen. 0 for none.
            split_key: while two versions share the traffic, requests of one key go to one version.

        Raises:
            EngineError: the agent answered with an error.
            TransferError: the agent cannot be reached in time.
            ContractError: what came back is no answer, or the request is too long for a frame.
        """
        self._request_id += 1
        reply = self._call(self._infer_request(inputs, model, round(deadline_ms * 1000.0), split_key))
        if not isinstance(reply, InferReply):
            raise ContractError("the agent answered something else", file=self._path, got=type(reply).__name__)
        if reply.error:
            raise EngineError(reply.error, key=reply.model or None)
        prediction = Prediction(
            prediction_id=reply.prediction_id,
            model=reply.model,
            version=reply.version,
            release_digest=reply.release_digest,
            latency_us=reply.latency_us,
            outputs={tensor.name: to_array(tensor) for tensor in reply.tensors},
            arm=reply.arm,
        )
        if reply.arm != self._releases.get(reply.release_digest):
            self._see_release(prediction)
        return prediction

    def _see_release(self, prediction: Prediction) -> None:
        """Another release than before answers, or a model for the first time."""
        is_first = prediction.model not in self._models.values()
        self._remember(prediction.model, prediction.arm, prediction.release_digest)
        if is_first or self._on_release_change is None:
            return
        digests = {prediction.model: prediction.release_digest}
        with contextlib.suppress(TransferError, ContractError):  # each model is told of by itself then
            status = self.status(model=prediction.model)
            if status.release_digest == prediction.release_digest:
                digests.update(dict(status.siblings))
        for model, digest in digests.items():
            self._remember(model, prediction.arm, digest)
        self._on_release_change(msgspec.structs.replace(prediction, release_digests=digests))

    def _remember(self, model: str, arm: str, digest: str) -> None:
        for old in [each for each in self._models if (self._models[each], self._releases[each]) == (model, arm)]:
            del self._models[old], self._releases[old]
        self._models[digest], self._releases[digest] = model, arm

    def _infer_request(
        self, inputs: Mapping[str, Array], model: str, deadline_us: int, split_key: str
    ) -> InferRequest | SharedInferRequest:
        shared = None if self._memory is None else self._memory.write_again(inputs)
        if shared is None:
            arrays = {name: np.asarray(array) for name, array in inputs.items()}
            if sum(array.nbytes for array in arrays.values()) <= SHARED_ABOVE_BYTES or not can_share():
                return InferRequest(
                    request_id=self._request_id,
                    model=model,
                    tensors=tuple(to_tensor(name, array) for name, array in arrays.items()),
                    deadline_us=deadline_us,
                    split_key=split_key,
                )
            shared = self._share(arrays)
        return SharedInferRequest(
            request_id=self._request_id, model=model, tensors=shared, deadline_us=deadline_us, split_key=split_key
        )

    def label(self, prediction_id: str, label: int | str) -> bool:
        """Say what the right answer to an earlier prediction was; saying it again changes nothing.

        Args:
            prediction_id: of the prediction; the device remembers the newest (``telemetry.remembered_predictions``).
            label: index of the class, or its name where the model's output contract names its classes.

        Returns:
            Whether the device still remembers the prediction; if not, the label is counted as unknown.

        Raises:
            EngineError: the model takes no labels, or has no such class.
            TransferError, ContractError: as :meth:`infer`.
        """
        self._request_id += 1
        return self._note(LabelRequest(request_id=self._request_id, prediction_id=prediction_id, label=label))

    def outcome(self, name: str, value: float, prediction_id: str) -> bool:
        """Report what became of an earlier prediction in a figure of your own; a name counts once per prediction.

        Args:
            name: of the figure, its unit last, such as ``rework_minutes``; at most 64 characters and 32 names.
            value: a number from -1e15 to 1e15, so that sums of squares stay finite; the device sends sums. Choose a
                larger unit for more.
            prediction_id: of the prediction.

        Returns:
            Whether the device still remembers the prediction.

        Raises:
            EngineError: no such name or number can be counted.
            TransferError, ContractError: as :meth:`infer`.
        """
        self._request_id += 1
        request = OutcomeRequest(
            request_id=self._request_id, name=name, value=float(value), prediction_id=prediction_id
        )
        return self._note(request)

    def stream_delays(self, model: str, release_digest: str, counts: Mapping[int, int]) -> bool:
        """Report how late the answers of a stream were that ran a release in a process of its own.

        Args:
            model: that answered.
            release_digest: of the release that answered.
            counts: bucket of an exponential sketch in µs → answers, since the last report.

        Returns:
            Whether the device serves that release: only then they were counted.

        Raises:
            EngineError: these are no counts of a sketch.
            TransferError, ContractError: as :meth:`infer`.
        """
        self._request_id += 1
        return self._note(
            DelayRequest(request_id=self._request_id, model=model, release_digest=release_digest, counts=dict(counts))
        )

    def _note(self, request: NoteRequest) -> bool:
        reply = self._call(request)
        if not isinstance(reply, NotedReply):
            raise ContractError("the agent answered something else", file=self._path, got=type(reply).__name__)
        if reply.error:
            raise EngineError(reply.error)
        return reply.is_known

    def room(self, inputs: Mapping[str, tuple[Sequence[int], str]]) -> dict[str, Array]:
        """Arrays for the next request's samples, in memory that the agent reads: what fills them is not copied again.

        ::

            frame = client.room({"image": ((1080, 1920, 3), "uint8")})
            camera.read_into(frame["image"])
            prediction = client.infer(frame)

        Ask for room anew before every request: requests take turns in two places, and what was sent may still be
        measured. What an array holds at first is left from earlier requests.

        Args:
            inputs: model input name → shape and dtype of the raw sample.

        Raises:
            ContractError: too large for a request, or a dtype that does not travel.
            TransferError: the system has no memory for it.
        """
        kinds = {name: (tuple(shape), dtype_of(name, dtype)) for name, (shape, dtype) in inputs.items()}
        for name, (shape, _) in kinds.items():
            if not is_possible_shape(shape):
                raise ContractError("impossible shape", key=name, got=str(shape)[:80])
        if not can_share():
            return {name: np.empty(shape, dtype) for name, (shape, dtype) in kinds.items()}
        sizes_bytes = [aligned_bytes(math.prod(shape) * dtype.itemsize) for shape, dtype in kinds.values()]
        return self._reserved(max(sum(sizes_bytes), 1)).room(kinds)

    def _share(self, arrays: Mapping[str, Array]) -> tuple[SharedTensor, ...]:
        return self._reserved(sum(aligned_bytes(array.nbytes) for array in arrays.values())).write(arrays)

    def _reserved(self, size_bytes: int) -> OutgoingMemory:
        if size_bytes > MAX_FRAME_BYTES:
            raise ContractError("request too long", expected=f"≤ {MAX_FRAME_BYTES} bytes", got=size_bytes)
        if self._memory is None or self._memory.half_bytes < size_bytes:
            self._let_memory_go()
            try:
                self._memory = OutgoingMemory(size_bytes)
            except OSError as error:
                raise TransferError(f"no shared memory: {error.strerror}", retryable=True, file=self._path) from error
        return self._memory

    def _let_memory_go(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    def status(self, *, model: str = "") -> StatusReply:
        """Which model is served, and how many calls it answered.

        Args:
            model: its name, where the device serves several.

        Raises:
            TransferError: the agent cannot be reached in time.
            ContractError: what came back is no answer.
        """
        self._request_id += 1
        reply = self._call(StatusRequest(request_id=self._request_id, model=model))
        if not isinstance(reply, StatusReply):
            raise ContractError("the agent answered something else", file=self._path, got=type(reply).__name__)
        return reply

    def close(self) -> None:
        """Close the connection and let shared memory go; the next call opens a new one."""
        self._disconnect()
        self._let_memory_go()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._memory is not None:
            self._memory.is_passed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, request: Request) -> Reply:
        length = self._encode(request)
        give_up_s = time.monotonic() + self._timeout_s
        while True:
            try:
                reply = self._exchange(isinstance(request, SharedInferRequest), length)
            except (BlockingIOError, TimeoutError) as error:
                self.close()  # with the memory, which the agent may still read
                raise TransferError(
                    f"no answer within {self._timeout_s:g} s", retryable=True, file=self._path
                ) from error
            except OSError as error:
                # closed for a switch of models, or a worker that died: another one takes its place
                self._disconnect()
                if time.monotonic() + _RETRY_PAUSE_S > give_up_s:
                    raise TransferError(
                        f"the agent cannot be reached: {error.strerror or error}",
                        retryable=True,
                        file=self._path,
                        next_step="edgeship-agent doctor --config FILE",
                    ) from error
                time.sleep(_RETRY_PAUSE_S)
                continue
            if reply.request_id != request.request_id:
                self._disconnect()
                raise ContractError("an answer to another request", expected=request.request_id, got=reply.request_id)
            return reply

    def _encode(self, request: Request) -> int:
        """Put the frame into the buffer that is kept for it; returns its length."""
        _encoder.encode_into(request, self._frame, LENGTH_BYTES)
        length = len(self._frame)
        if length - LENGTH_BYTES > MAX_FRAME_BYTES:
            self._frame = bytearray(_FRAME_BYTES)
            raise ContractError("request too long", expected=f"≤ {MAX_FRAME_BYTES} bytes", got=length - LENGTH_BYTES)
        LENGTH.pack_into(self._frame, 0, length - LENGTH_BYTES)
        return length

    def _exchange(self, is_shared: bool, length: int) -> Reply:
        connection = self._socket or self._connect()
        memory = self._memory if is_shared else None
        sent = 0
        if memory is not None and not memory.is_passed:
            sent = socket.send_fds(connection, [self._frame], [memory.fd])
            memory.is_passed = True
        if sent < length:
            connection.sendall(memoryview(self._frame)[sent:] if sent else self._frame)
        return self._receive(connection)

    def _receive(self, connection: socket.socket) -> Reply:
        buffer = self._received
        filled = self._first_bytes(connection)
        while filled < LENGTH_BYTES:
            filled += _received(connection, buffer[filled:])
        (length,) = LENGTH.unpack_from(buffer)
        if length > MAX_FRAME_BYTES:
            self._disconnect()
            raise ContractError("an answer too long", file=self._path, expected=f"≤ {MAX_FRAME_BYTES}", got=length)
        # of its own: the outputs are views of it
        data = bytearray(buffer[LENGTH_BYTES:filled])
        if len(data) < length:
            start, data = data, bytearray(length)
            data[: len(start)] = start
            filled = len(start)
            while filled < length:
                filled += _received(connection, memoryview(data)[filled:])
        try:
            return _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._disconnect()
            raise ContractError(f"unreadable answer: {error}", file=self._path) from error

    def _first_bytes(self, connection: socket.socket) -> int:
        """The beginning of an answer, looked for where that is worth it, then waited for; into this client's buffer.

        Raises:
            OSError: as :func:`_received`.
        """
        look = self._look
        if not look.longest_ns:
            return _received(connection, self._received)
        started_ns = now_ns = time.perf_counter_ns()
        if self._waited_ns:  # what the last wait says is thought about now, while the agent works
            look.on_wait(self._waited_ns)
            self._waited_ns = 0
        look.on_pause(started_ns - self._answered_ns)
        count, end_ns = 0, started_ns + look.look_ns
        receive, place = connection.recv_into, self._received
        while now_ns < end_ns:
            try:
                count = receive(place, 0, _AT_ONCE)
                break
            except BlockingIOError:
                os.sched_yield()  # the agent may be waiting for this very core
            now_ns = time.perf_counter_ns()
        count = count or _received(connection, place)  # at its end a connection says so again
        self._answered_ns = time.perf_counter_ns()
        self._waited_ns = self._answered_ns - started_ns
        return count

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            # the kernel's own time limits: Python's would ask poll() before every call
            limit = _timeval(self._timeout_s)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            connection.connect(reachable_path(self._path))
        except OSError:
            connection.close()
            raise
        self._socket = connection
        return connection


def _timeval(seconds: float) -> bytes:
    """``struct timeval`` with at least 1 ms, since 0 means for ever. Source: socket(7), SO_RCVTIMEO."""
    microseconds = max(1000, round(seconds * 1e6))
    return struct.pack("@ll", microseconds // 1_000_000, microseconds % 1_000_000)


def reachable_path(path: str) -> str:
    """A name of the socket that the system takes: at most 107 bytes.

    Where a state directory lies too deep the agent keeps its sockets elsewhere, and names that place in a file
    ``socket-path`` beside, or makes the path a symbolic link.
    """
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    try:
        with open(os.path.join(os.path.dirname(path), "socket-path"), encoding="utf-8") as pointer:  # noqa: PTH118, PTH120, PTH123
            return pointer.read().strip()
    except OSError:
        return os.path.realpath(path)


def _received(connection: socket.socket, place: memoryview, flags: int = 0) -> int:
    """Bytes that came, at least one.

    Raises:
        OSError: the connection is gone, or nothing came in time (BlockingIOError).
    """
    count = connection.recv_into(place, 0, flags)
    if not count:
        raise ConnectionResetError("the agent closed the connection")
    return count
