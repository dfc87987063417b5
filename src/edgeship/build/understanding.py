"""How the data was understood: said, doubted, and refused where it cannot be meant so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import structs

from edgeship.build import data, feeding_check, label_check, metrics, oracle
from edgeship.build.data import Dataset
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Progress
from edgeship.build.reading.folders import samples_in
from edgeship.build.reading.listed import how_to_label
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.runtime.engine import Array

#: Metrics that are shares of right answers, of all samples or of those of a class.
_SHARES: Final = re.compile(r"top\d+$|recall:|worst_recall$|f1(:|$)")
#: Metrics without which an unlabelled set may have been meant to be labelled.
_WITHOUT_LABELS: Final = frozenset({"auto", "agreement", "closeness"})
#: Shares of a probability vector add up to one within this.
SUM_TOLERANCE: Final = 1e-3
#: Axes of one row of numbers a sample.
_OF_ROWS: Final = 2
#: Classes that a sentence names.
_MOST_NAMED: Final = 12


def tell(options: BuildOptions, progress: Progress, calibration: Dataset, evaluation: Dataset) -> None:
    """How the data was read, where its names alone do not say it."""
    for dataset, role in ((calibration, "calibration"), (evaluation, "evaluation")):
        for note in dataset.notes:
            progress.step("data", f"{role}: {note}", "note")
    bare = evaluation.labels is None and evaluation.targets is None and evaluation.files
    if bare and options.ground_truth is None and options.metric in _WITHOUT_LABELS:
        progress.step("data", f"evaluation: {how_to_label(evaluation.files)}", "note")


def check_columns(calibration: Dataset, evaluation: Dataset) -> None:
    """Refuse tables whose columns stand in two orders: both are read in their own, and a model takes one.

    Raises:
        InputError: names the first column that stands elsewhere.
    """
    for tensor, names in evaluation.columns.items():
        others = calibration.columns.get(tensor, names)
        if names != others and set(names) == set(others):
            place = next(index for index, pair in enumerate(zip(names, others, strict=True)) if len(set(pair)) > 1)
            raise InputError("columns in another order than in the calibration data", file=evaluation.path, key=tensor,
                             expected=f"{others[place]} in place {place}", got=names[place],
                             next_step="save both tables with the columns in the order of the training")  # fmt: skip


def check_labels(labels: Sequence[str]) -> None:
    """Refuse class names of which two are the same: what is called so could be either.

    Raises:
        ConfigError: names those that occur more than once.
    """
    twice = [name for name, count in Counter(labels).items() if count > 1]
    if twice:
        raise ConfigError("the same name for several classes", key="labels", expected="another name for each class",
                          got=", ".join(twice[:_MOST_NAMED]),
                          next_step="name every class once, in the order of the output, with --labels")  # fmt: skip


def wrong_number_of_classes(labels: Sequence[str], count: int, folders: Sequence[Path]) -> ConfigError:
    """What is said of another number of classes than the model has: which were found, and which have no sample.

    Args:
        labels: the classes found, in order.
        count: of the model's.
        folders: of the data where its sub-folders may be the classes; none where somebody named the classes.
    """
    named = ", ".join(labels[:_MOST_NAMED]) + (", …" if len(labels) > _MOST_NAMED else "")
    empty = [name for name in labels if _without_samples(name, folders)]
    found = f"{len(labels)} ({named}" + (f"; no sample in {', '.join(empty[:_MOST_NAMED])})" if empty else ")")
    next_step = "name every class, in the order of the output, with --labels"
    if empty and len(labels) > count:
        there = [str(folder / name) for name in empty for folder in folders if (folder / name).is_dir()]
        next_step = f"remove what is no class: {', '.join(there[:_MOST_NAMED])}"
    return ConfigError("not one label per class", key="labels", expected=count, got=found, next_step=next_step)


def _without_samples(name: str, folders: Sequence[Path]) -> bool:
    """Whether a class has a folder, and a sample in none of its folders."""
    own = [folder / name for folder in folders if (folder / name).is_dir()]
    return bool(own) and not any(samples_in(folder, deep=True) for folder in own)


def judged(
    options: BuildOptions,
    evaluation: Dataset,
    fed: Sequence[Mapping[str, Array]],
    first: Array,
    progress: Progress,
) -> tuple[BuildOptions, Dataset]:
    """The metric that is meant and the right answers as it reads them, by what the source answers.

    Whole numbers that were saved as floats are classes where the output scores classes, and classes are numbers where
    the metric is one of errors. One score beside the labels 0 and 1 is judged by how it ranks, and so is how far an
    answer lies from the input that it gives back.

    Args:
        options: of the build.
        evaluation: as it was read.
        fed: its samples as the source takes them, with a batch axis of 1.
        first: the source's first output, [N, …].
        progress: told what is not as the data's form alone says.
    """
    if options.metric in metrics.ERRORS:
        return options, data.as_numbers(evaluation)
    if options.task == "raw" or not metrics.of_classes(options.metric):
        return options, evaluation
    evaluation = data.as_classes(evaluation, first)
    if options.metric != "auto":
        return options, evaluation
    if evaluation.targets is not None and evaluation.targets.dtype.kind in "iub":
        raise InputError("several whole numbers a sample, and no metric that reads them", file=evaluation.path, key="y",
                         got=f"{evaluation.targets.dtype} {list(evaluation.targets.shape)}",
                         next_step="name a metric of yours, --metric MODULE:FUNCTION, for masks and several labels a "
                                   "sample; or --metric rmse")  # fmt: skip
    if evaluation.targets is not None and options.task == "auto" and (chosen := _numbers_chosen(evaluation.targets)):
        progress.step("metric", chosen, "note")
    if evaluation.labels is None or set(evaluation.labels) != {0, 1}:
        return options, evaluation
    for is_meant, what in (
        (first[0].size == 1 and not metrics.names_class(first), "one score"),
        (_gives_back(fed, first, evaluation.labels), "an output of the input's shape (how far it is from the input)"),
    ):
        if is_meant:
            progress.step("metric", f"{what} beside the labels 0 and 1: judged by auc", "note")
            return structs.replace(options, metric="auc"), evaluation
    return options, evaluation


def _gives_back(fed: Sequence[Mapping[str, Array]], first: Array, labels: Sequence[int]) -> bool:
    """Whether the first output is the input once more, as an autoencoder's.

    A row may be scores of as many classes as there are features: those are right more often than the commonest label.
    """
    given = list(fed[0].values())
    if len(given) != 1 or given[0].shape[1:] != first.shape[1:] or first[0].size <= 2:
        return False
    if first[0].ndim > 1:
        return True
    said = [each[0] for each in metrics.answers(first, 1)]
    return bool(label_check.no_better_than_chance(said, labels))


def check_found(task: metrics.Metric, evaluation: Dataset, outputs: Mapping[str, Array]) -> None:
    """Refuse a share of right answers that is next to nothing for the source itself: no variant can fall far below.

    Raises:
        InputError: it is.
    """
    if not _SHARES.match(task.name) or len(evaluation) < label_check.LEAST_SAMPLES:
        return
    found = task.compare(outputs, outputs).figures.value
    if found < metrics.LEAST_FOUND:
        raise InputError("the source itself is right on next to nothing: whatever a variant lost, it would not show",
                         file=evaluation.path, key=task.name, expected=f"≥ {metrics.LEAST_FOUND}", got=f"{found:.4f}",
                         next_step="check labels and preprocessing; a model that does not answer with the labels' "
                                   "classes is judged by a metric of yours (--metric MODULE:FUNCTION), or without "
                                   "labels")  # fmt: skip


def _numbers_chosen(targets: Array) -> str:
    """Why several numbers a sample are judged as numbers, and what would judge them otherwise; empty for one number."""
    if targets[0].size < 2:
        return ""
    if np.isin(targets, (0, 1)).all():
        return ("y holds zeros and ones, several a sample: judged by rmse; a metric of yours reads them as labels or "
                "masks (--metric MODULE:FUNCTION)")  # fmt: skip
    if targets.ndim == _OF_ROWS and (targets >= 0).all() and (np.abs(targets.sum(axis=1) - 1) <= SUM_TOLERANCE).all():
        return (f"y holds {targets.shape[1]} shares of one a sample: judged by rmse, as numbers; where they are shares "
                "of classes, save class labels (y.argmax(axis=1)), which top1 judges")  # fmt: skip
    return (f"y holds {targets[0].size} numbers a sample, and no classes: judged by rmse; --metric names another, "
            "class labels (one whole number a sample) are judged by top1")  # fmt: skip


def one_score(options: BuildOptions, evaluation: Dataset, first: Array, progress: Progress) -> metrics.OneScore | None:
    """How one score a sample is read as two classes, where the metric that was asked for judges classes.

    Args:
        options: of the build, as :func:`judged` left them.
        evaluation: likewise.
        first: the source's first output, [N, …].
        progress: told which score says which class.

    Raises:
        ConfigError: there are names, and not two.
    """
    if options.task == "classification" or not metrics.is_one_score(options.metric, evaluation.labels, first):
        return None
    if evaluation.class_names and len(evaluation.class_names) != 2:
        raise ConfigError("one score tells two classes apart", key="labels", expected=2,
                          got=len(evaluation.class_names),
                          next_step="name both, 0 and then 1, with --labels A,B")  # fmt: skip
    found = metrics.OneScore.of(first, evaluation.class_names)
    progress.step("metric", found.sentence, "note")
    return found


def doubt(
    task: metrics.Metric,
    evaluation: Dataset,
    fed: tuple[Sequence[Mapping[str, Array]], Sequence[Mapping[str, Array]]],
    outputs: tuple[Mapping[str, Array], Mapping[str, Array]],
    known: tuple[OutputContract, oracle.RememberedOracle, Progress],
) -> None:
    """Refuse labels and samples that are evidently not as the model takes them; say what makes one doubt.

    Args:
        task: the metric.
        evaluation: as it was read.
        fed: calibration and evaluation samples as the source takes them.
        outputs: of the source on the latter, as they are and as the metric reads them.
        known: how its first output is read, the source, and who is told.
    """
    output, opened, progress = known
    for note in getattr(task, "notes", ()):
        progress.step("data", f"ground truth: {note}", "note")
    if found := label_check.check(task, evaluation, outputs[1], output):
        progress.step("labels", found, "undecided")
    check_found(task, evaluation, outputs[1])
    feeding_check.check(evaluation, fed[1], outputs[0], lambda samples: opened.run(samples, "source", progress))
    for found in feeding_check.doubts(*fed, outputs[0]):
        progress.step("input", found, "undecided")
