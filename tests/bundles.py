"""Small bundles for tests: real layouts, signed with a key of their own, of one, two or three variants."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgeship.bundle import AuthorKey, BundleDraft, DraftFile, VariantDraft, WrittenBundle, write_bundle
from edgeship_agent.contract.manifest import (
    Feature,
    Golden,
    InputContract,
    Lineage,
    MetricClaim,
    OutputContract,
    Source,
    TensorSpec,
    Variant,
)

CLAIM = MetricClaim(name="top1", value=0.97, low=0.95, high=0.98, n=900, drop=0.0, drop_low=-0.002, drop_high=0.004)
GOLDEN = Golden(relative_rms=0.001, isa_class="x86_64", other_isa_relative_rms=0.05)


def variant(target: str, runtime: str, precision: str, *, arch: str = "x86_64") -> Variant:
    """A variant without files."""
    return Variant(
        target=target,
        runtime=runtime,
        precision=precision,
        arch=arch,
        runtime_version="1.0",
        runtime_range=">=1,<2",
        min_memory_bytes=50_000_000,
        inputs=(),
        outputs=(),
        files=(),
        golden=GOLDEN,
        metric=CLAIM,
        relative_rms=0.01,
    )


def files(*model_names: str, seed: bytes = b"") -> tuple[DraftFile, ...]:
    """Files of a variant; the first name is the model, the others are its weights."""
    models = [
        DraftFile(path=name, role="weights" if index else "model", data=name.encode() * 40 + seed)
        for index, name in enumerate(model_names)
    ]
    data = [
        DraftFile(path=f"{role}.msgpack", role=role, data=role.encode() + seed)
        for role in ("golden_inputs", "golden_outputs", "profile")
    ]
    return (*models, *data)


def draft(*variants: VariantDraft, name: str = "digits", version: str = "1.0") -> BundleDraft:
    """A bundle of those variants, by default one for each of three runtimes."""
    return BundleDraft(
        name=name,
        version=version,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 8, 8)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 10)),),
        input_contracts=(InputContract(tensor="x", dtype="uint8", shape=(8, 8)),),
        input_schema={"x": (Feature(name="pixel", unit="level", low=0, high=16, documented=True),)},
        output=OutputContract(labels=tuple("0123456789")),
        lineage=Lineage(
            source=Source(file="digits.onnx", format="onnx", digest="sha256:" + "0" * 64, size_bytes=10),
            calibration_digest="sha256:" + "1" * 64,
            evaluation_digest="sha256:" + "2" * 64,
            tools={"edgeship": "0.1.0"},
        ),
        variants=variants
        or (
            VariantDraft(variant=variant("x86-64-server", "onnxruntime", "int8"), files=files("model.onnx")),
            VariantDraft(variant=variant("intel-nuc", "openvino", "int8"), files=files("model.xml", "model.bin")),
            VariantDraft(
                variant=variant("raspberry-pi-5", "litert", "fp32", arch="aarch64"), files=files("model.tflite")
            ),
        ),
    )


def written(folder: Path, *, name: str = "bundle", content: BundleDraft | None = None) -> WrittenBundle:
    """Write a bundle under ``folder``; the key lies beside it."""
    return write_bundle(folder / name, content or draft(), AuthorKey.load_or_create(folder / "author.key"))


def renamed(content: BundleDraft, path: str) -> BundleDraft:
    """The same draft with the first variant's model file called ``path``."""
    first = content.variants[0]
    model = msgspec.structs.replace(first.files[0], path=path)
    changed = msgspec.structs.replace(first, files=(model, *first.files[1:]))
    return msgspec.structs.replace(content, variants=(changed, *content.variants[1:]))
