"""Which classes are answered with which, by source and variant. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from edgeship.build.metrics.shares import ranked
from edgeship.build.schema import ConfusionCell, ConfusionReport
from edgeship_agent.runtime.engine import Array

#: Up to so many classes every cell is kept; with more, only those whose count changes.
WHOLE_CLASSES: Final = 30
#: Changed cells that are kept at most.
_MOST_CELLS: Final = 200


def confusion(
    labels: Sequence[int] | None, reference: Array, candidate: Array, names: Sequence[str] = ()
) -> ConfusionReport:
    """Counts of (class, answer), for both.

    Args:
        labels: right class per sample, or None: then the source's own answers stand for them.
        reference: the source's scores, [N, …].
        candidate: the variant's, likewise.
        names: of the classes, where they have some.

    >>> import numpy as np
    >>> found = confusion([0, 1], np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]]), ("cat", "dog"))
    >>> found.moved, [(each.actual, each.said, each.source, each.variant) for each in found.cells]
    (1, [(0, 0, 1, 1), (1, 0, 0, 1), (1, 1, 1, 0)])
    """
    meant, said = (ranked(each, 1)[:, 0].tolist() for each in (reference, candidate))
    actual = list(labels) if labels is not None else meant
    by_source, by_variant = (Counter(zip(actual, each, strict=True)) for each in (meant, said))
    cells = [
        ConfusionCell(actual=row, said=column, source=by_source[row, column], variant=by_variant[row, column])
        for row, column in sorted({*by_source, *by_variant})
    ]
    classes = reference.reshape(len(reference), -1).shape[1]
    whole = classes <= WHOLE_CLASSES
    if not whole:
        changed = [each for each in cells if each.source != each.variant]
        cells = sorted(changed, key=lambda each: -abs(each.variant - each.source))[:_MOST_CELLS]
    return ConfusionReport(
        against="source" if labels is None else "labels", classes=classes, samples=len(reference),
        moved=sum(one != other for one, other in zip(meant, said, strict=True)), cells=tuple(cells), whole=whole,
        labels=tuple(names),
    )  # fmt: skip
