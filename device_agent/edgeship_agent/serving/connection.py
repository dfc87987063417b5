"""One application's connection: frames in, frames out, descriptors of shared memory with them."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.frames import LENGTH, LENGTH_BYTES, Request
from edgeship_agent.serving.loop import Loop
from edgeship_agent.serving.requests import MALFORMED, Memory, decode_request
from edgeship_agent.serving.shared import PassedMemory

_SMALLEST_BUFFER_BYTES: Final = 64 * 1024
_SEND_BUFFER_BYTES: Final = 1 << 20
#: Reads of one socket before the others are looked at.
_READS_AT_ONCE: Final = 16
#: How long the rest of a frame is waited for before others have their turn, in ms.
_PATIENCE_MS: Final = 1
_ONE_DESCRIPTOR_BYTES: Final = array.array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_ONE_DESCRIPTOR_BYTES)
#: Plain numbers: Python's flags are enumerations, whose ``&`` takes two microseconds.
_CUT: Final = int(socket.MSG_CTRUNC)
_CLOSE_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)


class Connection:
    """Reads one request at a time, into a buffer that its tensors are views of.

    The next request of the same application is not read before the current one is answered, so a fast sender fills
    its own socket and nothing else. A frame that is too long or malformed closes this connection and no other.
    The rest of a frame that is on its way is waited for, for a moment: its sender is writing it.

    Args:
        loop: what calls back when the socket is ready.
        endpoint: the accepted socket, not blocking.
        on_request: called with the connection, a decoded request and when it was complete
            (``time.perf_counter_ns()``); must lead to :meth:`reply`.
        on_lost: called once when the connection is gone.
        max_frame_bytes: longest frame, and most shared bytes of one request, that are taken.
    """

    def __init__(
        self,
        loop: Loop,
        endpoint: socket.socket,
        on_request: Callable[[Connection, Request, int], None],
        on_lost: Callable[[Connection], None],
        max_frame_bytes: int,
    ) -> None:
        self._loop = loop
        self._socket: socket.socket | None = endpoint
        self._on_request = on_request
        self._on_lost = on_lost
        self._max_frame_bytes = max_frame_bytes
        self._buffer = memoryview(bytearray(_SMALLEST_BUFFER_BYTES))
        self._room = (self._buffer,)  # where the next bytes go
        self._filled = 0
        self._frame_end = 0
        self._unsent = bytearray()
        self._patience_end_ns = 0
        self._is_reading = False
        self._saw_end = False
        self._is_last = False
        self._is_busy = False
        #: The memory that the application passed last, or why it cannot be used.
        self.memory: Memory = None
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._read_on()

    def _read_on(self) -> None:
        if not self._is_reading and not self._saw_end and self._socket is not None:
            self._is_reading = True
            self._loop.add_reader(self._socket, self._readable)

    def _pause(self) -> None:
        if self._is_reading and self._socket is not None:
            self._is_reading = False
            self._loop.remove_reader(self._socket)

    def _readable(self) -> None:
        """Bytes wait in the socket: all of a frame is read at once where it is there.

        Whoever asks waits for this, after an inference that has filled the caches: as few calls as can be.
        """
        if self._is_busy or self._unsent:
            self._pause()
            return
        self._patience_end_ns = 0
        for _ in range(_READS_AT_ONCE):
            endpoint = self._socket
            if endpoint is None:
                return
            try:
                count, ancillary, flags, _ = endpoint.recvmsg_into(self._room, _ANCILLARY_BYTES, _CLOSE_ON_EXEC)
            except OSError as error:
                if not self._goes_on(endpoint, error):
                    return
                continue
            if (ancillary or flags & _CUT or not count) and not self._take_other(count, ancillary, flags):
                return
            self._filled += count
            if not self._next_frame(time.perf_counter_ns()):
                return
            self._make_room()

    def _make_room(self) -> None:
        """For what comes next, after what is in the buffer."""
        if self._filled == len(self._buffer):
            # grows with what has really come, not with what a length field claims
            larger = memoryview(bytearray(2 * len(self._buffer)))
            larger[: self._filled] = self._buffer
            self._buffer = larger
        self._room = (self._buffer[self._filled :],)

    def _goes_on(self, endpoint: socket.socket, error: OSError) -> bool:
        """Whether there is more to read after nothing could be read."""
        if isinstance(error, BlockingIOError):
            return self._rest_comes(endpoint)
        if not isinstance(error, InterruptedError):
            self._lose()
        return False

    def _take_other(self, count: int, ancillary: list[tuple[int, int, bytes]], flags: int) -> bool:
        """Something else than bytes came, or the end; returns whether there are bytes as well."""
        if (ancillary or flags & _CUT) and not self._take_descriptors(ancillary, flags):
            self._lose()
            return False
        if not count:
            self._see_end()
        return count > 0

    def _rest_comes(self, endpoint: socket.socket) -> bool:
        """Wait for more of a frame that has begun; its sender is most likely still writing it.

        A whole turn of the loop for every piece would cost more than the piece. Not for long, and once for each time
        that the socket was ready, so that a slow sender holds up the others by no more than that.
        """
        if self._filled < LENGTH_BYTES:
            return False
        now_ns = time.monotonic_ns()
        if not self._patience_end_ns:
            self._patience_end_ns = now_ns + _PATIENCE_MS * 1_000_000
        if now_ns >= self._patience_end_ns:
            return False
        waiting = select.poll()
        waiting.register(endpoint, select.POLLIN)
        return bool(waiting.poll(_PATIENCE_MS))

    def _take_descriptors(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> bool:
        """Map the one descriptor that came; more than one is an abuse, and none of them is kept open."""
        descriptors = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(data[: len(data) // _ONE_DESCRIPTOR_BYTES * _ONE_DESCRIPTOR_BYTES])
        if len(descriptors) != 1 or flags & _CUT:
            for descriptor in descriptors:
                os.close(descriptor)
            return False
        try:
            self.memory = PassedMemory(descriptors[0], self._max_frame_bytes)
        except ContractError as error:
            self.memory = error
        return True

    def _see_end(self) -> None:
        """The application sends no more; what it asked for is answered first."""
        self._pause()
        self._saw_end = True
        if not self._is_busy and not self._unsent:
            self._lose()

    def _next_frame(self, received_ns: int) -> bool:
        """Hand on the request in the buffer, if all of it is there; returns whether more of it is to be read."""
        if self._filled < LENGTH_BYTES:
            return True
        (length,) = LENGTH.unpack_from(self._buffer)
        if not 0 < length <= self._max_frame_bytes:
            self._lose()
            return False
        end = LENGTH_BYTES + length
        if self._filled < end:
            return True
        try:
            request = decode_request(self._buffer[LENGTH_BYTES:end])
        except MALFORMED:
            self._lose()
            return False
        self._is_busy = True
        self._frame_end = end
        self._on_request(self, request, received_ns)
        return False

    def reply(self, frame: bytes | bytearray) -> None:
        """Send the answer to the current request."""
        if self._socket is None:
            return
        if self._unsent:
            self._unsent += frame
            return
        try:
            sent = self._socket.send(frame)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._lose()
            return
        if sent < len(frame):
            # an application that does not read its answers: nothing more is read from it
            self._unsent += memoryview(frame)[sent:]
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lose()
            return
        del self._unsent[:sent]
        if self._unsent:
            return
        self._loop.remove_writer(self._socket)
        if not self._is_busy:
            self._go_on()

    def finish(self) -> None:
        """The current request is answered and counted: its buffer is free, the next request may be read."""
        rest = self._filled - self._frame_end
        if rest:
            fresh = memoryview(bytearray(max(_SMALLEST_BUFFER_BYTES, rest)))
            fresh[:rest] = self._buffer[self._frame_end : self._filled]
            self._buffer = fresh
        elif len(self._buffer) > _SMALLEST_BUFFER_BYTES and self._frame_end < len(self._buffer) // 4:
            self._buffer = memoryview(bytearray(_SMALLEST_BUFFER_BYTES))
        self._filled, self._frame_end = rest, 0
        self._make_room()
        self._is_busy = False
        if not self._unsent:
            self._go_on()

    def _go_on(self) -> None:
        """Nothing is in work and nothing waits to be sent: take the next frame, or close."""
        if not self._is_last and self._socket is not None:
            self._next_frame(time.perf_counter_ns())
        if self._is_busy or self._unsent:
            return
        if self._is_last or self._saw_end:
            self._lose()
        else:
            self._read_on()

    def close(self) -> None:
        """Close the connection: at once, or when the current request is answered and what was written is sent."""
        self._is_last = True
        if not self._is_busy and not self._unsent:
            self._lose()

    def drop(self) -> None:
        """Close the connection without an answer to the current request: the application asks again over a new one."""
        self._lose()

    def _lose(self) -> None:
        endpoint, self._socket = self._socket, None
        if endpoint is None:
            return
        self._loop.remove_reader(endpoint)
        self._loop.remove_writer(endpoint)
        with contextlib.suppress(OSError):
            endpoint.close()
        self.memory = None
        self._unsent.clear()
        self._on_lost(self)
