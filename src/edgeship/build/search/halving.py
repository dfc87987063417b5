"""Which candidates survive, and which one is taken: errors first, speed where it was measured. Pure."""

from __future__ import annotations

import math
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
#: While its error is within the limit, a class is not given up for one that takes so many times its time, however close
#: that one comes: NNCF's ONNX files take 5 to 13 times as long on depthwise and fully connected nets (build.md, d).
FAR_SLOWER: Final = 2.5
#: Files that differ by less are equally large; of those that are as close and as fast, the smaller one is taken.
SAME_SIZE: Final = 1.1
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
    """The closest one; of equal ones, that which is clearly smaller, or else stands first.

    >>> best([Trial(name="a", speed_class="", error=0.100), Trial(name="b", speed_class="", error=0.099)]).name
    'a'
    >>> best([Trial(name="a", speed_class="", error=0.100, size_bytes=90),
    ...       Trial(name="b", speed_class="", error=0.101, size_bytes=60)]).name
    'b'
    """
    chosen = trials[0]
    for trial in trials[1:]:
        closer = trial.error < chosen.error * SAME_ERROR
        smaller = SAME_SIZE * trial.size_bytes < chosen.size_bytes and SAME_ERROR * trial.error <= chosen.error
        if trial.faulty < chosen.faulty or (trial.faulty == chosen.faulty and (closer or smaller)):
            chosen = trial
    return chosen


def survivors(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The closest ones, in the order in which they were tried."""
    ranked = sorted(range(len(trials)), key=lambda index: (trials[index].faulty, trials[index].error, index))
    return [trials[index] for index in sorted(ranked[:count])]


def choose(
    finalists: Sequence[Trial], times_ms: Mapping[str, float], *, size_bytes: int = 0, limit: float = math.inf
) -> Trial:
    """The one that is taken.

    Args:
        finalists: the best of each speed class, the preferred class first.
        times_ms: name → median latency, where it was measured on the target; else empty.
        size_bytes: budget, 0 for none: what exceeds it is taken only where everything does.
        limit: largest error that may ship.

    >>> slow = Trial(name="s8s8", speed_class="s8s8", error=0.05)
    >>> fast = Trial(name="u8s8", speed_class="u8s8", error=0.06)
    >>> choose([slow, fast], {}).name, choose([slow, fast], {"s8s8": 2.0, "u8s8": 1.0}).name
    ('s8s8', 'u8s8')
    """
    fitting = [each for each in finalists if not size_bytes or each.size_bytes <= size_bytes] or list(finalists)
    sound = [each for each in fitting if not each.faulty] or fitting
    sound = _fast_enough([each for each in sound if each.error <= limit] or sound, times_ms)
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
    chosen = closest if closest.error <= CLOSER * chosen.error else chosen
    return _smallest(chosen, as_fast)


def _fast_enough(trials: Sequence[Trial], times_ms: Mapping[str, float]) -> list[Trial]:
    """Without those that take far longer than another."""
    least_ms = min((times_ms[each.name] for each in trials if each.name in times_ms), default=math.inf)
    return [each for each in trials if times_ms.get(each.name, 0.0) <= FAR_SLOWER * least_ms]


def _smallest(chosen: Trial, as_fast: Sequence[Trial]) -> Trial:
    """One that is clearly smaller and as close, or what was chosen.

    >>> large = Trial(name="channel", speed_class="s8s8", error=0.030, size_bytes=54)
    >>> small = Trial(name="tensor", speed_class="s8s8-tensor", error=0.031, size_bytes=35)
    >>> _smallest(large, [large, small]).name
    'tensor'
    """
    smaller = [
        each for each in as_fast
        if SAME_SIZE * each.size_bytes < chosen.size_bytes and CLOSER * each.error <= chosen.error
    ]  # fmt: skip
    return min(smaller, key=lambda each: (each.size_bytes, each.error), default=chosen)
