"""Listening sockets, with errors that name the option."""

from __future__ import annotations

import socket
from typing import Final

from edgeship_agent.contract.errors import ConfigError

_BACKLOG: Final = 256


def listen(host: str, port: int, key: str = "--port") -> socket.socket:
    """A TCP socket that listens.

    Args:
        host: address.
        port: 0 takes a free one.
        key: the option that named the port.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen: {error.strerror}", key=key, got=f"{host}:{port}", next_step=f"{key} 0 takes a free one"
        ) from error
    listener.listen(_BACKLOG)
    return listener
