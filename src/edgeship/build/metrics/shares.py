"""Metrics that are shares of samples: right answers, the same answers, close answers, and those of one class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.fidelity import names_class, predictions, sample_rms
from edgeship.build.metrics.paired import Outputs, Paired, finite, first_of, share
from edgeship_agent.runtime.engine import Array


class Top(Struct, frozen=True, kw_only=True):
    """``top1``, ``top5`` …: the right class is among the ``k`` with the highest scores; NaN is never right."""

    labels: tuple[int, ...]
    k: int = 1

    @property
    def name(self) -> str:
        """``top1``."""
        return f"top{self.k}"

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`."""
        return share(self.name, *(self.right(first_of(outputs)).tolist() for outputs in (reference, candidate)))

    def right(self, first: Array) -> Array:
        """Per sample, whether it is right: bool [N]."""
        hits: Array = (ranked(first, self.k) == np.asarray(self.labels)[:, None]).any(axis=1)
        return hits & finite(first)


class Agreement(Struct, frozen=True, kw_only=True):
    """The variant says the source's class; no labels needed. An integer a sample is the class itself."""

    name: str = "agreement"

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`."""
        first = first_of(candidate)
        same = np.asarray(predictions(first_of(reference), classes=True)) == predictions(first, classes=True)
        return share(self.name, [True] * len(first), (same & finite(first)).tolist())


class Closeness(Struct, frozen=True, kw_only=True):
    """The variant's first output lies within a relative RMS of the source's, sample by sample; no labels needed.

    Integers (classes, counts) are close where no more than that share of them differs, the commonest left out.
    """

    limit: float
    name: str = "closeness"

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`."""
        close = [rms <= self.limit for rms in sample_rms(first_of(candidate), first_of(reference))]
        return share(self.name, [True] * len(close), close)


class Recall(Struct, frozen=True, kw_only=True):
    """``recall:<class>``: the share of one class's samples that are found.

    Attributes:
        index: of the class.
        label: what it is called.
    """

    labels: tuple[int, ...]
    index: int
    label: str

    @property
    def name(self) -> str:
        """``recall:<class>``."""
        return f"recall:{self.label}"

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`."""
        chosen = np.flatnonzero(np.asarray(self.labels) == self.index)
        of_class = Top(labels=tuple(self.labels[index] for index in chosen))
        rights = (of_class.right(first_of(outputs)[chosen]).tolist() for outputs in (reference, candidate))
        return share(self.name, *rights)


def ranked(first: Array, k: int) -> Array:
    """Classes of the ``k`` highest scores, the highest first, equal scores in the order of the classes: [N, k].

    An integer a sample is the class itself.

    >>> ranked(np.array([[0.1, 0.5, 0.5, 0.2]]), 3).tolist()
    [[1, 2, 3]]
    >>> ranked(np.array([7, 2]), 1).tolist()
    [[7], [2]]
    """
    flat = first.reshape(len(first), -1)
    if names_class(first):
        return flat
    if k == 1:
        highest: Array = flat.argmax(axis=1)[:, None]
        return highest
    order: Array = np.argsort(-flat.astype(np.float64), axis=1, kind="stable")[:, :k]
    return order


def answers(first: Array, k: int) -> list[tuple[int, ...]]:
    """What :class:`Top` judges of each sample: the set of its ``k`` classes, in order of their numbers.

    >>> answers(np.array([[0.1, 0.5, 0.4], [0.1, 0.4, 0.5]]), 2)
    [(1, 2), (1, 2)]
    """
    rows: Sequence[Sequence[int]] = np.sort(ranked(first, k), axis=1).tolist()
    return [tuple(row) for row in rows]
