"""Several processes work at once, and whoever measures does so alone: the others wait at the next step."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final


class Turns:
    """One process's place among the others.

    Args:
        folder: the same for all of them.
    """

    def __init__(self, folder: Path) -> None:
        # opened by each process itself: locks belong to what was opened, not to who holds it
        self._work, self._door = (os.open(folder / name, os.O_CREAT | os.O_RDWR, 0o600) for name in ("work", "door"))
        self._measures = False
        fcntl.flock(self._work, fcntl.LOCK_SH)

    def pause(self) -> None:
        """Between two steps: wait while somebody measures, or wants to."""
        if self._measures:
            return
        fcntl.flock(self._work, fcntl.LOCK_UN)
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._door, fcntl.LOCK_UN)
        fcntl.flock(self._work, fcntl.LOCK_SH)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While the others wait; with the door locked, nobody begins anew before they all have stopped."""
        if self._measures:
            yield
            return
        fcntl.flock(self._work, fcntl.LOCK_UN)
        fcntl.flock(self._door, fcntl.LOCK_EX)
        fcntl.flock(self._work, fcntl.LOCK_EX)
        self._measures = True
        try:
            yield
        finally:
            self._measures = False
            fcntl.flock(self._work, fcntl.LOCK_SH)
            fcntl.flock(self._door, fcntl.LOCK_UN)


_current: Final[ContextVar[Turns | None]] = ContextVar("turns", default=None)


def take(folder: Path) -> None:
    """From now on this process takes turns with the others that name this folder."""
    _current.set(Turns(folder))


def are_taken() -> bool:
    """Whether there are others."""
    return _current.get() is not None


@contextmanager
def turn(*, measures: bool) -> Iterator[None]:
    """One step, alone where it measures; with nobody to take turns with, at once."""
    turns = _current.get()
    if turns is None:
        yield
    elif measures:
        with turns.alone():
            yield
    else:
        turns.pause()
        yield
