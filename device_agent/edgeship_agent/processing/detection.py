"""From a detector's raw outputs to boxes: the decoding that a TOML file describes, and non-maximum suppression. Pure.

The build's mean average precision and an application on a device call these very functions.

``--postprocess FILE.toml``::

    schema_version = 1

    [detection]
    boxes = "boxes"                  # output that holds them; may be the same as that of the scores
    scores = "scores"
    box_columns = [0, 4]             # where in the last axis the four numbers of a box stand
    score_columns = [4, 84]          # one a class
    objectness_column = 4            # left out where there is none; scores are multiplied by it
    channels_first = false           # true for [channels, boxes], as ultralytics exports
    format = "xyxy"                  # corners; or "yxyx", "cxcywh" (centre and size), or "xywh" (corner and size)
    width = 320                      # what x is divided by to lie in 0 … 1; 1 where it does already
    height = 240
    activation = "none"              # of the scores: none, sigmoid or softmax
    background = 0                   # class that is no object; left out where there is none
    categories = [1, 3]              # COCO category of each class that is an object; left out: in order of their ids
    score_threshold = 0.05
    iou_threshold = 0.5
    class_aware = true               # boxes suppress only boxes of their own class
    max_detections = 100

Files that suppress overlaps themselves say the class of each box: in an output of its own (``classes = "classes"``,
with one score a box), or in a column beside the score (``score_columns = [4, 5]``, ``class_column = 5``). There
``iou_threshold = 1`` takes their boxes as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.processing.arrays import Array

FORMATS: Final = ("xyxy", "yxyx", "cxcywh", "xywh")
ACTIVATIONS: Final = ("none", "sigmoid", "softmax")
#: At most so many of the best boxes of an image go into the suppression, as detectors' own exports do.
_MOST_CANDIDATES: Final = 30_000
#: A score that reaches this share of the threshold is looked at again with all digits.
_NEARLY: Final = 0.999


class Decoding(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How raw outputs become boxes; the keys are explained at the top of this module."""

    boxes: str
    scores: str
    box_columns: tuple[int, int] = (0, 4)
    score_columns: tuple[int, int] | None = None
    objectness_column: int | None = None
    channels_first: bool = False
    format: str = "xyxy"
    width: float = 1.0
    height: float = 1.0
    activation: str = "none"
    background: int | None = None
    categories: tuple[int, ...] = ()
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    class_aware: bool = True
    max_detections: int = 100
    classes: str = ""
    class_column: int | None = None

    @property
    def says_classes(self) -> bool:
        """Whether each box says its class, instead of having one score a class."""
        return bool(self.classes) or self.class_column is not None

    @property
    def steps(self) -> tuple[str, ...]:
        """The postprocessing as the manifest's output contract lists it, one step a string.

        >>> Decoding(boxes="boxes", scores="scores").steps[-1]
        'nms iou 0.5 class-aware score 0.05 at most 100'
        """
        kind = _KINDS[self.class_aware]
        first_column, end = self.box_columns
        columns = f"boxes {self.boxes}[{first_column}:{end}] {self.format} ÷ {self.width:.9g} × {self.height:.9g}"
        classes = "all" if self.score_columns is None else f"{self.score_columns[0]}:{self.score_columns[1]}"
        scores = f"scores {self.scores}[{classes}] {self.activation}"
        if self.objectness_column is not None:
            scores += f" × column {self.objectness_column}"
        if self.background is not None:
            scores += f" without class {self.background}"
        if self.class_column is not None:
            scores += f" of class in column {self.class_column}"
        if self.classes:
            scores += f" of class in {self.classes}"
        if self.categories:
            scores += f" categories {','.join(map(str, self.categories))}"
        first = (_TRANSPOSE,) if self.channels_first else ()
        nms = f"nms iou {self.iou_threshold:.9g} {kind} score {self.score_threshold:.9g} at most {self.max_detections}"
        return (*first, columns, scores, nms)

    @classmethod
    def from_steps(cls, steps: Sequence[str]) -> Decoding:
        """The decoding that an output contract lists, as an application on a device needs it.

        Args:
            steps: ``postprocessing`` of the manifest's output contract; ``edgeship inspect BUNDLE`` prints them.

        Raises:
            ContractError: not the steps of a detector.

        >>> known = Decoding(boxes="y", scores="y", score_columns=(4, 84), channels_first=True, width=640, height=640)
        >>> Decoding.from_steps(known.steps) == known
        True
        """
        first = bool(steps) and steps[0] == _TRANSPOSE
        rest = list(steps[1:] if first else steps)
        found = [pattern.fullmatch(step) for pattern, step in zip(_STEPS, rest, strict=False)]
        known = [match.groupdict() for match in found if match is not None]
        if len(rest) != len(_STEPS) or len(known) != len(_STEPS):
            raise ContractError("not the steps of a detector", key="postprocessing",
                                expected="boxes …, scores …, nms …", got="; ".join(steps) or "none")  # fmt: skip
        boxes, scores, nms = known
        columns, objectness, background = scores["columns"], scores["objectness"], scores["background"]
        low, high = (int(end) for end in boxes["columns"].split(":"))
        categories = tuple(int(each) for each in (scores["categories"] or "").split(",") if each)
        span = None if columns == "all" else (int(columns.split(":")[0]), int(columns.split(":")[1]))
        return cls(
            boxes=boxes["name"], scores=scores["name"], box_columns=(low, high), score_columns=span,
            objectness_column=None if objectness is None else int(objectness), channels_first=first,
            format=boxes["format"], width=float(boxes["width"]), height=float(boxes["height"]),
            activation=scores["activation"], background=None if background is None else int(background),
            categories=categories, classes=scores["classes"] or "",
            class_column=None if scores["class_column"] is None else int(scores["class_column"]),
            score_threshold=float(nms["score"]), iou_threshold=float(nms["iou"]),
            class_aware=nms["kind"] == _KINDS[True], max_detections=int(nms["most"]),
        )  # fmt: skip


#: The steps as :attr:`Decoding.steps` writes them.
_TRANSPOSE: Final = "transpose channels last"
_KINDS: Final = {True: "class-aware", False: "over all classes"}
_NUMBER: Final = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_STEPS: Final = (
    re.compile(rf"boxes (?P<name>.+)\[(?P<columns>\d+:\d+)\] (?P<format>\w+) ÷ "
               rf"(?P<width>{_NUMBER}) × (?P<height>{_NUMBER})"),
    re.compile(r"scores (?P<name>.+)\[(?P<columns>all|\d+:\d+)\] (?P<activation>\w+)"
               r"(?: × column (?P<objectness>\d+))?(?: without class (?P<background>\d+))?"
               r"(?: of class in (?:column (?P<class_column>\d+)|(?P<classes>.+?)))?"
               r"(?: categories (?P<categories>[\d,]+))?"),
    re.compile(rf"nms iou (?P<iou>{_NUMBER}) (?P<kind>class-aware|over all classes) score (?P<score>{_NUMBER}) "
               r"at most (?P<most>\d+)"),
)  # fmt: skip


class Detections(Struct, frozen=True, kw_only=True):
    """What was found in one image, the surest first.

    Attributes:
        boxes: [K, 4], corners x0 y0 x1 y1 as shares of width and height.
        scores: [K].
        classes: [K].
    """

    boxes: Array
    scores: Array
    classes: Array


def detect(outputs: Mapping[str, Array], decoding: Decoding) -> list[Detections]:
    """Boxes of every sample; a box or score that is no number is none.

    Args:
        outputs: name → [N, …].
        decoding: how to read them.
    """
    boxes, scores = outputs[decoding.boxes], outputs[decoding.scores]
    if decoding.says_classes:
        said = outputs[decoding.classes or decoding.scores]
        return [_read_one(*each, decoding) for each in zip(boxes, scores, said, strict=True)]
    return [_detect_one(box, score, decoding) for box, score in zip(boxes, scores, strict=True)]


def _read_one(raw_boxes: Array, raw_scores: Array, raw_classes: Array, decoding: Decoding) -> Detections:
    """Of boxes that say their class."""
    boxes = corners(_rows(raw_boxes, decoding)[:, slice(*decoding.box_columns)], decoding)
    rows = raw_scores.astype(np.float64)[:, None] if raw_scores.ndim == 1 else _rows(raw_scores, decoding)
    scores = _class_scores(rows, decoding)[:, 0]
    if decoding.classes:
        said = raw_classes.reshape(-1).astype(np.float64)
    else:
        said = _rows(raw_classes, decoding)[:, decoding.class_column]
    whole: Array = np.all(np.isfinite(boxes), axis=1) & np.isfinite(scores) & np.isfinite(said)
    classes = np.round(np.where(whole, said, -1.0)).astype(np.int64)
    good = whole & (scores >= decoding.score_threshold) & (classes >= 0)
    if decoding.background is not None:
        good &= classes != decoding.background
    chosen = np.flatnonzero(good)
    return _kept(boxes[chosen], scores[chosen], classes[chosen], decoding)


def _detect_one(raw_boxes: Array, raw_scores: Array, decoding: Decoding) -> Detections:
    raw_boxes, raw_scores = _worth_reading(raw_boxes, raw_scores, decoding)
    box_rows, score_rows = _rows(raw_boxes, decoding), _rows(raw_scores, decoding)
    boxes = corners(box_rows[:, slice(*decoding.box_columns)], decoding)
    scores = _class_scores(score_rows, decoding)
    whole: Array = np.all(np.isfinite(boxes), axis=1)
    good = whole[:, None] & np.isfinite(scores) & (scores >= decoding.score_threshold)
    if decoding.background is not None:
        good[:, decoding.background] = False
    rows, classes = np.nonzero(good)
    return _kept(boxes[rows], scores[rows, classes], classes, decoding)


def _kept(boxes: Array, scores: Array, classes: Array, decoding: Decoding) -> Detections:
    """The surest first, without those that the suppression takes out."""
    order = np.argsort(-scores, kind="stable")[:_MOST_CANDIDATES]
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    kept = suppress(boxes, classes if decoding.class_aware else None, decoding)
    return Detections(boxes=boxes[kept], scores=scores[kept], classes=classes[kept])


def _worth_reading(raw_boxes: Array, raw_scores: Array, decoding: Decoding) -> tuple[Array, Array]:
    """Only boxes with a score near the threshold or above: of the 8,400 of an image some tens, the others cost time.

    It is known beforehand where scores are read as they are and both outputs hold one list of boxes.
    """
    axis = -1 if decoding.channels_first else -2
    plain = decoding.activation == "none" and decoding.objectness_column is None
    if not plain or raw_boxes.ndim != 2 or raw_scores.ndim != 2 or raw_boxes.shape[axis] != raw_scores.shape[axis]:
        return raw_boxes, raw_scores
    columns = slice(None) if decoding.score_columns is None else slice(*decoding.score_columns)
    scores = raw_scores[columns] if decoding.channels_first else raw_scores[:, columns]
    near = np.flatnonzero((scores >= decoding.score_threshold * _NEARLY).any(axis=0 if decoding.channels_first else 1))
    return raw_boxes.take(near, axis=axis), raw_scores.take(near, axis=axis)


def _rows(raw: Array, decoding: Decoding) -> Array:
    """[boxes, columns] of one sample."""
    flat = raw[None] if raw.ndim == 2 else raw.reshape(-1, raw.shape[-2], raw.shape[-1])
    if decoding.channels_first:
        flat = flat.transpose(0, 2, 1)
    rows = flat[0] if len(flat) == 1 else flat.reshape(-1, flat.shape[-1])
    return rows.astype(np.float64)


def _class_scores(rows: Array, decoding: Decoding) -> Array:
    columns = slice(None) if decoding.score_columns is None else slice(*decoding.score_columns)
    scores = rows[:, columns]
    sure = None if decoding.objectness_column is None else rows[:, decoding.objectness_column]
    if decoding.activation == "softmax":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
    elif decoding.activation == "sigmoid":
        scores, sure = _sigmoid(scores), None if sure is None else _sigmoid(sure)
    return scores if sure is None else scores * sure[:, None]


def _sigmoid(values: Array) -> Array:
    logistic: Array = 0.5 * (1.0 + np.tanh(0.5 * values))
    return logistic


def corners(boxes: Array, decoding: Decoding) -> Array:
    """[K, 4] in any format → corners as shares of width and height.

    >>> corners(np.array([[50.0, 50.0, 20.0, 40.0]]), Decoding(boxes="b", scores="s", format="cxcywh", width=100,
    ...                                                        height=100)).tolist()
    [[0.4, 0.3, 0.6, 0.7]]
    """
    first, second = boxes[:, :2], boxes[:, 2:]
    if decoding.format == "cxcywh":
        first, second = first - second / 2.0, first + second / 2.0
    elif decoding.format == "xywh":
        second = first + second
    elif decoding.format == "yxyx":
        first, second = first[:, ::-1], second[:, ::-1]
    size = np.asarray([decoding.width, decoding.height])
    return np.concatenate([first / size, second / size], axis=1)


def suppress(boxes: Array, classes: Array | None, decoding: Decoding) -> Array:
    """Greedy non-maximum suppression of boxes in order of their scores; positions of those that stay.

    Args:
        boxes: [K, 4] corners, the surest first.
        classes: [K], or None where a box suppresses those of every class.
        decoding: threshold and the most that may stay.
    """
    open_ = np.ones(len(boxes), bool)
    kept = []
    for index in range(len(boxes)):
        if not open_[index]:
            continue
        kept.append(index)
        if len(kept) == decoding.max_detections:
            break
        close = overlaps(boxes[index : index + 1], boxes[index + 1 :])[0] > decoding.iou_threshold
        if classes is not None:
            close &= classes[index + 1 :] == classes[index]
        open_[index + 1 :] &= ~close
    return np.asarray(kept, np.int64)


def overlaps(one: Array, other: Array) -> Array:
    """Intersection over union of corner boxes: [A, 4] and [B, 4] → [A, B].

    >>> overlaps(np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[1.0, 0.0, 3.0, 2.0]])).round(4).tolist()
    [[0.3333]]
    """
    shared = intersections(one, other)
    union = _areas(one)[:, None] + _areas(other)[None] - shared
    share: Array = np.where(union > 0.0, shared / np.where(union > 0.0, union, 1.0), 0.0)
    return share


def intersections(one: Array, other: Array) -> Array:
    """Areas that boxes share: [A, B]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    area: Array = np.clip(high - low, 0.0, None).prod(axis=2)
    return area


def _areas(boxes: Array) -> Array:
    area: Array = np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(axis=1)
    return area
