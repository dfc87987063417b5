"""Recurrent layers written out: the same numbers as ONNX Runtime's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.build import sources
from edgeship.build.unroll import NothingToUnroll, unroll
from edgeship_agent.contract.errors import ConversionError
from tests import models

STEPS, VALUES, HIDDEN = 5, 3, 4


def _recurrent(path: Path, kind: str, direction: str, *, state: bool = False, **options: int) -> Path:
    """``x`` [5, 1, 3], and the first states on request, to everything that the layer says."""
    rng = np.random.default_rng(8)
    gates, ways = {"LSTM": 4, "GRU": 3}[kind], 2 if direction == "bidirectional" else 1
    shapes = {"w": (ways, gates * HIDDEN, VALUES), "r": (ways, gates * HIDDEN, HIDDEN), "b": (ways, 2 * gates * HIDDEN)}
    weights = [numpy_helper.from_array(rng.normal(0, 0.5, shape).astype(np.float32), name)
               for name, shape in shapes.items()]  # fmt: skip
    last = [ways, 1, HIDDEN]
    ends = {"y": [STEPS, ways, 1, HIDDEN], "h": last, **({"c": last} if kind == "LSTM" else {})}
    states = dict.fromkeys(("h0", "c0") if kind == "LSTM" else ("h0",), last) if state else {}
    names = ["x", *shapes, *(["", *states] if state else [])]
    node = helper.make_node(kind, names, list(ends), hidden_size=HIDDEN, direction=direction, **options)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
              for name, shape in ({"x": [STEPS, 1, VALUES]} | states | ends).items()]  # fmt: skip
    count = 1 + len(states)
    graph = helper.make_graph([node], "g", values[:count], values[count:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _answers(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path))
    rng = np.random.default_rng(9)
    feed = {each.name: rng.normal(0, 1, each.shape).astype(np.float32) for each in session.get_inputs()}
    return list(session.run(None, feed))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("kind", "options"), [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1})])
@pytest.mark.parametrize("state", [False, True])
def test_the_steps_say_what_the_layer_says(
    tmp_path: Path, kind: str, options: dict[str, int], direction: str, state: bool
) -> None:
    path = _recurrent(tmp_path / "m.onnx", kind, direction, state=state, **options)
    (tmp_path / "out").mkdir()
    written = unroll(sources.load(path), path, tmp_path / "out")
    onnx.checker.check_model(str(written))
    assert not {node.op_type for node in onnx.load(written).graph.node} & {"LSTM", "GRU"}
    for mine, theirs in zip(_answers(written), _answers(path), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_a_model_without_a_recurrent_layer_has_nothing_to_unroll(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    with pytest.raises(NothingToUnroll):
        unroll(sources.load(path), path, tmp_path)


def test_other_activations_are_not_guessed(tmp_path: Path) -> None:
    path = _recurrent(tmp_path / "m.onnx", "GRU", "forward")
    document = onnx.load(path)
    document.graph.node[0].attribute.append(helper.make_attribute("clip", 3.0))
    onnx.save(document, path)
    with pytest.raises(ConversionError, match="clip"):
        unroll(sources.load(path), path, tmp_path)
