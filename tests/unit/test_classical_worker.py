"""What the classical toolchain's worker makes of a converter's graph; it runs in another environment."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

SCRIPT = Path(__file__).resolve().parents[2] / "src" / "edgeship" / "build" / "toolchains" / "classical_worker.py"
OUTPUTS = [{"name": "values", "dtype": "float32", "shape": [-1, 2]}]


@pytest.fixture(scope="module")
def worker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("classical_worker", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _converted(*domains: str) -> ModelProto:
    """A converter's graph, which names its operator sets in this order."""
    weights = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [weights])
    versions = {"": 18, "ai.onnx.ml": 1}
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(name, versions[name]) for name in domains])


def _cut(worker: ModuleType, model: ModelProto) -> bytes:
    worker._cut(model, {"y": "values"}, OUTPUTS)
    return bytes(model.SerializeToString(deterministic=True))


def test_the_order_in_which_a_converter_names_operator_sets_does_not_matter(worker):
    assert _cut(worker, _converted("", "ai.onnx.ml")) == _cut(worker, _converted("ai.onnx.ml", ""))


def test_a_graph_of_trees_alone_names_the_plain_operators_too(worker):
    model = _converted("ai.onnx.ml")
    _cut(worker, model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18), ("ai.onnx.ml", 1)]
