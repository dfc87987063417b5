"""A signature for TFLite files that were written without one: the quantizer calls models by their signature."""

from __future__ import annotations

from typing import Any, Final

_KEY: Final = "serving_default"
_IDENTIFIER: Final = b"TFL3"


def with_signature(data: bytes) -> bytes:
    """The same model with one signature, its arguments named by position; unchanged where it has one."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    if model.signatureDefs:
        return data
    graph = model.subgraphs[0]
    signature = schema.SignatureDefT()
    signature.signatureKey = _KEY
    signature.subgraphIndex = 0
    signature.inputs = [_entry(schema, f"input_{at}", int(index)) for at, index in enumerate(graph.inputs)]
    signature.outputs = [_entry(schema, f"output_{at}", int(index)) for at, index in enumerate(graph.outputs)]
    model.signatureDefs = [signature]
    builder = flatbuffers.Builder(len(data) + 1024)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _entry(schema: Any, name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
