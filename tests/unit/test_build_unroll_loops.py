"""Loops written out: the same numbers as ONNX Runtime's own loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.build import sources
from edgeship.build.unroll import unroll
from edgeship.build.unroll_loops import MOST_STEPS
from edgeship_agent.contract.errors import ConversionError

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def _value(name: str, kind: int, shape: list[int] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _constant(name: str, value: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def _saved(
    path: Path, nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], constants: list[onnx.TensorProto]
) -> Path:
    graph = helper.make_graph(nodes, "g", [_value("x", FLOAT, [4, 3])], outputs, constants)
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(document, full_check=True)
    onnx.save(document, path)
    return path


def _body(*, count: str = "", inner: list[onnx.NodeProto] | None = None) -> onnx.GraphProto:
    """state → state · decay + a row of the outer ``x``; each step's state is collected.

    Args:
        count: goes on while ``step + 1 < count``; empty for always.
        inner: more operators, from ``grown`` to ``next``.
    """
    nodes = [
        helper.make_node("Gather", ["x", "step"], ["row"], axis=0),
        helper.make_node("Mul", ["state", "decay"], ["kept"]),
        helper.make_node("Add", ["kept", "row"], ["grown"]),
        *(inner or [helper.make_node("Identity", ["grown"], ["next"])]),
        helper.make_node("Add", ["step", "one"], ["following"]),
        helper.make_node("Less", ["following", count], ["goes"]) if count else
        helper.make_node("Identity", ["going"], ["goes"]),
        helper.make_node("Identity", ["next"], ["seen"]),
    ]  # fmt: skip
    return helper.make_graph(
        nodes, "body",
        [_value("step", INT64, []), _value("going", BOOL, []), _value("state", FLOAT, [3])],
        [_value("goes", BOOL, []), _value("next", FLOAT, [3]), _value("seen", FLOAT, [3])],
        [_constant("decay", 0.5), _constant("one", 1, np.int64)],
    )  # fmt: skip


def _loop(path: Path, *, trips: int = 4, body: onnx.GraphProto | None = None, **constants: onnx.TensorProto) -> Path:
    node = helper.make_node("Loop", ["trips", "true", "start"], ["last", "every"], body=body or _body())
    given = [_constant("trips", trips, np.int64), _constant("true", True, np.bool_), _constant("start", [1, 2, 3])]
    ends = [_value("last", FLOAT, [3]), _value("every", FLOAT, [None, 3])]
    return _saved(path, [node], ends, [*given, *constants.values()])


def _scan(path: Path, *, backwards: bool, axis: int) -> Path:
    """A running sum along an axis of ``x``."""
    width = (3, 4)[axis]
    body = helper.make_graph(
        [helper.make_node("Add", ["sum", "part"], ["more"]), helper.make_node("Tanh", ["more"], ["shown"])], "body",
        [_value("sum", FLOAT, [width]), _value("part", FLOAT, [width])],
        [_value("more", FLOAT, [width]), _value("shown", FLOAT, [width])],
    )  # fmt: skip
    turned = [int(backwards)]
    node = helper.make_node("Scan", ["zero", "x"], ["last", "every"], body=body, num_scan_inputs=1,
                            scan_input_axes=[axis], scan_input_directions=turned,
                            scan_output_axes=[axis], scan_output_directions=turned)  # fmt: skip
    ends = [_value("last", FLOAT, [width]), _value("every", FLOAT, [None, None])]
    return _saved(path, [node], ends, [_constant("zero", [0.0] * width)])


def _nested(path: Path) -> Path:
    """A loop within a loop; the inner one reads the outer one's state."""
    body = helper.make_graph(
        [helper.make_node("Add", ["held", "grown"], ["more"]), helper.make_node("Identity", ["go"], ["gone"])], "inner",
        [_value("at", INT64, []), _value("go", BOOL, []), _value("held", FLOAT, [3])],
        [_value("gone", BOOL, []), _value("more", FLOAT, [3])],
    )  # fmt: skip
    inner = [helper.make_node("Loop", ["twice", "", "kept"], ["next"], body=body)]
    return _loop(path, body=_body(inner=inner), twice=_constant("twice", 2, np.int64))


def _answers(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path))
    given = np.random.default_rng(9).normal(0, 1, (4, 3)).astype(np.float32)
    return list(session.run(None, {"x": given}))


def _written(path: Path, folder: Path) -> Path:
    folder.mkdir()
    return unroll(sources.load(path), path, folder)


@pytest.mark.parametrize(
    "make",
    [
        _loop,
        _nested,
        lambda path: _loop(path, body=_body(count="three"), three=_constant("three", 3, np.int64)),
        lambda path: _scan(path, backwards=False, axis=0),
        lambda path: _scan(path, backwards=True, axis=0),
        lambda path: _scan(path, backwards=True, axis=1),
    ],
    ids=["trips", "nested", "condition", "scan", "scan_backwards", "scan_columns"],
)
def test_the_steps_say_what_the_loop_says(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path / "m.onnx")
    written = _written(path, tmp_path / "out")
    onnx.checker.check_model(str(written), full_check=True)
    assert not {node.op_type for node in onnx.load(written).graph.node} & {"Loop", "Scan", "Less"}
    for mine, theirs in zip(_answers(written), _answers(path), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_loop_whose_end_depends_on_the_data_is_not_guessed(tmp_path: Path) -> None:
    inner = [
        helper.make_node("ReduceSum", ["grown"], ["sum"], keepdims=0),
        helper.make_node("Identity", ["grown"], ["next"]),
        helper.make_node("Less", ["sum", "most"], ["small"]),
    ]
    body = _body(inner=inner)
    body.output[0].name = "small"
    path = _loop(tmp_path / "m.onnx", body=body, most=_constant("most", 1e9))
    with pytest.raises(ConversionError, match="depends on the data"):
        _written(path, tmp_path / "out")


def test_a_loop_of_too_many_steps_stays_a_loop(tmp_path: Path) -> None:
    body = _body()
    body.node[0].CopyFrom(helper.make_node("Gather", ["x", "zero"], ["row"], axis=0))
    path = _loop(tmp_path / "m.onnx", trips=MOST_STEPS + 1, body=body, zero=_constant("zero", 0, np.int64))
    with pytest.raises(ConversionError, match=f"more than {MOST_STEPS}"):
        _written(path, tmp_path / "out")
