"""From the chosen variants to a bundle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from edgeship.build.candidates import Built
from edgeship.build.inputs import Inputs
from edgeship.build.proof import Proof
from edgeship.build.schema import GateReport, MeasuredOn, MetricFigures
from edgeship.bundle import BundleDraft, DraftFile, VariantDraft
from edgeship.targets import RuntimeEntry, Target
from edgeship.targets.knowledge import RUNTIME_MEMORY_BYTES
from edgeship_agent.contract import oci
from edgeship_agent.contract.manifest import Lineage, MetricClaim, Variant
from edgeship_agent.runtime import runtime_version
from edgeship_agent.runtime.installed import installed_version

#: Distributions that have a hand in an artifact of each runtime.
_TOOLS: Final = {
    "litert": ("ai-edge-litert", "ai-edge-quantizer"),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
}
_COMMON: Final = ("edgeship", "numpy", "onnx", "onnxruntime")
#: Note of an input that was made a constant: this, then its name.
GIVEN_VALUE: Final = "input_value "
_MEGABYTE: Final = 1_000_000


class Shipped(Struct, frozen=True, kw_only=True):
    """One chosen variant, what goes with it, where it was judged, and by which rules."""

    target: Target
    entry: RuntimeEntry
    built: Built
    proof: Proof
    place: MeasuredOn | None = None
    gates: tuple[GateReport, ...] = ()


def draft(name: str, version: str, inputs: Inputs, shipped: Sequence[Shipped]) -> BundleDraft:
    """The bundle's contents: reproducible facts only, since its digest is its identity."""
    runtimes = [each.entry.name for each in shipped]
    return BundleDraft(
        name=name,
        version=version,
        inputs=inputs.source.inputs,
        outputs=inputs.source.outputs,
        input_contracts=inputs.contracts,
        input_schema=inputs.features,
        output=inputs.output,
        lineage=Lineage(
            source=inputs.source.lineage(),
            calibration_digest=inputs.calibration.digest,
            evaluation_digest=inputs.evaluation.digest,
            tools=dict(sorted({**tool_versions(runtimes), **inputs.source.tools}.items())),
            notes=_notes(inputs, shipped),
        ),
        variants=tuple(_variant(each) for each in shipped),
    )


def tool_versions(runtimes: Sequence[str]) -> dict[str, str]:
    """Name → version of everything that had a hand in the artifacts of these runtimes."""
    from edgeship.build.toolchains import TOOLCHAINS

    names = sorted({*_COMMON, *(tool for runtime in runtimes for tool in _TOOLS.get(runtime, ()))})
    versions = {name: version for name in names if (version := installed_version(name)) is not None}
    if "litert" in runtimes:
        pinned = [
            line.split(" ")[0] for line in TOOLCHAINS["onnx2tf"].lock.splitlines() if line.startswith("onnx2tf==")
        ]
        versions["onnx2tf"] = pinned[0].removeprefix("onnx2tf==")
    return dict(sorted(versions.items()))


def memory_bytes(runtime: str, built: Built) -> int:
    """What a worker needs: the runtime, the weights twice (packed anew for its kernels), inputs and outputs.

    Calculated, since a measured figure would differ from build to build and with it the bundle's digest.
    """
    tensors = sum(abs(math.prod(each.shape)) * 8 for each in (*built.artifact.inputs, *built.artifact.outputs))
    needed = RUNTIME_MEMORY_BYTES[runtime] + 2 * built.artifact.size_bytes + tensors
    return -(-needed // _MEGABYTE) * _MEGABYTE


def claim(metric: MetricFigures) -> MetricClaim:
    """The metric as the manifest writes it."""
    return MetricClaim(
        name=metric.name, value=metric.value, low=metric.low, high=metric.high, n=metric.n, drop=metric.drop,
        drop_low=metric.drop_low, drop_high=metric.drop_high,
    )  # fmt: skip


def _variant(shipped: Shipped) -> VariantDraft:
    built, proof, runtime = shipped.built, shipped.proof, shipped.entry.name
    artifact = built.artifact
    roles = ("model", "weights")
    files = [DraftFile(path=file.name, role=role, data=file.read_bytes())
             for file, role in zip(artifact.files, roles, strict=False)]  # fmt: skip
    files += [
        DraftFile(path="golden_inputs.msgpack", role="golden_inputs", data=proof.golden_inputs),
        DraftFile(path="golden_outputs.msgpack", role="golden_outputs", data=proof.golden_outputs),
        DraftFile(path="profile.json", role="profile", data=oci.canonical_json(proof.profile)),
    ]
    variant = Variant(
        target=shipped.target.id,
        runtime=runtime,
        precision=artifact.precision,
        arch=shipped.target.arch,
        runtime_version=runtime_version(runtime) or "",
        runtime_range=shipped.entry.version,
        min_memory_bytes=memory_bytes(runtime, built),
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        files=(),
        golden=proof.golden,
        metric=claim(built.comparison.metric),
        relative_rms=built.comparison.relative_rms or 0.0,
        state=artifact.state,
    )
    return VariantDraft(variant=variant, files=tuple(files))


def _notes(inputs: Inputs, shipped: Sequence[Shipped]) -> dict[str, str]:
    notes = {"source_opset": str(inputs.source.opset)} if inputs.source.opset else {}
    values = inputs.source.options.get("input_values", {})
    notes |= {f"{GIVEN_VALUE}{name}": f"{value:g}" for name, value in values.items()}
    if inputs.truth.one_score is not None:
        notes |= inputs.truth.one_score.notes
    for each in shipped:
        if each.built.artifact.scheme:
            notes[f"{each.target.id}/{each.entry.name}"] = each.built.artifact.scheme
    return notes
