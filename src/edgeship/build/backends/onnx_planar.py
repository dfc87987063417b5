"""ONNX files without grouped convolutions of one dimension, which onnx2tf lowers to an operator that LiteRT has not.

Convolutions of one group and depthwise ones it takes as they are. Source: onnx2tf 2.6.9, ``_validate_conv`` of its
``flatbuffer_direct`` backend, which takes other groups with weights of four axes alone.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeship.build.backends.onnx_names import free, names_of

_ONE_DIMENSION: Final = 3
#: Where the height goes: [batch, channels, height, length].
_HEIGHT: Final = 2
#: From here on, ``Unsqueeze`` and ``Squeeze`` take their axes as an input.
_AXES_ARE_AN_INPUT: Final = 13
_ONNX: Final = frozenset({"", "ai.onnx"})


def with_planar_groups(data: bytes) -> bytes:
    """The same model with grouped convolutions of one dimension as such of two, one high; unchanged without such.

    ``x [N, C, L]`` becomes ``[N, C, 1, L]``, is convolved with the weights as ``[O, C / groups, 1, K]``, and loses its
    height again: the same products in the same sums.
    """
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if not any(_is_grouped(node, weights) for node in graph.node):
        return data
    opset = next(each.version for each in model.opset_import if each.domain in _ONNX)
    taken = names_of(graph)
    nodes = []
    for node in graph.node:
        nodes += _planar(graph, node, weights, taken, opset) if _is_grouped(node, weights) else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _is_grouped(node: Any, weights: dict[str, Any]) -> bool:
    """Whether onnx2tf does not take this node: several groups, of several channels each, over one dimension."""
    if node.op_type != "Conv" or node.domain not in _ONNX or node.input[1] not in weights:
        return False
    shape = weights[node.input[1]].dims
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return len(shape) == _ONE_DIMENSION and groups > 1 and shape[1] > 1


def _planar(graph: Any, node: Any, weights: dict[str, Any], taken: set[str], opset: int) -> list[Any]:
    """One convolution between the two nodes that give it its height and take it away."""
    tensors = (node.input[0], node.output[0], node.input[1])
    inside, convolved, kernels = (free(f"{name}_planar", taken) for name in tensors)
    values = np.expand_dims(numpy_helper.to_array(weights[node.input[1]]), _HEIGHT)
    graph.initializer.append(numpy_helper.from_array(values, kernels))
    planar = onnx.NodeProto()
    planar.CopyFrom(node)
    planar.input[0], planar.input[1], planar.output[0] = inside, kernels, convolved
    for attribute in planar.attribute:
        if attribute.name in {"kernel_shape", "strides", "dilations"}:
            attribute.ints.insert(0, 1)
        elif attribute.name == "pads":
            before, after = attribute.ints
            attribute.ints[:] = [0, before, 0, after]
    return [_axis("Unsqueeze", graph, node.input[0], inside, taken, opset), planar,
            _axis("Squeeze", graph, convolved, node.output[0], taken, opset)]  # fmt: skip


def _axis(kind: str, graph: Any, given: str, made: str, taken: set[str], opset: int) -> Any:
    """``Unsqueeze`` or ``Squeeze`` of the height."""
    if opset < _AXES_ARE_AN_INPUT:
        return helper.make_node(kind, [given], [made], axes=[_HEIGHT])
    axes = free(f"{made}_axes", taken)
    graph.initializer.append(numpy_helper.from_array(np.array([_HEIGHT], np.int64), axes))
    return helper.make_node(kind, [given, axes], [made])
