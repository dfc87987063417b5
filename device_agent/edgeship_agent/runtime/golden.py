"""Golden outputs: does this device compute what the build computed?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.frames import TensorFile
from edgeship_agent.contract.manifest import BundleManifest, Golden, Variant
from edgeship_agent.runtime.engine import Array
from edgeship_agent.runtime.tensors import sample_arrays


class GoldenResult(Struct, frozen=True, kw_only=True):
    """What a golden check found.

    Attributes:
        relative_rms: ‖device − golden‖₂ ÷ ‖golden‖₂ of the first output over all samples; -1 where it has no value.
        limit: the tolerance that held here.
        top_class_disagreements: samples whose top class differs although its golden margin exceeds ``Golden.margin``.
        reason: empty where passed, else one sentence.
        same_isa: whether the golden outputs were made on this ISA class.
    """

    passed: bool
    relative_rms: float
    limit: float
    top_class_disagreements: int
    samples: int
    reason: str = ""
    same_isa: bool = True


def check_golden(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    manifest: BundleManifest,
    variant: Variant,
    inputs: TensorFile,
    outputs: TensorFile,
    local_isa_class: str,
) -> GoldenResult:
    """Run the golden inputs and compare with the golden outputs.

    Args:
        run: one raw application sample (no batch axis) → outputs in the source's layout (batch axis 1), as
            :meth:`edgeship_agent.runtime.predictor.Predictor.run`.
        manifest: names the first output and its kind.
        variant: holds the tolerances.
        inputs: raw application samples.
        outputs: what the build computed for them, batch axis included.
        local_isa_class: of this machine.

    Raises:
        ContractError: the two files do not belong together.
        EngineError: the runtime failed.
    """
    if len(inputs.samples) != len(outputs.samples) or not inputs.samples:
        raise ContractError(
            "golden inputs and outputs do not belong together", expected=len(inputs.samples), got=len(outputs.samples)
        )
    first = manifest.outputs[0].name
    golden = variant.golden
    squared_error = squared_golden = 0.0
    disagreements = 0
    for raw, expected in zip(inputs.samples, outputs.samples, strict=True):
        wanted = np.asarray(_named(sample_arrays(expected), first), np.float64).ravel()
        got = np.asarray(_named(run(sample_arrays(raw)), first), np.float64).ravel()
        if got.shape != wanted.shape:
            raise ContractError("golden output of another size", key=first, expected=wanted.size, got=got.size)
        squared_error += float(np.sum((got - wanted) ** 2))
        squared_golden += float(np.sum(wanted**2))
        if manifest.output.kind == "classification":
            disagreements += _top_class_moved(wanted, got, golden.margin)
    relative_rms = _ratio(squared_error, squared_golden)
    return _judge(golden, local_isa_class, relative_rms, disagreements, len(inputs.samples))


def _judge(golden: Golden, local_isa_class: str, relative_rms: float, disagreements: int, samples: int) -> GoldenResult:
    same_isa = golden.isa_class == local_isa_class
    limit = golden.relative_rms if same_isa else max(golden.relative_rms, golden.other_isa_relative_rms)
    reason = ""
    if not math.isfinite(relative_rms):
        reason = "the model's first output is not a number"
    elif relative_rms > limit:
        reason = f"relative RMS {relative_rms:.4g} exceeds {limit:.4g}"
    elif disagreements:
        reason = f"the top class differs in {disagreements} of {samples} golden samples"
    return GoldenResult(
        passed=not reason,
        relative_rms=relative_rms if math.isfinite(relative_rms) else -1.0,
        limit=limit,
        top_class_disagreements=disagreements,
        samples=samples,
        reason=reason,
        same_isa=same_isa,
    )


def _ratio(squared_error: float, squared_golden: float) -> float:
    if squared_golden > 0.0:
        return math.sqrt(squared_error / squared_golden)
    return 0.0 if squared_error == 0.0 else math.inf


def _top_class_moved(wanted: Array, got: Array, margin: float) -> int:
    if wanted.size < 2:
        return 0
    second, top = np.partition(wanted, -2)[-2:]
    return int(top - second > margin and int(np.argmax(wanted)) != int(np.argmax(got)))


def _named(arrays: Mapping[str, Array], name: str) -> Array:
    if name not in arrays:
        raise ContractError("golden sample without the first output", key=name, got=", ".join(arrays))
    return arrays[name]
