"""What ``edgeship profile`` measures: a bundle, a release of the server, or a model file, made ready for a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct, structs

from edgeship.build import verify
from edgeship.build.backends.base import Artifact as Built
from edgeship.build.backends.base import bind
from edgeship.build.devices.fleet import Artifact, FleetDevice, files_of
from edgeship.bundle.read import Bundle
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import BundleFile, BundleManifest, Variant
from edgeship_agent.contract.oci import MANIFEST_FILE
from edgeship_agent.contract.profiling import PlanFile
from edgeship_agent.contract.wire import read_json
from edgeship_agent.processing import prepare
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime import EngineOptions, open_engine
from edgeship_agent.runtime.bound import BoundModel
from edgeship_agent.runtime.engine import TensorInfo
from edgeship_agent.runtime.isa import isa_class_of
from edgeship_agent.runtime.tensors import decode_tensor_file, sample_arrays

_RUNTIMES: Final = {".onnx": "onnxruntime", ".tflite": "litert", ".xml": "openvino"}
_LOADED: Final = ("model", "weights")
_SAMPLES: Final = 8
#: Largest relative RMS between two machines where no bundle says it: of a float file, and of a quantized one.
_FLOAT_TOLERANCE: Final = 1e-3
_INTEGER_TOLERANCE: Final = 0.05


class Profiled(Struct, frozen=True, kw_only=True):
    """Something to measure, and what it is run on: prepared inputs, batch axis included."""

    artifact: Artifact
    inputs: Sequence[Mapping[str, Array]]


def find(what: str, device: FleetDevice, label: str) -> Profiled:
    """What a person named.

    Args:
        what: a bundle's folder, ``MODEL@VERSION`` of a release, or a model file.
        device: where it will run.
        label: ``target/runtime/precision``, where a bundle or release has several; empty for the one that fits.

    Raises:
        InputError: it cannot be used.
        ConfigError: no variant fits the device, or the runtime is not installed here.
    """
    path = Path(what)
    if path.is_dir():
        folder = path / "bundle" if (path / "bundle").is_dir() else path
        bundle = Bundle.open(folder)
        return _of_manifest(bundle.manifest, device, label, bundle.blob, uploaded=False)
    if path.is_file():
        return _of_file(path)
    model, separator, version = what.partition("@")
    if not separator or not model or not version or "/" in what:
        raise InputError("no such bundle, model file or release", got=what,
                         expected="a folder, a file, or MODEL@VERSION",
                         next_step="edgeship releases list")  # fmt: skip
    data = device.document(f"/api/v1/releases/{model}/{version}/{MANIFEST_FILE}")
    manifest = read_json(data, BundleManifest, file=MANIFEST_FILE)
    return _of_manifest(manifest, device, label, device.blob, uploaded=True)


def _of_manifest(
    manifest: BundleManifest, device: FleetDevice, label: str, read: Callable[[str], bytes], *, uploaded: bool
) -> Profiled:
    """The variant that fits; its golden inputs, prepared as its application's samples are."""
    variant = _fitting(manifest, device.facts, label)
    golden = {role: _golden(variant.file(role), read) for role in ("golden_inputs", "golden_outputs")}
    raw = golden["golden_inputs"]
    if not raw:
        raise InputError("the bundle has no golden inputs", key=variant.label)
    files: dict[str, bytes | PlanFile] = {}
    for file in sorted((each for each in variant.files if each.role in _LOADED), key=lambda each: each.role):
        name = Path(file.path).name
        given = PlanFile(name=name, digest=file.digest, size_bytes=file.size_bytes)
        files[name] = given if uploaded else read(file.digest)
    first = manifest.outputs[0].name
    there = isa_class_of(device.facts["arch"], device.facts["isa"])
    limits = variant.golden
    same = limits.isa_class == there
    tolerance = limits.relative_rms if same else max(limits.relative_rms, limits.other_isa_relative_rms)
    artifact = Artifact(
        label=variant.label, runtime=variant.runtime, files=files, variant=variant, tolerance=tolerance,
        expected=[{first: sample[first]} for sample in golden["golden_outputs"]] or None,
    )  # fmt: skip
    return Profiled(artifact=artifact, inputs=[prepare(manifest.input_contracts, sample) for sample in raw])


def _golden(file: BundleFile | None, read: Callable[[str], bytes]) -> list[dict[str, Array]]:
    if file is None:
        return []
    return [sample_arrays(sample) for sample in decode_tensor_file(read(file.digest), file=file.path).samples]


def _fitting(manifest: BundleManifest, facts: Mapping[str, Any], label: str) -> Variant:
    """The variant of a label; without one the first that the device can run, its own target's before others.

    Raises:
        ConfigError: there is none.
    """
    labels = ", ".join(each.label for each in manifest.variants)
    able = [each for each in manifest.variants if each.arch == facts["arch"] and each.runtime in facts["runtimes"]]
    chosen = [each for each in manifest.variants if each.label == label] if label else able
    chosen.sort(key=lambda each: each.target != facts["target"])
    if not chosen:
        device = f"{facts['target']} ({facts['arch']}) with {', '.join(facts['runtimes']) or 'no runtime'}"
        raise ConfigError("no variant for this device", key="--variant", expected=labels, got=label or device)
    return chosen[0]


def _of_file(path: Path) -> Profiled:
    """A model file, run on noise; the outputs that this machine computes are the expected ones."""
    runtime = _RUNTIMES.get(path.suffix)
    if runtime is None:
        raise InputError("not a file that a runtime loads", file=path, expected=" ".join(_RUNTIMES),
                         next_step="build it first: edgeship build SOURCE -t TARGET …")  # fmt: skip
    engine = open_engine(runtime, path, EngineOptions(threads=1))
    signature = engine.signature
    beside = [path.with_suffix(".bin")] if runtime == "openvino" else []
    built = Built(
        runtime=runtime, precision="file", model=path,
        inputs=tuple(bind(info.name, info) for info in signature.inputs),
        outputs=tuple(bind(info.name, info) for info in signature.outputs),
    )  # fmt: skip
    # integers are handed over as they are: what a file's own noise means is nobody's business
    plain = tuple(structs.replace(each, scale=0.0, zero_point=0) for each in built.inputs)
    variant = structs.replace(verify.draft_variant(built), inputs=plain)
    model = BoundModel(engine, variant)
    random = np.random.default_rng(0)
    inputs = [{info.name: _noise(random, info) for info in signature.inputs} for _ in range(_SAMPLES)]
    try:
        expected = [{name: np.array(array) for name, array in model.run(sample).items()} for sample in inputs]
    finally:
        model.close()
    is_float = all(info.dtype.startswith("float") for info in (*signature.inputs, *signature.outputs))
    artifact = Artifact(
        label=path.name, runtime=runtime, files=files_of([path, *beside]), variant=variant, expected=expected,
        tolerance=_FLOAT_TOLERANCE if is_float else _INTEGER_TOLERANCE,
    )  # fmt: skip
    return Profiled(artifact=artifact, inputs=inputs)


def _noise(random: np.random.Generator, info: TensorInfo) -> Array:
    if info.dtype.startswith("float"):
        return random.normal(size=info.shape).astype(info.dtype)
    if info.dtype in {"uint8", "int8"}:
        limits = np.iinfo(info.dtype)
        return random.integers(limits.min, limits.max + 1, info.shape).astype(info.dtype)
    return np.zeros(info.shape, info.dtype)
