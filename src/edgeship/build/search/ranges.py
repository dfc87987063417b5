"""Ranges of activations: gathered once, sample by sample, and read by several estimators. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from edgeship_agent.runtime.engine import Array

Range = tuple[float, float]
#: Bins of a histogram. Even, so that two neighbours merge when the range doubles.
BINS: Final = 4096
#: Values of one tensor that one sample gives to the histogram at most; its minimum and maximum are exact.
MOST_VALUES: Final = 16384
#: Fewer values than this are counted one by one: a new histogram of each small tensor takes 30 times as long.
_FEW_VALUES: Final = BINS // 4
#: Levels of an 8-bit tensor, less one.
STEPS: Final = 255
#: Share of values that a percentile estimator keeps.
PERCENTILES: Final = {"p99.9": 0.999, "p99.99": 0.9999, "p99.999": 0.99999}
#: In the order in which they are preferred where they are equally good; ``average`` is ai-edge-quantizer's own
#: (a moving average with .95) and ``mean`` is NNCF's (the mean of the samples' ranges): both clip.
ESTIMATORS: Final = ("minmax", "p99.999", "p99.99", "p99.9", "mse", "mean", "average")
#: Weight of the past in a moving average. Source: ai-edge-quantizer, ``qsv_utils.moving_average_update``.
_PAST: Final = 0.95
#: Shares of the true range that the search for the least squared error tries.
_SHRINKS: Final = tuple(float(share) for share in np.linspace(0.4, 1.0, 31))


class TensorStatistics:
    """What is known of one tensor after some samples.

    Args:
        masked: at or below this a value counts for nothing, where the highest of its sample lies above; None for all.

    >>> seen = TensorStatistics()
    >>> seen.add(np.array([0.0, 1.0], np.float32)); seen.add(np.array([-3.0, 2.0], np.float32))
    >>> seen.range("minmax"), seen.range("mean")
    ((-3.0, 2.0), (-1.5, 1.5))
    """

    def __init__(self, masked: float | None = None) -> None:
        self.low = np.inf
        self.high = -np.inf
        #: Lowest value that counted for nothing, None without one.
        self.lowest_masked: float | None = None
        self._masked = masked
        self.samples = 0
        self.shape: tuple[int, ...] = ()
        self._mean = self._average = (0.0, 0.0)
        self._reach = 0.0
        self._counts = np.zeros(BINS, np.int64)

    def add(self, array: Array) -> None:
        """Take one sample in; values that are not finite count for nothing."""
        values = array.reshape(-1)
        if not values.size:
            return
        # numbers and not arrays of two: a graph of thousands of small tensors spends its time in such calls
        ends = (float(values.min()), float(values.max()))
        if self._masked is not None and ends[0] <= self._masked < ends[1]:
            self.lowest_masked = min(ends[0], self.lowest_masked or 0.0)
            values = values[values > self._masked]
            ends = (float(values.min()), ends[1])
        if not (math.isfinite(ends[0]) and math.isfinite(ends[1])):
            values = values[np.isfinite(values)]
            if not values.size:
                return
            ends = (float(values.min()), float(values.max()))
        self.shape = array.shape
        past, now = (_PAST, 1.0 - _PAST) if self.samples else (0.0, 1.0)
        self._average = (past * self._average[0] + now * ends[0], past * self._average[1] + now * ends[1])
        self.samples += 1
        low, high = self._mean
        self._mean = (low + (ends[0] - low) / self.samples, high + (ends[1] - high) / self.samples)
        self.low, self.high = min(self.low, ends[0]), max(self.high, ends[1])
        self._widen(max(abs(ends[0]), abs(ends[1])))
        if self._reach:
            step = -(-values.size // MOST_VALUES)
            places = (values[::step] / self._reach * (BINS // 2)).astype(np.int64) + BINS // 2
            # truncation towards zero would put both neighbours of zero in one bin
            places -= (values[::step] < 0).astype(np.int64)
            places = np.minimum(np.maximum(places, 0), BINS - 1)
            if places.size < _FEW_VALUES:
                np.add.at(self._counts, places, 1)
            else:
                self._counts += np.bincount(places, minlength=BINS)

    def range(self, estimator: str) -> Range:
        """Lowest and highest value to be represented.

        Args:
            estimator: one of :data:`ESTIMATORS`.
        """
        if not self.samples:
            return (0.0, 0.0)
        if estimator in PERCENTILES:
            return self._percentile(PERCENTILES[estimator])
        if estimator == "mse":
            return self._least_error()
        if estimator == "minmax":
            return self.low, self.high
        return self._mean if estimator == "mean" else self._average

    def sqnr_db(self, bounds: Range) -> float | None:
        """Signal to noise in dB where this tensor is held in 8 bits within ``bounds``; None where it is exact."""
        centres = self._centres()
        signal = float((self._counts * centres**2).sum())
        noise = _noise(centres, self._counts, *bounds)
        return None if noise <= 0.0 or signal <= 0.0 else float(10.0 * np.log10(signal / noise))

    def _widen(self, size: float) -> None:
        """Double the histogram's reach until it holds ``size``, merging neighbours."""
        if size == 0.0:
            return
        if not self._reach:
            self._reach = float(2.0 ** np.ceil(np.log2(size)))
        while size > self._reach:
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros(BINS, np.int64)
            self._counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self._reach *= 2.0

    def _centres(self) -> Array:
        return (np.arange(BINS) + 0.5 - BINS // 2) * (2.0 * self._reach / BINS)

    def _percentile(self, kept: float) -> Range:
        """The range that holds a share of the values, half of the rest cut at each end."""
        total = int(self._counts.sum())
        if not total:
            return (self.low, self.high)
        cut = (1.0 - kept) / 2.0
        shares = np.cumsum(self._counts) / total
        width = 2.0 * self._reach / BINS
        left = float((int(np.searchsorted(shares, cut, side="right")) - BINS // 2) * width)
        right = float((int(np.searchsorted(shares, 1.0 - cut)) + 1 - BINS // 2) * width)
        return max(left, self.low), min(right, self.high)

    def _least_error(self) -> Range:
        """The range with the least squared error of 8 bits, both ends shrunk together or each alone."""
        centres = self._centres()
        used = self._counts > 0
        centres, counts = centres[used], self._counts[used]
        best = (np.inf, self.low, self.high)
        for share in reversed(_SHRINKS):
            ends = {(self.low * share, self.high * share), (self.low, self.high * share), (self.low * share, self.high)}
            for low, high in sorted(ends):
                noise = _noise(centres, counts, low, high)
                if noise < best[0]:
                    best = (noise, low, high)
        return best[1], best[2]


class Statistics:
    """Of every tensor of a float file, by name.

    Args:
        masked: tensor → see :class:`TensorStatistics`.
    """

    def __init__(self, masked: Mapping[str, float] | None = None) -> None:
        self.tensors: dict[str, TensorStatistics] = {}
        self._masked = masked or {}

    def add(self, tensors: Mapping[str, Array]) -> None:
        """Take one sample in."""
        for name, array in tensors.items():
            if name not in self.tensors:
                self.tensors[name] = TensorStatistics(self._masked.get(name))
            self.tensors[name].add(array)

    @property
    def lowest_masked(self) -> dict[str, float]:
        """Name → lowest value that counted for nothing, of those that had one."""
        return {name: tensor.lowest_masked for name, tensor in self.tensors.items()
                if tensor.lowest_masked is not None}  # fmt: skip

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape in the last sample."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def ranges(self, estimator: str) -> dict[str, Range]:
        """Name → range."""
        return {name: tensor.range(estimator) for name, tensor in self.tensors.items()}


def with_zero(bounds: Range) -> Range:
    """A range that holds zero, which 8-bit arithmetic must represent exactly (padding, ReLU).

    >>> with_zero((1.0, 2.0))
    (0.0, 2.0)
    """
    return min(bounds[0], 0.0), max(bounds[1], 0.0)


def _noise(centres: Array, counts: Array, low: float, high: float) -> float:
    """Sum of squared errors of an asymmetric 8-bit tensor."""
    low, high = with_zero((low, high))
    scale = (high - low) / STEPS
    if scale == 0.0:
        return float((counts * centres**2).sum())
    zero = np.rint(-low / scale)
    held = (np.clip(np.rint(centres / scale) + zero, 0, STEPS) - zero) * scale
    return float((counts * (held - centres) ** 2).sum())
