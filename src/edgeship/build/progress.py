"""What a build says while it works. The command line prints it; tests and the demo may listen or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

#: A count whose label ends so is of candidates: ``total`` is a guess.
CANDIDATES: Final = "candidates"
#: A count whose label begins so goes on inside one candidate.
SELECT: Final = "select"
#: Asked with a converter's name and its size in bytes whether it may be installed.
Agree = Callable[[str, int], bool]


def never(_name: str, _size_bytes: int) -> bool:
    """Nobody is there to ask."""
    return False


class Progress(Protocol):
    """Listens to a build."""

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        """Something is finished: one word, what happened, and ``done``, ``failed``, ``undecided`` or ``note``."""

    def count(self, label: str, done: int, total: int) -> None:
        """Something goes on: ``done`` of ``total``."""


class Silence:
    """Listens to nothing."""

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        """Drop the line."""

    def count(self, label: str, done: int, total: int) -> None:
        """Drop the count."""
