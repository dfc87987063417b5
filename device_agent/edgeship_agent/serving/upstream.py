"""A request passed on to the worker of another arm, and its answer passed back, without waiting for either."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from edgeship_agent.contract.frames import LENGTH_BYTES, MAX_FRAME_BYTES
from edgeship_agent.serving.loop import Loop

_SEND_BUFFER_BYTES: Final = 1 << 20
_RECEIVE_BYTES: Final = 64 * 1024

#: Takes the answer's frame, its length in front; None where the other worker is gone.
OnReply = Callable[["bytes | None"], None]


class Upstream:
    """One connection to another worker; one request at a time.

    Args:
        loop: what calls back when the socket is ready.
        path: the other worker's socket.

    Raises:
        OSError: nobody listens there.
    """

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._on_reply: OnReply | None = None
        self._unsent = memoryview(b"")
        self._received = bytearray()
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._loop.add_reader(self._socket, self._readable)

    @property
    def is_open(self) -> bool:
        """Whether it can take a request."""
        return self._socket is not None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is waited for."""
        return self._on_reply is not None

    def send(self, frame: bytes | bytearray, on_reply: OnReply) -> None:
        """Send a request; its answer, or None, comes later and exactly once."""
        self._on_reply = on_reply
        self._unsent = memoryview(frame)
        self._write()

    def close(self) -> None:
        """Close the connection; a request that is not answered yet never will be, and nobody hears of it."""
        self._on_reply = None
        self._lose()

    def _write(self) -> None:
        if self._socket is None:
            self._lose()
            return
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._lose()
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            self._loop.add_writer(self._socket, self._write)
        else:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._received += data
        if len(self._received) < LENGTH_BYTES:
            return
        length = int.from_bytes(self._received[:LENGTH_BYTES], "little")
        if length > MAX_FRAME_BYTES or self._on_reply is None:
            self._lose()
        elif len(self._received) >= LENGTH_BYTES + length:
            frame = bytes(self._received)
            self._received.clear()
            self._answer(frame)

    def _answer(self, frame: bytes | None) -> None:
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(frame)

    def _lose(self) -> None:
        endpoint, self._socket = self._socket, None
        if endpoint is not None:
            self._loop.remove_reader(endpoint)
            self._loop.remove_writer(endpoint)
            with contextlib.suppress(OSError):
                endpoint.close()
        self._answer(None)
