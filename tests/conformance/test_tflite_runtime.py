"""tflite-runtime, where it is all there is: the engine template, a worker, refusals; in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeship.bundle import AuthorKey, BundleDraft, DraftFile, VariantDraft, write_bundle
from edgeship_agent.contract.manifest import Feature, InputContract, OutputContract, TensorSpec, Variant
from edgeship_agent.contract.oci import canonical_json
from edgeship_agent.runtime.isa import architecture
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.runtime.tensors import encode_tensor_file
from edgeship_agent.telemetry.signals import make_profile, measure
from edgeship_agent.update.slots import Slots
from tests.agents import TARGET
from tests.conformance.engine_template import TEST_DATA
from tests.conformance.slots import manifest_of, variant_of
from tests.tflite_files import repacked

ROOT = Path(__file__).resolve().parents[2]
MODEL = TEST_DATA / "tflite" / "hello_world_float.tflite"
#: A version of an operator that no runtime has, as a file of a newer converter would name one.
TOO_NEW = 99
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.version_info[:2] > (3, 11), reason="not tried: tflite-runtime has no wheel for this Python"),
    pytest.mark.skipif(not MODEL.is_file(), reason=f"not tried: no test models in {TEST_DATA}"),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the agent and tflite-runtime, and no other runtime."""
    folder = tmp_path_factory.mktemp("tflite")
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    python = folder / "environment" / "bin" / "python"
    wanted = [f"{ROOT / 'device_agent'}[tflite]", "onnx", "pytest"]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True, timeout=600)
    return python


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGESHIP_TEST_DATA": str(TEST_DATA)}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_engine_template_holds(python: Path) -> None:
    options = ("-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=")
    done = run(python, "-m", "pytest", "-q", *options, "tests/conformance/test_engines.py", "-k", "TestLiteRt")
    assert done.returncode == 0, done.stdout
    assert "21 passed" in done.stdout


def bundle(folder: Path, model: bytes) -> Path:
    """A signed bundle of the sine model; its golden outputs are LiteRT's."""
    variant: Variant = msgspec.structs.replace(variant_of("litert", MODEL), target=TARGET, arch=architecture())
    variant = msgspec.structs.replace(variant, runtime_range=">=99")  # of LiteRT, which is not what runs it
    names = [msgspec.structs.replace(each, name=name) for each, name in
             ((variant.inputs[0], "x"), (variant.outputs[0], "y"))]  # fmt: skip
    variant = msgspec.structs.replace(variant, inputs=(names[0],), outputs=(names[1],))
    manifest = manifest_of(
        variant,
        name="sine",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 1)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 1)),),
        input_contracts=(InputContract(tensor="x", dtype="float32", shape=(1,)),),
        input_schema={"x": (Feature(name="angle", low=0, high=7, documented=True),)},
        output=OutputContract(kind="raw"),
    )
    predictor = Predictor.open(manifest, variant, MODEL)
    samples = [{"x": np.array([angle], np.float32)} for angle in np.linspace(0.0, 6.0, 16)]
    answers = [predictor.run(sample) for sample in samples]
    values = [measure(sample, answer, manifest.output) for sample, answer in zip(samples, answers, strict=True)]
    predictor.close()
    contents = (
        ("model.tflite", "model", model),
        ("golden_inputs.msgpack", "golden_inputs", encode_tensor_file(samples)),
        ("golden_outputs.msgpack", "golden_outputs", encode_tensor_file(answers)),
        ("profile.json", "profile", canonical_json(make_profile(values, class_count=0))),
    )
    files = tuple(DraftFile(path=path, role=role, data=data) for path, role, data in contents)
    shared = {name: getattr(manifest, name) for name in BundleDraft.__struct_fields__ if hasattr(manifest, name)}
    draft = BundleDraft(**{**shared, "variants": (VariantDraft(variant=variant, files=files),)})
    key = AuthorKey.load_or_create(folder / "author.key")
    (folder / "author.pub").write_text(key.public_hex + "\n")
    return write_bundle(folder / "bundle", draft, key).directory


def configuration(folder: Path) -> Path:
    (folder / "goal.pub").write_text("00" * 32)
    (folder / "root.json").write_text("{}")
    config = folder / "agent.toml"
    config.write_text(
        f'device_id = "old-board"\ntarget = "{TARGET}"\nstate_dir = "state"\nserver_url = "http://127.0.0.1:9"\n'
        'allow_volatile_state = true\nbroker_url = "mqtt://127.0.0.1:9"\nroot = "root.json"\ngoal_key = "goal.pub"\n'
        'author_key = "author.pub"\n[update]\ndisk_reserve_bytes = 0\n'
    )
    return config


def test_a_worker_serves_a_bundle_for_litert_and_its_name_is_its_own(python: Path, tmp_path: Path) -> None:
    made, config = bundle(tmp_path, MODEL.read_bytes()), configuration(tmp_path)
    done = run(python, "-m", "edgeship_agent.cli", "install", made, "--json", "--config", config)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["attempt"]["state"] == "committed"  # golden inputs went through a live worker
    slot = Slots(tmp_path / "state" / "slots").active("sine", "main")
    assert slot is not None
    checked = slot.checked()
    assert checked is not None
    found = (checked.fingerprint["runtime"], checked.fingerprint["runtime_version"])
    assert found == ("tflite-runtime", "2.14.0")
    doctor = run(python, "-m", "edgeship_agent.cli", "doctor", "--config", config)
    assert "tflite-runtime 2.14.0; it stands in for litert" in doctor.stdout
    assert "-m pip install 'edgeship-agent[litert]'" in doctor.stdout


def test_operators_that_it_does_not_know_are_refused_in_words(python: Path, tmp_path: Path) -> None:
    def newer(model: schema.ModelT) -> None:
        for code in model.operatorCodes:
            code.version = TOO_NEW

    made, config = bundle(tmp_path, repacked(MODEL, newer)), configuration(tmp_path)
    done = run(python, "-m", "edgeship_agent.cli", "install", made, "--json", "--config", config)
    assert done.returncode == 3, done.stderr
    end = json.loads(done.stdout)["attempt"]
    assert end["state"] == "rejected"
    assert "tflite-runtime refused the model" in end["detail"]
    assert f"version '{TOO_NEW}'" in end["detail"]
    assert "Traceback" not in done.stderr


def test_with_numpy_2_it_says_what_to_do(python: Path, tmp_path: Path) -> None:
    """numpy 2 would take the whole process along: it is not even tried."""
    said = "import numpy; numpy.__version__ = '2.0.0'\nfrom edgeship_agent.runtime import open_engine\n"
    call = f"{said}from pathlib import Path\nopen_engine('litert', Path({str(MODEL)!r}))"
    done = run(python, "-c", call)
    assert "numpy: tflite-runtime was built for numpy 1" in done.stderr
    assert "pip install 'numpy<2'" in done.stderr or "below 2" in done.stderr
