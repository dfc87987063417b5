"""What every metric gives: its value for source and variant, and the paired drop with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from msgspec import Struct

from edgeship.build.schema import MetricFigures
from edgeship.statistics import Difference, newcombe_paired, samples_needed, samples_needed_by_width, wilson
from edgeship_agent.runtime.engine import Array

#: Name of an output → [N, …]; the first output is the one that is judged.
Outputs = Mapping[str, Array]
CONFIDENCE: Final = 0.95


class Cells(Struct, frozen=True, kw_only=True):
    """Paired counts: what the source and the variant got right on the same samples."""

    both: int
    only_reference: int
    only_candidate: int
    neither: int

    @property
    def n(self) -> int:
        """All samples."""
        return self.both + self.only_reference + self.only_candidate + self.neither


class Draws(Struct, frozen=True, kw_only=True):
    """Resampled figures, each sorted; see :mod:`edgeship.build.metrics.resampling`.

    Attributes:
        drop_low: drops with an imaginary sample that speaks for the variant; ``drop_high``: against it.
        value_low, value_high: the variant's value, likewise.
    """

    drop_low: Array
    drop_high: Array
    value_low: Array
    value_high: Array


class Paired(Struct, frozen=True, kw_only=True):
    """One variant against the source by one metric.

    Attributes:
        figures: with 95 % intervals.
        cells: the counts behind a metric that is a share, else None.
        draws: the resampled figures behind any other metric, else None.
    """

    figures: MetricFigures
    cells: Cells | None = None
    draws: Draws | None = None

    def difference(self, confidence: float = CONFIDENCE) -> Difference:
        """The drop with an interval of another level."""
        if self.cells is not None:
            cells = self.cells
            return newcombe_paired(
                cells.both, cells.only_reference, cells.only_candidate, cells.neither, confidence
            )  # fmt: skip
        assert self.draws is not None, "a metric is a share or resampled"
        tail = (1.0 - confidence) / 2.0
        low, high = quantile(self.draws.drop_low, tail), quantile(self.draws.drop_high, 1.0 - tail)
        # the estimate itself always belongs to its interval
        return Difference(drop=self.figures.drop, low=min(low, self.figures.drop), high=max(high, self.figures.drop))

    def needed(self, limit: float, confidence: float = CONFIDENCE) -> int | None:
        """How many more samples would decide about ``limit`` at what was seen; None where no number would."""
        if self.cells is not None:
            cells = self.cells
            return samples_needed(
                cells.both, cells.only_reference, cells.only_candidate, cells.neither, limit, confidence
            )  # fmt: skip
        found = self.difference(confidence)
        return samples_needed_by_width(self.figures.n, found.drop, found.low, found.high, limit)

    @property
    def evidence(self) -> dict[str, float]:
        """What a share's interval is recomputed from; nothing for a resampled metric."""
        if self.cells is None:
            return {}
        return {
            "both": float(self.cells.both), "only_source": float(self.cells.only_reference),
            "only_variant": float(self.cells.only_candidate), "neither": float(self.cells.neither),
        }  # fmt: skip


class Metric(Protocol):
    """One task metric with everything that it needs to know of the samples: labels, targets, costs, boxes."""

    @property
    def name(self) -> str:
        """As it is asked for and reported."""

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """The variant against the source on the same samples, in their order."""


def first_of(outputs: Outputs) -> Array:
    """The first output."""
    return next(iter(outputs.values()))


def finite(array: Array) -> Array:
    """Samples whose every entry is a number.

    >>> finite(np.array([[1.0, 2.0], [np.nan, 1.0]])).tolist()
    [True, False]
    """
    good: Array = np.all(np.isfinite(array.reshape(len(array), -1)), axis=1)
    return good


def cells(reference_right: Sequence[bool], candidate_right: Sequence[bool]) -> Cells:
    """Count the four pairs.

    >>> cells([True, True, False], [True, False, False])
    Cells(both=1, only_reference=1, only_candidate=0, neither=1)
    """
    reference, candidate = np.asarray(reference_right, bool), np.asarray(candidate_right, bool)
    assert reference.shape == candidate.shape, "pairs"
    return Cells(
        both=int((reference & candidate).sum()),
        only_reference=int((reference & ~candidate).sum()),
        only_candidate=int((~reference & candidate).sum()),
        neither=int((~reference & ~candidate).sum()),
    )


def figures(name: str, counts: Cells) -> MetricFigures:
    """A share of the candidate with its Wilson interval, and its drop with the paired Newcombe interval.

    >>> figures("top1", Cells(both=540, only_reference=0, only_candidate=0, neither=0)).drop_high <= 0.01
    True
    """
    right = counts.both + counts.only_candidate
    interval = wilson(right, counts.n)
    difference = newcombe_paired(counts.both, counts.only_reference, counts.only_candidate, counts.neither)
    return MetricFigures(
        name=name,
        value=right / counts.n if counts.n else 0.0,
        low=interval.low,
        high=interval.high,
        n=counts.n,
        drop=difference.drop,
        drop_low=difference.low,
        drop_high=difference.high,
        source=(counts.both + counts.only_reference) / counts.n if counts.n else 0.0,
    )


def share(name: str, reference_right: Sequence[bool], candidate_right: Sequence[bool]) -> Paired:
    """A metric that is a share of samples."""
    counts = cells(reference_right, candidate_right)
    return Paired(figures=figures(name, counts), cells=counts)


def quantile(draws: Array, level: float) -> float:
    """Of sorted draws, the one that at least ``level`` of them do not exceed; no interpolation.

    >>> quantile(np.arange(1.0, 101.0), 0.975), quantile(np.arange(1.0, 101.0), 0.025)
    (98.0, 3.0)
    """
    index = int(np.ceil(level * len(draws))) - 1
    return float(draws[min(len(draws) - 1, max(0, index))])
