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

from edgeship.build.metrics.paired import Outputs, Paired
from edgeship.build.metrics.resampling import Estimate, paired, resample
from edgeship_agent.processing.detection import Decoding, Detections, detect, intersections, overlaps
from edgeship_agent.runtime.engine import Array

#: Metric → overlaps from which on a detection is right.
THRESHOLDS: Final = {
    "map": tuple(round(0.5 + 0.05 * step, 2) for step in range(10)),
    "map50": (0.5,),
}
_RECALLS: Final = 101
#: Recalls are sums of weights: one that is reached may lie this much below.
_ROUNDING: Final = 1e-9
#: Weights that are gathered at a time.
_MOST_VALUES: Final = 4_000_000
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

    def is_like(self, other: Curve) -> bool:
        """Whether the other one has the same detections right and wrong in the same order."""
        return np.array_equal(self.images, other.images) and np.array_equal(self.right, other.right)


class MeanAveragePrecision(Struct, frozen=True, kw_only=True):
    """``map`` or ``map50``; images are resampled, with one in which only the source (or the variant) finds anything.

    Attributes:
        truth: one per sample.
        notes: how it was read, where its files alone do not say it.
    """

    name: str
    truth: tuple[Objects, ...]
    decoding: Decoding
    notes: tuple[str, ...] = ()

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`."""
        found = [self._curves(outputs) for outputs in (reference, candidate)]
        before, after = (self._value(each) for each in found)

        def statistic(weights: Array) -> Array:
            source_seen, source_unseen = _mean_precisions(found[0], weights)
            # a float file finds what the source finds: no need to work it out again
            same = all(one.is_like(other) for one, other in zip(*found, strict=True))
            seen, unseen = (source_seen, source_unseen) if same else _mean_precisions(found[1], weights)
            return np.stack([source_unseen - seen, source_seen - unseen, seen, unseen])

        draws = resample(np.ones(len(self.truth)), statistic, replicates=REPLICATES)
        estimate = Estimate(source=before, value=after, drop=before - after, n=len(self.truth))
        return paired(self.name, estimate, draws)

    def of(self, outputs: Outputs) -> float:
        """The value alone."""
        return self._value(self._curves(outputs))

    def _value(self, found: Sequence[Curve]) -> float:
        plain = np.full((1, len(self.truth) + 1), 1.0)
        plain[:, -1] = 0.0
        return float(_mean_precisions(found, plain)[1, 0])

    def _curves(self, outputs: Outputs) -> list[Curve]:
        detections = detect(outputs, self.decoding)
        classes = sorted({int(index) for each in self.truth for index in each.classes[~each.crowd]})
        return [each for index in classes for each in curves(detections, self.truth, index, THRESHOLDS[self.name])]


def curve(detections: Sequence[Detections], truth: Sequence[Objects], index: int, threshold: float) -> Curve:
    """Match one class's detections with its objects, image by image."""
    return curves(detections, truth, index, (threshold,))[0]


def curves(
    detections: Sequence[Detections], truth: Sequence[Objects], index: int, thresholds: Sequence[float]
) -> list[Curve]:
    """One class's curves, in the order of the overlaps from which on a detection is right."""
    scores, images = [np.zeros(0)], [np.zeros(0, np.int64)]
    outcomes = [np.zeros((0, len(thresholds)), np.int64)]
    objects = np.zeros(len(truth))
    for position, (found, present) in enumerate(zip(detections, truth, strict=True)):
        theirs = present.classes == index
        objects[position] = int((theirs & ~present.crowd).sum())
        mine = found.classes == index
        if mine.any():
            scores.append(found.scores[mine])
            images.append(np.full(int(mine.sum()), position))
            outcomes.append(_match(found.boxes[mine], present.boxes[theirs], present.crowd[theirs], thresholds))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    ranked, judged = np.concatenate(images)[order], np.concatenate(outcomes)[order]
    return [
        Curve(images=ranked[column >= 0], right=column[column >= 0] == 1, objects=objects) for column in judged.T
    ]  # fmt: skip


def _match(found: Array, present: Array, crowd: Array, thresholds: Sequence[float]) -> Array:
    """Of each detection, the surest first, and each threshold: 1 right, 0 wrong, −1 excused; [D, thresholds]."""
    outcome = np.zeros((len(found), len(thresholds)), np.int64)
    if not len(present):
        return outcome
    shares = overlaps(found, present)
    if crowd.any():
        areas = np.maximum(np.clip(found[:, 2:] - found[:, :2], 0.0, None).prod(axis=1), 1e-300)
        shares[:, crowd] = (intersections(found, present) / areas[:, None])[:, crowd]
    for column, threshold in enumerate(thresholds):
        free = ~crowd
        for row in np.flatnonzero((shares >= threshold).any(axis=1)):
            share = shares[row]
            open_ = np.where(free, share, -1.0)
            best = int(open_.argmax())
            if open_[best] >= threshold:
                outcome[row, column], free[best] = 1, False
            elif (share[crowd] >= threshold).any():
                outcome[row, column] = -1
    return outcome


class _Sums(Struct, frozen=True, kw_only=True):
    """Of one curve, for every row of image weights, at each right detection: nothing else moves the interpolated curve.

    Attributes:
        hits: [K, b], weight of the right detections down to this one.
        said: [K, b], of all detections down to this one.
        objects: [b], of all objects, the imaginary image's among them.
        imaginary: [b], of the imaginary image's objects, as many as a mean image has.
    """

    hits: Array
    said: Array
    objects: Array
    imaginary: Array


def _sums(one: Curve, columns: Array) -> _Sums:
    """From the weights with a row for each image, so that what is gathered lies together: [images + 1, b]."""
    places = np.flatnonzero(one.right)
    imaginary = columns[-1] * one.objects.mean()
    holding = np.flatnonzero(one.objects)
    objects = (columns[holding] * one.objects[holding, None]).sum(axis=0) + imaginary
    if not len(places):
        nothing = np.zeros((0, columns.shape[1]))
        return _Sums(hits=nothing, said=nothing, objects=objects, imaginary=imaginary)
    images, starts = one.images[: places[-1] + 1], np.append(0, places[:-1] + 1)
    step = max(1, _MOST_VALUES // len(images))
    parts = [
        np.add.reduceat(columns[:, first : first + step][images], starts, axis=0)
        for first in range(0, columns.shape[1], step)
    ]
    said = np.cumsum(np.concatenate(parts, axis=1), axis=0)
    hits = np.cumsum(columns[one.images[places]], axis=0)
    return _Sums(hits=hits, said=said, objects=objects, imaginary=imaginary)


def _mean_precisions(curves: Sequence[Curve], weights: Array) -> Array:
    """Mean over curves for every row of image weights: [2, b], with all of the imaginary image found, and with none.

    Args:
        curves: of one model.
        weights: [b, images + 1]; the last is of an imaginary image with a mean image's objects.
    """
    means, columns = np.zeros((2, len(weights))), np.ascontiguousarray(weights.T)
    for each in curves:
        sums = _sums(each, columns)
        means += np.stack([_area(sums, seen=True), _area(sums, seen=False)]) / len(curves)
    return means


def average_precision(one: Curve, weights: Array, *, seen: bool) -> Array:
    """Area under the interpolated precision–recall curve for every row of image weights: [b].

    Args:
        one: curve.
        weights: [b, images + 1]; the last is of an imaginary image with a mean image's objects.
        seen: whether the model finds them, surest of all, or nothing there.
    """
    return _area(_sums(one, np.ascontiguousarray(weights.T)), seen=seen)


def _area(sums: _Sums, *, seen: bool) -> Array:
    ahead = sums.imaginary if seen else np.zeros_like(sums.imaginary)
    hits = np.concatenate([ahead[None], ahead + sums.hits])
    said = np.concatenate([ahead[None], ahead + sums.said])
    recalls = np.minimum(hits / np.maximum(sums.objects, 1e-300), 1.0)
    precisions = hits / np.maximum(said, 1e-300)
    best = np.maximum.accumulate(precisions[::-1])[::-1]
    # of the recalls 0, .01 … 1, so many are reached at each detection; those new there read its precision
    reached = np.floor((recalls + _ROUNDING) * (_RECALLS - 1)) + 1.0
    new = np.diff(np.minimum(reached, _RECALLS), axis=0, prepend=0.0)
    area: Array = (best * new).sum(axis=0) / _RECALLS
    return area
