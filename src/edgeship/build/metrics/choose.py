"""From the name of a metric to the metric itself, with everything that it needs to know of the evaluation data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.metrics import files, user
from edgeship.build.metrics.average_precision import THRESHOLDS, MeanAveragePrecision
from edgeship.build.metrics.balance import Balanced
from edgeship.build.metrics.errors import Errors
from edgeship.build.metrics.fidelity import names_class
from edgeship.build.metrics.means import Cost
from edgeship.build.metrics.objects import Asked, read_objects
from edgeship.build.metrics.paired import Metric, Outputs, first_of
from edgeship.build.metrics.ranking import Auc, class_score, reconstruction_error
from edgeship.build.metrics.shares import Agreement, Closeness, Recall, Top
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.processing.detection import Decoding
from edgeship_agent.runtime.engine import Array

#: How metrics are asked for.
NAMES: Final = (
    "top1", "top5", "agreement", "closeness", "recall:CLASS", "worst_recall", "cost", "f1", "f1:CLASS", "auc",
    "auc:CLASS", "map", "map50", "rmse", "mae", "snr", "MODULE:FUNCTION",
)  # fmt: skip
_TOP: Final = re.compile(r"top([1-9]\d{0,3})")
_OF_CLASS: Final = ("recall", "f1", "auc")
#: Metrics of numbers against targets.
ERRORS: Final = ("rmse", "mae", "snr")


class MetricRequest(Struct, frozen=True, kw_only=True):
    """A metric's name and what there is to make it from.

    Attributes:
        labels: right class per sample, or None.
        targets: [N, …] of float, or None.
        outputs: of the source on the evaluation set, the first output first.
        inputs: prepared samples in order, with a batch axis of 1.
        class_names: empty where unknown.
        softmax: whether the first output holds logits.
        closeness_limit: relative RMS within which a single sample counts as close.
        cost_matrix, postprocess, ground_truth: files, or None.
        decoding: of a detector, where it is known without a file.
        evaluation: the evaluation data, for error messages.
        files: names of its samples, empty where they have none.
    """

    name: str
    labels: tuple[int, ...] | None
    targets: Array | None
    outputs: Outputs
    inputs: Sequence[Mapping[str, Array]]
    class_names: tuple[str, ...] = ()
    softmax: bool = False
    closeness_limit: float = 0.1
    cost_matrix: Path | None = None
    postprocess: Path | None = None
    ground_truth: Path | None = None
    decoding: Decoding | None = None
    evaluation: Path = Path()
    files: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Entries of the first output."""
        return int(first_of(self.outputs)[0].size)

    @property
    def known_classes(self) -> int:
        """Entries of the first output; where it is a class's own number, the classes of labels and names."""
        if not names_class(first_of(self.outputs)):
            return self.classes
        return max(len(self.class_names), 1 + max(self.labels or (0,)))


def check_name(name: str) -> str:
    """Refuse what cannot be the name of a metric, before anything is read.

    Raises:
        ConfigError: unknown.

    >>> check_name("top5"), check_name("recall:fault"), check_name("my_metrics:dice")
    ('top5', 'recall:fault', 'my_metrics:dice')
    """
    if name in (*NAMES, "auto") or _TOP.fullmatch(name):
        return name
    head, colon, tail = name.partition(":")
    if colon and tail and (head in _OF_CLASS or all(part.isidentifier() for part in (*head.split("."), tail))):
        return name
    raise ConfigError("unknown metric", key="metric", expected=", ".join(NAMES), got=name,
                      next_step="choose one of these; docs/guide/metrics.md says what each needs")  # fmt: skip


def of_classes(name: str) -> bool:
    """Whether a metric reads class numbers, where there are some.

    >>> of_classes("auto"), of_classes("recall:fault"), of_classes("rmse"), of_classes("my_metrics:dice")
    (True, True, False, False)
    """
    head, colon, _ = name.partition(":")
    return head in _OF_CLASS if colon else name not in (*ERRORS, *THRESHOLDS)


def choose(request: MetricRequest) -> Metric:
    """The metric that was asked for.

    Raises:
        ConfigError: unknown, or a file that it needs is missing or cannot be followed.
        InputError: the evaluation data has not what it needs.
    """
    name = check_name(request.name)
    if name in _MAKERS:
        return _MAKERS[name](request)
    if match := _TOP.fullmatch(name):
        return Top(labels=_labels(request), k=_fitting(int(match.group(1)), request))
    head, _, tail = name.partition(":")
    if head not in _OF_CLASS:
        given = request.labels if request.targets is None else request.targets
        return user.UserMetric(name=name, function=user.load(name), labels=None if given is None else np.asarray(given))
    labels, index = _labels(request), _class(tail, request)
    if index not in labels:
        raise InputError("the evaluation data has no sample of this class", file=request.evaluation, key="y", got=tail,
                         next_step="add samples of it, or choose another metric")  # fmt: skip
    if head == "recall":
        return Recall(labels=labels, index=index, label=tail)
    if head == "f1":
        return Balanced(name=name, labels=labels, classes=request.known_classes, index=index)
    if names_class(first_of(request.outputs)):
        raise ConfigError("the model answers with a class's number, not with scores", key="metric", got=name,
                          expected=f"recall:{tail} or f1:{tail}", next_step="choose one of these")  # fmt: skip
    return Auc(name=name, positive=_both_sides([label == index for label in labels], request),
               score=class_score(index, softmax=request.softmax))  # fmt: skip


def _labels(request: MetricRequest) -> tuple[int, ...]:
    if request.labels is None and request.targets is not None:
        got = f"{request.targets.dtype} {list(request.targets.shape)}"
        raise InputError("the right answers are no classes", file=request.evaluation, key="y", got=got,
                         expected="one class index per sample",
                         next_step="save class numbers, or choose --metric rmse, mae, or MODULE:FUNCTION for several "
                                   "labels a sample")  # fmt: skip
    if request.labels is None:
        raise InputError("the evaluation data has no labels", file=request.evaluation, key="y",
                         expected="one class index per sample",
                         next_step="add y, or choose --metric agreement or closeness")  # fmt: skip
    named = names_class(first_of(request.outputs))
    if max(request.labels) >= request.classes and request.name != "auc" and not named:
        raise InputError("a class that the model does not have", file=request.evaluation, key="y",
                         expected=f"0 … {request.classes - 1}", got=max(request.labels),
                         next_step=_renumber(request))  # fmt: skip
    return request.labels


def _renumber(request: MetricRequest) -> str:
    """The next step where a label is too large: labels that begin with 1 count from there."""
    if request.labels and min(request.labels) >= 1 and max(request.labels) == request.classes:
        return "count from 0, as the model does: save y - 1"
    return "number the classes in the order of the model's output"


def _fitting(k: int, request: MetricRequest) -> int:
    _check_answers(request)
    named = names_class(first_of(request.outputs))
    if k >= request.classes and not (named and k == 1):
        raise ConfigError("every answer is among so many classes", key="metric", got=f"top{k}",
                          expected=f"fewer than {request.classes}", next_step="choose --metric top1")  # fmt: skip
    return k


def _class(text: str, request: MetricRequest) -> int:
    """A class by its name, or by its index."""
    if text in request.class_names:
        return request.class_names.index(text)
    if text.isdecimal() and int(text) < request.known_classes:
        return int(text)
    raise ConfigError("not a class of the model", key="metric", got=text,
                      expected=", ".join(request.class_names) or f"0 … {request.known_classes - 1}",
                      next_step="name one of them, or its index")  # fmt: skip


def _both_sides(positive: Sequence[bool], request: MetricRequest) -> tuple[bool, ...]:
    if all(positive) or not any(positive):
        raise InputError("an area under the curve needs samples of both kinds", file=request.evaluation, key="y",
                         got=f"{sum(positive)} positive of {len(positive)}",
                         next_step="add samples of the other kind, or choose --metric closeness")  # fmt: skip
    return tuple(positive)


def _auc(request: MetricRequest) -> Metric:
    labels = _labels(request)
    if set(labels) - {0, 1}:
        raise InputError("auc tells two kinds of samples apart", file=request.evaluation, key="y", got=max(labels),
                         expected="0 (normal) or 1", next_step="choose --metric auc:CLASS")  # fmt: skip
    positive = _both_sides([label == 1 for label in labels], request)
    first, inputs = first_of(request.outputs), list(request.inputs[0].values())
    # with one entry or two it is a score or two classes, however many features there are
    if len(inputs) == 1 and inputs[0].size == first[0].size > 2:
        rows = np.concatenate([next(iter(sample.values())) for sample in request.inputs])
        return Auc(name="auc", positive=positive, score=reconstruction_error(rows))
    if request.classes > 2:
        raise ConfigError("neither two classes, one score, nor a reconstruction of the input", key="metric", got="auc",
                          expected="auc:CLASS", next_step="name the class whose score is meant")  # fmt: skip
    softmax = request.softmax and request.classes == 2
    return Auc(name="auc", positive=positive, score=class_score(request.classes - 1, softmax=softmax))


def _check_answers(request: MetricRequest) -> None:
    """Refuse what would be right by having one answer only: the highest of one score is always the first."""
    if request.classes < 2 and not names_class(first_of(request.outputs)):
        raise ConfigError("one score a sample names no class", key="metric", got=request.name,
                          expected="an output with one entry per class",
                          next_step="choose --metric closeness, or add labels and choose --metric auc")  # fmt: skip


def _agreement(request: MetricRequest) -> Metric:
    _check_answers(request)
    return Agreement()


def _cost(request: MetricRequest) -> Metric:
    if request.cost_matrix is None:
        raise ConfigError("what does an error cost?", key="cost_matrix", expected="--cost-matrix FILE.toml or .csv",
                          next_step="write one; docs/guide/metrics.md has an example")  # fmt: skip
    matrix = files.read_costs(request.cost_matrix, request.known_classes, request.class_names)
    return Cost(labels=_labels(request), matrix=matrix)


def _errors(request: MetricRequest) -> Metric:
    targets, first = request.targets, first_of(request.outputs)
    if targets is None:
        raise InputError("the evaluation data has no targets", file=request.evaluation, key="y",
                         expected=f"floats {list(first.shape)}",
                         next_step="save y as float targets of the first output's shape")  # fmt: skip
    if targets.size != first.size or _laid_out(targets) not in (_laid_out(first), [first[0].size]):
        raise InputError("targets of another shape than the first output", file=request.evaluation, key="y",
                         expected=list(first.shape), got=list(targets.shape),
                         next_step="save y as floats of that shape, its axes in the same order")  # fmt: skip
    return Errors(name=request.name, targets=targets.reshape(len(targets), -1).astype(np.float64))


def _laid_out(values: Array) -> list[int]:
    """Axes of a sample that say how its numbers lie.

    >>> _laid_out(np.zeros((5, 1, 28, 28))), _laid_out(np.zeros((5, 28, 28, 1))), _laid_out(np.zeros((5, 1)))
    ([28, 28], [28, 28], [1])
    """
    return [count for count in values.shape[1:] if count != 1] or [1]


def _map(request: MetricRequest) -> Metric:
    if request.ground_truth is None or (request.postprocess is None and request.decoding is None):
        missing = "ground_truth" if request.postprocess or request.decoding else "postprocess"
        raise ConfigError(f"{request.name} needs one more file", key=missing, expected=_NEEDED[missing],
                          next_step="write one; docs/guide/metrics.md has an example")  # fmt: skip
    decoding = request.decoding
    if request.postprocess is not None:
        decoding = files.read_decoding(request.postprocess, request.outputs)
    assert decoding is not None, "checked above"
    asked = Asked(decoding=decoding, count=len(first_of(request.outputs)), files=request.files,
                  classes=_told_apart(decoding, request.outputs),
                  folder=request.evaluation if request.files else None)  # fmt: skip
    truth = read_objects(request.ground_truth, asked)
    metric = MeanAveragePrecision(name=request.name, truth=truth.objects, decoding=decoding, notes=truth.notes)
    found = metric.of(request.outputs)
    if found < LEAST_FOUND:
        raise InputError(
            "the source itself finds next to nothing: whatever a variant lost, it would not show",
            file=request.postprocess or request.ground_truth, key=request.name, expected=f"≥ {LEAST_FOUND}",
            got=f"{found:.4f}",
            next_step="check channels_first, format, width, height and the columns; that the ground truth lists the "
                      "images in the order of the data; and the preprocessing",
        )  # fmt: skip
    return metric


def _told_apart(decoding: Decoding, outputs: Outputs) -> int:
    """Classes that a detector has a score for; 0 where each box says its class."""
    if decoding.says_classes or decoding.scores not in outputs:
        return 0
    if decoding.score_columns is not None:
        return decoding.score_columns[1] - decoding.score_columns[0]
    return int(outputs[decoding.scores].shape[-2 if decoding.channels_first else -1])


#: A source that finds less by itself was decoded, fed or labelled wrongly: a drop within one point proves nothing.
LEAST_FOUND: Final = 0.02
_NEEDED: Final = {
    "postprocess": "--postprocess FILE.toml",
    "ground_truth": "--ground-truth FILE.json (COCO) or a folder of YOLO text files",
}


def _balanced(request: MetricRequest) -> Metric:
    return Balanced(name=request.name, labels=_labels(request), classes=request.known_classes)


_MAKERS: Final[dict[str, Callable[[MetricRequest], Metric]]] = {
    "agreement": _agreement,
    "closeness": lambda request: Closeness(limit=request.closeness_limit),
    "cost": _cost,
    "f1": _balanced,
    "worst_recall": _balanced,
    "auc": _auc,
    **dict.fromkeys(THRESHOLDS, _map),
    **dict.fromkeys(ERRORS, _errors),
}
