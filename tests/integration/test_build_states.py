"""TFLite files that keep a state: every call begins anew, sequences go through step by step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgeship.build import pipeline, sources, toolchains
from edgeship.build.model_facts import unknown_to_openvino
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Silence
from edgeship.bundle import Bundle, verify
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.engine import run_steps, state_of
from tests import models
from tests.tflite_files import remembering

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = {
    "microwakeword/v2_okay_nabu.tflite": "resources",
    "tflite/mnist_lstm_float.tflite": "variables",
    "tflite/mnist_lstm_int8.tflite": "variables",
    "mlperf_tiny/ad_toycar/ad01_fp32.tflite": "",
}
STEPS = 7


def by_hand(model: Path, steps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A sequence through a new interpreter, which nothing sets back."""
    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    (entry,), (exit_,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers = []
    for step in steps:
        interpreter.set_tensor(entry["index"], step)
        interpreter.invoke()
        answers.append(np.array(interpreter.get_tensor(exit_["index"])))
    return np.stack(answers)


def check_states(model: Path, state: str) -> None:
    source = sources.load(model)
    engine = open_engine("litert", model)
    try:
        assert (source.state, state_of(engine)) == (state, state)
        (info,) = engine.signature.inputs
        rng = np.random.default_rng(5)
        numbers = rng.normal(0.0, 1.0, (STEPS, *info.shape)).astype(np.float32)
        if info.dtype == "int8":
            numbers = rng.integers(-128, 128, numbers.shape).astype(np.int8)
        expected = by_hand(model, numbers)
        for _ in range(2):  # the second time too
            answers = np.stack([answer[0] for answer in run_steps(engine, [[step] for step in numbers])])
            np.testing.assert_array_equal(answers, expected)
        for step in (numbers[3], numbers[1]):
            np.testing.assert_array_equal(engine.run([step])[0], by_hand(model, step[np.newaxis])[0])
    finally:
        engine.close()


def test_a_state_lasts_for_a_sequence_and_no_longer(tmp_path: Path) -> None:
    model = remembering(tmp_path / "net.tflite")
    check_states(model, "variables")
    steps = np.ones((3, 1, 2), np.float32)
    followed = by_hand(model, steps)
    assert not np.allclose(followed[0], followed[2]), "a file that remembers nothing would prove nothing"


@pytest.mark.skipif(not (TEST_DATA / "tflite").is_dir(), reason="no models of others")
@pytest.mark.parametrize("name", REAL)
def test_real_files(name: str) -> None:
    check_states(TEST_DATA / name, REAL[name])


def test_other_runtimes_keep_no_state(tmp_path: Path) -> None:
    engine = open_engine("onnxruntime", models.classifier(tmp_path / "net.onnx"))
    with pytest.raises(EngineError, match="keeps no state"):
        run_steps(engine, [])


def options(folder: Path, model: Path, shape: tuple[int, ...], *targets: str) -> BuildOptions:
    rng = np.random.default_rng(9)
    integers = sources.load(model).inputs[0].dtype == "int8"
    for name, count in (("c", 60), ("e", 30)):
        x = rng.normal(0.0, 1.0, (count, *shape)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=(x * 60).clip(-128, 127).astype(np.int8) if integers else x)
    return BuildOptions(
        source=model, targets=targets, calibration=folder / "c.npz", evaluation=folder / "e.npz", task="raw",
        effort="quick", output=folder / "out", key=folder / "key",
    )  # fmt: skip


def test_sequences_are_built_judged_and_verified(tmp_path: Path) -> None:
    model = remembering(tmp_path / "net.tflite")
    result = pipeline.build(options(tmp_path, model, (STEPS, 2), "x86-64-litert"), Silence())
    assert result.verdict == "pass"
    bundle = Bundle.open(tmp_path / "out" / "bundle")
    (contract,) = bundle.manifest.input_contracts
    assert (contract.shape, contract.sequence) == ((STEPS, 2), True)
    assert bundle.manifest.variants[0].state == "variables"
    assert verify(bundle).passed
    by_precision = {each.precision: each for each in result.document.variants}
    assert (by_precision["fp32"].relative_rms or 0.0) <= 1e-6


def test_single_samples_do_not_follow_one_another(tmp_path: Path) -> None:
    model = remembering(tmp_path / "net.tflite")
    result = pipeline.build(options(tmp_path, model, (2,), "x86-64-litert"), Silence())
    (contract,) = Bundle.open(tmp_path / "out" / "bundle").manifest.input_contracts
    assert (result.verdict, contract.shape, contract.sequence) == ("pass", (2,), False)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("intel-nuc", "does not take UNIDIRECTIONAL_SEQUENCE_RNN, whose state stays in the file from step to step"),
        ("x86-64-server", r"hides its state from step to step \(variables\); onnxruntime would need it as an input"),
    ],
)
def test_a_runtime_without_states_says_so(tmp_path: Path, target: str, reason: str) -> None:
    toolchains.install("tensorflow")  # the way to ONNX Runtime
    given = options(tmp_path, remembering(tmp_path / "net.tflite"), (STEPS, 2), target)
    with pytest.raises(ConversionError, match=reason):
        pipeline.build(given, Silence())


@pytest.mark.skipif(not (TEST_DATA / "tflite").is_dir(), reason="no models of others")
def test_a_real_recurrent_model_has_no_way_to_openvino() -> None:
    (reason,) = unknown_to_openvino(TEST_DATA / "tflite" / "mnist_lstm_float.tflite")
    assert reason == "UNIDIRECTIONAL_SEQUENCE_LSTM, whose state stays in the file from step to step"


@pytest.mark.skipif(not (TEST_DATA / "microwakeword").is_dir(), reason="no models of others")
def test_a_real_wake_word_model_on_sequences(tmp_path: Path) -> None:
    model = TEST_DATA / "microwakeword" / "v2_okay_nabu.tflite"
    result = pipeline.build(options(tmp_path, model, (STEPS, 3, 40), "x86-64-litert"), Silence())
    (variant,) = Bundle.open(tmp_path / "out" / "bundle").manifest.variants
    assert (result.verdict, variant.precision, variant.state) == ("pass", "int8", "resources")
