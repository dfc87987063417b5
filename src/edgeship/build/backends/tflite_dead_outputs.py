"""Results that nothing reads in a quantized TFLite file: the quantizer leaves them in float beside the others."""

from __future__ import annotations

from typing import Any, Final

_IDENTIFIER: Final = b"TFL3"
#: Kinds whose results all have the type of their input.
_DIVIDING: Final = ("SPLIT", "SPLIT_V", "UNPACK")


def with_typed_dead_outputs(data: bytes) -> bytes:
    """The same model; a result of a split that nothing reads has the type of those that are read.

    The runtime refuses a split of which one part is float and the others int8. The first step of an LSTM that starts
    from zero reads three of four gates.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    kinds = {getattr(schema.BuiltinOperator, name) for name in _DIVIDING}
    changed = False
    for graph in model.subgraphs:
        read = {int(index) for operator in graph.operators or () for index in operator.inputs} | {*graph.outputs}
        for operator in graph.operators or ():
            code = model.operatorCodes[operator.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) in kinds:
                changed |= _typed(graph, [int(index) for index in operator.outputs], read)
    if not changed:
        return data
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _typed(graph: Any, outputs: list[int], read: set[int]) -> bool:
    """Give the dead outputs the type of a living one; whether any had another."""
    living = next((graph.tensors[index] for index in outputs if index in read), None)
    changed = False
    for tensor in (graph.tensors[index] for index in outputs if index not in read):
        if living is not None and tensor.type != living.type:
            tensor.type, tensor.quantization = living.type, living.quantization
            changed = True
    return changed
