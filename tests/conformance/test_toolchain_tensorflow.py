"""Keras, SavedModel and frozen graphs through the real toolchain: described, run, converted, refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeship.build import metrics, oracle, routes, sources, toolchains
from edgeship.build.backends.tflite_edit import edited
from edgeship.build.progress import Silence
from edgeship.build.sources import InputShape, SourceModel, SourceRequest
from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import ConfigError, ConversionError, InputError
from edgeship_agent.runtime import open_engine
from tests.tflite_files import one_convolution

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
TESTS = Path(__file__).parents[1]
SUFFIXES = {"tf2onnx": ("onnxruntime", "model.onnx"), "TFLiteConverter": ("litert", "model.tflite")}
#: Float conversions keep the meaning: far below the limit of layout.PARITY_RMS. Source: measured .2e-6 to 1.4e-6.
CLOSE = 1e-5


def _run(script: str, *arguments: str) -> str:
    folder = toolchains.install("tensorflow")
    command = [str(folder / "bin" / "python"), "-I", str(TESTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tensorflow")
    _run("tensorflow_sources.py", str(folder))
    return folder


def _samples(source: SourceModel, count: int = 5) -> list[Mapping[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [
        {
            spec.name: rng.integers(0, 7, spec.call_shape).astype(spec.dtype)
            if spec.dtype.startswith("int")
            else rng.normal(0, 1, spec.call_shape).astype(spec.dtype)
            for spec in source.inputs
        }
        for _ in range(count)
    ]


def _converted(source: SourceModel, route: tuple[str, ...], folder: Path) -> Path:
    return routes.Forms(source, folder / "forms", lambda _name: None).file(route)


def _errors(source: SourceModel, steps: list[str], folder: Path) -> dict[str, float]:
    """How far the outputs of each converted file are from the source's, which ends it has in order and by name."""
    errors: dict[str, float] = {}
    samples = _samples(source)
    answers = oracle.open_oracle(source, folder / "oracle").run(samples, "source", Silence())
    for step in steps:
        route = (step,) if step in SUFFIXES else tuple(step.split("+"))
        runtime, name = SUFFIXES[route[0]]
        file = _converted(source, route, folder / step)
        assert file.name == name
        engine = open_engine(runtime, file)
        assert [info.name for info in engine.signature.inputs] == [spec.name for spec in source.inputs]
        assert [info.name for info in engine.signature.outputs] == [spec.name for spec in source.outputs]
        for position, spec in enumerate(source.outputs):
            wanted = np.stack([answer[spec.name] for answer in answers])
            found = np.stack([engine.run([s[one.name] for one in source.inputs])[position] for s in samples])
            assert found.shape == wanted.shape
            error = metrics.relative_rms(found, wanted)
            assert error is not None
            errors[f"{step}: {spec.name}"] = error
        engine.close()
    source.check_unchanged()
    return errors


@pytest.mark.parametrize(
    ("name", "steps"),
    [("net.keras", ["tf2onnx"]), ("net.h5", ["TFLiteConverter"]), ("saved", ["TFLiteConverter"])],
)
def test_each_format_is_described_run_and_converted(made: Path, tmp_path: Path, name: str, steps: list[str]) -> None:
    source = sources.load(made / name)
    assert source.format == ("saved_model" if name == "saved" else "keras")
    assert [spec.shape for spec in source.inputs] == [(-1, 8, 8, 1)]
    assert [spec.shape for spec in source.outputs] == [(-1, 4)]
    # convolution, batch norm, depthwise convolution, matrix
    assert source.parameters == (6 * 9 + 6) + 4 * 6 + (6 * 9 + 6) + (6 * 16 * 4 + 4)
    assert not source.quantized
    assert max(_errors(source, steps, tmp_path).values()) < CLOSE


def test_a_state_that_keras_keeps_from_call_to_call_becomes_inputs_and_outputs(made: Path, tmp_path: Path) -> None:
    """Four calls in a row through the converted files say what the stateful model said."""
    source = sources.load(made / "stream.keras")
    states = {"ear_h": 4, "ear_c": 4, "mind_h": 6}
    assert [(spec.name, spec.shape) for spec in source.inputs] == [
        ("piece", (1, 5, 3)), *((name, (1, size)) for name, size in states.items())
    ]  # fmt: skip
    assert [spec.name for spec in source.outputs] == ["says", *(f"{name}_next" for name in states)]
    assert any("it kept a state" in note for note in source.notes)
    with np.load(made / "stream.npz") as archive:
        pieces, wanted = archive["pieces"], archive["says"]
    for step in ("tf2onnx", "TFLiteConverter"):
        runtime, _ = SUFFIXES[step]
        engine = open_engine(runtime, _converted(source, (step,), tmp_path / step))
        order = [info.name for info in engine.signature.inputs]
        carried = {name: np.zeros((1, size), np.float32) for name, size in states.items()}
        for piece, said in zip(pieces, wanted, strict=True):
            answers = engine.run([{**carried, "piece": piece}[name] for name in order])
            named = dict(zip([info.name for info in engine.signature.outputs], answers, strict=True))
            assert np.abs(named["says"] - said).max() < CLOSE
            carried = {name: named[f"{name}_next"] for name in states}
        engine.close()


def test_a_frozen_graph_is_cut_behind_what_no_device_has(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DecodeRaw") as refusal:
        sources.load(made / "graph.pb")
    assert refusal.value.exit_code == 2
    assert refusal.value.next_step is not None
    assert "--input-tensor NAME: features float32" in refusal.value.next_step
    source = sources.load(SourceRequest(text=str(made / "graph.pb"), input_tensors=("features",)))
    assert [(spec.name, spec.shape) for spec in source.inputs] == [("features", (-1, 12))]
    assert [(spec.name, spec.shape) for spec in source.outputs] == [("labels", (-1, 3))]
    assert max(_errors(source, ["tf2onnx"], tmp_path).values()) < CLOSE


def test_a_graph_that_loops_by_frames_runs_and_is_written_out(made: Path, tmp_path: Path) -> None:
    source = sources.load(made / "frames.pb")
    assert [spec.shape for spec in source.inputs] == [(-1, 5, 3)]
    assert max(_errors(source, ["tf2onnx", "tf2onnx+fold+unroll"], tmp_path).values()) < CLOSE
    written = onnx.load(_converted(source, ("tf2onnx", "fold", "unroll"), tmp_path / "again"))
    assert not {node.op_type for node in written.graph.node} & {"Loop", "Scan"}


def test_several_inputs_and_outputs_keep_their_order_and_names(made: Path, tmp_path: Path) -> None:
    source = sources.load(made / "ends.keras")
    assert [(spec.name, spec.dtype) for spec in source.inputs] == [("zulu", "float32"), ("alpha", "int32")]
    assert [spec.name for spec in source.outputs] == ["wide", "narrow"]
    assert max(_errors(source, ["TFLiteConverter", "tf2onnx"], tmp_path).values()) < CLOSE


def test_objects_that_tensorflow_2_cannot_rebuild_leave_the_graph(made: Path, tmp_path: Path) -> None:
    source = sources.load(made / "slots")
    (note,) = source.notes
    assert "add_slot" in note
    samples = _samples(source)
    answers = oracle.open_oracle(source, tmp_path / "oracle").run(samples, "source", Silence())
    # the same model in another file
    engine = open_engine("litert", made / "net.tflite")
    for sample, answer in zip(samples, answers, strict=True):
        error = metrics.relative_rms(engine.run([sample["image"]])[0], answer["output_0"])
        assert error is not None
        assert error < CLOSE


@pytest.mark.slow
def test_a_graph_without_its_objects_is_converted(made: Path, tmp_path: Path) -> None:
    assert max(_errors(sources.load(made / "slots"), ["tf2onnx", "TFLiteConverter"], tmp_path).values()) < CLOSE


def test_a_file_of_keras_2_is_read_by_its_own_code(made: Path) -> None:
    source = sources.load(made / "keras2.h5")
    (note,) = source.notes
    assert "LocallyConnected1D" in note
    assert source.parameters == 5 * (2 * 3 * 4 + 4) + (20 * 2 + 2)


@pytest.mark.slow
def test_a_file_of_keras_2_is_converted(made: Path, tmp_path: Path) -> None:
    assert max(_errors(sources.load(made / "keras2.h5"), ["tf2onnx", "TFLiteConverter"], tmp_path).values()) < CLOSE


@pytest.mark.slow
def test_a_signature_is_chosen_by_name(made: Path, tmp_path: Path) -> None:
    source = sources.load(SourceRequest(text=str(made / "two"), signature="half"))
    (given,), (answer,) = source.inputs, source.outputs
    sample = {given.name: np.array([[3.0, -8.0]], np.float32)}
    (answers,) = oracle.open_oracle(source, tmp_path / "half").run([sample], "source", Silence())
    assert answers[answer.name].tolist() == [[1.5, -4.0]]
    assert max(_errors(source, ["tf2onnx", "TFLiteConverter"], tmp_path).values()) < CLOSE


@pytest.mark.slow
def test_code_is_run_where_the_user_allows_it(made: Path, tmp_path: Path) -> None:
    for name in ("lambda.keras", "lambda.h5"):
        source = sources.load(SourceRequest(text=str(made / name), allow_pickle=True))
        (answer,) = oracle.open_oracle(source, tmp_path / name).run(
            [{source.inputs[0].name: np.array([[1.0, 2.0]], np.float32)}], "source", Silence()
        )
        assert answer[source.outputs[0].name].tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize("step", ["tf2onnx", pytest.param("TFLiteConverter", marks=pytest.mark.slow)])
def test_the_same_source_gives_the_same_bytes(made: Path, tmp_path: Path, step: str) -> None:
    source = sources.load(made / "net.keras")
    first, second = (_converted(source, (step,), tmp_path / each).read_bytes() for each in "ab")
    assert first == second


#: File → what is said, and what mends it.
REFUSED = {
    "short.keras": ("damaged or truncated", "again"),
    "short.h5": ("damaged or truncated", "again"),
    "short.pb": ("truncated", "again"),
    "empty.pb": ("no TensorFlow graph", ""),
    "renamed.keras": ("HDF5 file under the name .keras", "rename"),
    "renamed.h5": ("zip archive under the name .h5", "rename"),
    "renamed.pb": ("zip or HDF5 file under the name .pb", ""),
    "net.weights.h5": ("weights alone", "model.save"),
    "lambda.keras": ("Python code (layer 'sneaky')", "Lambda"),
    "lambda.h5": ("Python code (layer 'sneaky')", "Lambda"),
    "bomb.keras": ("bomb", ""),
    "bomb.h5": ("bomb", ""),
    "link.h5": ("points to another file", ""),
    "reads.pb": ("ReadFile", "without"),
    "variables.pb": ("not frozen", "convert_variables_to_constants"),
    "state.h5": ("stateful for 2 samples at once", "batch_size=1"),
    "free.keras": ("axis 1 is free", "--input-shape steps=1,SIZE,3"),
    "words.keras": ("input word holds string, not numbers", "numeric inputs"),
    "two": ("several signatures, double, half", "--signature"),
    "torn": ("weights are missing", "variables"),
}


def test_what_cannot_be_used_is_refused_with_the_reason_and_what_mends_it(made: Path) -> None:
    shutil.copytree(made / "saved", made / "torn", ignore=shutil.ignore_patterns("variables.index"))
    worker = resources.files("edgeship.build.toolchains")
    said = json.loads(_run("tensorflow_refusals.py", str(worker), str(made), *REFUSED).splitlines()[-1])
    for name, (reason, mends) in REFUSED.items():
        kind, sentence, next_step = said[name]
        assert kind == "input", (name, sentence)
        assert reason in sentence, (name, sentence)
        assert mends in next_step, (name, next_step)


def test_a_free_axis_takes_the_size_that_the_user_names(made: Path) -> None:
    given = InputShape(shape=(1, 9, 3))
    source = sources.load(SourceRequest(text=str(made / "free.keras"), input_shapes=(given,)))
    assert source.inputs[0].shape == (-1, 9, 3)
    with pytest.raises(InputError, match="does not fit"):
        sources.load(SourceRequest(text=str(made / "free.keras"), input_shapes=(InputShape(shape=(1, 9, 4)),)))


def test_options_of_another_format_are_refused(made: Path) -> None:
    with pytest.raises(ConfigError, match="--input-tensor"):
        sources.load(SourceRequest(text=str(made / "net.h5"), input_tensors=("x",)))
    with pytest.raises(ConfigError, match="--signature"):
        sources.load(SourceRequest(text=str(made / "graph.pb"), signature="serving_default"))


def test_a_memory_limit_ends_the_worker_and_not_the_build(made: Path) -> None:
    request = {"command": "describe", "model": str(made / "net.h5"), "format": "keras", "options": {}}
    with pytest.raises((ConversionError, InputError)):
        workers.call("tensorflow", {**request, "memory_bytes": 300_000_000})


#: TFLite file → None where it converts to ONNX, else the reason why not.
TFLITE = {
    "dtln/model_1.tflite": None,
    "mlperf_tiny/ad_toycar/ad01_fp32.tflite": None,
    "mlperf_tiny/ic_resnet8/pretrainedResnet.tflite": None,
    "tflite/hello_world_float.tflite": None,
    "tflite/mnist_lstm_float.tflite": "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "microwakeword/v2_okay_nabu.tflite": "VAR_HANDLE",
    "hard_cases/model_invoking_error.tflite": "fake-op-double",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", TFLITE)
def test_tflite_becomes_onnx_or_says_why_not(tmp_path: Path, path: str) -> None:
    if not (TEST_DATA / path).is_file():
        pytest.skip(f"the shared test data are not here: {path} was not tried")
    toolchains.install("tensorflow")
    copy = Path(shutil.copyfile(TEST_DATA / path, tmp_path / "model.tflite"))
    request = {"command": "convert", "model": str(copy), "format": "tflite", "to": "onnx", "folder": str(tmp_path)}
    reason = TFLITE[path]
    if reason is not None:
        with pytest.raises(ConversionError, match=reason):
            workers.call("tensorflow", request)
        return
    file = Path(workers.call("tensorflow", request)["file"])
    given, made = open_engine("litert", copy), open_engine("onnxruntime", file)
    assert [info.name for info in made.signature.inputs] == [info.name for info in given.signature.inputs]
    rng = np.random.default_rng(8)
    for _ in range(5):
        arrays = [rng.normal(0, 1, info.shape).astype(info.dtype) for info in given.signature.inputs]
        for wanted, found in zip(given.run(arrays), made.run(arrays), strict=True):
            error = metrics.relative_rms(found, wanted)
            assert error is not None
            assert error < CLOSE


def test_what_no_operator_uses_is_no_reason_against_onnx(tmp_path: Path) -> None:
    """The code of an operator that widened weights stays when these are widened, as of MediaPipe's sparse files."""
    from ai_edge_litert import schema_py_generated as schema

    def leave(model: schema.ModelT, _schema: object) -> bool:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.DENSIFY, schema.BuiltinOperator.DENSIFY
        model.operatorCodes.append(code)
        return True

    file = one_convolution(tmp_path / "model.tflite")
    file.write_bytes(edited(file.read_bytes(), leave))
    source = sources.load(file)
    samples = _samples(source)
    expected = oracle.open_oracle(source, tmp_path / "oracle").run(samples, "source", Silence())
    found = _converted(source, ("tf2onnx",), tmp_path)
    session = open_engine("onnxruntime", found)
    (answer,) = session.run([samples[0]["x"]])
    np.testing.assert_allclose(answer, expected[0]["y"], rtol=1e-4, atol=1e-5)


def test_a_small_tflite_file_becomes_onnx(made: Path, tmp_path: Path) -> None:
    source = sources.load(made / "net.tflite")
    samples = _samples(source)
    answers = oracle.open_oracle(source, tmp_path / "oracle").run(samples, "source", Silence())
    engine = open_engine("onnxruntime", _converted(source, ("tf2onnx",), tmp_path))
    for sample, answer in zip(samples, answers, strict=True):
        (found,) = engine.run([sample[spec.name] for spec in source.inputs])
        error = metrics.relative_rms(found, answer[source.outputs[0].name])
        assert error is not None
        assert error < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "options", "shape", "steps"),
    [
        ("mlperf_tiny/ic_resnet8/pretrainedResnet.h5", {}, (-1, 32, 32, 3), ["tf2onnx", "TFLiteConverter"]),
        ("mlperf_tiny/ad_toycar/ad01.h5", {}, (-1, 640), ["tf2onnx", "TFLiteConverter"]),
        ("mlperf_tiny/kws_dscnn/kws_ref_model", {}, (-1, 49, 10, 1), ["tf2onnx", "TFLiteConverter"]),
        ("arm_kws_tf1/DS_CNN_S.pb", {"input_tensors": ("Reshape_1",)}, (1, 49, 10, 1), ["tf2onnx", "TFLiteConverter"]),
    ],
)
def test_models_of_others(tmp_path: Path, path: str, options: dict, shape: tuple, steps: list[str]) -> None:
    if not (TEST_DATA / path).exists():
        pytest.skip(f"the shared test data are not here: {path} was not tried")
    toolchains.install("tensorflow")
    source = sources.load(SourceRequest(text=str(TEST_DATA / path), **options))
    assert source.inputs[0].shape == shape
    assert max(_errors(source, steps, tmp_path).values()) < CLOSE
