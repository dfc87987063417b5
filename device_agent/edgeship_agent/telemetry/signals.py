"""Signals of one prediction, their sketches, and the profile that fixes their bins.

The build measures its reference data with :func:`measure` and makes the profile; the device measures every call with
the same function and counts into the same bins, so the two can be compared exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final, Union

import msgspec
import numpy as np

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.contract.profile import Family, Profile, SignalProfile
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch, Sketch
from edgeship_agent.processing.arrays import Array
from edgeship_agent.processing.outputs import probabilities, top_class

Values = dict[str, Union[float, int]]

CLASS_SIGNAL: Final = "output/class"
#: Bins of equal mass in the reference. Source: drift.md §1.
MASS_BINS: Final = 32
#: Tail shares; each needs ``n ≥ 10 / share`` reference values. Source: drift.md §1 and §4.
TAIL_SHARES: Final = (0.001, 0.005, 0.01)
#: Bins of confidence, entropy and margin, of equal width over their range. Source: drift.md §1.
FIXED_BINS: Final = 16
#: Fixed-point values are clipped at ± this many steps. Source: contract.profile.SignalProfile.unit.
CLIP_STEPS: Final = 1 << 20
_SMALLEST_IMAGE_AXIS: Final = 4
_MOST_CHANNELS: Final = 4
_MOST_FEATURES: Final = 64
#: A long image axis is sampled at about this many places.
_IMAGE_SAMPLES: Final = 48
#: Calls that an accumulator holds before it counts them in one numpy pass.
_FOLD_AT: Final = 256


def measure(raw: Mapping[str, Array], outputs: Mapping[str, Array], output: OutputContract) -> Values:
    """The signals of one prediction.

    Args:
        raw: model input name → raw application sample (no batch axis), as the application sent it.
        outputs: output name → array with batch axis 1, the first output first.
        output: how the first output is read.

    Returns:
        Signal name → value: ``input/<tensor>/brightness | contrast | sharpness`` for image-like samples (two axes of
        four and more), ``input/<tensor>/<feature index>`` for vectors of at most 64 features, mean, std, min and max
        otherwise; ``output/class | confidence | entropy | margin`` for a classification, else mean and std per output.
        NaN where an array holds NaN.

    >>> scores = {"p": np.array([[0.1, 0.9]], np.float32)}
    >>> values = measure({"x": np.array([1.0, 2.0])}, scores, OutputContract())
    >>> [name for name in values]  # doctest: +NORMALIZE_WHITESPACE
    ['input/x/0', 'input/x/1', 'output/class', 'output/confidence', 'output/entropy', 'output/margin']
    """
    values: Values = {}
    for tensor, sample in raw.items():
        values.update(_input_signals(tensor, sample))
    if output.kind == "classification" and outputs:
        values.update(_class_signals(probabilities(output, next(iter(outputs.values())))))
    else:
        for tensor, array in outputs.items():
            mean, std = _mean_and_std(array.astype(np.float64).reshape(-1))
            values[f"output/{tensor}/mean"], values[f"output/{tensor}/std"] = mean, std
    return values


def _input_signals(tensor: str, sample: Array) -> Values:
    large_axes = sum(size >= _SMALLEST_IMAGE_AXIS for size in sample.shape)
    if large_axes >= 2:
        names = _names(tensor, ("brightness", "contrast", "sharpness"))
        return dict(zip(names, _image_statistics(sample), strict=True))
    if sample.size <= _MOST_FEATURES and sample.size == max(sample.shape, default=1):
        return dict(zip(_feature_names(tensor, sample.size), sample.reshape(-1).tolist(), strict=True))
    flat = sample.reshape(-1).astype(np.float64)
    if not flat.size:
        return {}
    names = _names(tensor, ("mean", "std", "min", "max"))
    return dict(zip(names, (*_mean_and_std(flat), float(flat.min()), float(flat.max())), strict=True))


@lru_cache(maxsize=256)
def _names(tensor: str, statistics: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"input/{tensor}/{statistic}" for statistic in statistics)


@lru_cache(maxsize=256)
def _feature_names(tensor: str, features: int) -> tuple[str, ...]:
    return tuple(f"input/{tensor}/{index}" for index in range(features))


def _mean_and_std(flat: Array) -> tuple[float, float]:
    if not flat.size:
        return math.nan, math.nan
    mean = float(np.add.reduce(flat)) / flat.size
    centred = flat - mean
    return mean, math.sqrt(float(centred.dot(centred)) / flat.size)


@lru_cache(maxsize=64)
def _image_slices(shape: tuple[int, ...]) -> tuple[tuple[slice, ...], ...]:
    """Where an image is sampled: the pixels, then two neighbours down and two neighbours across."""
    down, across = _image_axes(shape)
    steps = [1] * len(shape)
    for axis in (down, across):
        steps[axis] = -(-shape[axis] // _IMAGE_SAMPLES)
    every = [slice(None, None, step) for step in steps]

    def neighbours(axis: int) -> list[tuple[slice, ...]]:
        low, high = list(every), list(every)
        low[axis], high[axis] = slice(0, -1, steps[axis]), slice(1, None, steps[axis])
        return [tuple(low), tuple(high)]

    return (tuple(every), *neighbours(down), *neighbours(across))


def _image_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The vertical and the horizontal axis: channels last or first where an axis of at most four says so."""
    if len(shape) >= 3:
        if shape[-1] <= _MOST_CHANNELS:
            candidates = (len(shape) - 3, len(shape) - 2)
        else:
            candidates = (len(shape) - 2, len(shape) - 1)
        if all(shape[axis] >= _SMALLEST_IMAGE_AXIS for axis in candidates):
            return candidates
    large = [axis for axis, size in enumerate(shape) if size >= _SMALLEST_IMAGE_AXIS]
    return large[0], large[1]


def _image_statistics(sample: Array) -> tuple[float, float, float]:
    """Mean, standard deviation, and root mean square of the differences between neighbouring pixels."""
    everywhere, *neighbours = _image_slices(sample.shape)
    image = sample.astype(np.float32) if sample.size <= _IMAGE_SAMPLES**2 else sample
    brightness, contrast = _mean_and_std(image[everywhere].astype(np.float32, copy=False).reshape(-1))
    total, count = 0.0, 0
    for low, high in (neighbours[:2], neighbours[2:]):
        difference = (image[high].astype(np.float32, copy=False) - image[low]).reshape(-1)
        total += float(difference.dot(difference))
        count += difference.size
    return brightness, contrast, math.sqrt(total / count)


def _class_signals(scores: Array) -> Values:
    if not scores.size:
        return {}
    winner = top_class(scores)
    confidence = float(scores[winner])
    positive = np.maximum(scores, np.float32(1e-12))
    entropy = -float(positive.dot(np.log(positive)))
    second = float(np.partition(scores, -2)[-2]) if scores.size > 1 else 0.0
    signals: Values = {} if math.isnan(entropy) else {CLASS_SIGNAL: winner}
    signals["output/confidence"] = confidence
    signals["output/entropy"] = entropy if math.isnan(entropy) else max(0.0, entropy)
    signals["output/margin"] = confidence - second
    return signals


class SignalAccumulator:
    """Counts measured values into the bins of a profile; signals that the profile does not name are left out.

    >>> profile = make_profile([{"output/class": 0}, {"output/class": 1}])
    >>> accumulator = SignalAccumulator(profile)
    >>> accumulator.add({"output/class": 1})
    >>> accumulator.take()
    {'output/class': CategorySketch(counts={1: 1})}
    >>> accumulator.take()
    {}
    """

    def __init__(self, profile: Profile) -> None:
        self._signals = profile.signals
        self._edges = [np.asarray(signal.edges, np.float64) for signal in profile.signals]
        self._waiting: list[Values] = []
        self._sketches: list[_Counts] = [_Counts() for _ in profile.signals]

    def add(self, values: Values) -> None:
        """Take the signals of one call."""
        self._waiting.append(values)
        if len(self._waiting) >= _FOLD_AT:
            self._fold()

    def take(self) -> dict[str, Sketch]:
        """The sketches of what was added since the last take; starts anew."""
        self._fold()
        taken: dict[str, Sketch] = {}
        for signal, edges, counts in zip(self._signals, self._edges, self._sketches, strict=True):
            sketch = counts.sketch(signal, len(edges) + 1)
            if sketch is not None:
                taken[signal.name] = sketch
        self._sketches = [_Counts() for _ in self._signals]
        return taken

    def _fold(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        for signal, edges, counts in zip(self._signals, self._edges, self._sketches, strict=True):
            column = [values.get(signal.name, math.nan) for values in waiting]
            if isinstance(signal.reference, CategorySketch):
                counts.add_classes(column)
            else:
                counts.add_numbers(np.asarray(column, np.float64), edges, signal)


class _Counts:
    """Counts of one signal while a window is open."""

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.missing_count = 0
        self.sum_fixed = 0
        self.sum_square_fixed = 0

    def add_classes(self, column: Sequence[float]) -> None:
        for value in column:
            if math.isfinite(value):
                self.bins[int(value)] = self.bins.get(int(value), 0) + 1

    def add_numbers(self, column: Array, edges: Array, signal: SignalProfile) -> None:
        finite = column[np.isfinite(column)]
        self.missing_count += column.size - finite.size
        indices, counts = np.unique(np.searchsorted(edges, finite, side="right"), return_counts=True)
        for index, count in zip(indices.tolist(), counts.tolist(), strict=True):
            self.bins[index] = self.bins.get(index, 0) + count
        scaled = np.clip((finite - signal.center) / signal.unit, -CLIP_STEPS, CLIP_STEPS)
        steps = np.rint(scaled).astype(np.int64)
        self.sum_fixed += int(steps.sum())
        self.sum_square_fixed += int((steps * steps).sum())

    def sketch(self, signal: SignalProfile, size: int) -> Sketch | None:
        if isinstance(signal.reference, CategorySketch):
            return CategorySketch(counts=dict(sorted(self.bins.items()))) if self.bins else None
        if not self.bins and not self.missing_count:
            return None
        return BinnedSketch(
            counts=tuple(self.bins.get(index, 0) for index in range(size)),
            missing_count=self.missing_count,
            sum_fixed=self.sum_fixed,
            sum_square_fixed=self.sum_square_fixed,
        )


def make_profile(values: Sequence[Values], *, class_count: int | None = None) -> Profile:
    """The drift baseline of some reference data, as measured on the artifact that is shipped.

    Args:
        values: one result of :func:`measure` per reference sample.
        class_count: K of a classification, for the range of the entropy; the highest class seen + 1 where not given.

    Raises:
        InputError: no values.

    >>> profile = make_profile([{"input/x/mean": float(value)} for value in range(64)])
    >>> len(profile.signals[0].edges), profile.signals[0].reference.counts[:3]
    (31, (1, 2, 2))
    """
    if not values:
        raise InputError("no reference data for the drift baseline", expected="≥ 1 sample", got=0)
    names = list(dict.fromkeys(name for sample in values for name in sample))
    if class_count is None:
        class_count = 1 + max((int(sample[CLASS_SIGNAL]) for sample in values if CLASS_SIGNAL in sample), default=1)
    empty = [_empty_signal(name, values, max(2, class_count)) for name in names]
    accumulator = SignalAccumulator(Profile(sample_count=len(values), signals=tuple(empty)))
    for sample in values:
        accumulator.add(sample)
    counted = accumulator.take()
    return Profile(
        sample_count=len(values),
        signals=tuple(
            msgspec.structs.replace(signal, reference=counted.get(signal.name, signal.reference)) for signal in empty
        ),
    )


def _empty_signal(name: str, values: Sequence[Values], class_count: int) -> SignalProfile:
    family = Family.OUTPUT if name.startswith("output/") else Family.INPUT
    if name == CLASS_SIGNAL:
        return SignalProfile(name=name, family=family, reference=CategorySketch(counts={}))
    column = np.asarray([sample.get(name, math.nan) for sample in values], np.float64)
    finite = np.sort(column[np.isfinite(column)])
    edges: tuple[float, ...]
    tails: tuple[float, ...] = ()
    if name in {"output/confidence", "output/entropy", "output/margin"}:
        top = math.log(class_count) if name == "output/entropy" else 1.0
        edges = tuple(float(f"{top * step / FIXED_BINS:.6g}") for step in range(1, FIXED_BINS))
    else:
        edges, tails = _mass_edges(finite)
    center, unit = _fixed_point(finite)
    return SignalProfile(
        name=name,
        family=family,
        reference=BinnedSketch(counts=(0,) * (len(edges) + 1)),
        edges=edges,
        center=center,
        unit=unit,
        tail_edges=tuple(edges.index(tail) for tail in tails),
    )


def _mass_edges(ordered: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Edges at the quantiles of sorted values, and which of them are tail edges.

    A value that holds the mass of two bins and more gets a bin of its own: [value, next float).
    """
    if not ordered.size:
        return (), ()
    body = [_quantile(ordered, index / MASS_BINS) for index in range(1, MASS_BINS)]
    atoms = {left for left, right in pairwise(body) if left == right}
    tail_shares = [share for share in TAIL_SHARES if ordered.size * share >= 10]
    tails = [_quantile(ordered, share) for share in (*tail_shares, *(1.0 - share for share in tail_shares))]
    edges = {value if value in atoms else _short(value) for value in body}
    edges |= {math.nextafter(value, math.inf) for value in atoms}
    tail_edges = {value if value in atoms else _short(value) for value in tails}
    return tuple(sorted(edges | tail_edges)), tuple(sorted(tail_edges - edges))


def _quantile(ordered: Array, share: float) -> float:
    """The smallest value with at least ``share`` of the values at or below it."""
    return float(ordered[max(0, math.ceil(share * ordered.size - 1e-9) - 1)])


def _short(value: float) -> float:
    """Six digits say enough of where a bin ends, and keep the profile small."""
    return float(f"{value:.6g}")


def _fixed_point(ordered: Array) -> tuple[float, float]:
    """Centre (the median) and a power of two as unit, such that eight times the observed range still fits."""
    if not ordered.size:
        return 0.0, 1.0
    center = _short(_quantile(ordered, 0.5))
    spread = max(abs(float(ordered[0]) - center), abs(float(ordered[-1]) - center)) or max(abs(center), 1.0)
    return center, 2.0 ** math.ceil(math.log2(8.0 * spread / CLIP_STEPS))
