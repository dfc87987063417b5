"""Two ways in turn, call by call: whatever slows the machine down meets both, and goes out of their difference."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeship_agent.processing.arrays import Array

WARM_UP = 40
#: Time of one pair with another, at most, and how many there are at most and at least.
MOST_S = 4.0
MOST_PAIRS, FEWEST_PAIRS = 8192, 320
#: Pairs that are drawn together: a machine is slow for some time, not for single calls.
_TOGETHER = 32
_DRAWS = 500

Statistic = Callable[[Array, Array], Array]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Times of both ways in µs, [n] each; the calls of an index were made one after the other."""

    base: Array
    ours: Array

    def __len__(self) -> int:
        return len(self.base)

    def of(self, statistic: Statistic) -> tuple[float, list[float]]:
        """A statistic of the pairs along the last axis, and the ends of its 95 % interval.

        The interval is that of a bootstrap over runs of 32 pairs. Source: Künsch 1989, The jackknife and the bootstrap
        for general stationary observations.
        """
        runs = len(self.base) // _TOGETHER
        random = np.random.default_rng(0)
        values = []
        for _ in range(_DRAWS):
            starts = random.integers(0, len(self.base) - _TOGETHER + 1, runs)
            drawn = (starts[:, np.newaxis] + np.arange(_TOGETHER)).reshape(-1)
            values.append(float(statistic(self.base[drawn], self.ours[drawn])))
        return float(statistic(self.base, self.ours)), np.quantile(values, (0.025, 0.975)).tolist()


def take_pairs(base: Callable[[int], object], ours: Callable[[int], object]) -> Pairs:
    """Call both in turn, each first in every second pair, with the same index."""
    for index in range(WARM_UP):
        base(index)
        ours(index)
    started_s = time.perf_counter()
    for index in range(WARM_UP):
        base(index)
        ours(index)
    pair_s = (time.perf_counter() - started_s) / WARM_UP
    count = int(min(max(MOST_S / pair_s, FEWEST_PAIRS), MOST_PAIRS))
    times = np.zeros((2, count))
    for index in range(count):
        for way in (0, 1) if index % 2 else (1, 0):
            call = ours if way else base
            started_ns = time.perf_counter_ns()
            call(index)
            times[way, index] = (time.perf_counter_ns() - started_ns) / 1000.0
    return Pairs(base=times[0], ours=times[1])


def added_median(base: Array, ours: Array) -> Array:
    """Median of the differences, µs."""
    return np.asarray(np.median(ours - base))


def added_mean(base: Array, ours: Array) -> Array:
    """Mean of the differences, µs."""
    return np.asarray(np.mean(ours - base))


def added_p99(base: Array, ours: Array) -> Array:
    """What 99 of 100 calls stay below, less the median of the base, µs."""
    return np.asarray(np.quantile(ours, 0.99) - np.median(base))


def median_ratio(base: Array, ours: Array) -> Array:
    """1 + median of the differences ÷ median of the base."""
    return 1.0 + added_median(base, ours) / np.median(base)


def mean_ratio(base: Array, ours: Array) -> Array:
    """Mean of ours ÷ mean of the base."""
    return np.asarray(np.mean(ours) / np.mean(base))
