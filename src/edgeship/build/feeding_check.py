"""Whether samples are fed as the model was trained: by what the source gets right, and by the size of the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from msgspec import Struct

from edgeship.build import metrics
from edgeship.build.data import Dataset
from edgeship_agent.contract.errors import EdgeshipError, InputError
from edgeship_agent.runtime.engine import Array

Sample = Mapping[str, Array]
Run = Callable[[Sequence[Sample]], Sequence[Mapping[str, Array]]]

#: So many samples are fed in another way, evenly spread: enough that a proven way outnumbers chance.
_SAMPLES: Final = 60
_LEAST_SAMPLES: Final = 20
#: Another way is proven where the source is right on this share by it, and on so much less by the given one; as
#: with labels, :mod:`edgeship.build.label_check`.
_FOUND: Final = 0.5
_GAIN: Final = 0.3
_DEVIATIONS: Final = 4.0
_CHANNELS: Final = frozenset({1, 3})
_BYTE: Final = 255.0
#: Means and spreads of ImageNet's colours in 0 … 1. Source: torchvision.models, the weights' transforms.
_MEANS: Final = (0.485, 0.456, 0.406)
_SPREADS: Final = (0.229, 0.224, 0.225)
#: Calibration and evaluation data whose largest values differ by this factor are scaled in two ways. Our choice.
_OTHER_SCALE: Final = 20.0
#: Shares this small are next to nothing: what two runtimes differ by there is rounding. Source: measured, float32
#: sigmoids of ONNX Runtime and LiteRT below 1e-6 differ by a twentieth of themselves.
_NEXT_TO_NOTHING: Final = 1e-4


class Way(Struct, frozen=True, kw_only=True):
    """Another way to feed pictures.

    Attributes:
        words: what is done to what was fed.
        steps: the same for ``--preprocess``, behind what it does already.
        apply: fed values [1, …], the axis of channels counted from the end → others.
    """

    words: str
    steps: str
    apply: Callable[[Array, int], Array]


def _scaled(factor: float, offset: float = 0.0) -> Callable[[Array, int], Array]:
    def apply(fed: Array, axis: int) -> Array:
        del axis
        changed: Array = fed * np.float32(factor) + np.float32(offset)
        return changed

    return apply


def _as_imagenet(factor: float) -> Callable[[Array, int], Array]:
    def apply(fed: Array, axis: int) -> Array:
        shape = (-1, *[1] * (-axis - 1))
        means, spreads = (np.asarray(each, np.float32).reshape(shape) for each in (_MEANS, _SPREADS))
        changed: Array = (fed * np.float32(factor) - means) / spreads
        return changed

    return apply


def _scale(factor: str, *more: str) -> str:
    return ", ".join([f'{{ op = "scale", factor = {factor} }}', *more])


def _normalize(scale: float, axis: str) -> str:
    mean, std = ([round(each * scale, 6) for each in numbers] for numbers in (_MEANS, _SPREADS))
    return f'{{ op = "normalize", mean = {mean}, std = {std}, axis = {axis} }}'


def _offset(value: str) -> str:
    return f'{{ op = "offset", value = {value} }}'


#: By how values are fed: 0 … 255, 0 … 1, −1 … 1.
_WAYS: Final[dict[str, tuple[Way, ...]]] = {
    "bytes": (
        Way(words="divided by 255", steps=_scale("0.00392156862745098"), apply=_scaled(1 / _BYTE)),
        Way(words="brought to −1 … 1", steps=_scale("0.00784313725490196", _offset("-1.0")),
            apply=_scaled(2 / _BYTE, -1.0)),
        Way(words="normalised by ImageNet's colours", steps=_normalize(_BYTE, "AXIS"), apply=_as_imagenet(1 / _BYTE)),
    ),
    "shares": (
        Way(words="multiplied by 255", steps=_scale("255.0"), apply=_scaled(_BYTE)),
        Way(words="brought to −1 … 1", steps=_scale("2.0", _offset("-1.0")), apply=_scaled(2.0, -1.0)),
        Way(words="normalised by ImageNet's colours", steps=_normalize(1.0, "AXIS"), apply=_as_imagenet(1.0)),
    ),
    "signed": (
        Way(words="brought to 0 … 1", steps=_scale("0.5", _offset("0.5")), apply=_scaled(0.5, 0.5)),
        Way(words="brought to 0 … 255", steps=_scale("127.5", _offset("127.5")), apply=_scaled(127.5, 127.5)),
    ),
}  # fmt: skip


def check(evaluation: Dataset, fed: Sequence[Sample], outputs: metrics.Outputs, run: Run) -> None:
    """Refuse pictures that are evidently scaled otherwise than the model was trained with.

    Where the source is seldom right on labelled pictures, some of them are fed to it as people usually scale them.

    Args:
        evaluation: with class labels; without any nothing is checked.
        fed: its samples as the source takes them.
        outputs: of the source on them, the first output first.
        run: asks the source.

    Raises:
        InputError: the source itself says so.
    """
    first = next(iter(outputs.values()))
    wanted = np.asarray(evaluation.labels or ())
    if len(wanted) < _LEAST_SAMPLES or (first[0].size < 2 and not metrics.names_class(first)):
        return
    chosen = np.unique(np.linspace(0, len(wanted) - 1, min(_SAMPLES, len(wanted))).astype(int))
    told = _said(first[chosen])
    own = float((told == wanted[chosen]).mean())
    if own + _GAIN > 1.0 or len(np.unique(wanted[chosen])) < 2:
        return  # no other way could be proven
    some = [fed[index] for index in chosen]
    altered = _altered(some)
    try:  # in one go: a source may be a program that takes seconds to start
        said = run([sample for _, samples in altered for sample in samples]) if altered else ()
    except EdgeshipError:
        return  # a source that cannot be run on other numbers proves nothing by it
    for number, (way, _) in enumerate(altered):
        answers = said[number * len(some) : (number + 1) * len(some)]
        again = _said(np.concatenate([next(iter(each.values())) for each in answers]))
        share = float((again == wanted[chosen]).mean())
        if share >= _FOUND and share - own >= _GAIN and _outnumbers(again == wanted[chosen], told == wanted[chosen]):
            shares = f"the source is right on {own:.0%} of {len(chosen)} samples, and on {share:.0%}"
            raise InputError(
                f"samples are not scaled as the model takes them: {shares.replace('%', ' %')} if they are {way.words}",
                file=evaluation.path, expected=f"what the training fed: values {way.words}", got=_range(some),
                next_step=f"save them so, in both sets, or add to the steps of --preprocess FILE.toml: {way.steps}",
            )  # fmt: skip


def _said(first: Array) -> Array:
    return np.asarray([each[0] for each in metrics.answers(first, 1)])


def _outnumbers(one: Array, other: Array) -> bool:
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return gained - lost >= _DEVIATIONS * math.sqrt(gained + lost)


def _altered(some: Sequence[Sample]) -> list[tuple[Way, list[dict[str, Array]]]]:
    """The same pictures in each of the usual other ways; none where they are no pictures of floats."""
    axis = _channels(some[0])
    if axis is None:
        return []
    (name,) = some[0]
    found = []
    for way in _WAYS.get(_kind(some), ()):
        if "AXIS" in way.steps and some[0][name].shape[axis] != len(_MEANS):
            continue
        told = Way(words=way.words, steps=way.steps.replace("AXIS", str(axis + 3)), apply=way.apply)
        found.append((told, [{name: way.apply(each[name], axis).astype(np.float32)} for each in some]))
    return found


def _channels(sample: Sample) -> int | None:
    """The axis of one or three channels of the only input, counted from the end; None where it is no picture."""
    if len(sample) != 1:
        return None
    (array,) = sample.values()
    if array.ndim != 4 or array.dtype != np.float32:
        return None
    return next((axis for axis in (-1, -3) if array.shape[axis] in _CHANNELS), None)


def _kind(some: Sequence[Sample]) -> str:
    low, high = _ends(some)
    if low >= 0.0 and 2.0 < high <= _BYTE:
        return "bytes"
    if low >= 0.0 and high <= 1.0:
        return "shares"
    return "signed" if low >= -1.0 and high <= 1.0 else ""


def _ends(some: Sequence[Sample]) -> tuple[float, float]:
    values: list[Any] = [array for each in some for array in each.values()]
    return float(min(each.min() for each in values)), float(max(each.max() for each in values))


def _range(some: Sequence[Sample]) -> str:
    low, high = _ends(some)
    return f"values of {low:.3g} … {high:.3g}"


def doubts(calibration: Sequence[Sample], evaluation: Sequence[Sample], outputs: metrics.Outputs) -> tuple[str, ...]:
    """What is to be said where numbers alone make one doubt: two scales, or answers that are next to nothing.

    Args:
        calibration: samples as the source takes them.
        evaluation: likewise.
        outputs: of the source on the latter.

    >>> small, large = [{"x": np.array([[0.5]])}], [{"x": np.array([[255.0]])}]
    >>> doubts(small, large, {"y": np.array([[0.5]])})
    ('x reaches 0.5 in the calibration data and 255 in the evaluation data: are both scaled alike?',)
    >>> doubts(small, small, {"mask": np.array([[6e-7, 0.0]])})[0][:55]
    'mask: the source answers at most 6e-07 on the evaluatio'
    """
    found = []
    for name in calibration[0]:
        one, other = (_largest(each, name) for each in (calibration, evaluation))
        if min(one, other) > 0.0 and max(one, other) > _OTHER_SCALE * min(one, other):
            found.append(f"{name} reaches {one:.3g} in the calibration data and {other:.3g} in the evaluation data: "
                         "are both scaled alike?")  # fmt: skip
    for name, array in outputs.items():
        if array.dtype.kind == "f" and array.size and array.min() >= 0.0 and array.max() < _NEXT_TO_NOTHING:
            found.append(f"{name}: the source answers at most {array.max():.2g} on the evaluation data, where runtimes "
                         "differ by their rounding alone: give samples that hold what it looks for")  # fmt: skip
    return tuple(found)


def _largest(samples: Sequence[Sample], name: str) -> float:
    with np.errstate(invalid="ignore"):
        return float(max((np.nanmax(np.abs(each[name]), initial=0.0) for each in samples), default=0.0))
