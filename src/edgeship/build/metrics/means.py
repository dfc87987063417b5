"""Metrics that are means over samples of a bounded score: what errors cost, and a user's own scores."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.paired import Outputs, Paired, finite, first_of
from edgeship.build.metrics.resampling import paired_mean
from edgeship.build.metrics.shares import ranked
from edgeship_agent.runtime.engine import Array


class Cost(Struct, frozen=True, kw_only=True):
    """``cost``: the mean cost of a sample, by a matrix of what each confusion costs.

    Attributes:
        matrix: [right class, said class], costs ≥ 0.
    """

    labels: tuple[int, ...]
    matrix: tuple[tuple[float, ...], ...]
    name: str = "cost"

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`; the drop is the cost that the variant adds to a mean sample."""
        costs = np.asarray(self.matrix, np.float64)[np.asarray(self.labels)]
        most, largest = float((costs.max(axis=1) - costs.min(axis=1)).max()), float(costs.max())
        before, after = (_charged(costs, first_of(outputs)) for outputs in (reference, candidate))
        return paired_mean(self.name, before, after, (most, largest), worse=1)


def _charged(costs: Array, first: Array) -> Array:
    """What each sample's answer costs; one that is no number, or the number of no class, costs the most."""
    said = ranked(first, 1)[:, 0]
    known = finite(first) & (said >= 0) & (said < costs.shape[1])
    charged: Array = np.where(known, costs[np.arange(len(costs)), np.where(known, said, 0)], costs.max(axis=1))
    return charged


def mean_scores(name: str, reference: Array, candidate: Array) -> Paired:
    """A mean of scores in [0, 1], higher is better.

    >>> found = mean_scores("dice", np.ones(400), np.ones(400)).figures
    >>> found.drop, 0.0 < found.drop_high < 0.01
    (0.0, True)
    """
    return paired_mean(name, reference.astype(np.float64), candidate.astype(np.float64), (1.0, 1.0), worse=-1)
