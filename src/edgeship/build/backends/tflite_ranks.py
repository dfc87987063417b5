"""Constants of TFLite files with as many axes as what they are combined with."""

from __future__ import annotations

import copy
from typing import Any, Final

from edgeship.build.backends.tflite_edit import edited, text_of

#: Source: TensorFlow Lite schema v3, ``TensorType``.
_FLOAT32: Final = 0
#: Operators that hand the scale of their output to their inputs, and spread a smaller input over the larger one; the
#: last one a single value, which it pads with.
_SPREADING: Final = ("MAXIMUM", "MINIMUM", "PADV2")


def with_equal_ranks(data: bytes) -> bytes:
    """The same model, its constants in maximum, minimum and padding with axes of one entry in front, where it has such.

    ai-edge-quantizer 0.10 quantizes these constants by the output's scale, which has an axis for each of the output's,
    and refuses a constant that has fewer ("Ranks of scales … must be the same as the tensor rank").
    """
    return edited(data, _widen)


def _widen(model: Any, schema: Any) -> bool:
    codes = {getattr(schema.BuiltinOperator, name) for name in _SPREADING}
    spread = [_spread(model, graph, operator) for graph in model.subgraphs for operator in graph.operators or ()
              if model.operatorCodes[operator.opcodeIndex].builtinCode in codes]  # fmt: skip
    return any(spread)


def _spread(model: Any, graph: Any, operator: Any) -> bool:
    """Give an operator's small constants the rank of its output; whether there were any."""
    rank = len(_shape(graph.tensors[operator.outputs[0]]))
    inputs = [int(index) for index in operator.inputs]
    for place, index in enumerate(inputs):
        tensor = graph.tensors[index]
        missing = rank - len(_shape(tensor))
        if missing <= 0 or tensor.type != _FLOAT32 or not _is_constant(model, tensor):
            continue
        wider = copy.copy(tensor)  # with bytes of its own: others may read the old one in another scale
        wider.shape = [1] * missing + _shape(tensor)
        wider.shapeSignature = None
        wider.name = f"{text_of(tensor.name)}_spread_{len(graph.tensors)}"
        wider.buffer = len(model.buffers)
        model.buffers.append(copy.copy(model.buffers[tensor.buffer]))
        inputs[place] = len(graph.tensors)
        graph.tensors.append(wider)
    changed = inputs != [int(index) for index in operator.inputs]
    operator.inputs = inputs
    return changed


def _shape(tensor: Any) -> list[int]:
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]


def _is_constant(model: Any, tensor: Any) -> bool:
    held = model.buffers[tensor.buffer].data
    return held is not None and len(held) > 0
