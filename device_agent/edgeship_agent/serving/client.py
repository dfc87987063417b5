"""How an application asks for a prediction: a blocking client of the agent's Unix socket.

::

    with Client("/var/lib/edgeship/run/infer.sock") as client:
        prediction = client.infer({"image": image})

The agent may switch to another version of the model at any moment. It then closes the connection after the answers in
flight; the client opens the new one by itself and asks again, which is safe, since a prediction changes nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Union

import msgspec
import numpy as np

from edgeship_agent.contract.errors import ContractError, EngineError, TransferError
from edgeship_agent.contract.frames import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    InferReply,
    InferRequest,
    StatusReply,
    StatusRequest,
)
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime.tensors import to_array, to_tensor

_SEND_BUFFER_BYTES: Final = 1 << 20
_RETRY_PAUSE_S: Final = 0.005
#: Source: unix(7), sun_path without its final zero byte.
MAX_SOCKET_PATH_BYTES: Final = 107
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Union[InferReply, StatusReply]]] = msgspec.msgpack.Decoder(
    Union[InferReply, StatusReply]
)


class Prediction(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An answer.

    Attributes:
        prediction_id: names this prediction on this device, for a label that comes later.
        release_digest: digest of the bundle that answered.
        latency_us: in the agent, from the request's receipt to the answer.
        outputs: output name → read-only array with a batch axis of 1.
    """

    prediction_id: str
    model: str
    version: str
    release_digest: str
    latency_us: int
    outputs: dict[str, Array]


class Client:
    """A connection to the agent of this device; not for use by several threads at once.

    Args:
        socket_path: ``run/infer.sock`` in the agent's state directory.
        timeout_s: how long one call may take, reconnecting included.
    """

    def __init__(self, socket_path: str | os.PathLike[str], timeout_s: float = 5.0) -> None:
        self._path = os.fspath(socket_path)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._request_id = 0

    def infer(self, inputs: Mapping[str, Array], *, model: str = "", deadline_ms: float = 0.0) -> Prediction:
        """Run the model on one raw sample.

        Args:
            inputs: model input name → raw sample (no batch axis), before the manifest's preprocessing.
            model: its name, where the device serves several.
            deadline_ms: how long the answer is of use; a request that waits longer is refused unseen. 0 for none.

        Raises:
            EngineError: the agent answered with an error.
            TransferError: the agent cannot be reached in time.
            ContractError: what came back is no answer, or the request is too long for a frame.
        """
        self._request_id += 1
        request = InferRequest(
            request_id=self._request_id,
            model=model,
            tensors=tuple(to_tensor(name, np.asarray(array)) for name, array in inputs.items()),
            deadline_us=round(deadline_ms * 1000.0),
        )
        reply = self._call(request)
        if not isinstance(reply, InferReply):
            raise ContractError("the agent answered something else", file=self._path, got=type(reply).__name__)
        if reply.error:
            raise EngineError(reply.error, key=reply.model or None)
        return Prediction(
            prediction_id=reply.prediction_id,
            model=reply.model,
            version=reply.version,
            release_digest=reply.release_digest,
            latency_us=reply.latency_us,
            outputs={tensor.name: to_array(tensor) for tensor in reply.tensors},
        )

    def status(self) -> StatusReply:
        """Which model is served, and how many calls it answered.

        Raises:
            TransferError: the agent cannot be reached in time.
            ContractError: what came back is no answer.
        """
        self._request_id += 1
        reply = self._call(StatusRequest(request_id=self._request_id))
        if not isinstance(reply, StatusReply):
            raise ContractError("the agent answered something else", file=self._path, got=type(reply).__name__)
        return reply

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, request: InferRequest | StatusRequest) -> InferReply | StatusReply:
        frame = _frame(request)
        give_up_s = time.monotonic() + self._timeout_s
        while True:
            try:
                reply = self._exchange(frame, give_up_s)
            except TimeoutError as error:
                self.close()
                raise TransferError(
                    f"no answer within {self._timeout_s:g} s", retryable=True, file=self._path
                ) from error
            except OSError as error:
                # closed for a switch of models, or a worker that died: another one takes its place
                self.close()
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
                self.close()
                raise ContractError("an answer to another request", expected=request.request_id, got=reply.request_id)
            return reply

    def _exchange(self, frame: bytearray, give_up_s: float) -> InferReply | StatusReply:
        connection = self._socket or self._connect()
        connection.settimeout(_left_s(give_up_s))
        connection.sendall(frame)
        header = _receive(connection, LENGTH_BYTES, give_up_s)
        length = int.from_bytes(header, "little")
        if length > MAX_FRAME_BYTES:
            self.close()
            raise ContractError("an answer too long", file=self._path, expected=f"≤ {MAX_FRAME_BYTES}", got=length)
        data = _receive(connection, length, give_up_s)
        try:
            return _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.close()
            raise ContractError(f"unreadable answer: {error}", file=self._path) from error

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeout_s)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            connection.connect(reachable_path(self._path))
        except OSError:
            connection.close()
            raise
        self._socket = connection
        return connection


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


def _frame(request: InferRequest | StatusRequest) -> bytearray:
    frame = bytearray(LENGTH_BYTES)
    _encoder.encode_into(request, frame, LENGTH_BYTES)
    length = len(frame) - LENGTH_BYTES
    if length > MAX_FRAME_BYTES:
        raise ContractError("request too long", expected=f"≤ {MAX_FRAME_BYTES} bytes", got=length)
    frame[:LENGTH_BYTES] = length.to_bytes(LENGTH_BYTES, "little")
    return frame


def _receive(connection: socket.socket, size: int, give_up_s: float) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        connection.settimeout(_left_s(give_up_s))
        received = connection.recv_into(view)
        if not received:
            raise ConnectionResetError("the agent closed the connection")
        view = view[received:]
    return data


def _left_s(give_up_s: float) -> float:
    left_s = give_up_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s
