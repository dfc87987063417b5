"""ONNX files as converters take them: float32 at their ends, and no operators of the first years.

Half and double precision at the ends become float32: devices hand over and take nothing else.
"""

from __future__ import annotations

from typing import Any, Final

import onnx
from onnx import TensorProto, helper, version_converter

from edgeship.build.backends.onnx_names import free, names_of, nodes_of

_OTHER_FLOATS: Final = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
#: Below the first opset, ``Upsample``, ``Pad`` and others have forms that onnx2tf does not read; the second has none.
_OLD_OPSET: Final = 11
_RAISED_OPSET: Final = 13


def with_recent_operators(data: bytes) -> bytes:
    """The same model in a newer opset where its own is too old for onnx2tf, and ONNX's own converter can do it."""
    model = onnx.ModelProto.FromString(data)
    opset = next((each.version for each in model.opset_import if each.domain in {"", "ai.onnx"}), _OLD_OPSET)
    if opset >= _OLD_OPSET:
        return data
    try:
        raised = version_converter.convert_version(model, _RAISED_OPSET)
    except (RuntimeError, ValueError):  # without an adapter for an operator: as it is, then
        return data
    written: bytes = raised.SerializeToString(deterministic=True)
    return written


def with_float_ends(data: bytes) -> bytes:
    """The same model with float32 where its inputs and outputs are of another precision; unchanged without such.

    Inside, it computes as before: its inputs are cast when they come in, its outputs when they go out. Tensors at the
    ends keep their names.
    """
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants and _kind(each) in _OTHER_FLOATS]
    outputs = [each for each in graph.output if _kind(each) in _OTHER_FLOATS]
    if not inputs and not outputs:
        return data
    names = names_of(graph)
    inside = {each.name: free(f"{each.name}_inside", names) for each in (*inputs, *outputs)}
    for node in nodes_of(graph):
        for ends in (node.input, node.output):
            for index, name in enumerate(ends):
                ends[index] = inside.get(name, name)
    casts_in = [helper.make_node("Cast", [each.name], [inside[each.name]], to=_kind(each)) for each in inputs]
    casts_out = [helper.make_node("Cast", [inside[each.name]], [each.name], to=TensorProto.FLOAT) for each in outputs]
    nodes = [*casts_in, *graph.node, *casts_out]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.value_info:
        value.name = inside.get(value.name, value.name)
    for each in (*inputs, *outputs):
        each.type.tensor_type.elem_type = TensorProto.FLOAT
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _kind(value: Any) -> int:
    return int(value.type.tensor_type.elem_type)
