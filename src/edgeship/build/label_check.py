"""Whether labels are numbered as the model numbers its classes: by what the source itself gets right. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from edgeship.build import metrics
from edgeship.build.data import Dataset
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.runtime.engine import Array

#: A numbering is proven to be another one where the source is right on this share by it, and on so much less by the
#: given one. Our choice: a model that is worth shipping finds half of its samples, and what only chance explains stays
#: far below: with ten samples a class the best of all orders of random answers gains less than .25.
_FOUND: Final = 0.5
_GAIN: Final = 0.3
#: The best of all orders is looked for with so many samples a class at least, and must find this share.
_SAMPLES_PER_CLASS: Final = 10
_FOUND_BY_ANY_ORDER: Final = 0.6
LEAST_SAMPLES: Final = 20
#: Standard deviations by which samples that only the other numbering gets right must outnumber the opposite ones.
#: Source: McNemar's test; 4 is passed by chance once in 30,000 data sets, and by twenty reversed samples.
_DEVIATIONS: Final = 4.0
#: An area under the curve of so little ranks the wrong way round.
_REVERSED_AUC: Final = 0.3
#: Metrics by which a sample of a rare class counts no more than any other.
_OF_ALL_SAMPLES: Final = re.compile(r"top\d+$|agreement$")
_RENUMBER: Final = (
    "number them in the order of the model's output; where the data has names, name every class in that order with "
    "--labels A,B,C"
)
#: Source: scikit-learn, "Novelty and Outlier Detection": decision_function is negative for outliers.
_HIGH_FOR_NORMAL: Final = (
    "give the samples that score high the label 1: where a score is high for what is normal, as those of "
    "scikit-learn's outlier detectors are, that is y = 1 for normal and y = 0 for anomalies"
)


def check(task: metrics.Metric, evaluation: Dataset, outputs: metrics.Outputs, output: OutputContract) -> str:
    """Refuse labels that are evidently numbered otherwise than the model numbers its classes.

    Args:
        task: the metric.
        evaluation: with labels; without any nothing is checked.
        outputs: of the source on it, the first output first.
        output: how that is read.

    Returns:
        What is to be said where nothing is proven; mostly nothing.

    Raises:
        InputError: the source itself says so.
    """
    labels = evaluation.labels
    if labels is None:
        return ""
    first = next(iter(outputs.values()))
    wrong = doubt = ""
    next_step = _RENUMBER
    if task.name == "auc":
        next_step = f"{_HIGH_FOR_NORMAL}; else {_RENUMBER}" if first[0].size == 1 else _RENUMBER
        wrong = reversed_ranking(task.compare(outputs, outputs).figures.value, len(labels))
    elif output.kind == "classification" or metrics.names_class(first):
        said = [each[0] for each in metrics.answers(first, 1)]
        classes = int(first[0].size) if output.kind == "classification" else max(*said, *labels) + 1
        wrong = other_numbering(said, labels, classes, output.labels)
        # what finds rare faults is right less often than what never says one
        doubt = no_better_than_chance(said, labels) if _OF_ALL_SAMPLES.match(task.name) else ""
    if not wrong:
        return doubt
    raise InputError(f"labels are not numbered as the model numbers its classes: {wrong}", file=evaluation.path,
                     key="y", expected=", ".join(output.labels[:8]) or "class numbers in the order of the output",
                     next_step=next_step)  # fmt: skip


def other_numbering(said: Sequence[int], labels: Sequence[int], classes: int, names: Sequence[str] = ()) -> str:
    """How labels are numbered instead, with both shares; empty where nothing speaks against the given numbers.

    Args:
        said: class that the source answers, per sample.
        labels: right class per sample, as given.
        classes: how many the model has.
        names: of the classes, empty where unknown.

    >>> right = [0, 1, 2, 3] * 10
    >>> other_numbering(right, [label + 1 for label in right], 5)
    'the source is right on 0 % of the samples, and on 100 % if the labels are numbered from 1'
    >>> other_numbering(right, right, 5)
    ''
    """
    told, wanted = np.asarray(said), np.asarray(labels)
    if len(wanted) < LEAST_SAMPLES or classes < 2 or len(np.unique(wanted)) < 2:
        return ""  # labels of one class prove no order: the model may be wrong on that class
    own = float((told == wanted).mean())
    for words, changed, found in _numberings(told, wanted, classes, names):
        share = float((told == changed).mean())
        if share >= found and share - own >= _GAIN and _outnumbers(told == changed, told == wanted):
            return f"the source is right on {own:.0%} of the samples, and on {share:.0%} {words}".replace("%", " %")
    return ""


def _outnumbers(one: Array, other: Array) -> bool:
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained - lost >= _DEVIATIONS * math.sqrt(gained + lost)


def no_better_than_chance(said: Sequence[int], labels: Sequence[int]) -> str:
    """What is to be said where the source finds no more than the commonest class alone would; else empty.

    >>> no_better_than_chance([0, 1] * 20, [0, 0, 1, 1] * 10)
    'the source is right on 50 % of the samples, and the commonest class makes 50 %: check labels and preprocessing'
    """
    told, wanted = np.asarray(said), np.asarray(labels)
    own = float((told == wanted).mean())
    commonest = float(np.bincount(wanted).max()) / len(wanted)
    if len(wanted) < LEAST_SAMPLES or len(np.unique(wanted)) < 2 or own > commonest:
        return ""
    shares = f"the source is right on {own:.0%} of the samples, and the commonest class makes {commonest:.0%}"
    return shares.replace("%", " %") + ": check labels and preprocessing"


def reversed_ranking(area: float, samples: int) -> str:
    """What is to be said of an area under the curve that ranks the wrong way; else empty.

    >>> reversed_ranking(0.05, 100)
    'the source ranks the wrong way: its area under the curve is 0.050'
    """
    if samples < LEAST_SAMPLES or area >= _REVERSED_AUC:
        return ""
    return f"the source ranks the wrong way: its area under the curve is {area:.3f}"


def _numberings(told: Array, wanted: Array, classes: int, names: Sequence[str]) -> Iterator[tuple[str, Array, float]]:
    """Other numberings that people use: words, the labels by them, and the share that must be found."""
    yield "if the labels are numbered from 1", wanted - 1, _FOUND
    yield "if the model has a class before the first label's", wanted + 1, _FOUND
    order = sorted(range(classes), key=str)  # 0, 1, 10, 2 …: folders that are called by numbers
    if wanted.max() < classes:
        yield "if classes stand in alphabetical order of their numbers", np.argsort(order)[wanted], _FOUND
        yield "if classes stand in the order of their numbers", np.asarray(order)[wanted], _FOUND
    if len(wanted) >= _SAMPLES_PER_CLASS * classes and wanted.max() < classes and told.max() < classes:
        matched = _best_order(told, wanted, classes)
        shown = [f"{_named(index, names)} → {_named(int(matched[index]), names)}"
                 for index in np.unique(wanted) if matched[index] not in (-1, index)]  # fmt: skip
        more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
        yield f"in another order of classes ({', '.join(shown[:5])}{more})", matched[wanted], _FOUND_BY_ANY_ORDER


def _best_order(told: Array, wanted: Array, classes: int) -> Array:
    """Label → class, one to one: the pairs that are found most often first."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (wanted, told), 1)
    order, is_taken = np.full(classes, -1), np.zeros(classes, bool)
    pairs = np.argwhere(counts)
    for label, answer in pairs[np.argsort(-counts[tuple(pairs.T)], kind="stable")]:
        if order[label] < 0 and not is_taken[answer]:
            order[label], is_taken[answer] = answer, True
    return order


def _named(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else str(index)
