"""Batch normalisation that an exporter wrote behind a Gemm as a product and a sum: made part of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeship_agent.runtime.engine import Array

#: Operator → weights and bias after it, from weights, bias and its constant; each constant has one value a column.
_FOLDED: Final[dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]]] = {
    "Mul": lambda weight, bias, number: (weight * number, bias * number),
    "Div": lambda weight, bias, number: (weight / number, bias / number),
    "Add": lambda weight, bias, number: (weight, bias + number),
    "Sub": lambda weight, bias, number: (weight, bias - number),
}
#: Those whose constant may stand first.
_EITHER_SIDE: Final = frozenset({"Mul", "Add"})


def fold_scales(document: Any) -> int:
    """Fold products and sums with constants into the Gemm before them, in place.

    ONNX Runtime does so behind convolutions, not behind Gemm: an autoencoder of ten layers with batch normalisation
    would have its activations rounded three times a layer.

    Args:
        document: an ONNX model.

    Returns:
        How many operators are gone.
    """
    graph = document.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    leaving = {value.name for value in graph.output}
    gone = 0
    for gemm in [node for node in graph.node if node.op_type == "Gemm"]:
        while (follower := _follower(gemm, readers, leaving)) is not None:
            if not _fold(graph, gemm, follower, constants):
                break
            gemm.output[0] = follower.output[0]
            graph.node.remove(follower)
            gone += 1
    return gone


def _follower(gemm: Any, readers: dict[str, list[Any]], leaving: set[str]) -> Any:
    """The one operator that reads a Gemm's result, if it is one that can be folded."""
    found = readers.get(gemm.output[0], [])
    alone = len(found) == 1 and gemm.output[0] not in leaving
    return found[0] if alone and found[0].op_type in _FOLDED else None


def _fold(graph: Any, gemm: Any, follower: Any, constants: dict[str, Any]) -> bool:
    """Give a Gemm new weights and a new bias; whether it could be."""
    attributes = {each.name: helper.get_attribute_value(each) for each in gemm.attribute}
    stored = constants.get(gemm.input[1])
    scaled = attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
    if stored is None or stored.data_type != onnx.TensorProto.FLOAT or scaled:
        return False
    weight = numpy_helper.to_array(stored)
    turned = bool(attributes.get("transB", 0))
    columns = weight.shape[0 if turned else 1]
    place = 0 if follower.op_type in _EITHER_SIDE and follower.input[0] in constants else 1
    number = _row(constants.get(follower.input[place]), columns)
    has_bias = len(gemm.input) > 2 and bool(gemm.input[2])
    bias = _row(constants.get(gemm.input[2]), columns) if has_bias else np.zeros(columns)
    if number is None or bias is None or follower.input[1 - place] != gemm.output[0]:
        return False
    wide = (weight.T if turned else weight).astype(np.float64)
    wide, bias = _FOLDED[follower.op_type](wide, bias, number)
    if not (np.isfinite(wide).all() and np.isfinite(bias).all()):
        return False
    names = [_put(graph, constants, f"{gemm.output[0]}/{word}", values)
             for word, values in (("weight", wide.T if turned else wide), ("bias", bias))]  # fmt: skip
    del gemm.input[1:]
    gemm.input.extend(names)
    return True


def _row(tensor: Any, columns: int) -> Array | None:
    """A constant as one value a column; None where it is none, or differs by row."""
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(tensor)
    if values.ndim > 2 or values.size not in {1, columns} or values.shape[-1:] not in {(), (1,), (columns,)}:
        return None
    return np.broadcast_to(values.reshape(-1), (columns,)).astype(np.float64)


def _put(graph: Any, constants: dict[str, Any], name: str, values: Array) -> str:
    """A new constant: others may read the old one. Its name."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name)
    graph.initializer.append(tensor)
    constants[name] = tensor
    return name
