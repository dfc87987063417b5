"""Confidence intervals for shares, for their paired difference, and how much data would decide.

All counts may be fractional where a caller scales them (:func:`samples_needed` does); all results are fractions.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import InputError

#: Beyond so many samples in all :func:`samples_needed` says "not decidable" instead of a number nobody can label.
MAX_SAMPLES: Final = 10_000_000
_BISECTIONS: Final = 200  # halvings: more than a double can hold, so a search ends at neighbouring numbers
_TINY: Final = 1e-300


class Interval(Struct, frozen=True, kw_only=True):
    """A two-sided confidence interval, both ends included."""

    low: float
    high: float


class Difference(Struct, frozen=True, kw_only=True):
    """Accuracy lost from a reference to a candidate on the same samples, as a fraction; positive is worse.

    Attributes:
        drop: accuracy(reference) − accuracy(candidate).
        low, high: confidence interval of ``drop``.
    """

    drop: float
    low: float
    high: float


class Change(Struct, frozen=True, kw_only=True):
    """A share after − the share before, in independent samples, as a fraction.

    Attributes:
        low, high: confidence interval of ``change``.
    """

    change: float
    low: float
    high: float


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """The score interval of a share; ``[0, 1]`` where nothing was seen.

    Args:
        successes: how many of ``n``, 0 ≤ successes ≤ n.
        n: samples.
        confidence: two-sided, between 0 and 1.

    Raises:
        InputError: counts or confidence that cannot be.

    Source: E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference, JASA 22.

    >>> interval = wilson(81, 263)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.2553, 0.3662)
    >>> wilson(0, 0)
    Interval(low=0.0, high=1.0)
    """
    _check_share(successes, n, confidence)
    if n == 0:
        return Interval(low=0.0, high=1.0)
    z = _z(confidence)
    share = successes / n
    denominator = 1.0 + z * z / n
    center = (share + z * z / (2.0 * n)) / denominator
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n)) / denominator
    # at the ends the exact value is 0 or 1; rounding must not push it beyond
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return Interval(low=low, high=high)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact interval of a share: covers at least ``confidence`` for every true share, so it is wide.

    Raises:
        InputError: counts or confidence that cannot be.

    Source: C. J. Clopper and E. S. Pearson (1934), Biometrika 26; the binomial tails as incomplete beta functions.

    >>> interval = clopper_pearson(0, 10)
    >>> interval.low, round(interval.high, 4)
    (0.0, 0.3085)
    """
    _check_share(successes, n, confidence)
    if n == 0:
        return Interval(low=0.0, high=1.0)
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if successes == 0 else _beta_quantile(tail, successes, n - successes + 1)
    high = 1.0 if successes == n else _beta_quantile(1.0 - tail, successes + 1, n - successes)
    return Interval(low=low, high=high)


def newcombe_paired(
    both: float, only_reference: float, only_candidate: float, neither: float, confidence: float = 0.95
) -> Difference:
    """How much accuracy a candidate loses against a reference that answered the very same samples.

    Args:
        both: samples that both got right.
        only_reference: right in the reference alone: what the candidate lost.
        only_candidate: right in the candidate alone: what it won.
        neither: wrong in both.
        confidence: two-sided, between 0 and 1.

    Returns:
        The drop and its interval; ``[-1, 1]`` around 0 where there are no samples.

    Raises:
        InputError: a negative count.

    Source: R. G. Newcombe (1998), Improved confidence intervals for the difference between binomial proportions
    based on paired data, Statistics in Medicine 17, 2635–2650, method 10 (score intervals of both shares, joined by
    the continuity-corrected φ).

    >>> difference = newcombe_paired(36, 12, 2, 0)
    >>> round(difference.drop, 4), round(difference.low, 4), round(difference.high, 4)
    (0.2, 0.0569, 0.3404)
    """
    for name, count in (
        ("both", both),
        ("only_reference", only_reference),
        ("only_candidate", only_candidate),
        ("neither", neither),
    ):
        if not count >= 0:
            raise InputError("not a count", key=name, expected="≥ 0", got=count)
    n = both + only_reference + only_candidate + neither
    if n == 0:
        return Difference(drop=0.0, low=-1.0, high=1.0)
    reference_share = (both + only_reference) / n
    candidate_share = (both + only_candidate) / n
    reference = wilson(both + only_reference, n, confidence)
    candidate = wilson(both + only_candidate, n, confidence)
    phi = _corrected_phi(both, only_reference, only_candidate, neither)
    drop = (only_reference - only_candidate) / n
    below = _joined(reference_share - reference.low, candidate.high - candidate_share, phi)
    above = _joined(reference.high - reference_share, candidate_share - candidate.low, phi)
    return Difference(drop=drop, low=max(-1.0, drop - below), high=min(1.0, drop + above))


def newcombe_independent(
    successes_before: float, n_before: float, successes_after: float, n_after: float, confidence: float = 0.95
) -> Change:
    """How much a share changed between two independent samples, such as failed calls before and after an update.

    Returns:
        The change and its interval; where one side is empty the interval is as wide as the other side allows.

    Raises:
        InputError: counts or confidence that cannot be.

    Source: R. G. Newcombe (1998), Interval estimation for the difference between independent proportions: comparison
    of eleven methods, Statistics in Medicine 17, 873–890, method 10 (score intervals of both shares, joined).

    >>> change = newcombe_independent(48, 80, 56, 70)
    >>> round(change.change, 4), round(change.low, 4), round(change.high, 4)
    (0.2, 0.0524, 0.3339)
    """
    before, after = wilson(successes_before, n_before, confidence), wilson(successes_after, n_after, confidence)
    share_before = successes_before / n_before if n_before else 0.0
    share_after = successes_after / n_after if n_after else 0.0
    change = share_after - share_before
    below = math.hypot(share_after - after.low, before.high - share_before)
    above = math.hypot(after.high - share_after, share_before - before.low)
    return Change(change=change, low=max(-1.0, change - below), high=min(1.0, change + above))


def rule_of_three(exposure: float, confidence: float = 0.95) -> float:
    """Upper bound of an event rate after ``exposure`` trials (or device-hours) without one event: about 3 ÷ exposure.

    Returns:
        The bound in events per unit of exposure; infinite where there was no exposure.

    Source: Hanley and Lippman-Hand (1983), If nothing goes wrong, is everything all right?, JAMA 249. The exact
    Poisson bound −ln(1 − confidence) ÷ exposure is returned, 2.996 ÷ exposure at 95 %.

    >>> round(rule_of_three(300), 4)
    0.01
    """
    if not exposure >= 0:
        raise InputError("not an exposure", key="exposure", expected="≥ 0", got=exposure)
    _check_confidence(confidence)
    return math.inf if exposure == 0 else -math.log(1.0 - confidence) / exposure


def samples_needed(
    both: float,
    only_reference: float,
    only_candidate: float,
    neither: float,
    limit: float,
    confidence: float = 0.95,
) -> int | None:
    """How many *more* labelled samples would decide whether the drop keeps to ``limit``, at the rates seen so far.

    Decided means that the paired interval lies on one side: ``high ≤ limit`` (proven) or ``low > limit`` (refuted).

    Args:
        both: see :func:`newcombe_paired`, as the three counts after it.
        only_reference: ...
        only_candidate: ...
        neither: ...
        limit: largest drop that is accepted, as a fraction.
        confidence: two-sided, between 0 and 1.

    Returns:
        0 where it is decided already; None where the rates lie so close to the limit that no reasonable number would
        do, or where nothing was seen.

    >>> samples_needed(884, 8, 3, 5, limit=0.01)
    2025
    >>> samples_needed(540, 0, 0, 0, limit=0.01)
    0
    """
    cells = (both, only_reference, only_candidate, neither)
    n = sum(cells)

    def decided(total: float) -> bool:
        won, lost, gained, missed = (cell * total / n for cell in cells)
        difference = newcombe_paired(won, lost, gained, missed, confidence)
        return difference.high <= limit or difference.low > limit

    if n == 0:
        return None
    if decided(n):
        return 0
    low, high = math.floor(n), math.floor(n)
    while not decided(high):
        low, high = high, high * 2
        if low > MAX_SAMPLES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return math.ceil(high - n)


def samples_needed_by_width(n: int, drop: float, low: float, high: float, limit: float) -> int | None:
    """How many *more* samples would decide about any drop with an interval, if its sides shrink with the root of n.

    Args:
        n: samples so far.
        drop: estimate.
        low: lower end of its interval.
        high: upper end.
        limit: largest drop that is accepted, in the unit of ``drop``.

    Returns:
        0 where it is decided already; None where the drop lies so close to the limit that no reasonable number would.

    >>> samples_needed_by_width(1000, 0.0, -0.02, 0.02, limit=0.01)
    3000
    """
    if high <= limit or low > limit:
        return 0
    side, distance = (high - drop, limit - drop) if drop <= limit else (drop - low, drop - limit)
    if not (math.isfinite(side) and distance > 0.0) or n == 0:
        return None
    needed = n * (side / distance) ** 2
    return math.ceil(needed - n) if needed <= MAX_SAMPLES else None


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise InputError("not a confidence", key="confidence", expected="between 0 and 1", got=confidence)


def _check_share(successes: float, n: float, confidence: float) -> None:
    _check_confidence(confidence)
    if not 0 <= successes <= n:
        raise InputError("not a share", key="successes", expected=f"0 … n = {n}", got=successes)


def _corrected_phi(both: float, only_reference: float, only_candidate: float, neither: float) -> float:
    n = both + only_reference + only_candidate + neither
    product = (
        (both + only_reference) * (only_candidate + neither) * (both + only_candidate) * (only_reference + neither)
    )
    if product <= 0:
        return 0.0
    numerator = both * neither - only_reference * only_candidate
    if numerator > 0:
        numerator = max(numerator - n / 2.0, 0.0)
    return numerator / math.sqrt(product)


def _joined(left: float, right: float, phi: float) -> float:
    return math.sqrt(max(0.0, left * left - 2.0 * phi * left * right + right * right))


def _beta_quantile(share: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if middle in (low, high):
            break
        low, high = (middle, high) if _beta_cdf(middle, a, b) < share else (low, middle)
    return (low + high) / 2.0


def _beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function; source: Numerical Recipes, 3rd edition, section 6.4."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(x, a, b) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(1.0 - x, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    """Continued fraction of the incomplete beta function by the modified Lentz method."""
    c, d = 1.0, _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    d = 1.0 / d
    result = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            step = c * d
            result *= step
        if abs(step - 1.0) < 1e-15:
            break
    return result


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
