"""TFLite files read as flatbuffers: tensors, operators and weights, without loading them into the runtime."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct, field

from edgeship_agent.contract.errors import InputError

#: Source: TensorFlow Lite schema v3, ``file_identifier "TFL3"``; it stands behind the 4-byte root offset.
_IDENTIFIER: Final = b"TFL3"
#: Bytes of one element. Source: TensorFlow Lite schema v3, ``TensorType``; 4-bit types share bytes and count as one, a
#: resource is a name for memory elsewhere.
_ITEM_BYTES: Final = {
    "float64": 8, "int64": 8, "uint64": 8, "complex64": 8, "float32": 4, "int32": 4, "uint32": 4, "resource": 0,
    "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1, "int4": 1, "uint4": 1,
    "complex128": 16,
}  # fmt: skip
#: What the generated reader raises on bytes that are no whole model.
_DAMAGED: Final = (struct.error, IndexError, ValueError, TypeError, AttributeError, UnicodeDecodeError)


class TfliteTensor(Struct, frozen=True, kw_only=True):
    """One tensor of a graph.

    Attributes:
        shape: sizes as written; a free size is written as 1 and stands in ``free_axes``.
        constant: whether the file holds its values.
        variable: whether it keeps its values from call to call.
        scales, zero_points: of its quantization, one or one a channel; empty for none.
        size_bytes: of its values.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    free_axes: tuple[int, ...] = ()
    constant: bool = False
    variable: bool = False
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    size_bytes: int = 0


class TfliteOperator(Struct, frozen=True, kw_only=True):
    """One operator of a graph.

    Attributes:
        name: such as ``CONV_2D``, or ``CUSTOM::name``.
        inputs, outputs: indices of tensors; -1 for an input that is left out.
        options: number and string fields of its options, by the schema's names.
    """

    name: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    options: Mapping[str, int | float | str] = field(default_factory=dict)


class TfliteGraph(Struct, frozen=True, kw_only=True):
    """One sub-graph; the first is the model's own."""

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class TfliteModel(Struct, frozen=True, kw_only=True):
    """A whole file.

    Attributes:
        weight_bytes: of all constants.
        metadata: names of its metadata entries.
    """

    graphs: tuple[TfliteGraph, ...]
    weight_bytes: int
    metadata: tuple[str, ...] = ()

    @property
    def main(self) -> TfliteGraph:
        """The graph that a call runs."""
        return self.graphs[0]

    @property
    def operators(self) -> tuple[TfliteOperator, ...]:
        """Of all graphs, in the order of the file."""
        return tuple(operator for graph in self.graphs for operator in graph.operators)


def read_tflite(path: Path) -> TfliteModel:
    """Read a TFLite model.

    Raises:
        InputError: cannot be read, not a TFLite file, or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path, expected="a whole TFLite model") from error
    return parse_tflite(data, file=path)


def parse_tflite(data: bytes, *, file: object = None) -> TfliteModel:
    """Read a TFLite model from its bytes.

    Raises:
        InputError: not a TFLite file, or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != _IDENTIFIER:
        raise InputError("not a TFLite model", file=file, expected="a flatbuffer with the identifier TFL3",
                         next_step="export the model again")  # fmt: skip
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
        return _model(model, schema)
    except _DAMAGED as error:
        raise InputError("damaged or truncated", file=file, expected="a whole TFLite model",
                         next_step="export the model again") from error  # fmt: skip


def _model(model: Any, schema: Any) -> TfliteModel:
    names = _operator_names(model, schema)
    types = {value: name.lower() for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    graphs = []
    for graph in model.subgraphs:
        tensors = tuple(_tensor(tensor, model.buffers, types) for tensor in graph.tensors)
        operators = tuple(_operator(operator, names) for operator in graph.operators or ())
        _check_indices(graph, operators, len(tensors))
        graphs.append(TfliteGraph(tensors=tensors, operators=operators, inputs=_indices(graph.inputs),
                                  outputs=_indices(graph.outputs)))  # fmt: skip
    if not graphs:
        raise ValueError("no graph")
    return TfliteModel(
        graphs=tuple(graphs),
        weight_bytes=sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None),
        metadata=tuple(_text(entry.name) for entry in model.metadata or ()),
    )


def _check_indices(graph: Any, operators: Sequence[TfliteOperator], count: int) -> None:
    """Refuse a graph whose operators name tensors that it does not have."""
    used = [*_indices(graph.inputs), *_indices(graph.outputs)]
    for operator in operators:
        used += [*operator.outputs, *(index for index in operator.inputs if index != -1)]
    if any(not 0 <= index < count for index in used):
        raise IndexError("a tensor that does not exist")


def _operator_names(model: Any, schema: Any) -> list[str]:
    builtin = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    names = []
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        custom = _text(code.customCode) if code.customCode else ""
        names.append(f"CUSTOM::{custom}" if custom else builtin.get(number, f"operator {number}"))
    return names


def _operator(operator: Any, names: Sequence[str]) -> TfliteOperator:
    options = operator.builtinOptions if operator.builtinOptions is not None else operator.builtinOptions2
    plain = {
        name: _text(value) if isinstance(value, bytes) else value
        for name, value in (vars(options) if options is not None else {}).items()
        if isinstance(value, (int, float, bytes, str))
    }
    return TfliteOperator(name=names[operator.opcodeIndex], inputs=_indices(operator.inputs),
                          outputs=_indices(operator.outputs), options=plain)  # fmt: skip


def _tensor(tensor: Any, buffers: Sequence[Any], types: Mapping[int, str]) -> TfliteTensor:
    data = buffers[tensor.buffer].data if tensor.buffer else None  # 0 is "no values", by the schema
    shape = _indices(tensor.shape)
    signature = _indices(tensor.shapeSignature)
    dtype = types.get(tensor.type, "unknown")
    quantization = tensor.quantization
    scales = () if quantization is None or quantization.scale is None else tuple(map(float, quantization.scale))
    zeros = () if quantization is None else _indices(quantization.zeroPoint)
    return TfliteTensor(
        name=_text(tensor.name or b""),
        dtype=dtype,
        shape=shape,
        free_axes=tuple(axis for axis, size in enumerate(signature or shape) if size < 0),
        constant=data is not None and len(data) > 0,
        variable=bool(tensor.isVariable),
        scales=scales,
        zero_points=zeros,
        size_bytes=math.prod(abs(size) for size in shape) * _ITEM_BYTES.get(dtype, 0),
    )


def _indices(values: Any) -> tuple[int, ...]:
    """A vector of integers, empty where the file leaves it out."""
    return () if values is None else tuple(np.asarray(values, np.int64).tolist())


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
