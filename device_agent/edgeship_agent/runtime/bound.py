"""One variant's file, called as if it were the source model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from edgeship_agent.contract.errors import ContractError, InputError
from edgeship_agent.contract.manifest import Binding, Variant
from edgeship_agent.runtime.bytewise import byte_output
from edgeship_agent.runtime.engine import Array, Engine, TensorInfo, run_steps, state_of
from edgeship_agent.runtime.layout import from_artifact, to_artifact

__all__ = ["BoundModel", "from_artifact", "to_artifact"]


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
        #: Of every output its name, its place among the file's, and its way to the source's terms; None for none.
        self.answers = [(each.name, each.artifact_index, _way_out(each)) for each in variant.outputs]
        #: What the file keeps from step to step; empty for nothing.
        self.state = state_of(engine)

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
        if self.state and all(inputs[each.name].ndim > len(each.shape) for each in self._inputs):
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
        answer = {}
        for name, index, way in self.answers:
            answer[name] = results[index] if way is None else way(results[index])
        return answer

    def close(self) -> None:
        """Release the engine."""
        self._engine.close()


def _way_out(binding: Binding) -> Callable[[Array], Array] | None:
    """From a result of the file to the source's output; None where they are the same."""
    if by_table := byte_output(binding):
        return by_table
    return partial(from_artifact, binding) if binding.scale or binding.transpose else None


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
