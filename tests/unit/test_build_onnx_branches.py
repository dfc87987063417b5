"""ONNX graphs that branch: what is taken stays, what cannot be known stays open, and the numbers are the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeship.build import sources
from edgeship.build.sources import InputShape, InputValue, SourceRequest, onnx_branches
from edgeship_agent.contract.errors import ConfigError

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
SILERO = TEST_DATA / "silero_vad" / "silero_vad.onnx"


def _constant(name: str, values: object, dtype: int) -> onnx.NodeProto:
    array = np.asarray(values)
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(
        f"{name}_value", dtype, array.shape, array.reshape(-1).tolist()))  # fmt: skip


def _graph(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def two_rates(path: Path, *, reads_numbers: bool = False) -> Path:
    """``y = x · 2`` at rate 16000 and, with another one, ``x · 3``; then one more where the last axis is 4.

    Both branches call their own tensors the same, as exporters do. With ``reads_numbers`` the outer condition asks
    whether x is positive on the whole.
    """
    faster = _graph("fast", [_constant("by", [2.0], TensorProto.FLOAT), helper.make_node("Mul", ["x", "by"], ["made"])],
                    "made")  # fmt: skip
    slower = _graph("slow", [_constant("by", [3.0], TensorProto.FLOAT), helper.make_node("Mul", ["x", "by"], ["made"])],
                    "made")  # fmt: skip
    more = _graph(
        "more", [_constant("by", [1.0], TensorProto.FLOAT), helper.make_node("Add", ["scaled", "by"], ["made"])], "made"
    )
    same = _graph("same", [helper.make_node("Identity", ["scaled"], ["made"])], "made")
    condition = (
        [helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0), _constant("limit", 0.0, TensorProto.FLOAT),
         helper.make_node("Greater", ["sum", "limit"], ["is_fast"])]
        if reads_numbers else
        [_constant("limit", 16000, TensorProto.INT64), helper.make_node("Equal", ["rate", "limit"], ["is_fast"])]
    )  # fmt: skip
    nodes = [
        *condition,
        helper.make_node("If", ["is_fast"], ["scaled"], then_branch=faster, else_branch=slower),
        helper.make_node("Shape", ["scaled"], ["sizes"]),
        _constant("last", 1, TensorProto.INT64),
        helper.make_node("Gather", ["sizes", "last"], ["length"]),
        _constant("four", 4, TensorProto.INT64),
        helper.make_node("Equal", ["length", "four"], ["is_four"]),
        helper.make_node("If", ["is_four"], ["y"], then_branch=more, else_branch=same),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "L"]),
              helper.make_tensor_value_info("rate", TensorProto.INT64, [])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "L"])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def _loaded(path: Path, length: int, *values: str) -> sources.SourceModel:
    return sources.load(SourceRequest(
        text=str(path), input_shapes=(InputShape(name="x", shape=(1, length)),),
        input_values=tuple(InputValue.parse(text) for text in values)))  # fmt: skip


@pytest.mark.parametrize(("rate", "length", "factor", "more"), [
    (16000, 4, 2, 1), (8000, 4, 3, 1), (16000, 5, 2, 0), (8000, 5, 3, 0)])  # fmt: skip
def test_only_the_branch_that_is_taken_stays(tmp_path: Path, rate: int, length: int, factor: int, more: int) -> None:
    source = _loaded(two_rates(tmp_path / "n.onnx"), length, f"rate={rate}")
    assert [spec.name for spec in source.inputs] == ["x"]
    assert not [node for node in onnx.load_from_string(source.data).graph.node if node.op_type == "If"]
    assert source.notes == ("2 branches depend on nothing but fixed sizes and values: only what is taken was kept",)
    assert source.options == {"input_values": {"rate": float(rate)}}
    x = np.arange(length, dtype=np.float32)[np.newaxis]
    (y,) = onnxruntime.InferenceSession(source.data).run(None, {"x": x})
    np.testing.assert_array_equal(y, x * factor + more)


def test_without_the_value_both_branches_stay_and_the_way_out_is_said(tmp_path: Path) -> None:
    source = _loaded(two_rates(tmp_path / "n.onnx"), 4)
    assert [spec.name for spec in source.inputs] == ["x", "rate"]
    assert source.notes[-1].startswith("it branches on rate: with a fixed value (--input-value rate=NUMBER)")
    session = onnxruntime.InferenceSession(source.data)
    for rate, factor in ((16000, 2), (8000, 3)):
        (y,) = session.run(None, {"x": np.ones((1, 4), np.float32), "rate": np.array(rate)})
        np.testing.assert_array_equal(y, np.full((1, 4), factor + 1.0, np.float32))


def test_a_condition_on_numbers_stays_open(tmp_path: Path) -> None:
    model = onnx.load(str(two_rates(tmp_path / "n.onnx", reads_numbers=True)))
    for axis, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 4), strict=True):
        axis.dim_value = size
    # the second one asks for the size of what the first one makes, which is open as well
    assert onnx_branches.keep_taken(model, tmp_path) == 0


@pytest.mark.parametrize(("text", "message"), [
    ("speed=1", "not an input of the model"), ("x=1", "holds more than one number"), ("rate", "cannot be read"),
    ("rate=much", "cannot be read"), ("rate=nan", "cannot be read")])  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    model = onnx.load(str(two_rates(tmp_path / "n.onnx")))
    for axis in model.graph.input[0].type.tensor_type.shape.dim:
        axis.dim_value = 4
    onnx.save(model, str(tmp_path / "n.onnx"))
    with pytest.raises(ConfigError, match=message):
        _loaded(tmp_path / "n.onnx", 4, text)


def test_other_formats_have_no_such_values(tmp_path: Path) -> None:
    (tmp_path / "n.tflite").write_bytes(b"anything")
    with pytest.raises(ConfigError, match="cannot be made constants"):
        sources.load(SourceRequest(text=str(tmp_path / "n.tflite"), input_values=(InputValue(name="a", value=1.0),)))


@pytest.mark.skipif(not SILERO.is_file(), reason="no models of others")
def test_a_speech_detector_for_two_rates_keeps_one() -> None:
    source = sources.load(
        SourceRequest(
            text=str(SILERO),
            input_values=(InputValue(name="sr", value=16000),),
            input_shapes=(InputShape(name="input", shape=(1, 576)), InputShape(name="state", shape=(2, 1, 128))),
        )
    )
    assert [spec.name for spec in source.inputs] == ["input", "state"]
    assert not [node for node in onnx.load_from_string(source.data).graph.node if node.op_type == "If"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    kept = onnxruntime.InferenceSession(source.data, options)
    whole = onnxruntime.InferenceSession(str(SILERO), options)
    state, rng = np.zeros((2, 1, 128), np.float32), np.random.default_rng(2)
    for _ in range(4):
        feed = {"input": rng.normal(0, 0.1, (1, 576)).astype(np.float32), "state": state}
        expected = whole.run(None, {**feed, "sr": np.array(16000)})
        answered = kept.run(None, feed)
        np.testing.assert_array_equal(answered[0], expected[0])
        np.testing.assert_array_equal(answered[1], expected[1])
        state = expected[1]
