"""One variant's file, called as if it were the source model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from edgeship_agent.contract.errors import ContractError, InputError
from edgeship_agent.contract.manifest import Binding, Variant
from edgeship_agent.processing.arrays import dtype_name
from edgeship_agent.processing.steps import apply_step
from edgeship_agent.runtime.engine import Array, Engine, TensorInfo, run_steps, state_of


class BoundModel:
    """An engine behind its variant's bindings: names, layout, quantization.

    Args:
        engine: the opened file; closed with the bound model.
        variant: its description in the manifest.

    Raises:
        ContractError: the file's inputs or outputs are not what the manifest says.
    """

    def __init__(self, engine: Engine, variant: Variant) -> None:
        self._engine = engine
        signature = engine.signature
        _check_bindings("input", variant.inputs, signature.inputs)
        _check_bindings("output", variant.outputs, signature.outputs)
        if len(variant.inputs) != len(signature.inputs):
            raise ContractError(
                "the manifest does not bind every input", expected=len(signature.inputs), got=len(variant.inputs)
            )
        self._inputs = variant.inputs
        self._outputs = variant.outputs
        self._state = state_of(engine)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference in the source model's terms.

        Args:
            inputs: source name → array in the source's layout, batch axis of 1 included; with an axis more in front,
                the steps of a sequence, where the file keeps a state.

        Returns:
            Source name → array in the source's layout; float32 where the file's output is quantized.

        Raises:
            InputError: an input is missing.
            EngineError: wrong shape or dtype, or the runtime failed.
        """
        for binding in self._inputs:
            if binding.name not in inputs:
                raise InputError("missing input", key=binding.name, got=", ".join(inputs) or "none")
        if self._state and all(inputs[each.name].ndim > len(each.shape) for each in self._inputs):
            return self._run_sequence(inputs)
        return self._answer(self._engine.run(self._arrays(inputs)))

    def _run_sequence(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Steps along the first axis; the answers have it too."""
        counts = {len(inputs[binding.name]) for binding in self._inputs}
        if len(counts) != 1:
            raise InputError("inputs of one sequence have different numbers of steps", got=sorted(counts))
        steps = [
            self._arrays({binding.name: inputs[binding.name][step] for binding in self._inputs})
            for step in range(counts.pop())
        ]
        answers = [self._answer(results) for results in run_steps(self._engine, steps)]
        return {binding.name: np.stack([answer[binding.name] for answer in answers]) for binding in self._outputs}

    def _arrays(self, inputs: Mapping[str, Array]) -> list[Array]:
        arrays: list[Any] = [None] * len(self._inputs)
        for binding in self._inputs:
            arrays[binding.artifact_index] = to_artifact(binding, inputs[binding.name])
        return arrays

    def _answer(self, results: Sequence[Array]) -> dict[str, Array]:
        return {binding.name: from_artifact(binding, results[binding.artifact_index]) for binding in self._outputs}

    def close(self) -> None:
        """Release the engine."""
        self._engine.close()


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


def _check_bindings(kind: str, bindings: Sequence[Binding], infos: Sequence[TensorInfo]) -> None:
    if sorted({binding.artifact_index for binding in bindings}) != sorted(
        binding.artifact_index for binding in bindings
    ):
        raise ContractError(f"two bindings of the same {kind}")
    for binding in bindings:
        if not 0 <= binding.artifact_index < len(infos):
            raise ContractError(
                f"no such {kind} in the file", key=binding.name, expected=f"< {len(infos)}", got=binding.artifact_index
            )
        info = infos[binding.artifact_index]
        if info.dtype != binding.dtype:
            raise ContractError(f"{kind} of another dtype", key=binding.name, expected=binding.dtype, got=info.dtype)
        if not _shapes_agree(binding.shape, info.shape):
            raise ContractError(f"{kind} of another shape", key=binding.name, expected=binding.shape, got=info.shape)


def _shapes_agree(declared: Sequence[int], actual: Sequence[int]) -> bool:
    return len(declared) == len(actual) and all(a in {b, -1} or b == -1 for a, b in zip(declared, actual, strict=True))
