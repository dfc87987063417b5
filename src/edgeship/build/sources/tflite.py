"""TFLite files: read as flatbuffers, described; nothing is run."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import structs

from edgeship.build.backends.tflite_plain import TRANSPOSED
from edgeship.build.backends.tflite_shapes import with_shapes
from edgeship.build.sources.model import SourceModel, digest_of_files
from edgeship.build.sources.request import InputShape, SourceRequest
from edgeship.targets.wording import free_shape
from edgeship_agent.contract.errors import ConfigError, ConversionError, InputError
from edgeship_agent.contract.manifest import TensorSpec

#: Source: TensorFlow Lite schema v3, ``file_identifier "TFL3"``; it stands behind the 4-byte root offset.
_IDENTIFIER: Final = b"TFL3"
#: Source: FlatBuffers, internals: offsets are 32 bits, signed.
_LARGEST_BYTES: Final = 2**31 - 1
_DAMAGED: Final = (struct.error, IndexError, ValueError, TypeError, AttributeError, UnicodeDecodeError)
#: Custom operators that LiteRT brings along. Source: TensorFlow Lite, built-in resolver with all operators; its XNNPACK
#: delegate runs the last one, which is a built-in operator in what a build makes of it.
_KNOWN_CUSTOM: Final = frozenset({"TFLite_Detection_PostProcess", "AudioSpectrogram", "Mfcc", TRANSPOSED})
#: Operators on variables that live outside tensors.
_RESOURCES: Final = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
_CALLS: Final = "every call begins with a new one, and an array [N, steps, …] holds sequences"
_KEEPS: Final = {
    "variables": f"it keeps a state in variable tensors: {_CALLS}",
    "resources": f"it keeps a state in variables of its own, which only loading it again sets back: {_CALLS}",
}
_INTEGER_WEIGHTS: Final = frozenset({"int8", "uint8", "int4"})


def check(request: SourceRequest) -> None:
    """Refuse a file that is larger than its format can be, before it is read.

    Raises:
        InputError: it is.
    """
    size_bytes = request.path.stat().st_size
    if size_bytes > _LARGEST_BYTES:
        raise InputError("not a TFLite model: too large to be one", file=request.path, expected="at most 2.1 GB",
                         got=f"{size_bytes / 1e9:.1f} GB", next_step="export a smaller model")  # fmt: skip


def load(request: SourceRequest) -> SourceModel:
    """Read a TFLite file.

    Raises:
        InputError: not a TFLite file, damaged, or a signature that the fleet cannot serve.
        ConfigError: a given shape that does not fit.
        ConversionError: an operator that LiteRT does not have.
    """
    path = request.path
    check(request)
    data, (model, schema) = _pinned(request)
    graph = model.subgraphs[0]
    types = {value: name.lower() for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    codes = [_operator_name(code, schema) for code in model.operatorCodes]
    _check_operators(codes, path)
    state = _state(model, codes)
    inputs = tuple(_input(graph.tensors[index], types, path) for index in graph.inputs)
    outputs = tuple(_output(graph.tensors[index], types, path) for index in graph.outputs)
    weights = [tensor for tensor in graph.tensors if _has_contents(model.buffers, tensor.buffer)]
    quantized = any(_is_quantized(tensor, types) for tensor in graph.tensors)
    return SourceModel(
        path=path,
        format="tflite",
        data=data,
        digest=digest_of_files((path,)),
        files=(path,),
        size_bytes=path.stat().st_size,
        operators=len(graph.operators or ()),
        parameters=sum(math.prod(map(int, tensor.shape)) for tensor in weights if tensor.shape is not None),
        inputs=inputs,
        outputs=outputs,
        quantized=quantized,
        state=state,
        notes=(*_notes(inputs, [types.get(tensor.type, "") for tensor in weights], quantized=quantized),
               *((_KEEPS[state],) if state else ())),
    )  # fmt: skip


def _pinned(request: SourceRequest) -> tuple[bytes, tuple[Any, Any]]:
    """The file with the shapes that the user gave, and the same as objects.

    Raises:
        InputError: not a TFLite file.
        ConfigError: a name or a shape that the model does not have.
    """
    path = request.path
    data = path.read_bytes()
    parsed = _parsed(data, path)
    if not request.input_shapes:
        return data, parsed
    codes = [_operator_name(code, parsed[1]) for code in parsed[0].operatorCodes]
    _check_operators(codes, path)
    graph = parsed[0].subgraphs[0]
    shapes = _given(request.input_shapes, [graph.tensors[index] for index in graph.inputs], path)
    try:
        data = with_shapes(data, shapes)
    except ValueError as error:
        given = "; ".join(str(list(shape)) for shape in shapes.values())
        raise ConfigError(f"the model cannot work with these sizes: {error}", file=path, key="--input-shape", got=given,
                          next_step="give the sizes that the model is called with") from error  # fmt: skip
    return data, _parsed(data, path)


def _given(shapes: Sequence[InputShape], entries: Sequence[Any], path: Path) -> dict[int, tuple[int, ...]]:
    """Position of an input → the shape that the user gave.

    Raises:
        ConfigError: a name or a shape that the model does not have.
    """
    names = [_name(tensor) for tensor in entries]
    found = {}
    for position, given in enumerate(shapes):
        name = given.name or (names[position] if position < len(names) else "")
        if name not in names:
            raise ConfigError("not an input of the model", file=path, key="--input-shape", expected=" | ".join(names),
                              got=given.name or "one shape more than inputs", next_step="name one of them")  # fmt: skip
        sizes = _sizes(entries[names.index(name)])
        fits = len(sizes) == len(given.shape) and all(
            size in {-1, wanted} and wanted > 0 for size, wanted in zip(sizes, given.shape, strict=True)
        )
        if not fits:
            shown = "[" + ", ".join("?" if size < 0 else str(size) for size in sizes) + "]"
            raise ConfigError("does not fit the model's input", file=path, key=f"--input-shape {name}", expected=shown,
                              got=list(given.shape), next_step="give sizes for the free axes only")  # fmt: skip
        found[names.index(name)] = given.shape
    return found


def _state(model: Any, codes: list[str]) -> str:
    """What the file keeps from one call to the next."""
    if _RESOURCES.intersection(codes):
        return "resources"
    return "variables" if any(tensor.isVariable for graph in model.subgraphs for tensor in graph.tensors) else ""


def _parsed(data: bytes, path: Path) -> tuple[Any, Any]:
    """The whole file as objects, and the schema's module.

    Raises:
        InputError: not a TFLite file, damaged, or without inputs or outputs.
    """
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != _IDENTIFIER:
        raise InputError("not a TFLite model", file=path, expected="a flatbuffer with the identifier TFL3",
                         next_step="export the model again")  # fmt: skip
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
        ends = (len(model.subgraphs[0].inputs), len(model.subgraphs[0].outputs))
    except _DAMAGED as error:
        raise InputError("damaged or truncated", file=path, expected="a whole TFLite model",
                         next_step="copy or export the file again") from error  # fmt: skip
    if 0 in ends:
        raise InputError("the model has no inputs or no outputs", file=path, next_step="export the model again")
    return model, schema


def _has_contents(buffers: Any, index: int) -> bool:
    return 0 < index < len(buffers) and buffers[index].data is not None and len(buffers[index].data) > 0


def _operator_name(code: Any, schema: Any) -> str:
    builtin = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    custom = code.customCode.decode() if isinstance(code.customCode, bytes) else code.customCode
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return f"CUSTOM::{custom}" if custom else builtin.get(number, f"operator {number}")


def _check_operators(codes: list[str], path: Path) -> None:
    for code in codes:
        custom = code.removeprefix("CUSTOM::")
        if custom != code and custom not in _KNOWN_CUSTOM:
            raise ConversionError(
                f"the custom operator {custom} is in no runtime here",
                op=custom, file=path, next_step="export the model with built-in operators only",
            )  # fmt: skip


def _spec(tensor: Any, types: dict[int, str], path: Path) -> TensorSpec:
    name, shape = _name(tensor), _sizes(tensor)
    dtype = types.get(tensor.type, "unknown")
    if dtype in {"string", "resource", "variant", "unknown"}:
        raise InputError("not a tensor of numbers", file=path, key=name, got=dtype,
                         next_step="export the model with numeric inputs and outputs")  # fmt: skip
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _input(tensor: Any, types: dict[int, str], path: Path) -> TensorSpec:
    spec = _spec(tensor, types, path)
    if -1 in spec.shape[1:]:
        raise InputError("an input that cannot be served one sample at a time", file=path, key=spec.name,
                         expected="every axis after the first fixed", got=list(spec.shape),
                         next_step=f"give its sizes: {free_shape(spec.name, spec.shape)}")  # fmt: skip
    return spec


def _sizes(tensor: Any) -> tuple[int, ...]:
    """A tensor's sizes, -1 for those that are free."""
    sizes = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return tuple(-1 if size < 0 else int(size) for size in (() if sizes is None else sizes))


def _name(tensor: Any) -> str:
    return tensor.name.decode() if isinstance(tensor.name, bytes) else str(tensor.name)


def _output(tensor: Any, types: dict[int, str], path: Path) -> TensorSpec:
    """An output in the numbers that it stands for: float where the file holds a scale."""
    spec = _spec(tensor, types, path)
    if -1 in spec.shape[1:]:
        raise InputError("an output whose size is not known before a call", file=path, key=spec.name,
                         expected="every axis after the first fixed", got=list(spec.shape),
                         next_step="export the model with fixed sizes")  # fmt: skip
    return structs.replace(spec, dtype="float32") if _is_quantized(tensor, types) else spec


def _is_quantized(tensor: Any, types: dict[int, str]) -> bool:
    quantization = tensor.quantization
    scaled = quantization is not None and quantization.scale is not None and np.size(quantization.scale) > 0
    return scaled and types.get(tensor.type, "") in {"int8", "uint8", "int16", "int4"}


def _notes(inputs: tuple[TensorSpec, ...], weights: list[str], *, quantized: bool) -> tuple[str, ...]:
    floats = all(spec.dtype.startswith("float") for spec in inputs)
    if quantized and floats and any(dtype in _INTEGER_WEIGHTS for dtype in weights):
        return ("its inputs are float, but it holds integer weights: it was quantized before",)
    return ("it was quantized before and is passed through",) if quantized else ()
