"""Batch normalisation behind a Gemm becomes part of its weights, and the answers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.build.backends.onnx_scales import fold_scales
from edgeship_agent.runtime.engine import Array

RNG = np.random.default_rng(11)
INPUTS, COLUMNS = 6, 4


def _net(*, outputs: tuple[str, ...] = ("y",), turned: bool = True, by_row: bool = False) -> Any:
    """``x`` [2, 6] through a Gemm, a product, a sum, a difference and a rectifier to ``y`` [2, 4]."""
    weight = RNG.normal(0, 1, (COLUMNS, INPUTS) if turned else (INPUTS, COLUMNS))
    numbers = {"w": weight, "b": RNG.normal(0, 1, COLUMNS),
               "scale": RNG.uniform(0.5, 2.0, (2, COLUMNS) if by_row else (1, COLUMNS)),
               "shift": RNG.normal(0, 1, COLUMNS), "less": np.array(0.25)}  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], transB=int(turned)),
        helper.make_node("Mul", ["scale", "a"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["shifted"]),
        helper.make_node("Sub", ["shifted", "less"], ["last"]),
        helper.make_node("Relu", ["last"], ["y"]),
    ]
    constants = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in numbers.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, COLUMNS]) for name in outputs]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, INPUTS])
    graph = helper.make_graph(nodes, "g", [x], ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _answers(document: Any) -> list[Array]:
    onnx.checker.check_model(document)
    session = onnxruntime.InferenceSession(document.SerializeToString(), providers=["CPUExecutionProvider"])
    given = np.random.default_rng(3).normal(0, 1, (2, INPUTS)).astype(np.float32)
    return list(session.run(None, {"x": given}))


@pytest.mark.parametrize("turned", [True, False])
def test_they_go_and_the_answers_stay(turned: bool) -> None:
    document = _net(turned=turned)
    before = _answers(document)
    assert fold_scales(document) == 3
    assert [node.op_type for node in document.graph.node] == ["Gemm", "Relu"]
    np.testing.assert_allclose(_answers(document)[0], before[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("outputs", "by_row", "gone"), [(("y", "a"), False, 0), (("y", "shifted"), False, 2),
                                                         (("y",), True, 0)])  # fmt: skip
def test_what_leaves_the_graph_or_differs_by_row_stays(outputs: tuple[str, ...], by_row: bool, gone: int) -> None:
    document = _net(outputs=outputs, by_row=by_row)
    before = _answers(document)
    assert fold_scales(document) == gone
    for one, other in zip(_answers(document), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
