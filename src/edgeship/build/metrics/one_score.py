"""One score a sample, as binary classifiers end, read as two classes where a metric of classes is asked for. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.paired import Outputs
from edgeship_agent.runtime.engine import Array

#: Metrics that read which class is answered. Of two classes every answer is among the highest two.
_OF_ANSWERS: Final = re.compile(r"top1|f1|worst_recall|cost|(recall|f1):.+")
_PROBABILITY: Final = 0.5
_LOGIT: Final = 0.0
#: Notes of the lineage.
_THRESHOLD: Final = "one_score_threshold"
_CLASSES: Final = ("one_score_class_0", "one_score_class_1")
_WRITTEN: Final = {f"{each:g}": each for each in (_PROBABILITY, _LOGIT)}


class OneScore(Struct, frozen=True, kw_only=True):
    """How one score is read as two classes; the same for the source and every variant.

    Attributes:
        threshold: class 1 is said above it, class 0 up to it.
        names: of the two classes, empty where they have none.
    """

    threshold: float
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, first: Array, names: Sequence[str] = ()) -> OneScore:
        """By the source's own answers: a probability is cut at a half, a logit at zero.

        Args:
            first: of the source on the evaluation set, [N, …].
            names: of the two classes.

        >>> OneScore.of(np.array([[0.0], [1.0]])).threshold, OneScore.of(np.array([[0.2], [1.01]])).threshold
        (0.5, 0.0)
        """
        shares = bool(((first >= 0.0) & (first <= 1.0)).all())
        return cls(threshold=_PROBABILITY if shares else _LOGIT, names=tuple(names))

    @classmethod
    def from_notes(cls, notes: Mapping[str, str]) -> OneScore | None:
        """As :attr:`notes` wrote it; None where they hold none.

        >>> rule = OneScore(threshold=0.5, names=("ok", "fault"))
        >>> OneScore.from_notes(rule.notes) == rule, OneScore.from_notes({})
        (True, None)
        """
        threshold = _WRITTEN.get(notes.get(_THRESHOLD, ""))
        names = tuple(notes[key] for key in _CLASSES if key in notes)
        return None if threshold is None else cls(threshold=threshold, names=names)

    @property
    def notes(self) -> dict[str, str]:
        """For a bundle's lineage, where ``verify`` finds it."""
        return {_THRESHOLD: f"{self.threshold:g}", **dict(zip(_CLASSES, self.names, strict=False))}

    @property
    def sentence(self) -> str:
        """How it is read, and why so."""
        why = "the source's scores all lie within 0 … 1"
        if self.threshold == _LOGIT:
            why = "logits: the source's scores do not all lie within 0 … 1"
        return f"one score is read as two classes: 1 where it is > {self.threshold:g}, else 0 ({why})"

    def columns(self, first: Array) -> Array:
        """A score of each class, by which the higher one says the class: [N, 2]; NaN stays NaN.

        Args:
            first: [N, …] with one entry a sample.

        >>> OneScore(threshold=0.5).columns(np.array([[0.75], [0.5]])).argmax(axis=1).tolist()
        [1, 0]
        """
        above = first.reshape(len(first), -1)[:, :1].astype(np.float64) - self.threshold
        return np.concatenate([-above, above], axis=1)

    def read(self, outputs: Outputs) -> dict[str, Array]:
        """Outputs, the first one as two columns."""
        first = next(iter(outputs))
        return {**outputs, first: self.columns(outputs[first])}


def is_one_score(metric: str, labels: Sequence[int] | None, first: Array) -> bool:
    """Whether one score a sample is to be read as two classes.

    Integers are classes' own numbers, or quantized scores that no threshold is known for.

    Args:
        metric: as it was asked for.
        labels: right class per sample, or None.
        first: of the source, [N, …].

    >>> one = np.zeros((2, 1))
    >>> is_one_score("recall:1", (0, 1), one), is_one_score("auc", (0, 1), one), is_one_score("f1", (0, 2), one)
    (True, False, False)
    """
    scores = first[0].size == 1 and first.dtype.kind == "f"
    return scores and labels is not None and set(labels) <= {0, 1} and _OF_ANSWERS.fullmatch(metric) is not None
