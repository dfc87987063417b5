"""Weights that several operators share: kept once, and counted as work wherever they are multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.build.backends.onnx_graph import OnnxGraph
from edgeship.build.backends.openvino_graph import OpenVinoGraph
from edgeship.build.backends.tflite_constants import with_shared_constants
from edgeship.build.backends.tflite_graph import TfliteGraph
from edgeship.build.search.floats import head, joined_ends
from edgeship.build.search.graph import Operator, sized
from edgeship_agent.runtime import open_engine
from tests import tflite_files

WIDTH = 32


def test_copies_become_one_and_the_answers_stay(tmp_path: Path) -> None:
    path = tflite_files.tied(tmp_path / "m.tflite")
    small = tmp_path / "small.tflite"
    small.write_bytes(with_shared_constants(path.read_bytes()))
    assert small.stat().st_size < path.stat().st_size - 2 * WIDTH * WIDTH * 4
    given = [np.random.default_rng(1).normal(0, 1, (1, WIDTH)).astype(np.float32)]
    answers = []
    for file in (path, small):
        engine = open_engine("litert", file)
        answers.append(engine.run(given)[0].copy())
        engine.close()
    np.testing.assert_array_equal(*answers)
    assert with_shared_constants(small.read_bytes()) == small.read_bytes()


def _tied(path: Path) -> Path:
    """Two products with one matrix, a last small one, and a join of both ends."""
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="second"),
        helper.make_node("Concat", ["a", "b"], ["y"], name="join", axis=1),
    ]
    constants = [numpy_helper.from_array(rng.normal(0, 1, (WIDTH, WIDTH)).astype(np.float32), "w")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
            for name, size in (("x", WIDTH), ("y", 2 * WIDTH))]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _of_onnx(folder: Path) -> Sequence[Operator]:
    return OnnxGraph(_tied(folder / "m.onnx"), ()).operators()


def _of_openvino(folder: Path) -> Sequence[Operator]:
    file = folder / "m.xml"
    openvino.save_model(openvino.convert_model(str(_tied(folder / "m.onnx"))), str(file), compress_to_fp16=False)
    return OpenVinoGraph(file, ()).operators()


def _of_tflite(folder: Path) -> Sequence[Operator]:
    path = tflite_files.tied(folder / "m.tflite")
    path.write_bytes(with_shared_constants(path.read_bytes()))
    return TfliteGraph(path, ()).operators()


@pytest.mark.parametrize("read", [_of_onnx, _of_openvino, _of_tflite])
def test_shared_weights_are_work(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    operators = read(tmp_path)
    products = [each for each in operators if each.fan_in]
    assert [each.fan_in for each in products] == [WIDTH] * len(products)
    assert len(products) >= 2
    shapes = {name: (1, WIDTH) for each in operators for name in (*each.inputs, *each.outputs)}
    found = sized(operators, shapes)
    assert [each.multiplications for each in found if each.fan_in] == [WIDTH * WIDTH] * len(products)
    # no product goes to float for being at the end of the net
    names = {each.name for each in products}
    assert not names & {*head(found), *joined_ends(found)}
