"""Whether a profile job takes from applications what is theirs: pure, from the counters of the workers."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

#: So many calls that went wrong are no accident ...
_FEWEST: Final = 3
#: ... where they are more than this share of the calls since the job began, and
_SHARE: Final = 0.01
#: more than so many times their share before it.
_TIMES: Final = 2.0


class Strain(Struct, frozen=True, kw_only=True):
    """How applications fared since their workers were started.

    Attributes:
        calls: answered, failed or shed.
        late: answered after their deadline.
        shed: not answered at all, since they could not have been in time.
    """

    calls: int = 0
    late: int = 0
    shed: int = 0

    @property
    def suffered(self) -> int:
        """Calls that did not get their answer in time."""
        return self.late + self.shed


class StrainWatch:
    """Compares what comes while a job runs with what there was before it.

    A worker that was replaced meanwhile counts from zero: the comparison begins anew with it.

    >>> watch = StrainWatch()
    >>> watch.look(Strain(calls=1000, late=1)), watch.look(Strain(calls=1100, late=3))
    ('', '')
    >>> watch.look(Strain(calls=1150, late=4))
    'serving suffers: 3 of 150 calls since it began were late or shed'
    """

    def __init__(self) -> None:
        self._first: Strain | None = None

    def look(self, now: Strain) -> str:
        """One sentence where serving suffers, else nothing."""
        first = self._first
        if first is None or now.calls < first.calls or now.suffered < first.suffered:
            self._first = now
            return ""
        calls, suffered = now.calls - first.calls, now.suffered - first.suffered
        before = first.suffered / first.calls if first.calls else 0.0
        if suffered < _FEWEST or suffered <= max(_SHARE, _TIMES * before) * calls:
            return ""
        return f"serving suffers: {suffered} of {calls} calls since it began were late or shed"
