"""Whether the network that this device is on costs by the byte: a command of its owner, else NetworkManager."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final

_TIMEOUT_S: Final = 5.0
_ASK_NETWORK_MANAGER: Final = (
    *("busctl", "get-property", "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"),
    *("org.freedesktop.NetworkManager", "Metered"),
)
#: Source: NetworkManager D-Bus API, ``NMMetered``: yes, no, guessed yes, guessed no; 0 is unknown.
_NM_METERED: Final = {1: True, 2: False, 3: True, 4: False}


def is_metered(command: tuple[str, ...]) -> bool | None:
    """Whether bytes cost here; None where nobody can tell.

    Args:
        command: exits with 0 where the network is metered, with 1 where it is not; empty asks NetworkManager.

    >>> is_metered(("true",)), is_metered(("false",)), is_metered(("sh", "-c", "exit 7"))
    (True, False, None)
    """
    if command:
        code, _ = _run(command)
        return {0: True, 1: False}.get(code)
    if shutil.which(_ASK_NETWORK_MANAGER[0]) is None:
        return None
    code, said = _run(_ASK_NETWORK_MANAGER)
    return parse_metered(said) if code == 0 else None


def parse_metered(said: str) -> bool | None:
    """What NetworkManager's property says, as ``busctl`` prints it.

    >>> parse_metered("u 1"), parse_metered("u 4"), parse_metered("u 0"), parse_metered("?")
    (True, False, None, None)
    """
    kind, _, number = said.strip().partition(" ")
    return _NM_METERED.get(int(number)) if kind == "u" and number.isdecimal() else None


def _run(command: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and output; code -1 where it could not be run in time."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return -1, ""
    return done.returncode, done.stdout
