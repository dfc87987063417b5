"""Mean average precision of a detector, and what int8 costs it.

Matching and interpolation are COCO's: detections of a class in the order of their scores take the free object with the
largest overlap, objects marked as a crowd excuse any number of detections, and precision is read at 101 recalls. The
mean is over classes with objects and over overlaps .50, .55 … .95 (``map``) or at .50 alone (``map50``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.detection import Decoding, Detections, detect, intersections, overlaps
from edgeship.build.metrics.paired import Outputs, Paired
from edgeship.build.metrics.resampling import Estimate, paired, resample
from edgeship_agent.runtime.engine import Array

#: Metric → overlaps from which on a detection is right.
THRESHOLDS: Final = {
    "map": tuple(round(0.5 + 0.05 * step, 2) for step in range(10)),
    "map50": (0.5,),
}
_RECALLS: Final = np.linspace(0.0, 1.0, 101)
#: Recalls are sums of weights: one that is reached may lie this much below.
_ROUNDING: Final = 1e-9
#: Fewer than of other metrics: each recomputes every precision–recall curve.
REPLICATES: Final = 1_000


class Objects(Struct, frozen=True, kw_only=True):
    """What is in one image.

    Attributes:
        boxes: [G, 4], corners x0 y0 x1 y1 as shares of width and height.
        classes: [G].
        crowd: bool [G]; a region of many objects, neither to be found nor wrong to find.
    """

    boxes: Array
    classes: Array
    crowd: Array


class Curve(Struct, frozen=True, kw_only=True):
    """Detections of one class at one overlap over all images, the surest first; those excused by a crowd left out.

    Attributes:
        images: [D], position of each detection's image.
        right: bool [D].
        objects: [N], objects to be found in each image.
    """

    images: Array
    right: Array
    objects: Array


class MeanAveragePrecision(Struct, frozen=True, kw_only=True):
    """``map`` or ``map50``; images are resampled, with one in which only the source (or the variant) finds anything.

    Attributes:
        truth: one per sample.
    """

    name: str
    truth: tuple[Objects, ...]
    decoding: Decoding

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`."""
        classes = sorted({int(index) for each in self.truth for index in each.classes[~each.crowd]})
        found = [self._curves(detect(outputs, self.decoding), classes) for outputs in (reference, candidate)]
        plain = np.full((1, len(self.truth) + 1), 1.0)
        plain[:, -1] = 0.0
        before, after = (float(_mean_precision(curves, plain, seen=False)[0]) for curves in found)

        def statistic(weights: Array) -> Array:
            seen = [_mean_precision(curves, weights, seen=True) for curves in found]
            unseen = [_mean_precision(curves, weights, seen=False) for curves in found]
            return np.stack([unseen[0] - seen[1], seen[0] - unseen[1], seen[1], unseen[1]])

        draws = resample(np.ones(len(self.truth)), statistic, replicates=REPLICATES)
        estimate = Estimate(source=before, value=after, drop=before - after, n=len(self.truth))
        return paired(self.name, estimate, draws)

    def _curves(self, detections: Sequence[Detections], classes: Sequence[int]) -> list[Curve]:
        return [
            curve(detections, self.truth, index, threshold) for index in classes for threshold in THRESHOLDS[self.name]
        ]


def curve(detections: Sequence[Detections], truth: Sequence[Objects], index: int, threshold: float) -> Curve:
    """Match one class's detections with its objects, image by image."""
    scores, images, right = [], [], []
    objects = np.zeros(len(truth))
    for position, (found, present) in enumerate(zip(detections, truth, strict=True)):
        mine, theirs = found.classes == index, present.classes == index
        objects[position] = int((theirs & ~present.crowd).sum())
        outcome = _match(found.boxes[mine], present.boxes[theirs], present.crowd[theirs], threshold)
        judged = outcome >= 0
        scores.append(found.scores[mine][judged])
        right.append(outcome[judged] == 1)
        images.append(np.full(int(judged.sum()), position))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return Curve(images=np.concatenate(images)[order], right=np.concatenate(right)[order], objects=objects)


def _match(found: Array, present: Array, crowd: Array, threshold: float) -> Array:
    """Of each detection, the surest first: 1 right, 0 wrong, −1 excused."""
    outcome = np.zeros(len(found), np.int64)
    if not len(present):
        return outcome
    shares = overlaps(found, present)
    areas = np.maximum(np.clip(found[:, 2:] - found[:, :2], 0.0, None).prod(axis=1), 1e-300)
    shares[:, crowd] = (intersections(found, present) / areas[:, None])[:, crowd]
    free = ~crowd
    for row, share in enumerate(shares):
        open_ = np.where(free, share, -1.0)
        best = int(open_.argmax())
        if open_[best] >= threshold:
            outcome[row], free[best] = 1, False
        elif (share[crowd] >= threshold).any():
            outcome[row] = -1
    return outcome


def _mean_precision(curves: Sequence[Curve], weights: Array, *, seen: bool) -> Array:
    """Mean over curves for every row of image weights: [b].

    Args:
        curves: of one model.
        weights: [b, images + 1]; the last is of an imaginary image with a mean image's objects.
        seen: whether the model finds them, surest of all, or nothing there.
    """
    if not curves:
        return np.zeros(len(weights))
    mean: Array = np.mean([average_precision(each, weights, seen=seen) for each in curves], axis=0)
    return mean


def average_precision(one: Curve, weights: Array, *, seen: bool) -> Array:
    """Area under the interpolated precision–recall curve for every row of image weights: [b]."""
    imaginary = weights[:, -1] * one.objects.mean()
    objects = weights[:, :-1] @ one.objects + imaginary
    ahead = imaginary[:, None] if seen else np.zeros((len(weights), 1))
    each = weights[:, one.images]
    hits = ahead + np.concatenate([np.zeros_like(ahead), np.cumsum(each * one.right, axis=1)], axis=1)
    said = ahead + np.concatenate([np.zeros_like(ahead), np.cumsum(each, axis=1)], axis=1)
    recalls = hits / np.maximum(objects, 1e-300)[:, None]
    precisions = hits / np.maximum(said, 1e-300)
    best = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    # one search for all rows: each row is lifted above the one before
    lift = 2.0 * np.arange(len(weights))[:, None]
    wanted = (_RECALLS[None] - _ROUNDING + lift).reshape(-1)
    width = recalls.shape[1]
    places = np.searchsorted((np.minimum(recalls, 1.0) + lift).reshape(-1), wanted, side="left").reshape(
        len(weights), -1
    )
    columns = places - width * np.arange(len(weights))[:, None]
    reached = columns < width
    read = np.take_along_axis(best, np.minimum(columns, width - 1), axis=1)
    mean: Array = np.where(reached, read, 0.0).mean(axis=1)
    return mean
