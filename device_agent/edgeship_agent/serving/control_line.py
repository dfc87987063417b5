"""The worker's end of its control socket: messages out without waiting, messages in as they come."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.serving.control import ControlMessage, ControlReader, FromWorker, encode_control
from edgeship_agent.serving.loop import Loop

_READ_BYTES: Final = 64 * 1024


class ControlLine:
    """Talks to the supervisor.

    Args:
        loop: what calls back when the socket is ready.
        endpoint: the worker's end of the socket pair; not blocking from here on, and closed here.
        on_message: told every message of the supervisor.
        on_nonsense: told why the supervisor cannot be understood.
        on_lost: called once when the socket is closed, from either side.
    """

    def __init__(
        self,
        loop: Loop,
        endpoint: socket.socket,
        on_message: Callable[[ControlMessage], None],
        on_nonsense: Callable[[ContractError], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._socket: socket.socket | None = endpoint
        self._on_message = on_message
        self._on_nonsense = on_nonsense
        self._on_lost = on_lost
        self._reader = ControlReader()
        self._unsent = bytearray()
        self._is_last = False
        endpoint.setblocking(False)
        loop.add_reader(endpoint, self._readable)

    def tell(self, message: FromWorker) -> None:
        """Send a message; what the socket does not take at once goes out when it does."""
        if self._socket is None or self._is_last:
            return
        self._unsent += encode_control(message)
        self._send()

    def close(self) -> None:
        """Close when everything that was told is sent."""
        self._is_last = True
        if not self._unsent:
            self._lose()

    def _send(self) -> None:
        endpoint = self._socket
        if endpoint is None:
            return
        try:
            sent = endpoint.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._lose()
            return
        del self._unsent[:sent]
        if self._unsent:
            self._loop.add_writer(endpoint, self._send)
            return
        self._loop.remove_writer(endpoint)
        if self._is_last:
            self._lose()

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        try:
            for message in self._reader.feed(data):
                self._on_message(message)
        except ContractError as error:
            self._on_nonsense(error)

    def _lose(self) -> None:
        endpoint, self._socket = self._socket, None
        if endpoint is None:
            return
        self._loop.remove_reader(endpoint)
        self._loop.remove_writer(endpoint)
        with contextlib.suppress(OSError):
            endpoint.close()
        self._unsent.clear()
        self._on_lost()
