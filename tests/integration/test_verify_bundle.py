"""``edgeship verify`` and ``export`` on real models in real runtimes, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import openvino
import pytest

from edgeship.bundle import BundleDraft, DraftFile, VariantDraft
from edgeship_agent.contract.manifest import Binding, Golden, InputContract, OutputContract, TensorSpec
from edgeship_agent.runtime.isa import architecture, isa_class
from edgeship_agent.runtime.tensors import encode_tensor_file
from tests import bundles

DIGITS = Path(__file__).resolve().parents[2] / "src/edgeship/demo/models/digits-v1.onnx"
SERVER, NUC = "x86-64-server/onnxruntime/fp32", "intel-nuc/openvino/fp32"


def edgeship(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edgeship.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def golden_files(error: float) -> tuple[DraftFile, ...]:
    """Eight golden samples; the wanted outputs are off by ``error``, relative to the true ones."""
    generator = np.random.default_rng(7)
    images = generator.uniform(0, 1, (8, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(DIGITS, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, {"image": image[None]})[0] * np.float32(1 + error) for image in images]
    inputs = encode_tensor_file([{"image": image} for image in images])
    wanted = encode_tensor_file([{"logits": output} for output in outputs])
    return (
        DraftFile(path="golden_inputs", role="golden_inputs", data=inputs),
        DraftFile(path="golden_outputs", role="golden_outputs", data=wanted),
    )


def digits(folder: Path, *, error: float = 0.0) -> BundleDraft:
    """The demo's digits model in fp32 for ONNX Runtime and OpenVINO, and a variant without golden files."""
    openvino.save_model(openvino.convert_model(DIGITS), folder / "model.xml", compress_to_fp16=False)
    names = ("model.xml", "model.bin")
    openvino_files = [
        DraftFile(path=name, role=role, data=(folder / name).read_bytes())
        for name, role in zip(names, ("model", "weights"), strict=True)
    ]
    onnx_file = DraftFile(path="model.onnx", role="model", data=DIGITS.read_bytes())
    bound: dict[str, Any] = {
        "arch": architecture(),
        "inputs": (binding("image", (-1, 1, 8, 8)),),
        "outputs": (binding("logits", (-1, 10)),),
        "golden": Golden(relative_rms=1e-4, isa_class=isa_class(), other_isa_relative_rms=1e-3),
    }
    server, nuc, bare = (
        msgspec.structs.replace(bundles.variant(*names), **bound)
        for names in (
            ("x86-64-server", "onnxruntime", "fp32"),
            ("intel-nuc", "openvino", "fp32"),
            ("x86-64-litert", "litert", "fp32"),
        )
    )
    draft = bundles.draft(
        VariantDraft(variant=server, files=(onnx_file, *golden_files(error))),
        VariantDraft(variant=nuc, files=(*openvino_files, *golden_files(0.0))),
        VariantDraft(variant=bare, files=(DraftFile(path="model.tflite", role="model", data=b"TFL3"),)),
    )
    return msgspec.structs.replace(
        draft,
        inputs=(TensorSpec(name="image", dtype="float32", shape=(-1, 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(-1, 10)),),
        input_contracts=(InputContract(tensor="image", dtype="float32", shape=(1, 8, 8)),),
        output=OutputContract(labels=tuple("0123456789"), activation="softmax"),
    )


def binding(name: str, shape: tuple[int, ...]) -> Binding:
    return Binding(name=name, artifact_name=name, artifact_index=0, dtype="float32", shape=shape)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.written(tmp_path, content=digits(tmp_path)).directory


def test_verify_runs_what_it_can_and_lists_what_it_could_not(bundle: Path) -> None:
    done = edgeship("verify", bundle, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(each["variant"], each["passed"], each["samples"]) for each in report["golden"]] == [
        (SERVER, True, 8),
        (NUC, True, 8),
    ]
    assert [each["variant"] for each in report["not_run"]] == ["x86-64-litert/litert/fp32"]
    assert "no golden_inputs and no golden_outputs" in report["not_run"][0]["reason"]
    assert "not run" in done.stderr
    assert done.stderr.splitlines()[-1] == f"next: edgeship releases add {bundle}"


def test_verify_refuses_outputs_that_are_not_reached(tmp_path: Path) -> None:
    wrong = bundles.written(tmp_path, content=digits(tmp_path, error=0.01)).directory
    done = edgeship("verify", wrong)
    assert done.returncode == 1
    assert "golden outputs of 1 of 2 variants were not reached" in done.stderr
    assert "relative RMS 0.0099" in done.stderr
    assert done.stdout == ""


def test_verify_of_a_flipped_byte(bundle: Path) -> None:
    path = max((bundle / "blobs" / "sha256").iterdir(), key=lambda each: each.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    done = edgeship("verify", bundle)
    assert done.returncode == 1
    assert "a blob was altered" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_model_that_the_runtime_refuses_fails_alone(tmp_path: Path) -> None:
    content = digits(tmp_path)
    first = content.variants[0]
    broken = msgspec.structs.replace(first.files[0], data=b"not a model")
    changed = msgspec.structs.replace(first, files=(broken, *first.files[1:]))
    content = msgspec.structs.replace(content, variants=(changed, *content.variants[1:]))
    done = edgeship("verify", bundles.written(tmp_path, content=content).directory, "--json")
    assert done.returncode == 1
    assert [each["passed"] for each in json.loads(done.stdout)["golden"]] == [False, True]


def test_exported_files_open_in_the_plain_runtime(bundle: Path, tmp_path: Path) -> None:
    done = edgeship("export", bundle, "-t", "x86-64-server", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    model = next(file for file in files if file.suffix == ".onnx")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert session.run(None, {"image": np.zeros((1, 1, 8, 8), np.float32)})[0].shape == (1, 10)


def test_places_without_a_bundle(tmp_path: Path) -> None:
    for command in (("verify", tmp_path), ("export", tmp_path, "-t", "intel-nuc", "-o", tmp_path / "out")):
        done = edgeship(*command)
        assert done.returncode == 2
        assert "not a bundle" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "code"), [("raspberry-pi-5", 0), ("toaster", 2)])
def test_targets_check(name: str, code: int) -> None:
    done = edgeship("targets", "check", DIGITS, "-t", name)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1].startswith("next: edgeship ")
