"""The whole way of one prediction: raw application input → preprocessing → file → outputs in the source's terms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import BundleManifest, Variant
from edgeship_agent.processing import prepare
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import BoundModel
from edgeship_agent.runtime.bytewise import ByteInput, byte_input
from edgeship_agent.runtime.engine import Array, Engine, EngineOptions
from edgeship_agent.runtime.unchanged import UnchangedInput, unchanged_input

#: Architecture whose variants run in TensorFlow Lite Micro: elsewhere, LiteRT's reference kernels stand in for it.
MICROCONTROLLER: Final = "cortex-m"


class Predictor:
    """One prediction path for the worker, the library, the golden check and the build.

    Args:
        manifest: holds the input contracts.
        variant: which of its artifacts runs.
        engine: that artifact, opened.
    """

    def __init__(self, manifest: BundleManifest, variant: Variant, engine: Engine) -> None:
        self._output_names = tuple(spec.name for spec in manifest.outputs)
        self._bound = BoundModel(engine, variant)
        self._contracts = manifest.input_contracts
        #: Of every input in the file's order; empty where one of them is calculated.
        self._short_ways = [] if self._bound.state else _short_ways(manifest, variant)
        self._engine = engine
        missing = set(self._output_names) - {binding.name for binding in variant.outputs}
        if missing:
            raise ContractError(
                "the variant does not bind every output", got=f"nothing for {', '.join(sorted(missing))}"
            )
        self._answers = sorted(
            (each for each in self._bound.answers if each[0] in self._output_names),
            key=lambda each: self._output_names.index(each[0]),
        )

    @classmethod
    def open(cls, manifest: BundleManifest, variant: Variant, model: Path, *, threads: int = 1) -> Predictor:
        """Open the variant's file in its runtime.

        Raises:
            ConfigError: the runtime is not installed.
            EngineError: the runtime refused the model.
            ContractError: the file is not what the manifest says.
        """
        reference = variant.arch == MICROCONTROLLER
        engine = open_engine(variant.runtime, model, EngineOptions(threads=threads, reference=reference))
        return cls(manifest, variant, engine)

    def run(self, raw: Mapping[str, Array]) -> dict[str, Array]:
        """One prediction.

        Args:
            raw: model input name → one raw application sample, without batch axis.

        Returns:
            Output name → array in the source's layout, batch axis of 1 included; in the manifest's order, so that the
            first output comes first.

        Raises:
            InputError: an input is missing or of the wrong shape or dtype.
            EngineError: the runtime failed.
        """
        if self._short_ways:
            arrays = []
            for way in self._short_ways:
                arrays.append(way(raw))  # noqa: PERF401 (a comprehension is a call of its own before Python 3.12)
            found = self._engine.run(arrays)
            outputs = {}  # here and not in the bound model: every answer waits for a call between
            for name, index, way_out in self._answers:
                outputs[name] = found[index] if way_out is None else way_out(found[index])
            return outputs
        results = self._bound.run(prepare(self._contracts, raw))
        return {name: results[name] for name in self._output_names}

    def close(self) -> None:
        """Release the engine."""
        self._bound.close()


def _short_ways(manifest: BundleManifest, variant: Variant) -> list[ByteInput | UnchangedInput]:
    """The way of every input in the file's order where all are looked up or stay as they are; else none."""
    contracts = {contract.tensor: contract for contract in manifest.input_contracts}
    found: list[ByteInput | UnchangedInput] = []
    for binding in sorted(variant.inputs, key=lambda each: each.artifact_index):
        contract = contracts.get(binding.name)
        way = contract and (byte_input(contract, binding) or unchanged_input(contract, binding))
        if not way:
            return []
        found.append(way)
    return found
