"""Slot directories of small models: what an agent would have unpacked, with a drift baseline, without a build."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgeship_agent.contract.manifest import (
    Binding,
    BundleFile,
    BundleManifest,
    Cast,
    Golden,
    InputContract,
    Lineage,
    MetricClaim,
    Offset,
    OutputContract,
    Reshape,
    Resize,
    Scale,
    Source,
    Step,
    TensorSpec,
    Transpose,
    Variant,
)
from edgeship_agent.contract.oci import canonical_json, digest_of
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.engine import TensorInfo
from edgeship_agent.runtime.isa import isa_class
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.serving.slot import SlotFile
from edgeship_agent.telemetry.signals import make_profile, measure

DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", "data"))
#: In fp32, as its authors publish it; no device gets it so.
FACE_DETECTOR = "ultraface-320 in fp32"
_REFERENCE_SAMPLES = 100
_DIGEST = "sha256:" + "0" * 64
_CLAIM = MetricClaim(name="top1", value=1.0, low=0.0, high=1.0, n=1, drop=0.0, drop_low=0.0, drop_high=0.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model file, and what an application hands it.

    Attributes:
        shape, dtype: of one raw sample.
        steps: its preprocessing.
        kind: how the first output is read.
    """

    name: str
    file: Path
    runtime: str
    shape: tuple[int, ...]
    dtype: str = "uint8"
    steps: tuple[Step, ...] = ()
    kind: str = "classification"

    def samples(self, count: int, seed: int = 0) -> list[dict[str, Array]]:
        """Raw samples of noise: how long a call takes does not depend on the values."""
        random = np.random.default_rng(seed)
        if self.dtype == "uint8":
            arrays = random.integers(0, 256, (count, *self.shape), dtype=np.uint8)
        else:
            arrays = random.normal(size=(count, *self.shape)).astype(self.dtype)
        return [{"x": array} for array in arrays]


def known_cases() -> list[Case]:
    """The models of the issue's latency goal whose files are in EDGESHIP_TEST_DATA."""
    tiny, face = DATA / "mlperf_tiny", DATA / "ultraface" / "version-RFB-320.onnx"
    mobilenet = DATA / "tflite" / "coral_mobilenet_v1_0.25_128_quant.tflite"
    centred: tuple[Step, ...] = (Offset(value=-127.0), Scale(factor=1 / 128), Transpose(axes=(2, 0, 1)))
    cases = [
        Case(
            name="resnet8",
            file=tiny / "ic_resnet8" / "pretrainedResnet_quant.tflite",
            runtime="litert",
            shape=(32, 32, 3),
            steps=(Cast(dtype="float32"),),
        ),
        Case(
            name="ds-cnn",
            file=tiny / "kws_dscnn" / "kws_ref_model.tflite",
            runtime="litert",
            shape=(49, 10),
            dtype="float32",
            steps=(Reshape(shape=(49, 10, 1)),),
        ),
        Case(
            name="toycar-ad",
            file=tiny / "ad_toycar" / "ad01_int8.tflite",
            runtime="litert",
            shape=(640,),
            dtype="float32",
            kind="raw",
        ),
        Case(
            name="mobilenet-0.25",
            file=mobilenet,
            runtime="litert",
            shape=(144, 176, 3),
            steps=(Resize(height=128, width=128),),
        ),
        Case(name=FACE_DETECTOR, file=face, runtime="onnxruntime", shape=(240, 320, 3), steps=centred, kind="raw"),
    ]
    return [case for case in cases if case.file.is_file()]


def write_slot(case: Case, directory: Path) -> Path:
    """Write the slot; its drift baseline comes from the model's own answers to noise."""
    engine = open_engine(case.runtime, case.file)
    signature = engine.signature
    engine.close()
    inputs = _bindings(["x"], signature.inputs)
    outputs = _bindings([f"y{index}" for index in range(len(signature.outputs))], signature.outputs)
    variant = _variant(case, inputs, outputs)
    manifest = _manifest(case, variant)
    predictor = Predictor.open(manifest, variant, case.file)
    samples = case.samples(_REFERENCE_SAMPLES, seed=1)
    profile = make_profile([measure(raw, predictor.run(raw), manifest.output) for raw in samples])
    predictor.close()
    contents = {"model": (case.file.name, case.file.read_bytes()), "profile": ("profile.json", canonical_json(profile))}
    if case.file.suffix == ".xml":
        weights = case.file.with_suffix(".bin")
        contents["weights"] = (weights.name, weights.read_bytes())
    files = []
    (directory / "files").mkdir(parents=True)
    for role, (path, data) in contents.items():
        (directory / "files" / path).write_bytes(data)
        files.append(BundleFile(path=path, role=role, digest=digest_of(data), size_bytes=len(data)))
    variant = msgspec.structs.replace(variant, files=tuple(files))
    slot = SlotFile(model=case.name, version="1", digest=_DIGEST, variant=variant.label, arm="main")
    (directory / "edgeship.json").write_bytes(canonical_json(msgspec.structs.replace(manifest, variants=(variant,))))
    (directory / "slot.json").write_bytes(canonical_json(slot))
    return directory


def _bindings(names: Sequence[str], infos: Sequence[TensorInfo]) -> tuple[Binding, ...]:
    return tuple(
        Binding(
            name=name,
            artifact_name=info.name,
            artifact_index=info.index,
            dtype=info.dtype,
            shape=info.shape,
            scale=info.scale if name.startswith("y") or info.dtype == "int8" else 0.0,
            zero_point=info.zero_point,
        )
        for name, info in zip(names, infos, strict=True)
    )


def _variant(case: Case, inputs: tuple[Binding, ...], outputs: tuple[Binding, ...]) -> Variant:
    return Variant(
        target="benchmark",
        runtime=case.runtime,
        precision="fp32",
        arch="x86_64",
        runtime_version="1",
        runtime_range=">=1",
        min_memory_bytes=1,
        inputs=inputs,
        outputs=outputs,
        files=(),
        golden=Golden(relative_rms=1e-3, isa_class=isa_class(), other_isa_relative_rms=0.05),
        metric=_CLAIM,
        relative_rms=0.0,
    )


def _manifest(case: Case, variant: Variant) -> BundleManifest:
    return BundleManifest(
        name=case.name,
        version="1",
        inputs=tuple(TensorSpec(name=binding.name, dtype="float32", shape=binding.shape) for binding in variant.inputs),
        outputs=tuple(
            TensorSpec(name=binding.name, dtype="float32", shape=binding.shape) for binding in variant.outputs
        ),
        input_contracts=(InputContract(tensor="x", dtype=case.dtype, shape=case.shape, steps=case.steps),),
        input_schema={},
        output=OutputContract(kind=case.kind),
        variants=(variant,),
        lineage=Lineage(
            source=Source(file=case.file.name, format=case.file.suffix[1:], digest=_DIGEST, size_bytes=1),
            calibration_digest=_DIGEST,
            evaluation_digest=_DIGEST,
            tools={},
        ),
    )
