"""Bytes that go into a model as bytes, and come out as bytes: looked up instead of calculated.

A camera's image is bytes, and so is the input of an integer model. What cast, scaling, normalisation and quantization
make of each of the 256 values is known before the first call, from the very functions that calculate it elsewhere: the
answers are the same in every bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np
from msgspec import structs

from edgeship_agent.contract.manifest import (
    Binding,
    Cast,
    ColourOrder,
    Crop,
    InputContract,
    Normalize,
    Offset,
    Reshape,
    Scale,
    Step,
    Transpose,
)
from edgeship_agent.processing import raw_sample
from edgeship_agent.processing.arrays import Array
from edgeship_agent.processing.steps import apply_step
from edgeship_agent.runtime.layout import from_artifact, to_artifact

_BYTES: Final = frozenset({"uint8", "int8"})
#: Steps that only move values, so that they may as well be looked up afterwards.
_MOVES: Final = (Reshape, Transpose, Crop, ColourOrder)
#: Steps that calculate with each value alone, where they have one number for all.
_VALUES: Final = (Cast, Scale, Offset, Normalize)
_add: Final = np.add
#: Larger outputs are calculated: looking up takes longer there.
_MOST_LOOKED_UP: Final = 4096


class ByteInput:
    """The way of one input from raw bytes to the file's bytes.

    Args:
        contract: what comes in.
        first: its steps that leave bytes bytes, and those that only move values.
        binding: where it goes.
        table: [256] in the file's type, by the byte read as uint8.
    """

    def __init__(self, contract: InputContract, first: tuple[Step, ...], binding: Binding, table: Array) -> None:
        self._tensor = contract.tensor
        self._contract = contract
        self._shape, self._raw_dtype = contract.shape, np.dtype(contract.dtype)
        self._is_signed = contract.dtype == "int8"
        self._first = first
        self._dtype = table.dtype
        self._table = table.tobytes()
        values = np.frombuffer(self._table, np.uint8)
        # many integer models take the byte itself, or less 128, which an addition that wraps gives faster
        is_shift = np.array_equal(values, np.arange(256, dtype=np.uint8) + values[0])
        self._shift = values[0].reshape(()) if is_shift else None
        self._layout = structs.replace(binding, scale=0.0, steps=())
        self._place_shape: tuple[int, ...] | None = None
        #: What is added, where nothing else lies between and all samples have one size.
        self._added: Array | None = None
        if self._shift is not None and not first and not self._is_signed and min(contract.shape, default=0) >= 0:
            self._added = self._shift
            self._reserve(contract.shape)

    def _reserve(self, shape: tuple[int, ...]) -> None:
        self._place_shape = shape
        self._place: Array = np.zeros(shape, np.uint8)
        found = self._place.view(self._dtype)
        self._result = to_artifact(self._layout, found[np.newaxis] if self._contract.batched else found)

    def __call__(self, raw: Mapping[str, Array]) -> Array:
        """One raw sample in the file's layout and type, batch axis included; lent until the next call.

        Args:
            raw: model input name → raw sample.

        Raises:
            InputError: the sample is missing, of the wrong shape or dtype, or a step does not fit it.
        """
        sample = raw.get(self._tensor)
        if sample is None or sample.shape != self._shape or sample.dtype is not self._raw_dtype:
            sample = raw_sample(self._contract, raw)
        elif self._added is not None:
            _add(sample, self._added, self._place)
            return self._result
        for step in self._first:
            sample = apply_step(step, sample)
        if sample.shape != self._place_shape:
            self._reserve(sample.shape)
        if self._is_signed:
            sample = sample.view(np.uint8)
        if self._shift is not None:
            _add(sample, self._shift, self._place)
        elif sample.size:
            looked_up = np.frombuffer(sample.tobytes().translate(self._table), np.uint8)
            np.copyto(self._place, looked_up.reshape(sample.shape))
        return self._result


def byte_input(contract: InputContract, binding: Binding) -> ByteInput | None:
    """The input's way by table; None where its values depend on more than a byte, or need nothing.

    >>> from edgeship_agent.contract.manifest import Cast
    >>> contract = InputContract(tensor="x", dtype="uint8", shape=(2,), steps=(Cast(dtype="float32"),))
    >>> binding = Binding(name="x", artifact_name="x", artifact_index=0, dtype="int8", shape=(1, 2), scale=1.0,
    ...                   zero_point=-128)
    >>> byte_input(contract, binding)({"x": np.array([0, 200], np.uint8)}).tolist()
    [[-128, 72]]
    """
    if contract.sequence or contract.dtype not in _BYTES or binding.dtype not in _BYTES or not binding.scale:
        return None
    steps = contract.steps
    start = next((index for index, step in enumerate(steps) if isinstance(step, _VALUES)), len(steps))
    rest = steps[start:]
    values = [step for step in (*rest, *binding.steps) if not isinstance(step, _MOVES)]
    if not values or not all(_is_by_value(step) for step in values):
        return None
    every: Array = np.arange(256, dtype=np.uint8).view(contract.dtype)
    with np.errstate(all="ignore"):  # a division by zero is the same as elsewhere
        for step in rest:
            every = every if isinstance(step, _MOVES) else apply_step(step, every)
        table = to_artifact(structs.replace(binding, transpose=(), shape=(256,)), every)
    first = (*steps[:start], *(step for step in rest if isinstance(step, _MOVES)))
    return ByteInput(contract, first, binding, table)


def _is_by_value(step: Step) -> bool:
    if isinstance(step, Normalize):
        return len(step.mean) == len(step.std) == 1
    return isinstance(step, _VALUES)


def byte_output(binding: Binding) -> Callable[[Array], Array] | None:
    """From a result in bytes to float32 in the source's layout, as :func:`from_artifact`, to the bit; None for others.

    >>> binding = Binding(name="y", artifact_name="y", artifact_index=0, dtype="int8", shape=(1, 2), scale=0.5)
    >>> byte_output(binding)(np.array([[1, -3]], np.int8)).tolist()
    [[0.5, -1.5]]
    """
    if not binding.scale or binding.dtype not in _BYTES:
        return None
    every = np.arange(256, dtype=np.uint8).view(binding.dtype)
    table: Array = from_artifact(structs.replace(binding, transpose=(), shape=(256,)), every)
    if not binding.transpose and min(binding.shape, default=1) >= 0 and math.prod(binding.shape) <= _MOST_LOOKED_UP:
        return table.take  # every answer waits for this; a byte below 0 counts from the end
    return partial(_looked_up, binding, table)


def _looked_up(binding: Binding, table: Array, array: Array) -> Array:
    if array.size > _MOST_LOOKED_UP:
        return from_artifact(binding, array)
    found = table.take(array)
    return from_artifact(binding, found) if binding.transpose else found
