"""The preprocessing steps of the manifest on one sample (no batch axis)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from edgeship_agent.contract.errors import ContractError, InputError
from edgeship_agent.contract.manifest import (
    Cast,
    Categories,
    ColourOrder,
    Crop,
    Dct,
    Impute,
    LogMel,
    Normalize,
    Offset,
    OneHot,
    Pad,
    Reshape,
    Resize,
    Scale,
    Step,
    Transpose,
)
from edgeship_agent.processing.arrays import Array
from edgeship_agent.processing.sound import cosine_transform, log_mel
from edgeship_agent.processing.table import categories, impute, one_hot

#: Fixed-point steps of one bilinear weight; two weights of 11 bits and a value of 16 bits fit into 64-bit integers.
_WEIGHT_ONE: Final = 1 << 11
#: Steps whose result is always an array of its own, and steps whose result shows the array that they were given.
_MAKING: Final = (Scale, Offset, Normalize)
_MOVING: Final = (Transpose, Crop, ColourOrder)


def apply_step(step: Step, sample: Array) -> Array:
    """One step of a preprocessing contract.

    Args:
        step: what to do.
        sample: array without batch axis.

    Raises:
        InputError: the sample does not have the axes or the size that the step needs.
        ContractError: the step asks for something unknown.

    >>> apply_step(Cast(dtype="uint8"), np.array([0.5, 1.5, 300.0])).tolist()
    [0, 2, 255]
    """
    try:
        return _STEPS[type(step)](step, sample)
    except (ValueError, IndexError) as error:
        raise InputError(
            f"the preprocessing step {type(step).__name__.lower()} does not fit: {error}", got=f"shape {sample.shape}"
        ) from error


def apply_steps(steps: Sequence[Step], sample: Array) -> Array:
    """Several steps, one after the other: the same numbers, with less memory to go through.

    Args:
        steps: what to do.
        sample: array without batch axis; it is not changed.

    Raises:
        InputError, ContractError: as :func:`apply_step`.

    >>> apply_steps((Offset(value=1.0), Scale(factor=0.5)), np.array([1, 3], np.uint8)).tolist()
    [1.0, 2.0]
    """
    is_own = False  # whether nobody else sees the array, so that the next step may write over it
    for step in steps:
        if is_own and isinstance(step, Scale):
            np.multiply(sample, np.float32(step.factor), out=sample)
        elif is_own and isinstance(step, Offset):
            np.add(sample, np.float32(step.value), out=sample)
        else:
            sample = apply_step(step, sample)
            is_made = isinstance(step, _MAKING) and sample.ndim > 0
            is_own = is_made or (is_own and isinstance(step, _MOVING))
    return sample


def _cast(step: Cast, sample: Array) -> Array:
    try:
        dtype = np.dtype(step.dtype)
    except TypeError as error:
        raise ContractError("unknown dtype in a cast", got=step.dtype) from error
    if dtype.kind in "iu" and sample.dtype.kind == "f":
        return _saturate(np.rint(sample.astype(np.float64)), dtype)
    if dtype.kind in "iu" and sample.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(sample.astype(np.int64), limits.min, limits.max).astype(dtype)
    return sample.astype(dtype, copy=False)


def _saturate(rounded: Array, dtype: np.dtype[Any]) -> Array:
    """Whole floats as integers: clipped to the type's range, NaN as 0."""
    limits = np.iinfo(dtype)
    highest = float(limits.max)
    if highest > limits.max:  # 2^63 − 1 is no float64
        highest = float(np.nextafter(highest, 0.0))
    return np.where(np.isnan(rounded), 0.0, np.clip(rounded, limits.min, highest)).astype(dtype)


def _scale(step: Scale, sample: Array) -> Array:
    return sample.astype(np.float32, copy=False) * np.float32(step.factor)


def _offset(step: Offset, sample: Array) -> Array:
    return sample.astype(np.float32, copy=False) + np.float32(step.value)


def _normalize(step: Normalize, sample: Array) -> Array:
    numbers = sample.astype(np.float32, copy=False)
    channels = {len(step.mean), len(step.std)} - {1}
    if sample.ndim >= 2 and step.axis in {-1, sample.ndim - 1} and channels == {sample.shape[-1]}:
        # whole rows at once: numpy goes through the few channels of a pixel five times as slowly
        rows = numbers.reshape(*sample.shape[:-2], -1)
        pixels = sample.shape[-2]
        difference = rows - _per_row(step.mean, pixels)
        return np.divide(difference, _per_row(step.std, pixels), out=difference).reshape(sample.shape)
    mean, std = _per_channel(step.mean, step.axis, sample.ndim), _per_channel(step.std, step.axis, sample.ndim)
    return (numbers - mean) / std


@lru_cache(maxsize=64)
def _per_row(values: tuple[float, ...], pixels: int) -> Array:
    array = np.asarray(values, np.float32)
    return array.reshape(()) if array.size == 1 else np.tile(array, pixels)


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], axis: int, axes: int) -> Array:
    array = np.asarray(values, np.float32)
    if array.size == 1:
        return array.reshape(())
    shape = [1] * axes
    shape[axis] = array.size
    return array.reshape(shape)


def _reshape(step: Reshape, sample: Array) -> Array:
    return sample.reshape(step.shape)


def _transpose(step: Transpose, sample: Array) -> Array:
    return sample.transpose(step.axes)


def _pad(step: Pad, sample: Array) -> Array:
    return np.pad(sample, step.widths, constant_values=np.asarray(step.value).astype(sample.dtype))


def _crop(step: Crop, sample: Array) -> Array:
    height, width = sample.shape[:2]
    if step.height > height or step.width > width:
        raise ValueError(f"cannot crop {height}×{width} to {step.height}×{step.width}")
    top, left = (height - step.height) // 2, (width - step.width) // 2
    return sample[top : top + step.height, left : left + step.width]


def _colour_order(_: ColourOrder, sample: Array) -> Array:
    return sample[..., ::-1]


def _resize(step: Resize, sample: Array) -> Array:
    if sample.ndim not in {2, 3}:
        raise ValueError("an image has 2 or 3 axes")
    if step.method == "nearest":
        rows = _nearest(sample.shape[0], step.height)
        columns = _nearest(sample.shape[1], step.width)
        return sample[rows][:, columns]
    if step.method != "bilinear":
        raise ContractError("unknown resize method", expected="bilinear | nearest", got=step.method)
    if sample.dtype.kind in "iu":
        return _resize_integers(step, sample)
    return _resize_floats(step, sample.astype(np.float32, copy=False))


@lru_cache(maxsize=64)
def _nearest(size: int, wanted: int) -> Array:
    """Source index of every target pixel, at half-pixel centres; integers only."""
    return np.asarray(((2 * np.arange(wanted, dtype=np.int64) + 1) * size) // (2 * wanted))


@lru_cache(maxsize=64)
def _taps(size: int, wanted: int) -> tuple[Array, Array, Array]:
    """Lower index, upper index and fixed-point weight of the upper one, for every target pixel.

    Half-pixel centres, edges repeated: the position of target pixel ``i`` is ``(i + ½) · size ÷ wanted − ½``.
    Source: ONNX Resize-19, coordinate_transformation_mode half_pixel; computed in integers so that it is exact.
    """
    target = np.arange(wanted, dtype=np.int64)
    position = ((2 * target + 1) * size * _WEIGHT_ONE - wanted * _WEIGHT_ONE) // (2 * wanted)
    position = np.clip(position, 0, (size - 1) * _WEIGHT_ONE)
    lower = position // _WEIGHT_ONE
    return lower, np.minimum(lower + 1, size - 1), position - lower * _WEIGHT_ONE


def _resize_integers(step: Resize, sample: Array) -> Array:
    """Bilinear in integers, rounded half up: the same on every machine; 32 bits hold a byte and two weights."""
    dtype = np.int32 if sample.dtype.itemsize == 1 else np.int64
    blended = _blend(step, sample.astype(dtype), dtype)
    one = _WEIGHT_ONE * _WEIGHT_ONE
    return ((blended + one // 2) // one).astype(sample.dtype)


def _resize_floats(step: Resize, sample: Array) -> Array:
    return (_blend(step, sample, np.float32) / np.float32(_WEIGHT_ONE * _WEIGHT_ONE)).astype(np.float32)


def _blend(step: Resize, sample: Array, dtype: type[np.generic]) -> Array:
    tail = (1,) * (sample.ndim - 2)
    low, high, weights = _taps(sample.shape[0], step.height)
    weight = weights.astype(dtype).reshape(-1, 1, *tail)
    one = np.asarray(_WEIGHT_ONE, dtype)
    rows = sample[low] * (one - weight) + sample[high] * weight
    low, high, weights = _taps(sample.shape[1], step.width)
    weight = weights.astype(dtype).reshape(1, -1, *tail)
    blended: Array = rows[:, low] * (one - weight) + rows[:, high] * weight
    return blended


_STEPS: Final[dict[type, Callable[[Any, Array], Array]]] = {
    Cast: _cast,
    Scale: _scale,
    Offset: _offset,
    Normalize: _normalize,
    Reshape: _reshape,
    Transpose: _transpose,
    Pad: _pad,
    Resize: _resize,
    Crop: _crop,
    ColourOrder: _colour_order,
    LogMel: log_mel,
    Dct: cosine_transform,
    Impute: impute,
    OneHot: one_hot,
    Categories: categories,
}
