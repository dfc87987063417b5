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
from edgeship_agent.processing.outputs import probabilities_of_rows
from edgeship_agent.telemetry.counting import CLIP_STEPS, ClassCounts, NumberCounts

Values = dict[str, Union[float, int]]
#: Signal name → [n] of float64, one value per call; NaN where a call has none.
Columns = dict[str, Array]

CLASS_SIGNAL: Final = "output/class"
CONFIDENCE_SIGNAL: Final = "output/confidence"
#: Bins of equal mass in the reference. Source: drift.md §1.
MASS_BINS: Final = 32
#: Tail shares; each needs ``n ≥ 10 / share`` reference values. Source: drift.md §1 and §4.
TAIL_SHARES: Final = (0.001, 0.005, 0.01)
#: Bins of confidence, entropy and margin, of equal width over their range. Source: drift.md §1.
FIXED_BINS: Final = 16
_SMALLEST_IMAGE_AXIS: Final = 4
_MOST_CHANNELS: Final = 4
_MOST_FEATURES: Final = 64
#: A long image axis is sampled at about this many places.
IMAGE_SAMPLES: Final = 48
#: Scores that are looked at in one pass: arrays of more would be taken from the system, page by page, and given back.
_PASS_VALUES: Final = 1 << 14
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
    columns = measure_many(
        {name: np.asarray(sample)[np.newaxis] for name, sample in raw.items()},
        {name: np.asarray(array)[np.newaxis] for name, array in outputs.items()},
        output,
    )
    values: Values = {}
    for name, column in columns.items():
        value = float(column[0])
        if name != CLASS_SIGNAL:
            values[name] = value
        elif not math.isnan(value):
            values[name] = int(value)
    return values


@np.errstate(all="ignore")  # what is not finite is counted as missing; it needs no warning
def measure_many(raw: Mapping[str, Array], outputs: Mapping[str, Array], output: OutputContract) -> Columns:
    """The signals of several predictions at once: the same numbers, to the bit, as :func:`measure` of each.

    Every sum runs along the contiguous last axis of [n, size], where numpy adds a row in an order that does not
    depend on the other rows.

    Args:
        raw: model input name → [n, …], n raw samples.
        outputs: output name → [n, 1, …], the first output first.
        output: how the first output is read.

    >>> columns = measure_many({"x": np.array([[1.0, 2.0], [3.0, 4.0]])}, {}, OutputContract())
    >>> columns["input/x/1"].tolist()
    [2.0, 4.0]
    """
    columns: Columns = {}
    for tensor, samples in raw.items():
        columns.update(_input_signals(tensor, samples))
    if output.kind == "classification" and outputs:
        first = next(iter(outputs.values()))
        columns.update(_class_signals(probabilities_of_rows(output, _rows(first))))
    else:
        for tensor, arrays in outputs.items():
            mean, std = mean_and_std(_rows(arrays).astype(np.float64))
            columns.update(zip(output_signal_names(tensor), (mean, std), strict=True))
    return columns


def _rows(samples: Array) -> Array:
    """[n, …] as [n, size], each row contiguous."""
    return np.ascontiguousarray(samples.reshape(len(samples), -1 if samples.size else 0))


def _input_signals(tensor: str, samples: Array) -> Columns:
    shape = samples.shape[1:]
    size = math.prod(shape)
    if is_image(shape):
        return dict(zip(image_signal_names(tensor), _image_statistics(samples), strict=True))
    rows = _rows(samples).astype(np.float64)
    if size <= _MOST_FEATURES and size == max(shape, default=1):
        return dict(zip(_feature_names(tensor, size), np.ascontiguousarray(rows.T), strict=True))
    if not size:
        return {}
    names = _names(tensor, ("mean", "std", "min", "max"))
    return dict(zip(names, (*mean_and_std(rows), rows.min(axis=1), rows.max(axis=1)), strict=True))


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a raw sample of this shape is measured as an image: two axes of four and more."""
    return sum(axis >= _SMALLEST_IMAGE_AXIS for axis in shape) >= 2


def image_signal_names(tensor: str) -> tuple[str, ...]:
    """Names of an image's three signals.

    >>> image_signal_names("x")
    ('input/x/brightness', 'input/x/contrast', 'input/x/sharpness')
    """
    return _names(tensor, ("brightness", "contrast", "sharpness"))


@lru_cache(maxsize=256)
def output_signal_names(tensor: str) -> tuple[str, ...]:
    """Names of the two signals of an output that is no class.

    >>> output_signal_names("y")
    ('output/y/mean', 'output/y/std')
    """
    return (f"output/{tensor}/mean", f"output/{tensor}/std")


@lru_cache(maxsize=256)
def _names(tensor: str, statistics: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"input/{tensor}/{statistic}" for statistic in statistics)


@lru_cache(maxsize=256)
def _feature_names(tensor: str, features: int) -> tuple[str, ...]:
    return tuple(f"input/{tensor}/{index}" for index in range(features))


def mean_and_std(rows: Array, scratch: Array | None = None) -> tuple[Array, Array]:
    """[n, size] of floats → mean and standard deviation of each row, [n] of float64; ``scratch`` may hold [n, size]."""
    size = rows.shape[1]
    if not size:
        nothing = np.full(len(rows), math.nan)
        return nothing, nothing
    mean = np.add.reduce(rows, axis=1).astype(np.float64) / size
    centred = np.subtract(rows, mean.astype(rows.dtype)[:, np.newaxis], out=scratch)
    return mean, np.sqrt(np.add.reduce(np.square(centred, out=centred), axis=1).astype(np.float64) / size)


@lru_cache(maxsize=64)
def image_slices(shape: tuple[int, ...]) -> tuple[tuple[slice, ...], ...]:
    """Where images [n, *shape] are sampled: the pixels, then two neighbours down and two neighbours across."""
    down, across = image_axes(shape)
    steps = [1] * len(shape)
    for axis in (down, across):
        steps[axis] = -(-shape[axis] // IMAGE_SAMPLES)
    every = [slice(None, None, step) for step in steps]

    def neighbours(axis: int) -> list[tuple[slice, ...]]:
        low, high = list(every), list(every)
        low[axis], high[axis] = slice(0, -1, steps[axis]), slice(1, None, steps[axis])
        return [(slice(None), *low), (slice(None), *high)]

    return ((slice(None), *every), *neighbours(down), *neighbours(across))


def image_axes(shape: tuple[int, ...]) -> tuple[int, int]:
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


def _image_statistics(samples: Array) -> tuple[Array, Array, Array]:
    """Mean, standard deviation, and root mean square of the differences between neighbouring pixels, [n] each."""
    shape = samples.shape[1:]
    everywhere, *neighbours = image_slices(shape)
    images = samples.astype(np.float32) if math.prod(shape) <= IMAGE_SAMPLES**2 else samples
    brightness, contrast = mean_and_std(_rows(images[everywhere].astype(np.float32, copy=False)))
    total, count = np.zeros(len(samples)), 0
    for low, high in (neighbours[:2], neighbours[2:]):
        difference = _rows(images[high].astype(np.float32, copy=False) - images[low])
        total += np.add.reduce(np.square(difference), axis=1)
        count += difference.shape[1]
    return brightness, contrast, np.sqrt(total / count)


def _class_signals(scores: Array) -> Columns:
    """Of [n, K] probabilities."""
    if not scores.size:
        return {}
    calls = max(1, _PASS_VALUES // scores.shape[1])
    parts = [_class_signals_of_part(scores[start : start + calls]) for start in range(0, len(scores), calls)]
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _class_signals_of_part(scores: Array) -> Columns:
    rows, winner = np.arange(len(scores)), scores.argmax(axis=1)
    confidence = scores[rows, winner].astype(np.float64)
    positive = np.maximum(scores, np.float32(1e-12))
    entropy = -np.add.reduce(positive * np.log(positive), axis=1).astype(np.float64)
    others = scores.copy()  # looked through once more without the winner: a partition takes fifty times as long
    others[rows, winner] = -math.inf
    second = others.max(axis=1).astype(np.float64) if scores.shape[1] > 1 else 0.0
    return {
        CLASS_SIGNAL: np.where(np.isnan(entropy), math.nan, winner),
        CONFIDENCE_SIGNAL: confidence,
        "output/entropy": np.maximum(entropy, 0.0),
        "output/margin": confidence - second,
    }


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
        self._names = [signal.name for signal in profile.signals]
        kinds = [isinstance(signal.reference, CategorySketch) for signal in profile.signals]
        self._numbers = NumberCounts([s for s, is_class in zip(profile.signals, kinds, strict=True) if not is_class])
        self._classes = {name: ClassCounts() for name, is_class in zip(self._names, kinds, strict=True) if is_class}
        self._waiting: list[Values] = []

    def add(self, values: Values) -> None:
        """Take the signals of one call."""
        self._waiting.append(values)
        if len(self._waiting) >= _FOLD_AT:
            self._fold()

    def add_many(self, columns: Columns, calls: int) -> None:
        """Take the signals of several calls, as :func:`measure_many` gives them."""
        self._numbers.add(columns, calls)
        for name, counts in self._classes.items():
            if name in columns:
                counts.add(columns[name])

    def take(self) -> dict[str, Sketch]:
        """The sketches of what was added since the last take; starts anew."""
        self._fold()
        taken: dict[str, Sketch] = {**self._numbers.sketches()}
        taken |= {name: sketch for name, counts in self._classes.items() if (sketch := counts.sketch()) is not None}
        self._numbers.clear()
        self._classes = {name: ClassCounts() for name in self._classes}
        return {name: taken[name] for name in self._names if name in taken}

    def _fold(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            columns = {
                name: np.asarray([values.get(name, math.nan) for values in waiting], np.float64) for name in self._names
            }
            self.add_many(columns, len(waiting))


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
