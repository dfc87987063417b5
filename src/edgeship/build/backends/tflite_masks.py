"""Masks of a TFLite file as numbers that 8 bits can be multiplied with.

onnx2tf writes "minus infinity where masked" as a product with the lowest number of float32; so do models themselves,
with −10,000 and others. The scale of such a constant, times that of what it is multiplied with, over that of the
product, is no multiplier that LiteRT can hold.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

import numpy as np

from edgeship.build.backends.tflite_edit import edited, text_of
from edgeship.build.search.masks import LOWEST

_SUMS: Final = ("ADD", "SELECT", "SELECT_V2")
_PRODUCTS: Final = ("MUL",)


def with_bounded_masks(data: bytes, *, sums: Container[str], products: Container[str]) -> bytes:
    """The same model with constants that mask scores of :data:`LOWEST` at least, or the very same bytes.

    Args:
        data: a TFLite file.
        sums: tensors on the way to a softmax: by a sum or a choice, a constant masks them.
        products: tensors that are masks: by a product, a constant makes them.
    """
    return edited(data, lambda model, schema: _bound(model, schema, sums, products))


def _bound(model: Any, schema: Any, sums: Container[str], products: Container[str]) -> bool:
    graph = model.subgraphs[0]
    made_there = {getattr(schema.BuiltinOperator, name): where
                  for names, where in ((_SUMS, sums), (_PRODUCTS, products)) for name in names}  # fmt: skip
    found = False
    for operator in graph.operators or ():
        code = model.operatorCodes[operator.opcodeIndex]
        where = made_there.get(max(code.builtinCode, code.deprecatedBuiltinCode))
        if where is None or text_of(graph.tensors[operator.outputs[0]].name) not in where:
            continue
        operator.inputs = np.array(operator.inputs)  # what was read lies in the file's own bytes
        for place, index in enumerate(operator.inputs):
            values = _constant(model, schema, graph.tensors[index])
            if values is not None and values.min() < LOWEST:
                bounded = np.maximum(values, np.float32(LOWEST))
                operator.inputs[place] = _added(model, graph, graph.tensors[index], schema, bounded)
                found = True
    return found


def _constant(model: Any, schema: Any, tensor: Any) -> Any:
    """Values of a constant in float32; None for anything else."""
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.FLOAT32 or data is None or not len(data):
        return None
    return np.frombuffer(bytes(data), np.float32)


def _added(model: Any, graph: Any, like: Any, schema: Any, values: Any) -> int:
    """A constant of its own: others may read the one before. Its index."""
    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    tensor.shape, tensor.type, tensor.shapeSignature = like.shape, like.type, like.shapeSignature
    tensor.name = f"{text_of(like.name)}_bounded_{len(graph.tensors)}"
    tensor.buffer, tensor.hasRank = len(model.buffers), like.hasRank
    model.buffers.append(buffer)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
