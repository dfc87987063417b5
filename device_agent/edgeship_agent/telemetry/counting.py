"""Measured values counted into the bins of a profile: many signals, and a whole block of calls, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgeship_agent.contract.profile import SignalProfile
from edgeship_agent.contract.sketch import EXPONENTIAL_SCALE, BinnedSketch, CategorySketch
from edgeship_agent.processing.arrays import Array

#: Fixed-point values are clipped at ± this many steps. Source: contract.profile.SignalProfile.unit.
CLIP_STEPS: Final = 1 << 20
#: Buckets of an exponential histogram between a number and its double.
_BUCKETS_OF_TWO: Final = 1 << EXPONENTIAL_SCALE
#: The lower bounds of those between a half and one.
_BOUNDS: Final = 0.5 * 2.0 ** (np.arange(_BUCKETS_OF_TWO) / _BUCKETS_OF_TWO)


def bucket_counts(values: Sequence[float] | Array) -> dict[int, int]:
    """How many positive values fall into which bucket: :func:`contract.sketch.bucket_index` of many at once.

    >>> bucket_counts([1.0, 2.0, 2.1, 2.0])
    {-1: 1, 7: 2, 8: 1}
    """
    mantissas, exponents = np.frexp(np.asarray(values, np.float64))
    indices = _BUCKETS_OF_TWO * (exponents.astype(np.int64) - 1) + _BOUNDS.searchsorted(mantissas) - 1
    if not indices.size:
        return {}
    lowest = int(indices.min())
    counts = np.bincount(indices - lowest)
    (found,) = counts.nonzero()
    return dict(zip((found + lowest).tolist(), counts[found].tolist(), strict=True))


class NumberCounts:
    """Counts of the signals that are numbers, while a window is open.

    Args:
        signals: their bins and fixed points.

    >>> from edgeship_agent.contract.profile import Family
    >>> empty = BinnedSketch(counts=(0, 0))
    >>> counts = NumberCounts([SignalProfile(name="x", family=Family.INPUT, reference=empty, edges=(1.0,), unit=0.5)])
    >>> counts.add({"x": np.array([0.5, 2.0, np.nan])}, 3)
    >>> counts.sketches()
    {'x': BinnedSketch(counts=(1, 1), missing_count=1, sum_fixed=5, sum_square_fixed=17)}
    """

    def __init__(self, signals: Sequence[SignalProfile]) -> None:
        self._names = [signal.name for signal in signals]
        self._edges = [np.asarray(signal.edges, np.float64) for signal in signals]
        self._centers = np.asarray([signal.center for signal in signals], np.float64).reshape(-1, 1)
        self._units = np.asarray([signal.unit for signal in signals], np.float64).reshape(-1, 1)
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self._bins = [np.zeros(len(edges) + 1, np.int64) for edges in self._edges]
        self._missing = [0] * len(self._names)
        self._sums = [0] * len(self._names)  # of Python's integers: a window may be of any length
        self._square_sums = [0] * len(self._names)

    def add(self, columns: Mapping[str, Array], calls: int) -> None:
        """Count several calls.

        Args:
            columns: signal name → [calls] of float64, NaN where a call has none; a signal that is absent has none. One
                that was measured of some calls only is shorter: the others are not missing, they were not looked at.
            calls: how many.
        """
        alike: dict[int, list[int]] = {}  # signals that were measured of as many calls are counted together
        for index, name in enumerate(self._names):
            column = columns.get(name)
            if column is None:
                self._missing[index] += calls
            elif len(column):
                alike.setdefault(len(column), []).append(index)
        for indices in alike.values():
            self._count(indices, np.asarray([columns[self._names[index]] for index in indices], np.float64))

    def _count(self, indices: list[int], values: Array) -> None:
        """Count values [signals, calls] of some signals; the array is overwritten."""
        places = indices if len(indices) < len(self._names) else slice(None)
        centers = self._centers[places]
        finite = np.isfinite(values)
        rows: Sequence[Array] = list(values)
        if not finite.all():
            rows = [row[known] for row, known in zip(rows, finite, strict=True)]
            for index, row in zip(indices, rows, strict=True):
                self._missing[index] += values.shape[1] - len(row)
            values = np.where(finite, values, centers)  # which is 0 steps
        for index, row in zip(indices, rows, strict=True):
            bins = self._bins[index]
            bins += np.bincount(self._edges[index].searchsorted(row, side="right"), minlength=bins.size)
        values -= centers
        values /= self._units[places]
        np.minimum(np.maximum(values, -CLIP_STEPS, out=values), CLIP_STEPS, out=values)
        steps = np.rint(values, out=values).astype(np.int64)
        totals = np.add.reduce(steps, axis=1).tolist()
        squares = np.add.reduce(np.square(steps, out=steps), axis=1).tolist()
        for index, total, square_total in zip(indices, totals, squares, strict=True):
            self._sums[index] += total
            self._square_sums[index] += square_total

    def sketches(self) -> dict[str, BinnedSketch]:
        """Signal name → what was counted; signals of which nothing was are left out."""
        rows = zip(self._names, self._bins, self._missing, self._sums, self._square_sums, strict=True)
        return {
            name: BinnedSketch(
                counts=tuple(bins.tolist()), missing_count=missing, sum_fixed=total, sum_square_fixed=square_total
            )
            for name, bins, missing, total, square_total in rows
            if missing or bins.any()
        }


class ClassCounts:
    """Counts of one signal that is a class, while a window is open.

    >>> counts = ClassCounts()
    >>> counts.add(np.array([3.0, 1.0, np.nan, 3.0]))
    >>> counts.sketch()
    CategorySketch(counts={1: 1, 3: 2})
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def add(self, column: Array) -> None:
        """Count several calls: [n] of float64, NaN where a call has no class."""
        classes, counts = np.unique(column[np.isfinite(column)].astype(np.int64), return_counts=True)
        for index, count in zip(classes.tolist(), counts.tolist(), strict=True):
            self._counts[index] = self._counts.get(index, 0) + count

    def sketch(self) -> CategorySketch | None:
        """What was counted; None for nothing."""
        return CategorySketch(counts=dict(sorted(self._counts.items()))) if self._counts else None
