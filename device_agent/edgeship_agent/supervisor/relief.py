"""When memory that a supervisor needs no more goes back to the system."""

from __future__ import annotations

from typing import Final

#: Work that has ended is followed by its last messages; what they took goes back with the rest.
_AFTER_WORK_S: Final = 2.0
_EVERY_S: Final = 60.0


class Relief:
    """Soon after work has ended (the start, an update), and once a minute besides.

    By the minute alone, what an update took would stay for up to another one.

    Args:
        now_s: seconds on a clock that never goes back.

    >>> relief = Relief(now_s=0.0)
    >>> relief.is_due(1.0), relief.is_due(2.0), relief.is_due(61.0), relief.is_due(62.0)
    (False, True, False, True)
    >>> relief.work_ended(70.0)
    >>> relief.is_due(71.0), relief.is_due(72.0), relief.is_due(122.0), relief.is_due(132.0)
    (False, True, False, True)
    """

    def __init__(self, now_s: float) -> None:
        self._due_s = now_s + _AFTER_WORK_S

    def work_ended(self, now_s: float) -> None:
        """Something is over that took memory."""
        self._due_s = min(self._due_s, now_s + _AFTER_WORK_S)

    def is_due(self, now_s: float) -> bool:
        """Whether it is time; if so, the next one is a minute away."""
        if now_s < self._due_s:
            return False
        self._due_s = now_s + _EVERY_S
        return True
