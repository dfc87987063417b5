"""One application's connection: frames in, frames out, on asyncio's buffered protocol."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Final

from edgeship_agent.contract.frames import LENGTH_BYTES, Request
from edgeship_agent.serving.requests import MALFORMED, decode_request

_SMALLEST_BUFFER_BYTES: Final = 64 * 1024
_SEND_BUFFER_BYTES: Final = 1 << 20


class Connection(asyncio.BufferedProtocol):
    """Reads one request at a time, into a buffer that its tensors are views of.

    The next request of the same application is not read before the current one is answered, so a fast sender fills
    its own socket and nothing else. A frame that is too long or malformed closes this connection and no other.

    Args:
        on_request: called with the connection, a decoded request and when it was complete
            (``time.perf_counter_ns()``); must lead to :meth:`reply`.
        on_lost: called once when the connection is gone.
        max_frame_bytes: longest frame that is taken.
    """

    def __init__(
        self,
        on_request: Callable[[Connection, Request, int], None],
        on_lost: Callable[[Connection], None],
        max_frame_bytes: int,
    ) -> None:
        self._on_request = on_request
        self._on_lost = on_lost
        self._max_frame_bytes = max_frame_bytes
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(_SMALLEST_BUFFER_BYTES)
        self._filled = 0
        self._frame_end = 0
        self._reader_is_slow = False
        self._saw_end = False
        self._is_last = False
        self._is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A new application."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        endpoint = transport.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def connection_lost(self, _error: Exception | None) -> None:
        """The application is gone."""
        self._transport = None
        self._on_lost(self)

    def get_buffer(self, _size_hint: int) -> memoryview:
        """Where the next bytes go; a buffer in use is never resized, a larger one takes its place."""
        if self._filled == len(self._buffer):
            # grows with what has really come, not with what a length field claims
            larger = bytearray(2 * len(self._buffer))
            larger[: self._filled] = self._buffer
            self._buffer = larger
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, count: int) -> None:
        """Some bytes came."""
        self._filled += count
        self._next_frame()

    def eof_received(self) -> bool:
        """The application sends no more; what it asked for is answered first."""
        self._saw_end = True
        return self._is_busy or self._reader_is_slow

    def pause_writing(self) -> None:
        """The application does not read its answers: nothing more is read from it."""
        self._reader_is_slow = True

    def resume_writing(self) -> None:
        """The application reads again."""
        self._reader_is_slow = False
        self._next_frame()
        if self._saw_end and not self._is_busy:
            self.close()

    def _next_frame(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._is_busy or self._reader_is_slow:
            if not self._saw_end:
                transport.pause_reading()
            return
        if not self._saw_end:
            transport.resume_reading()
        if self._filled < LENGTH_BYTES:
            return
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "little")
        if not 0 < length <= self._max_frame_bytes:
            transport.abort()
            return
        end = LENGTH_BYTES + length
        if self._filled < end:
            return
        received_ns = time.perf_counter_ns()
        try:
            request = decode_request(memoryview(self._buffer)[LENGTH_BYTES:end])
        except MALFORMED:
            transport.abort()
            return
        self._is_busy = True
        self._frame_end = end
        self._on_request(self, request, received_ns)

    def reply(self, frame: bytes | bytearray) -> None:
        """Send the answer to the current request."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def finish(self) -> None:
        """The current request is answered and counted: its buffer is free, the next request may be read."""
        rest = self._filled - self._frame_end
        if rest:
            fresh = bytearray(max(_SMALLEST_BUFFER_BYTES, rest))
            fresh[:rest] = self._buffer[self._frame_end : self._filled]
            self._buffer = fresh
        elif len(self._buffer) > _SMALLEST_BUFFER_BYTES and self._frame_end < len(self._buffer) // 4:
            self._buffer = bytearray(_SMALLEST_BUFFER_BYTES)
        self._filled, self._frame_end = rest, 0
        self._is_busy = False
        if not self._is_last:
            self._next_frame()
        if self._is_last or (self._saw_end and not self._is_busy and not self._reader_is_slow):
            self.close()

    def close(self) -> None:
        """Close the connection: at once, or when the current request is answered; what was written is sent."""
        self._is_last = True
        if self._transport is not None and not self._is_busy:
            self._transport.close()
