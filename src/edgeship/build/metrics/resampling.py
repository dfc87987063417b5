"""Intervals of metrics that are no shares: weights drawn anew for every sample, and for one that was never seen.

Every replicate weighs the samples by a draw from the flat Dirichlet distribution (Rubin's Bayesian bootstrap, smooth
where the ordinary one repeats whole samples) and recomputes source and variant with the same weights, so the difference
stays paired. Resampling knows nothing beyond what was seen: without a single difference among 20 samples it would call
the drop zero for certain. So one imaginary sample joins each replicate: for the upper end the worst that could have
been seen, for the lower end the best. For a share this is exactly the Clopper–Pearson interval; for a mean of bounded
scores it is Gaffke's bound, of which no failure is known.

Source: D. B. Rubin (1981), The Bayesian bootstrap, Annals of Statistics 9; N. Gaffke (2005), Three test statistics for
a nonparametric one-sided hypothesis on the mean of a nonnegative variable, Mathematical Methods of Statistics 14;
E. Learned-Miller and P. S. Thomas (2019), A new confidence interval for the mean of a bounded random variable,
arXiv:1905.06208; ADR 0009.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.paired import CONFIDENCE, Draws, Paired, quantile
from edgeship.build.schema import MetricFigures
from edgeship_agent.runtime.engine import Array

#: Fixed, so that the same data always give the same interval.
SEED: Final = 20_270_117
REPLICATES: Final = 5_000
#: Weights that are held at a time.
_MOST_WEIGHTS: Final = 4_000_000

#: Weights [b, groups + 1], the last of the imaginary sample → [4, b]: the drop with the sample that speaks for the
#: variant and with the one against it, and the variant's value with each of the two.
Statistic = Callable[[Array], Array]


class Estimate(Struct, frozen=True, kw_only=True):
    """What a metric says of the samples as they are.

    Attributes:
        drop: positive is worse, in ``drop_unit``.
        unit: of ``source`` and ``value``: ``fraction``, ``dB`` or empty for a plain number.
    """

    source: float
    value: float
    drop: float
    n: int
    unit: str = "fraction"
    drop_unit: str = "fraction"


def resample(counts: Array, statistic: Statistic, *, replicates: int = REPLICATES) -> Draws:
    """Draws of the four figures.

    Args:
        counts: [groups], samples in each group of equal samples.
        statistic: see :data:`Statistic`.
        replicates: how many.
    """
    generator = np.random.default_rng(SEED)
    shape = np.append(np.asarray(counts, np.float64), 1.0)
    batch = max(1, min(replicates, _MOST_WEIGHTS // len(shape)))
    parts = []
    for start in range(0, replicates, batch):
        weights = generator.standard_gamma(shape, size=(min(batch, replicates - start), len(shape)))
        parts.append(statistic(weights / weights.sum(axis=1, keepdims=True)))
    drop_low, drop_high, one, other = np.sort(np.concatenate(parts, axis=1), axis=1)
    swapped = float(one.mean()) < float(other.mean())  # the sample for the variant may raise or lower its value
    value_low, value_high = (one, other) if swapped else (other, one)
    return Draws(drop_low=drop_low, drop_high=drop_high, value_low=value_low, value_high=value_high)


def paired(name: str, estimate: Estimate, draws: Draws) -> Paired:
    """A resampled metric."""
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = quantile(draws.value_low, tail), quantile(draws.value_high, 1.0 - tail)
    drop_low, drop_high = quantile(draws.drop_low, tail), quantile(draws.drop_high, 1.0 - tail)
    found = MetricFigures(
        name=name,
        value=estimate.value,
        low=min(low, estimate.value),
        high=max(high, estimate.value),
        n=estimate.n,
        drop=estimate.drop,
        drop_low=min(drop_low, estimate.drop),
        drop_high=max(drop_high, estimate.drop),
        source=estimate.source,
        unit=estimate.unit,
        drop_unit=estimate.drop_unit,
    )
    return Paired(figures=found, draws=draws)


def paired_mean(name: str, reference: Array, candidate: Array, span: tuple[float, float], *, worse: int) -> Paired:
    """A mean of scores per sample that lie in a known range.

    Args:
        name: of the metric.
        reference: [N].
        candidate: [N].
        span: the most by which a score may differ between the two, and the largest score.
        worse: 1 where a higher score is worse, −1 where a lower one is.
    """
    most, largest = span
    pairs, counts = np.unique(np.stack([reference, candidate], axis=1), axis=0, return_counts=True)
    losses = worse * (pairs[:, 1] - pairs[:, 0])
    best, worst = (0.0, largest) if worse > 0 else (largest, 0.0)

    def statistic(weights: Array) -> Array:
        seen, unseen = weights[:, :-1], weights[:, -1]
        drop, value = seen @ losses, seen @ pairs[:, 1]
        return np.stack(
            [drop - unseen * most, drop + unseen * most, value + unseen * best, value + unseen * worst]
        )  # fmt: skip

    estimate = Estimate(
        source=float(reference.mean()), value=float(candidate.mean()), n=len(reference),
        drop=float(worse * (candidate - reference).mean()) + 0.0, unit="fraction" if worse < 0 else "",
        drop_unit="fraction" if worse < 0 else "",
    )  # fmt: skip
    return paired(name, estimate, resample(counts, statistic))
