"""Golden outputs: does this device compute what the build computed?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.frames import TensorFile
from edgeship_agent.contract.manifest import BundleManifest, Golden, Variant
from edgeship_agent.runtime.channels import LOST_RMS, OutputError
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
    errors: dict[str, OutputError] = {}
    disagreements = 0
    for raw, expected in zip(inputs.samples, outputs.samples, strict=True):
        golden_arrays, arrays = sample_arrays(expected), run(sample_arrays(raw))
        for name in dict.fromkeys((first, *golden_arrays)):
            wanted = np.asarray(_named(golden_arrays, name), np.float64)
            got = np.asarray(_named(arrays, name), np.float64)
            if got.size != wanted.size:
                raise ContractError("golden output of another size", key=name, expected=wanted.size, got=got.size)
            error = errors.setdefault(name, OutputError(_step(variant, name)))
            error.add(got.reshape(wanted.shape), wanted)
        if manifest.output.kind == "classification":
            wanted, got = (np.asarray(each[first], np.float64).ravel() for each in (golden_arrays, arrays))
            disagreements += _top_class_moved(wanted, got, golden.margin)
    return _judge(golden, local_isa_class, errors, disagreements, len(inputs.samples))


def _step(variant: Variant, name: str) -> float:
    return next((abs(binding.scale) for binding in variant.outputs if binding.name == name), 0.0)


def _judge(
    golden: Golden, local_isa_class: str, errors: Mapping[str, OutputError], disagreements: int, samples: int
) -> GoldenResult:
    same_isa = golden.isa_class == local_isa_class
    limit = golden.relative_rms if same_isa else max(golden.relative_rms, golden.other_isa_relative_rms)
    (first, error), *others = errors.items()
    relative_rms = error.relative_rms
    reason = ""
    if not math.isfinite(relative_rms):
        reason = "the model's first output is not a number"
    elif relative_rms > limit:
        reason = f"relative RMS {relative_rms:.4g} exceeds {limit:.4g}"
    elif disagreements:
        reason = f"the top class differs in {disagreements} of {samples} golden samples"
    else:
        reason = _lost_part(first, error, limit, same_isa) or _lost_output(others, limit)
    return GoldenResult(
        passed=not reason,
        relative_rms=relative_rms if math.isfinite(relative_rms) else -1.0,
        limit=limit,
        top_class_disagreements=disagreements,
        samples=samples,
        reason=reason,
        same_isa=same_isa,
    )


def _lost_part(name: str, error: OutputError, limit: float, same_isa: bool) -> str:
    """Why an output that holds as a whole does not: a channel that is lost beside larger ones; empty for none.

    On another ISA class a channel that is almost nothing may move by a step; there all of them are weighed together.
    """
    lost = error.lost_channels
    if not lost or limit > LOST_RMS or not (same_isa or error.balanced_rms > LOST_RMS):
        return ""
    many = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return f"channel {lost[0]}{many} of {name} is lost: relative RMS of its own above {LOST_RMS:g}"


def _lost_output(others: Iterable[tuple[str, OutputError]], limit: float) -> str:
    most = max(limit, LOST_RMS)
    for name, error in others:
        if not error.relative_rms <= most:  # NaN is lost as well
            return f"relative RMS {error.relative_rms:.4g} of {name} exceeds {most:.4g}"
    return ""


def _top_class_moved(wanted: Array, got: Array, margin: float) -> int:
    if wanted.size < 2:
        return 0
    second, top = np.partition(wanted, -2)[-2:]
    return int(top - second > margin and int(np.argmax(wanted)) != int(np.argmax(got)))


def _named(arrays: Mapping[str, Array], name: str) -> Array:
    if name not in arrays:
        raise ContractError("golden sample without the first output", key=name, got=", ".join(arrays))
    return arrays[name]
