"""C sources for microcontrollers: compiled and run with gcc, byte for byte what the model is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeship_agent.runtime import EngineOptions, open_engine
from tests.programs import require_program
from tests.tflite_files import Ops, TfliteWriter, int8_net

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wconversion")
#: Writes the array, checks its alignment and the sample against itself, once right and once wrong.
MAIN = """
#include <stdio.h>
#include <string.h>
#include "{name}.h"
int main(void) {{
    static {kind} answer[{upper}_OUTPUT_0_ELEMENTS];
    memcpy(answer, {name}_sample_output_0, sizeof answer);
    if ((uintptr_t){name} % 16 != 0) return 2;
    if ({name}_sample_wrong_0(answer) != 0) return 3;
    answer[0] = ({kind})(answer[0] > 0 ? answer[0] - 5 : answer[0] + 5);
    if ({name}_sample_wrong_0(answer) != 1) return 4;
    if (fwrite({name}, 1, sizeof {name}, stdout) != {upper}_BYTES) return 5;
    return fwrite({name}_sample_input_0, 1, {upper}_INPUT_0_BYTES, stdout) == {upper}_INPUT_0_BYTES ? 0 : 6;
}}
"""


def export(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgeship", "export", *arguments], capture_output=True, text=True,
                          check=False, timeout=200)  # fmt: skip


def compiled(folder: Path, name: str, kind: str = "int8_t", *, language: str = "c99") -> bytes:
    """Compile the sources with a program around them, run it, and return what it printed."""
    compiler = require_program("g++" if language.startswith("c++") else "gcc")
    main = folder / ("main.cc" if language.startswith("c++") else "main.c")
    main.write_text(MAIN.format(name=name, upper=name.upper(), kind=kind))
    force = ["-x", "c++"] if language.startswith("c++") else []
    program = folder / f"program-{language}"
    command = [compiler, f"-std={language}", *STRICT, *force, str(main), str(folder / f"{name}.c"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([str(program)], capture_output=True, check=False)
    assert ran.returncode == 0
    return ran.stdout


@pytest.mark.parametrize("language", ["c99", "c11", "c++11", "c++20"])
def test_bytes_come_back_from_the_compiled_array(tmp_path: Path, language: str) -> None:
    model = int8_net(tmp_path / "wake-word v2.tflite", width=10)
    done = export(str(model), "-t", "cortex-m", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    said = compiled(tmp_path / "out", "wake_word_v2", language=language)
    data = model.read_bytes()
    assert said[: len(data)] == data
    sample = np.frombuffer(said[len(data) :], np.int8)
    assert sample.shape == (10,)
    header = (tmp_path / "out" / "wake_word_v2.h").read_text()
    assert hashlib.sha256(data).hexdigest() in header
    assert "#define WAKE_WORD_V2_INPUT_0_SCALE 0.05f" in header
    assert "#define WAKE_WORD_V2_INPUT_0_ZERO_POINT (-3)" in header
    assert "#define WAKE_WORD_V2_OUTPUT_0_ZERO_POINT (5)" in header


def test_sample_is_what_the_reference_kernels_say(tmp_path: Path) -> None:
    model = int8_net(tmp_path / "net.tflite", width=10)
    assert export(str(model), "-t", "cortex-m", "-o", str(tmp_path / "out")).returncode == 0
    sample = np.frombuffer(compiled(tmp_path / "out", "net")[-10:], np.int8)
    interpreter = Interpreter(str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample.reshape(1, 10))
    interpreter.invoke()
    right = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(-1)
    source = (tmp_path / "out" / "net.c").read_text()
    assert f"net_sample_output_0[3] = {{\n    {', '.join(map(str, right))},\n}};" in source


def test_same_file_gives_the_same_sources(tmp_path: Path) -> None:
    model = int8_net(tmp_path / "net.tflite")
    for name in ("one", "two"):
        done = export(str(model), "-t", "cortex-m", "-o", str(tmp_path / name), "--json")
        assert json.loads(done.stdout)["files"] == [str(tmp_path / name / "net.h"), str(tmp_path / name / "net.c")]
    for name in ("net.h", "net.c"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("tflite/hello_world_int8.tflite", "hello_world_int8"),
        ("tflite/micro_speech_quantized.tflite", "micro_speech_quantized"),
        ("mlperf_tiny/ic_resnet8/pretrainedResnet_quant.tflite", "pretrainedresnet_quant"),
        ("mlperf_tiny/kws_dscnn/kws_ref_model.tflite", "kws_ref_model"),
    ],
)
def test_published_models(tmp_path: Path, name: str, identifier: str) -> None:
    file = TEST_DATA / name
    if not file.is_file():
        pytest.skip(f"not tried: {file} is not there")
    assert export(str(file), "-t", "cortex-m", "-o", str(tmp_path / "out")).returncode == 0
    said = compiled(tmp_path / "out", identifier)
    assert said.startswith(file.read_bytes())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tflite/coral_mobilenet_v1_0.25_128_quant.tflite", "does not run AVERAGE_POOL_2D of uint8"),
        ("mlperf_tiny/ic_resnet8/pretrainedResnet.tflite", "not in integers throughout"),
        ("dtln/model_quant_1.tflite", "int8 weights and float activations"),
        ("hard_cases/model_invoking_error.tflite", "does not run CUSTOM::fake-op-double"),
    ],
)
def test_published_models_that_do_not_fit(tmp_path: Path, name: str, reason: str) -> None:
    if not (TEST_DATA / name).is_file():
        pytest.skip(f"not tried: {TEST_DATA / name} is not there")
    done = export(str(TEST_DATA / name), "-t", "cortex-m", "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not (TEST_DATA / "mlperf_tiny").is_dir(), reason="no models of others")
def test_reference_kernels_are_those_that_were_asked_for() -> None:
    """A float model tells them apart: the fast kernels sum in another order."""
    model = TEST_DATA / "mlperf_tiny" / "ic_resnet8" / "pretrainedResnet.tflite"
    image = np.random.default_rng(3).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    plain = Interpreter(model_path=str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    plain.allocate_tensors()
    plain.set_tensor(plain.get_input_details()[0]["index"], image)
    plain.invoke()
    expected = plain.get_tensor(plain.get_output_details()[0]["index"])
    said = {}
    for reference in (True, False):
        engine = open_engine("litert", model, EngineOptions(reference=reference))
        said[reference] = engine.run([image])[0]
        engine.close()
    np.testing.assert_array_equal(said[True], expected)
    assert (said[False] != expected).any()
    np.testing.assert_allclose(said[False], expected, atol=1e-5)


def test_build_and_bundle_bring_the_same_sources(tmp_path: Path) -> None:
    """From a quantized file to a bundle to C: the sample is the first calibration sample in the file's own numbers."""
    model = int8_net(tmp_path / "net.tflite", width=4)
    rng = np.random.default_rng(7)
    for name, count in (("calibration", 40), ("evaluation", 60)):
        np.savez(tmp_path / f"{name}.npz", x=rng.integers(-128, 128, (count, 4)).astype(np.int8))
    data = [f"--{name}={tmp_path / name}.npz" for name in ("calibration", "evaluation")]
    command = [sys.executable, "-m", "edgeship", "build", str(model), "-t", "cortex-m", "--task", "raw", *data,
               "--name", "gesture", "--key", str(tmp_path / "key"), "-o", str(tmp_path / "build")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    (variant,) = json.loads((tmp_path / "build" / "build.json").read_text())["variants"]
    told = next(note for note in variant["notes"] if "reference kernels, whose arithmetic TensorFlow" in note)
    assert told.endswith("says nothing of the device")
    verified = subprocess.run([sys.executable, "-m", "edgeship", "verify", str(tmp_path / "build" / "bundle")],
                              capture_output=True, text=True, check=False, timeout=250)  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    done = export(str(tmp_path / "build"), "-t", "cortex-m", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    beside, exported = (next(folder.rglob("gesture.c")).parent for folder in (tmp_path / "build", tmp_path / "out"))
    said = [compiled(folder, "gesture") for folder in (beside, exported)]
    assert said[0] == said[1]
    sample = np.frombuffer(said[0][-4:], np.int8)
    first = np.load(tmp_path / "calibration.npz")["x"][0]
    np.testing.assert_array_equal(sample, first)
    assert "gesture 1.0.0:" in (exported / "gesture.h").read_text()


def test_float_ends_are_refused(tmp_path: Path) -> None:
    model = int8_net(tmp_path / "net.tflite", float_ends=True)
    done = export(str(model), "-t", "cortex-m", "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "inputs and outputs are float32" in done.stderr


def test_what_is_too_large_is_a_missed_budget(tmp_path: Path) -> None:
    net = TfliteWriter()
    x, y = (net.tensor(name, (1, 200_000), scales=[0.1]) for name in "xy")
    net.operator(Ops.ABS, [x], [y])
    done = export(str(net.write(tmp_path / "large.tflite", [x], [y])), "-t", "cortex-m", "-o", str(tmp_path / "out"))
    assert done.returncode == 3
    assert "a tensor arena of 421 kB does not fit" in done.stderr
    assert not (tmp_path / "out").exists()


def test_bad_input(tmp_path: Path) -> None:
    broken = tmp_path / "net.tflite"
    broken.write_bytes(int8_net(tmp_path / "whole.tflite").read_bytes()[:100])
    cases = [
        ((str(broken), "-t", "cortex-m"), 2, "damaged or truncated"),
        ((str(tmp_path / "missing.tflite"), "-t", "cortex-m"), 2, "cannot be read"),
        ((str(tmp_path / "whole.tflite"), "-t", "raspberry-pi-5"), 2, "takes a bundle, no model file"),
        ((str(tmp_path / "whole.tflite"), "-t", "toaster"), 2, "unknown target"),
    ]
    for arguments, code, reason in cases:
        done = export(*arguments, "-o", str(tmp_path / "out"))
        assert (done.returncode, reason in done.stderr) == (code, True), done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    done = export(str(tmp_path / "whole.tflite"), "-t", "cortex-m", "-o", str(tmp_path / "full"))
    assert (done.returncode, "is in the way" in done.stderr) == (2, True)
