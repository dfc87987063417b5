"""Results that nothing reads in a quantized TFLite file: the quantizer leaves them in float beside the others."""

from __future__ import annotations

from typing import Any, Final

from edgeship.build.backends.tflite_edit import edited

#: Kinds whose results all have the type of their input.
_DIVIDING: Final = ("SPLIT", "SPLIT_V", "UNPACK")


def with_typed_dead_outputs(data: bytes) -> bytes:
    """The same model; a result of a split that nothing reads has the type of those that are read.

    The runtime refuses a split of which one part is float and the others int8. The first step of an LSTM that starts
    from zero reads three of four gates.
    """
    return edited(data, _type_all)


def _type_all(model: Any, schema: Any) -> bool:
    kinds = {getattr(schema.BuiltinOperator, name) for name in _DIVIDING}
    changed = False
    for graph in model.subgraphs:
        read = {int(index) for operator in graph.operators or () for index in operator.inputs} | {*graph.outputs}
        for operator in graph.operators or ():
            code = model.operatorCodes[operator.opcodeIndex]
            if max(code.builtinCode, code.deprecatedBuiltinCode) in kinds:
                changed |= _typed(graph, [int(index) for index in operator.outputs], read)
    return changed


def _typed(graph: Any, outputs: list[int], read: set[int]) -> bool:
    """Give the dead outputs the type of a living one; whether any had another."""
    living = next((graph.tensors[index] for index in outputs if index in read), None)
    changed = False
    for tensor in (graph.tensors[index] for index in outputs if index not in read):
        if living is not None and tensor.type != living.type:
            tensor.type, tensor.quantization = living.type, living.quantization
            changed = True
    return changed
