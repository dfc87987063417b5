"""Measured values counted into the bins of a profile: many signals, and a whole block of calls, in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgeship_agent.contract.profile import SignalProfile
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch
from edgeship_agent.processing.arrays import Array

#: Fixed-point values are clipped at ± this many steps. Source: contract.profile.SignalProfile.unit.
CLIP_STEPS: Final = 1 << 20


class NumberCounts:
    """Counts of the signals that are numbers, while a window is open.

    Args:
        signals: their bins and fixed points.

    >>> from edgeship_agent.contract.profile import Family
    >>> empty = BinnedSketch(counts=(0, 0))
    >>> counts = NumberCounts([SignalProfile(name="x", family=Family.INPUT, reference=empty, edges=(1.0,), unit=0.5)])
    >>> counts.add({"x": np.array([0.5, 2.0, math.nan])}, 3)
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
        if not self._names or not calls:
            return
        nothing = np.full(calls, math.nan)
        rows_given = [columns.get(name, nothing) for name in self._names]
        unseen = [calls - len(row) for row in rows_given]
        if any(unseen):
            rows_given = [np.append(row, nothing[:count]) for row, count in zip(rows_given, unseen, strict=True)]
        values = np.asarray(rows_given, np.float64)
        finite = np.isfinite(values)
        if finite.all():
            rows: Sequence[Array] = list(values)
        else:
            rows = [row[known] for row, known in zip(values, finite, strict=True)]
            self._missing = _added(self._missing, np.logical_not(finite).sum(axis=1) - unseen)
            values = np.where(finite, values, self._centers)  # which is 0 steps
        for index, (edges, row) in enumerate(zip(self._edges, rows, strict=True)):
            self._bins[index] += np.bincount(edges.searchsorted(row, side="right"), minlength=len(edges) + 1)
        values -= self._centers
        values /= self._units
        np.minimum(np.maximum(values, -CLIP_STEPS, out=values), CLIP_STEPS, out=values)
        steps = np.rint(values, out=values).astype(np.int64)
        self._sums = _added(self._sums, steps.sum(axis=1))
        self._square_sums = _added(self._square_sums, np.square(steps, out=steps).sum(axis=1))

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
    >>> counts.add(np.array([3.0, 1.0, math.nan, 3.0]))
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


def _added(totals: list[int], more: Array) -> list[int]:
    return [total + each for total, each in zip(totals, more.tolist(), strict=True)]
