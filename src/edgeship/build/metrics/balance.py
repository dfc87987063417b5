"""Metrics that weigh classes alike however rare they are: F1, and the recall of the class that is found worst."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.paired import Outputs, Paired, finite, first_of
from edgeship.build.metrics.resampling import Estimate, paired, resample
from edgeship.build.metrics.shares import ranked
from edgeship_agent.runtime.engine import Array

#: What is said where an output is no number, or the number of no class: no class at all.
_NOTHING: Final = -1

#: Weights of right answers, of all samples and of all answers per class, [b, classes] each → the metric [b].
_Score = Callable[[Array, Array, Array], Array]


class Balanced(Struct, frozen=True, kw_only=True):
    """``f1`` (mean over the classes that have samples), ``f1:<class>`` or ``worst_recall``.

    Attributes:
        classes: how many the model has; those of the labels and names where it answers with a class's own number.
        index: of the class, or None for all.
    """

    name: str
    labels: tuple[int, ...]
    classes: int
    index: int | None = None

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`."""
        firsts = (first_of(reference), first_of(candidate))
        said = [self._said(first) for first in firsts]
        rows = np.stack([np.asarray(self.labels), *said], axis=1)
        cases, counts = np.unique(rows, axis=0, return_counts=True)
        most_telling = self._most_telling(np.bincount(rows[:, 0], minlength=self.classes), rows)
        against = np.asarray([most_telling[0], *most_telling], np.int64)[None]
        in_favour = against[:, [0, 2, 1]]

        def statistic(weights: Array) -> Array:
            found = []
            for imaginary in (in_favour, against):
                before, after = self._values(np.concatenate([cases, imaginary]), weights)
                found.append((before - after, after))
            return np.stack([found[0][0], found[1][0], found[0][1], found[1][1]])

        before, after = (float(value[0]) for value in self._values(cases, counts[None].astype(np.float64)))
        estimate = Estimate(source=before, value=after, drop=before - after, n=len(rows))
        return paired(self.name, estimate, resample(counts, statistic))

    def _said(self, first: Array) -> Array:
        """The class of each answer, or none where it is no number or no class that is known: [N]."""
        classes = ranked(first, 1)[:, 0]
        said: Array = np.where(finite(first) & (classes >= 0) & (classes < self.classes), classes, _NOTHING)
        return said

    def _most_telling(self, support: Array, rows: Array) -> tuple[int, int]:
        """A class and another one for it: the confusion that moves the metric the most."""
        present = np.flatnonzero(support)
        if self.index is not None:
            one = self.index
        elif self.name == "worst_recall":
            hits = np.bincount(rows[rows[:, 0] == rows[:, 2], 0], minlength=self.classes)
            one = int(present[np.argmin(hits[present] / support[present])])
        else:
            one = int(present[np.argmin(support[present])])
        others = [int(index) for index in present if index != one] or [
            index for index in range(self.classes) if index != one
        ]
        return one, min(others, key=lambda index: int(support[index]))

    def _values(self, cases: Array, weights: Array) -> tuple[Array, Array]:
        """The metric of source and variant for every row of weights: [b] each."""
        samples = _sums(cases[:, 0], weights, self.classes)
        values = []
        for column in (1, 2):
            hit = cases[:, 0] == cases[:, column]
            right = _sums(cases[hit, 0], weights[:, hit], self.classes)
            answers = _sums(cases[:, column], weights, self.classes)
            values.append(self._score(right, samples, answers))
        return values[0], values[1]

    def _score(self, right: Array, samples: Array, answers: Array) -> Array:
        present = np.flatnonzero(samples[0] > 0.0)
        if self.name == "worst_recall":
            worst: Array = (right[:, present] / samples[:, present]).min(axis=1)
            return worst
        each = 2.0 * right / np.maximum(samples + answers, 1e-300)
        mean: Array = each[:, present].mean(axis=1) if self.index is None else each[:, self.index]
        return mean


def _sums(classes: Array, weights: Array, count: int) -> Array:
    """Weights of each class: [b, count]; answers that name no class belong to none."""
    sums = np.zeros((len(weights), count))
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    named, starts = np.unique(ordered, return_index=True)
    if len(named):
        totals = np.add.reduceat(weights[:, order], starts, axis=1)
        known = named >= 0
        sums[:, named[known]] = totals[:, known]
    return sums
