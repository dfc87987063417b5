"""Arrays between the source model's layout and types and those of one variant's file."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from edgeship_agent.contract.manifest import Binding
from edgeship_agent.processing.arrays import Array, dtype_name
from edgeship_agent.processing.steps import apply_step


def to_artifact(binding: Binding, array: Array) -> Array:
    """A source input in the file's layout and type.

    Args:
        binding: where it goes.
        array: in the source's layout, batch axis included.

    Returns:
        ``round(x ÷ scale) + zero_point``, saturated, where the file's input is quantized; otherwise the same numbers.

    >>> binding = Binding(name="x", artifact_name="x", artifact_index=0, dtype="int8", shape=(1, 2), scale=0.5)
    >>> to_artifact(binding, np.array([[0.5, 900.0]], np.float32)).tolist()
    [[1, 127]]
    """
    for step in binding.steps:  # element by element, axes counted from the last: the batch axis changes nothing
        array = apply_step(step, array)
    if binding.transpose:
        array = array.transpose(binding.transpose)
    if array.size == 1 and array.ndim != len(binding.shape):
        array = array.reshape((1,) * len(binding.shape))  # a scalar, which some formats write as a vector of one
    if binding.scale and array.dtype.kind == "f":
        return _quantized(binding, array.astype(np.float32, copy=False))
    if dtype_name(array.dtype) != binding.dtype:
        array = array.astype(binding.dtype)
    return array


def _quantized(binding: Binding, array: Array) -> Array:
    dtype, lowest, highest = _integers(binding.dtype)
    steps = np.empty(array.shape, np.float32)
    np.divide(array, np.float32(binding.scale), out=steps)
    np.rint(steps, out=steps)
    steps += np.float32(binding.zero_point)
    if steps.size and math.isnan(np.minimum.reduce(steps, axis=None)):
        # NaN has no integer: it becomes the zero point, and is counted as missing where signals are measured
        steps[np.isnan(steps)] = binding.zero_point
    np.maximum(steps, lowest, out=steps)
    np.minimum(steps, highest, out=steps)
    return steps.astype(dtype)


@lru_cache(maxsize=16)
def _integers(name: str) -> tuple[np.dtype[Any], np.float32, np.float32]:
    """The type, and the lowest and highest float32 that it holds."""
    limits = np.iinfo(name)
    highest = np.float32(limits.max)
    if float(highest) > limits.max:
        highest = np.nextafter(highest, np.float32(0.0))
    return np.dtype(name), np.float32(limits.min), highest


def from_artifact(binding: Binding, array: Array) -> Array:
    """A result of the file in the source's layout; dequantized to float32 where the binding has a scale.

    >>> binding = Binding(name="y", artifact_name="y", artifact_index=0, dtype="int8", shape=(1, 2), scale=0.5)
    >>> from_artifact(binding, np.array([[1, 3]], np.int8)).tolist()
    [[0.5, 1.5]]
    """
    if binding.scale and array.dtype.kind in "iu":
        array = (array.astype(np.float32) - np.float32(binding.zero_point)) * np.float32(binding.scale)
    if binding.transpose:
        array = array.transpose(np.argsort(binding.transpose))
    return array
