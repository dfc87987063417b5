"""Which candidates survive, and which one is taken: errors first, speed where it was measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

#: Of two speed classes, the one that is preferred is kept unless another is closer to the source by this factor.
CLEARLY_CLOSER: Final = 1.5
#: Or this much faster where speed was measured on the target: classes that differ, differ by a factor of 1.25 to 2
#: (build.md, b), and a choice that noise could turn would change the bundle.
CLEARLY_FASTER: Final = 0.75
#: Times that differ by less are the same: two runs of one file differ by some percent, classes by 25 and more.
SAME_TIME: Final = 1.15
#: Where times are the same, a class must be this much closer to be taken instead.
CLOSER: Final = 0.95
#: Errors closer than this are the same, and the plainer candidate, which stands first, is kept.
SAME_ERROR: Final = 0.98


class Trial(Struct, frozen=True, kw_only=True):
    """One candidate that ran.

    Attributes:
        name: of its scheme.
        speed_class: candidates of one class do the same arithmetic: ``u8s8``.
        error: largest relative RMS of its outputs; infinite where it has none.
        by_group: whether the first output's is that of its channel groups.
        faulty: degenerate, or a channel group lost: never taken while another is there.
        size_bytes: of its files.
    """

    name: str
    speed_class: str
    error: float
    faulty: bool = False
    size_bytes: int = 0
    by_group: bool = False


def best(trials: Sequence[Trial]) -> Trial:
    """The closest one; of equal ones, that which stands first.

    >>> best([Trial(name="a", speed_class="", error=0.100), Trial(name="b", speed_class="", error=0.099)]).name
    'a'
    """
    chosen = trials[0]
    for trial in trials[1:]:
        if (trial.faulty, trial.error) < (chosen.faulty, chosen.error * SAME_ERROR) or trial.faulty < chosen.faulty:
            chosen = trial
    return chosen


def survivors(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The closest ones, in the order in which they were tried."""
    ranked = sorted(range(len(trials)), key=lambda index: (trials[index].faulty, trials[index].error, index))
    return [trials[index] for index in sorted(ranked[:count])]


def choose(finalists: Sequence[Trial], times_ms: Mapping[str, float], *, size_bytes: int = 0) -> Trial:
    """The one that is taken.

    Args:
        finalists: the best of each speed class, the preferred class first.
        times_ms: name → median latency, where it was measured on the target; else empty.
        size_bytes: budget, 0 for none: what exceeds it is taken only where everything does.

    >>> slow = Trial(name="s8s8", speed_class="s8s8", error=0.05)
    >>> fast = Trial(name="u8s8", speed_class="u8s8", error=0.06)
    >>> choose([slow, fast], {}).name, choose([slow, fast], {"s8s8": 2.0, "u8s8": 1.0}).name
    ('s8s8', 'u8s8')
    """
    fitting = [each for each in finalists if not size_bytes or each.size_bytes <= size_bytes] or list(finalists)
    sound = [each for each in fitting if not each.faulty] or fitting
    least = min(each.error for each in sound)
    allowed = [each for each in sound if each.error <= CLEARLY_CLOSER * least] or sound
    chosen = allowed[0]
    if chosen.name not in times_ms:
        return chosen
    timed = [each for each in allowed if each.name in times_ms]
    fastest = min(timed, key=lambda each: times_ms[each.name])
    if times_ms[fastest.name] < CLEARLY_FASTER * times_ms[chosen.name]:
        chosen = fastest
    as_fast = [each for each in timed if times_ms[each.name] <= SAME_TIME * times_ms[chosen.name]]
    closest = min(as_fast, key=lambda each: each.error)
    return closest if closest.error <= CLOSER * chosen.error else chosen
