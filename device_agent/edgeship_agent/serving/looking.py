"""Whether to look for what is awaited, or to sleep until the system wakes this process: decided from what came before.

A process that sleeps is late by what waking it takes; one that looks keeps a core busy. Looking is worth its price
where what is awaited comes soon, and whether it comes soon is best known from the last times.
Source: the halt polling of KVM (Linux, Documentation/virt/kvm/halt-polling.rst), which decides likewise; ADR 0021.
"""

from __future__ import annotations

import os
from typing import Final

#: Longest look of clients and workers that are not told otherwise, in µs.
LONGEST_LOOK_US: Final = 200
#: Who slept saw the event later than it came: so many looks may have passed, and looking would have paid all the same.
_ASLEEP_RATIO: Final = 2
#: An application that comes back later than after so many looks is in no hurry.
_PACE_RATIO: Final = 10
#: Waits in a row that must have paid before the next look: at first, and at most after looks that did not.
_FEWEST, _MOST = 2, 64
#: The usual wait follows shorter waits in so many steps, and longer ones in so many.
_SHORTER, _LONGER = 4, 64
#: Pieces of other work whose mean counts; in so many waits without any it is forgotten, so that it is tried again.
_PIECES, _FORGOTTEN = 16, 64
#: So many times the mean piece has to fit in, for they differ. After so many usual waits, whoever is awaited is late.
_MARGIN, _LATE_RATIO = 1.3, 2.0


class Look:
    """Decides how long to look before the next sleep: the longest time, or not at all.

    Waits that were slept through are judged as well, so that no look is made only to find out. A look that did not pay
    ends the looking, and twice as many waits as before must have been short until it begins again.

    Args:
        longest_us: of a look, in µs; 0 for never.
        cores: that this process may use. Where there is one, looking keeps it from whoever is waited for.

    >>> look = Look(longest_us=100, cores=2)
    >>> look.look_ns
    0
    >>> for _ in range(2):
    ...     look.on_wait(150_000)  # asleep, which cost some of it
    >>> look.look_ns
    100000
    >>> look.on_wait(5_000_000)
    >>> look.look_ns
    0
    """

    def __init__(self, longest_us: float, cores: int) -> None:
        #: Longest look, in ns; 0 where nobody ever looks.
        self.longest_ns = round(longest_us * 1000.0) if cores > 1 else 0
        #: How long to look now, in ns.
        self.look_ns = 0
        self._short_waits = 0
        self._needed = _FEWEST
        self._usual_ns = 0.0
        self._work_ns = 0.0

    def on_wait(self, waited_ns: int) -> None:
        """Take how long the wait took that was begun with :attr:`look_ns`."""
        # rather too short: a wait whose end was seen late, since work was under way, would make room for more of it
        counted_ns = min(waited_ns, _ASLEEP_RATIO * self.longest_ns)
        self._usual_ns += (counted_ns - self._usual_ns) / (_LONGER if counted_ns > self._usual_ns else _SHORTER)
        self._work_ns -= self._work_ns / _FORGOTTEN
        self.on_outcome(paid=waited_ns <= (self.look_ns or _ASLEEP_RATIO * self.longest_ns))

    def on_work(self, took_ns: int) -> None:
        """Take how long a piece of other work took between two looks."""
        self._work_ns += (took_ns - self._work_ns) / _PIECES

    def leaves_time(self, waited_ns: int) -> bool:
        """Whether a piece of other work is done before what is awaited comes, as a rule, or that is late already.

        Args:
            waited_ns: since the wait began.

        >>> look = Look(longest_us=100, cores=2)
        >>> for _ in range(300):
        ...     look.on_wait(30_000)
        ...     look.on_work(10_000)
        >>> look.leaves_time(5_000), look.leaves_time(25_000), look.leaves_time(70_000)
        (True, False, True)
        """
        return waited_ns + _MARGIN * self._work_ns < self._usual_ns or waited_ns > _LATE_RATIO * self._usual_ns

    def on_outcome(self, *, paid: bool) -> None:
        """Take whether looking paid; of a wait that was slept through, whether it would have.

        >>> look = Look(longest_us=50, cores=2)
        >>> look.on_outcome(paid=True), look.on_outcome(paid=True), look.on_outcome(paid=False)
        (None, None, None)
        >>> lengths = []
        >>> for _ in range(4):  # now it takes four
        ...     look.on_outcome(paid=True)
        ...     lengths.append(look.look_ns)
        >>> lengths
        [0, 0, 0, 50000]
        """
        if paid:
            self._short_waits += 1
            if self.look_ns:
                self._needed = max(self._needed // 2, _FEWEST)
        else:
            self._short_waits = 0
            if self.look_ns:
                self._needed = min(2 * self._needed, _MOST)
        self.look_ns = self.longest_ns if self._short_waits >= self._needed else 0

    def on_pause(self, paused_ns: int) -> None:
        """Take how long the application did not ask: after a long pause no look is worth its price.

        >>> look = Look(longest_us=100, cores=2)
        >>> look.on_outcome(paid=True), look.on_outcome(paid=True), look.on_pause(5_000_000)
        (None, None, None)
        >>> look.look_ns
        0
        """
        if paused_ns > _PACE_RATIO * self.longest_ns:
            self._short_waits = 0
            self.look_ns = 0


def usable_cores() -> int:
    """Cores that this process may run on; 1 where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
