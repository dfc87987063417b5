"""Recall class by class: what a mean over all samples hides. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edgeship.build.metrics.paired import cells
from edgeship.build.schema import ClassRecall
from edgeship.statistics import newcombe_paired, wilson
from edgeship_agent.runtime.engine import Array

#: A class that the source finds: at least this share of at least so many samples.
FOUND_RECALL: Final = 0.5
FOUND_SAMPLES: Final = 10


def class_recalls(
    labels: Sequence[int], reference_right: Array, candidate_right: Array, names: Sequence[str] = ()
) -> tuple[ClassRecall, ...]:
    """Recall of every class that has samples, with 95 % intervals.

    Args:
        labels: right class per sample.
        reference_right: bool [N].
        candidate_right: likewise.
        names: of the classes, where they have some.
    """
    wanted = np.asarray(labels)
    found = []
    for index in sorted(set(wanted.tolist())):
        chosen = wanted == index
        counts = cells(reference_right[chosen].tolist(), candidate_right[chosen].tolist())
        right = counts.both + counts.only_candidate
        interval = wilson(right, counts.n)
        drop = newcombe_paired(counts.both, counts.only_reference, counts.only_candidate, counts.neither)
        found.append(
            ClassRecall(
                index=index, label=names[index] if names else str(index), n=counts.n,
                source=(counts.both + counts.only_reference) / counts.n, value=right / counts.n,
                low=interval.low, high=interval.high,
                drop=drop.drop, drop_low=drop.low, drop_high=drop.high,
                both=counts.both, only_source=counts.only_reference, only_variant=counts.only_candidate,
                neither=counts.neither,
            )
        )  # fmt: skip
    return tuple(found)


def lost_classes(recalls: Sequence[ClassRecall], margin: float) -> list[ClassRecall]:
    """Classes that the source finds and of which the variant is proven to lose more than ``margin``, worst first.

    The intervals are Bonferroni's: a variant that loses nothing is refused for any class with at most 2.5 %.
    """
    judged = found_classes(recalls)
    lost = []
    for each in judged:
        confidence = 1.0 - 0.05 / len(judged)
        drop = newcombe_paired(each.both, each.only_source, each.only_variant, each.neither, confidence)
        if drop.low > margin:
            lost.append(each)
    return sorted(lost, key=lambda each: -each.drop)


def found_classes(recalls: Sequence[ClassRecall]) -> list[ClassRecall]:
    """Classes that the source finds often enough to be missed."""
    return [each for each in recalls if each.source >= FOUND_RECALL and each.n >= FOUND_SAMPLES]
