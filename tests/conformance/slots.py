"""Real slots for tests: a small classifier of 8×8 images, in any runtime's format, with golden files and a profile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
from onnx import helper

from edgeship_agent.contract.manifest import (
    Binding,
    BundleFile,
    BundleManifest,
    Feature,
    Golden,
    InputContract,
    Lineage,
    MetricClaim,
    OutputContract,
    Scale,
    Source,
    TensorSpec,
    Variant,
)
from edgeship_agent.contract.oci import canonical_json, digest_of
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.isa import isa_class
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.runtime.tensors import encode_tensor_file
from edgeship_agent.serving.slot import SlotFile
from edgeship_agent.telemetry.signals import make_profile, measure
from tests.conformance.engine_template import constant, save_onnx, value

CLAIM = MetricClaim(name="top1", value=0.9, low=0.8, high=0.95, n=100, drop=0.0, drop_low=-0.01, drop_high=0.01)
LABELS = tuple("0123456789")
OUTPUT = OutputContract(labels=LABELS, activation="softmax")
DIGEST = "sha256:" + "ab" * 32
INPUTS = (InputContract(tensor="image", dtype="uint8", shape=(8, 8), steps=(Scale(factor=1 / 16),)),)


def images(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Raw samples."""
    pixels = np.random.default_rng(seed).integers(0, 17, size=(count, 8, 8), dtype=np.uint8)
    return [{"image": image} for image in pixels]


def classifier_onnx(path: Path, *, scale: float = 1.0) -> Path:
    """image [N, 8, 8] → scores [N, 10]."""
    weights = np.random.default_rng(7).normal(size=(64, 10)).astype(np.float32) * np.float32(scale)
    return save_onnx(
        path,
        [
            helper.make_node("Reshape", ["image", "flat"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "w"], ["scores"]),
        ],
        [value("image", ["N", 8, 8])],
        [value("scores", ["N", 10])],
        (constant("w", weights), constant("flat", np.array([-1, 64], np.int64))),
    )


def quantized_onnx(path: Path, *, scale: float = 1.0) -> Path:
    """The same classifier with its weights in eight bits."""
    weights = np.random.default_rng(7).normal(size=(64, 10)).astype(np.float32) * np.float32(scale)
    step = np.float32(np.abs(weights).max() / 127)
    return save_onnx(
        path,
        [
            helper.make_node("DequantizeLinear", ["q", "step"], ["w"]),
            helper.make_node("Reshape", ["image", "flat"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "w"], ["scores"]),
        ],
        [value("image", ["N", 8, 8])],
        [value("scores", ["N", 10])],
        (
            constant("q", np.rint(weights / step).astype(np.int8)),
            constant("step", np.array(step)),
            constant("flat", np.array([-1, 64], np.int64)),
        ),
    )


def variant_of(runtime: str, model: Path) -> Variant:
    """A variant without files whose bindings are the file's own signature."""
    engine = open_engine(runtime, model)
    signature = engine.signature
    engine.close()

    def bindings(infos, names):
        return tuple(
            Binding(
                name=name,
                artifact_name=info.name,
                artifact_index=info.index,
                dtype=info.dtype,
                shape=info.shape,
                scale=info.scale,
                zero_point=info.zero_point,
            )
            for name, info in zip(names, infos, strict=True)
        )

    inputs, outputs = bindings(signature.inputs, ["image"]), bindings(signature.outputs, ["scores"])
    return variant_with(runtime, inputs, outputs)


def variant_with(runtime: str, inputs: tuple[Binding, ...], outputs: tuple[Binding, ...]) -> Variant:
    return Variant(
        target="test",
        runtime=runtime,
        precision="fp32",
        arch="x86_64",
        runtime_version="1",
        runtime_range=">=1",
        min_memory_bytes=1,
        inputs=inputs,
        outputs=outputs,
        files=(),
        golden=Golden(relative_rms=1e-3, isa_class=isa_class(), other_isa_relative_rms=0.05),
        metric=CLAIM,
        relative_rms=0.0,
    )


def manifest_of(variant: Variant, **changes) -> BundleManifest:
    manifest = BundleManifest(
        name="digits",
        version="1",
        inputs=(TensorSpec(name="image", dtype="float32", shape=(-1, 8, 8)),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(-1, 10)),),
        input_contracts=INPUTS,
        input_schema={"image": (Feature(name="pixel", low=0, high=16, documented=True),)},
        output=OUTPUT,
        variants=(variant,),
        lineage=Lineage(
            source=Source(file="m.onnx", format="onnx", digest=DIGEST, size_bytes=1),
            calibration_digest=DIGEST,
            evaluation_digest=DIGEST,
            tools={},
        ),
    )
    return msgspec.structs.replace(manifest, **changes)


def make_slot(
    directory: Path, model: Path, runtime: str = "onnxruntime", *, golden_from: Path | None = None, **changes
) -> Path:
    """Write a slot that serves ``model``; golden outputs come from ``golden_from`` where another one is named."""
    variant = variant_of(runtime, model)
    manifest = manifest_of(variant, **changes)
    samples = images(8)
    if manifest.input_contracts is INPUTS:
        predictor = Predictor.open(manifest, variant, golden_from or model)
        outputs = [predictor.run(sample) for sample in samples]
        profile = make_profile(
            [measure(raw, predictor.run(raw), manifest.output) for raw in images(200, seed=1)], class_count=10
        )
        predictor.close()
    contents = {"model": (model.name, model.read_bytes())}
    if model.suffix == ".xml":
        contents["weights"] = (model.with_suffix(".bin").name, model.with_suffix(".bin").read_bytes())
    if manifest.input_contracts is INPUTS:
        contents["golden_inputs"] = ("golden/inputs.msgpack", encode_tensor_file(samples))
        contents["golden_outputs"] = ("golden/outputs.msgpack", encode_tensor_file(outputs))
        contents["profile"] = ("profile.json", canonical_json(profile))
    files = []
    for role, (path, data) in contents.items():
        target = directory / "files" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        files.append(BundleFile(path=path, role=role, digest=digest_of(data), size_bytes=len(data)))
    variant = msgspec.structs.replace(variant, files=tuple(files))
    manifest = msgspec.structs.replace(manifest, variants=(variant,))
    (directory / "edgeship.json").write_bytes(canonical_json(manifest))
    slot = SlotFile(model="digits", version="1", digest=DIGEST, variant=variant.label, arm="main")
    (directory / "slot.json").write_bytes(canonical_json(slot))
    return directory


def python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints for some code."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
