"""Changing a TFLite file: read as objects, changed, written again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_IDENTIFIER: Final = b"TFL3"


def edited(data: bytes, change: Callable[[Any, Any], bool]) -> bytes:
    """The file after a change, or the very same bytes where there was nothing to change.

    Args:
        data: a TFLite file.
        change: (model, schema) → whether it changed the model.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    if not change(model, schema):
        return data
    builder = flatbuffers.Builder(len(data) + 1024)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def text_of(name: Any) -> str:
    """A name as it is read from a file, bytes, text or none, as text."""
    return name.decode() if isinstance(name, bytes) else str(name or "")
