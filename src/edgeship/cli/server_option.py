"""``--server`` without the HTTP library behind it, so that ``--help`` stays instant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

DEFAULT_SERVER: Final = "http://127.0.0.1:8080"

F = TypeVar("F", bound=Callable[..., Any])


def server_option(command: F) -> F:
    """``--server`` for a command; the address arrives as ``server``."""
    return click.option(
        "--server",
        envvar="EDGESHIP_SERVER",
        default=DEFAULT_SERVER,
        show_default=True,
        show_envvar=True,
        help="Address of the fleet server.",
    )(command)
