"""What the quantizer misses in TFLite files of older converters: a signature, and the present numbers of operators."""

from __future__ import annotations

from typing import Any, Final

from edgeship.build.backends.tflite_edit import edited

_KEY: Final = "serving_default"


def with_signature(data: bytes) -> bytes:
    """The same model with one signature, its arguments named by position; unchanged where it misses nothing.

    Converters before 2021 wrote an operator's number into one byte alone, which is still read by LiteRT. The quantizer
    reads the newer field, finds 0 there, and takes every operator for an ADD. Source: TFLite schema, version 3a,
    ``OperatorCode.deprecated_builtin_code``.
    """
    return edited(data, _complete)


def _complete(model: Any, schema: Any) -> bool:
    old = [code for code in model.operatorCodes or () if code.builtinCode < code.deprecatedBuiltinCode]
    if model.signatureDefs and not old:
        return False
    for code in old:
        code.builtinCode = code.deprecatedBuiltinCode
    if not model.signatureDefs:
        model.signatureDefs = [_signature(schema, model.subgraphs[0])]
    return True


def _signature(schema: Any, graph: Any) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = _KEY
    signature.subgraphIndex = 0
    signature.inputs = [_entry(schema, f"input_{at}", int(index)) for at, index in enumerate(graph.inputs)]
    signature.outputs = [_entry(schema, f"output_{at}", int(index)) for at, index in enumerate(graph.outputs)]
    return signature


def _entry(schema: Any, name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
