"""Metrics of an order: the area under the ROC curve of a class's score or of an anomaly score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.paired import Outputs, Paired
from edgeship.build.metrics.resampling import Estimate, paired, resample
from edgeship_agent.runtime.engine import Array


class Auc(Struct, frozen=True, kw_only=True):
    """``auc`` or ``auc:<class>``: how often a positive sample scores higher than a negative one, ties counted half.

    The area is a mean over positives of their placement among the negatives, and over negatives likewise; each side is
    resampled on its own, with an imaginary positive and an imaginary negative that the variant places worst. Source:
    E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson (1988), Comparing the areas under two or more correlated
    receiver operating characteristic curves, Biometrics 44 (the placements); :mod:`edgeship.build.metrics.resampling`.

    Attributes:
        positive: per sample.
        score: outputs → [N], higher for positives.
    """

    name: str
    positive: tuple[bool, ...]
    score: Callable[[Outputs], Array]

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`."""
        positive = np.asarray(self.positive)
        before, after = (_placements(self._scores(outputs), positive) for outputs in (reference, candidate))
        areas = [float(each[positive].mean()) for each in (before, after)]
        count = int(positive.sum())

        def statistic(weights: Array) -> Array:
            # groups: positives, an imaginary one, negatives; the last column is the imaginary negative
            sides = (weights[:, : count + 1], weights[:, count + 1 :])
            losses = [
                _mean(side, (before - after)[chosen]) for side, chosen in zip(sides, (positive, ~positive), strict=True)
            ]
            values = [_mean(side, after[chosen]) for side, chosen in zip(sides, (positive, ~positive), strict=True)]
            unseen = sum(_last_share(side) for side in sides)
            drop = losses[0] + losses[1] - (areas[0] - areas[1])
            value = values[0] + values[1] - areas[1]
            return np.stack([np.maximum(drop - unseen, -1.0), np.minimum(drop + unseen, 1.0),
                             np.minimum(value + unseen, 1.0), np.maximum(value, 0.0)])  # fmt: skip

        estimate = Estimate(source=areas[0], value=areas[1], drop=areas[0] - areas[1], n=len(positive))
        return paired(self.name, estimate, resample(np.ones(len(positive) + 1), statistic))

    def _scores(self, outputs: Outputs) -> Array:
        """Scores in which an answer that is no number is placed worst."""
        scores = self.score(outputs).astype(np.float64)
        wrong = np.where(np.asarray(self.positive), -np.inf, np.inf)
        return np.where(np.isnan(scores), wrong, scores)


def _placements(scores: Array, positive: Array) -> Array:
    """Of each sample, the share of the other side that it is on the right side of: [N]."""
    placed = np.empty(len(scores))
    for one, other, sign in ((positive, ~positive, 1.0), (~positive, positive, -1.0)):
        others = np.sort(sign * scores[other])
        below = np.searchsorted(others, sign * scores[one], side="left")
        not_above = np.searchsorted(others, sign * scores[one], side="right")
        placed[one] = (below + not_above) / (2.0 * len(others))
    return placed


def _mean(side: Array, values: Array) -> Array:
    """Weighted mean of one side, whose last weight is the imaginary sample's, there with a value of 0."""
    mean: Array = (side[:, :-1] @ values) / side.sum(axis=1)
    return mean


def _last_share(side: Array) -> Array:
    share: Array = side[:, -1] / side.sum(axis=1)
    return share


def reconstruction_error(inputs: Array) -> Callable[[Outputs], Array]:
    """The anomaly score of an autoencoder: mean squared error of its first output against its input.

    Args:
        inputs: [N, …], as the model takes them.
    """
    flat = inputs.reshape(len(inputs), -1).astype(np.float64)

    def score(outputs: Outputs) -> Array:
        said = next(iter(outputs.values())).reshape(len(flat), -1).astype(np.float64)
        errors: Array = np.mean((said - flat) ** 2, axis=1)
        return errors

    return score


def class_score(index: int, *, softmax: bool) -> Callable[[Outputs], Array]:
    """One entry of the first output, read as a probability where the output is one of logits."""

    def score(outputs: Outputs) -> Array:
        first = next(iter(outputs.values()))
        flat = first.reshape(len(first), -1).astype(np.float64)
        if softmax:
            shifted = np.exp(flat - flat.max(axis=1, keepdims=True))
            flat = shifted / shifted.sum(axis=1, keepdims=True)
        column: Array = flat[:, index]
        return column

    return score
