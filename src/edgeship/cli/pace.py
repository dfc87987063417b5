"""How long a count still takes, at its pace so far: an estimate, and said to be one."""

from __future__ import annotations

from typing import Final

#: Before so many steps and seconds there is no pace to speak of.
_FEWEST_STEPS: Final = 3
_SHORTEST_S: Final = 1.0


class Pace:
    """One count at a time; another label, or a count that goes back, starts anew."""

    def __init__(self) -> None:
        self._label = ""
        self._first = self._last = 0
        self._since_s = 0.0

    def left_s(self, label: str, done: int, total: int, now_s: float) -> float | None:
        """Seconds until ``total``, None while there is too little to go by.

        Args:
            label: of the count.
            done: so far.
            total: where it ends.
            now_s: a clock that only goes forward.

        >>> pace = Pace()
        >>> [pace.left_s("run", done, 10, float(done)) for done in (0, 1, 4)]
        [None, None, 6.0]
        """
        if label != self._label or done < self._last:
            self._label, self._first, self._since_s = label, done, now_s
        self._last = done
        steps, elapsed_s = done - self._first, now_s - self._since_s
        if steps < _FEWEST_STEPS or elapsed_s < _SHORTEST_S:
            return None
        return max(total - done, 0) * elapsed_s / steps


def shown(label: str, done: int, total: int, left_s: float | None, *, about: bool = False) -> str:
    """A count in words.

    Args:
        label: of what.
        done: so far.
        total: where it ends.
        left_s: how long it still takes, None where that is not known.
        about: whether ``total`` is a guess.

    >>> shown("litert candidates", 7, 16, 41.6, about=True)
    'litert candidates 7 of about 16 · about 42 s left at this pace'
    >>> shown("source", 50, 900, None)
    'source 50 of 900'
    """
    count = f"{label} {done} of {'about ' if about else ''}{total}"
    if left_s is None or done >= total:
        return count
    return f"{count} · about {_duration(left_s)} left at this pace"


def _duration(time_s: float) -> str:
    """Seconds for people.

    >>> _duration(0.2), _duration(59.2), _duration(150.0), _duration(7300.0)
    ('1 s', '59 s', '3 min', '2.0 h')
    """
    if time_s < 90:
        return f"{max(round(time_s), 1)} s"
    return f"{-(-time_s // 60):.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"
