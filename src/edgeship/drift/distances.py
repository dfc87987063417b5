"""Distances between two histograms over the same bins, and what a sample of that size can prove about them.

A histogram is a sequence of counts; they need not be whole where a design effect scaled them. All distances are
fractions; Jensen–Shannon is in bits, so it runs from 0 to 1 like the others. Limits and their false-alarm rates:
docs/adr/0005-drift-thresholds.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import NormalDist
from typing import Final

from edgeship.statistics import Interval

#: Smallest expected count of a bin in the smaller sample: the rule under which χ² approximations hold (Cochran 1954).
MIN_EXPECTED_COUNT: Final = 5.0
_LN2: Final = math.log(2.0)


def ks_bounds(p: Sequence[float], q: Sequence[float]) -> Interval:
    """What two binned samples certify about the Kolmogorov–Smirnov distance of the values inside the bins.

    At the edges the difference of the distribution functions is exact: the lower bound. Within a bin it can grow at
    most by the bin's mass: the upper bound.

    >>> bounds = ks_bounds([10, 10], [15, 5])
    >>> bounds.low, bounds.high
    (0.25, 0.75)
    """
    n, m = sum(p), sum(q)
    if n == 0 or m == 0:
        return Interval(low=0.0, high=1.0)
    left = [0.0, *(count / n for count in accumulate(p))]
    right = [0.0, *(count / m for count in accumulate(q))]
    low = max(abs(a - b) for a, b in zip(left, right, strict=True))
    high = max(
        max(left[i + 1] - right[i], right[i + 1] - left[i])  # every value of one side before those of the other
        for i in range(len(p))
    )
    return Interval(low=low, high=min(1.0, high))


def total_variation(p: Sequence[float], q: Sequence[float]) -> float:
    """Half the sum of the absolute differences of the shares: the mass that would have to move.

    >>> total_variation([5, 5], [9, 1])
    0.4
    """
    n, m = sum(p), sum(q)
    if n == 0 or m == 0:
        return 0.0
    return sum(abs(a / n - b / m) for a, b in zip(p, q, strict=True)) / 2.0


def psi(p: Sequence[float], q: Sequence[float]) -> float:
    """Population stability index, freed of its bias of (bins − 1)(1/n + 1/m); half a count is added to each bin.

    Source: Yurdakul (2018), Statistical properties of the population stability index, for the bias.

    >>> psi([50, 50], [50, 50]) <= 0.0
    True
    """
    n, m = sum(p), sum(q)
    if n == 0 or m == 0:
        return 0.0
    bins = len(p)
    shares = [
        ((a + 0.5) / (n + 0.5 * bins), (b + 0.5) / (m + 0.5 * bins)) for a, b in zip(p, q, strict=True) if a + b > 0
    ]
    index = sum((a - b) * math.log(a / b) for a, b in shares)
    return index - (len(shares) - 1) * (1.0 / n + 1.0 / m)


def js_distance(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen–Shannon distance as it is usually computed: the square root of the divergence in bits, with its bias.

    For n = m = 300 in 32 bins it is 0.19 between samples of one and the same distribution.

    >>> js_distance([10, 0], [0, 10])
    1.0
    >>> js_distance([1, 2], [10, 20])
    0.0
    """
    n, m = sum(p), sum(q)
    if n == 0 or m == 0:
        return 0.0
    return math.sqrt(max(0.0, _divergence(p, q, n, m)) / _LN2)


def js_estimate(p: Sequence[float], q: Sequence[float], alpha: float) -> tuple[float, Interval]:
    """Jensen–Shannon distance freed of the bias of small samples, and its interval.

    The divergence is an entropy of the mixture minus the mean entropy of the parts; each has the known bias of a
    plug-in entropy. Its spread has two parts: a χ² one that remains when both are the same, and a normal one that grows
    with the difference (delta method). Both are joined by squares, as score intervals are.

    Args:
        p: counts of one sample, bins merged where they were thin (:func:`thicken`).
        q: counts of the other, over the same bins.
        alpha: chance of an error on *each* side of the interval.

    Returns:
        The distance and its interval, each 0–1; 0 and [0, 1] where one side is empty.

    Source: Miller (1955), Note on the bias of information estimates; Lin (1991), Divergence measures based on the
    Shannon entropy; Menéndez et al. (1997), The Jensen–Shannon divergence, for the χ² limit.

    >>> value, interval = js_estimate([100, 100, 100], [98, 101, 101], alpha=0.025)
    >>> value, interval.low
    (0.0, 0.0)
    """
    n, m = sum(p), sum(q)
    if n == 0 or m == 0:
        return 0.0, Interval(low=0.0, high=1.0)
    divergence = _divergence(p, q, n, m) - _bias(p, q, n, m)
    spread = math.hypot(_null_spread(p, q, alpha), _normal_spread(p, q, alpha))
    low, high = _distance(divergence - spread), _distance(divergence + spread)
    return _distance(divergence), Interval(low=low, high=high)


def thicken(p: Sequence[float], q: Sequence[float], *, ordered: bool = True) -> tuple[list[float], list[float]]:
    """Merge bins until each is expected to hold :data:`MIN_EXPECTED_COUNT` values of the smaller sample.

    Merging can only lower a distance (data processing inequality), so nothing is claimed that finer bins would not
    show. What is merged depends on both samples together, never on how they differ.

    Args:
        p: counts of one sample.
        q: counts of the other, over the same bins.
        ordered: neighbours are merged; otherwise (classes) all thin bins become one.

    >>> thicken([1, 1, 30, 30], [1, 1, 30, 30])
    ([32.0, 30.0], [32.0, 30.0])
    """
    n, m = sum(p), sum(q)
    smaller = min(n, m) / (n + m) if n + m else 0.0
    pairs = list(zip(p, q, strict=True))
    if not ordered:
        pairs.sort(key=lambda pair: -(pair[0] + pair[1]))
    merged: list[tuple[float, float]] = []
    a = b = 0.0
    for left, right in pairs:
        a, b = a + left, b + right
        if (a + b) * smaller >= MIN_EXPECTED_COUNT:
            merged.append((a, b))
            a = b = 0.0
    if merged and a + b:
        a, b = a + merged[-1][0], b + merged[-1][1]
        merged[-1] = (a, b)
    elif a + b:
        merged.append((a, b))
    return [pair[0] for pair in merged], [pair[1] for pair in merged]


def _divergence(p: Sequence[float], q: Sequence[float], n: float, m: float) -> float:
    """Jensen–Shannon divergence in nats."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        left, right = a / n, b / m
        middle = (left + right) / 2.0
        if left > 0.0:
            total += left * math.log(left / middle)
        if right > 0.0:
            total += right * math.log(right / middle)
    return total / 2.0


def _bias(p: Sequence[float], q: Sequence[float], n: float, m: float) -> float:
    """Expected excess of the plug-in divergence in nats: (bins − 1)(1/n + 1/m)/8 where both are the same."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        left, right = a / n, b / m
        middle = (left + right) / 2.0
        if middle <= 0.0:
            continue
        noise_left, noise_right = left * (1.0 - left) / n, right * (1.0 - right) / m
        total += noise_left / (4.0 * left) if left > 0.0 else 0.0
        total += noise_right / (4.0 * right) if right > 0.0 else 0.0
        total -= (noise_left + noise_right) / (8.0 * middle)
    return total


def _null_spread(p: Sequence[float], q: Sequence[float], alpha: float) -> float:
    """How far chance alone takes the divergence above its mean when both are the same, in nats."""
    degrees = sum(1 for a, b in zip(p, q, strict=True) if a + b > 0) - 1
    if degrees < 1:
        return 0.0
    return (1.0 / sum(p) + 1.0 / sum(q)) / 8.0 * (_chi_square_quantile(1.0 - alpha, degrees) - degrees)


def _normal_spread(p: Sequence[float], q: Sequence[float], alpha: float) -> float:
    """Standard normal quantile × standard error of the divergence by the delta method, in nats."""
    n, m = sum(p), sum(q)
    variance = 0.0
    for counts, others, size, other_size in ((p, q, n, m), (q, p, m, n)):
        mean = square = 0.0
        for a, b in zip(counts, others, strict=True):
            if a > 0:
                share = a / size
                slope = math.log(share / ((share + b / other_size) / 2.0)) / 2.0
                mean += share * slope
                square += share * slope * slope
        variance += max(0.0, square - mean * mean) / size
    return NormalDist().inv_cdf(1.0 - alpha) * math.sqrt(variance)


def _chi_square_quantile(share: float, degrees: int) -> float:
    """Source: Wilson and Hilferty (1931), The distribution of chi-square; 3 % low to 8 % high."""
    scale = 2.0 / (9.0 * degrees)
    return float(degrees * max(0.0, 1.0 - scale + NormalDist().inv_cdf(share) * math.sqrt(scale)) ** 3)


def _distance(divergence_nats: float) -> float:
    return math.sqrt(min(1.0, max(0.0, divergence_nats) / _LN2))
