"""Loops in whole builds: written out where that is quicker and can be, left as they are where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.build import inputs, pipeline, routes, target_files
from edgeship.build.candidates import Built, Goals, Workshop
from edgeship.build.float_forms import has_loops
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Silence
from edgeship.build.unroll_loops import MOST_STEPS

WIDTH, CLASSES = 6, 4


def recurrent(path: Path, steps: int) -> Path:
    """A classifier whose only state goes through a Scan: next = tanh(part + state · W), then scores of the last."""
    rng = np.random.default_rng(5)
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "inner"], ["mixed"]), helper.make_node("Add", ["mixed", "part"], ["sum"]),
         helper.make_node("Tanh", ["sum"], ["next"]), helper.make_node("Identity", ["next"], ["seen"])],
        "body",
        [helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, WIDTH]),
         helper.make_tensor_value_info("part", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info("next", TensorProto.FLOAT, [1, WIDTH]),
         helper.make_tensor_value_info("seen", TensorProto.FLOAT, [1, WIDTH])],
        [numpy_helper.from_array(rng.normal(0, 0.4, (WIDTH, WIDTH)).astype(np.float32), "inner")],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["parts"]),
        helper.make_node("Scan", ["zero", "parts"], ["last", "all"], body=body, num_scan_inputs=1,
                         scan_input_axes=[1], scan_output_axes=[1]),
        helper.make_node("MatMul", ["last", "head"], ["scores"]),
    ]  # fmt: skip
    constants = [numpy_helper.from_array(rng.normal(0, 0.8, size).astype(np.float32), name)
                 for name, size in (("first", (WIDTH, WIDTH)), ("head", (WIDTH, CLASSES)))]  # fmt: skip
    zero = numpy_helper.from_array(np.zeros((1, WIDTH), np.float32), "zero")
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, steps, WIDTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])], [*constants, zero])  # fmt: skip
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(document, full_check=True)
    onnx.save(document, path)
    return path


def options(folder: Path, steps: int) -> BuildOptions:
    """A model, its data, and OpenVINO."""
    model = recurrent(folder / "net.onnx", steps)
    session = onnxruntime.InferenceSession(str(model))
    for name, count, seed in (("calibration", 40, 1), ("evaluation", 60, 2)):
        x = np.random.default_rng(seed).normal(0, 1, (count, steps, WIDTH)).astype(np.float32)
        y = np.array([session.run(None, {"x": each[None]})[0].argmax() for each in x])
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return BuildOptions(
        source=model, targets=("intel-nuc",), calibration=folder / "calibration.npz",
        evaluation=folder / "evaluation.npz", key=folder / "author.key", output=folder / "out", effort="quick",
        max_drop=0.3,
    )  # fmt: skip


def float_file(folder: Path, steps: int) -> Built:
    """What a build makes before it quantizes anything."""
    read = inputs.read(options(folder, steps), folder / "source", Silence())
    forms = routes.Forms(read.source, folder / "forms", lambda _: None)
    workshop = Workshop(read, folder / "work", forms, Goals(max_relative_rms=0.1), Silence())
    try:
        return workshop.float_variant("openvino", target_files.load("intel-nuc"))
    finally:
        workshop.close()


def test_a_short_loop_is_written_out(tmp_path: Path) -> None:
    """OpenVINO starts its loop's body anew at each step, which takes several times as long as the step itself."""
    document = pipeline.build(options(tmp_path, 12), Silence()).document
    found = next(each for each in document.variants if each.precision == "fp32")
    assert not has_loops(Path(found.file))
    assert any(note.startswith("loops written out step by step: ") for note in found.notes), found.notes
    assert found.relative_rms is not None and found.relative_rms < 1e-4


def test_a_long_loop_stays_a_loop(tmp_path: Path) -> None:
    found = float_file(tmp_path, MOST_STEPS + 1)
    assert has_loops(found.artifact.model)
    assert not any("written out" in note for note in found.artifact.notes)
    assert found.comparison.relative_rms is not None and found.comparison.relative_rms < 1e-4


def test_what_is_not_held_to_be_quicker_stays_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small: nothing is a thousand times as fast."""
    monkeypatch.setattr("edgeship.build.loop_costs._WORTH", 1000.0)
    assert has_loops(float_file(tmp_path, 6).artifact.model)


def test_no_clock_decides_about_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same form on a machine whose clock goes backwards."""
    ticks = iter(range(10**9, 0, -1))
    for name in ("perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(f"time.{name}", lambda: float(next(ticks)))
    assert not has_loops(float_file(tmp_path, 6).artifact.model)
