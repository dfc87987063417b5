"""Operators of tables in plain ONNX: the same numbers, without the domain that only ONNX Runtime has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.build.plain_tables import written_out
from edgeship_agent.contract.errors import ConversionError

ML = "ai.onnx.ml"


def saved(folder: Path, nodes: list[Any], width: int) -> Path:
    numbers = [numpy_helper.from_array(np.array(values, np.int64), name)
               for name, values in (("some", [2, 0]), ("last", [3]), ("one", 1), ("axis", [1]))]  # fmt: skip
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in (("x", 4), ("y", width))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], numbers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(ML, 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "tables.onnx")
    return folder / "tables.onnx"


@pytest.mark.parametrize("zeros", [0, 1])
def test_columns_are_picked_filled_and_made_one_hot(tmp_path: Path, zeros: int) -> None:
    nodes = [
        helper.make_node("ArrayFeatureExtractor", ["x", "some"], ["picked"], domain=ML),
        helper.make_node("Imputer", ["picked"], ["filled"], domain=ML, imputed_value_floats=[0.5, -2.0],
                         replaced_value_float=float("nan")),
        helper.make_node("ArrayFeatureExtractor", ["x", "last"], ["kind"], domain=ML),
        helper.make_node("Cast", ["kind"], ["whole"], to=TensorProto.INT64),
        helper.make_node("OneHotEncoder", ["whole"], ["deep"], domain=ML, cats_int64s=[0, 1, 5], zeros=zeros),
        helper.make_node("ReduceSum", ["deep", "axis"], ["flat"], keepdims=0),
        helper.make_node("ArrayFeatureExtractor", ["x", "one"], ["single"], domain=ML),
        helper.make_node("Concat", ["filled", "flat", "single"], ["y"], axis=1),
    ]  # fmt: skip
    before = saved(tmp_path, nodes, 6)
    (tmp_path / "out").mkdir()
    file, notes = written_out(before, tmp_path / "out")
    document = onnx.load(str(file))
    assert [each.domain for each in document.opset_import] == [""]
    assert bool(notes) == (not zeros)
    x = np.array([[1, 2, np.nan, 5], [np.nan, 3, 4, 0], [7, 8, 9, 1]], np.float32)
    one, other = (onnxruntime.InferenceSession(str(each)).run(None, {"x": x})[0] for each in (before, file))
    assert np.array_equal(one, other)
    assert np.isfinite(other).all()


def test_a_tree_has_no_plain_form(tmp_path: Path) -> None:
    tree = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain=ML, n_targets=1)
    with pytest.raises(ConversionError, match="TreeEnsembleRegressor: no form in plain ONNX"):
        written_out(saved(tmp_path, [tree], 1), tmp_path)
