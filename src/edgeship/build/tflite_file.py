"""TFLite files read as flatbuffers: tensors, operators and weights, without loading them into the runtime."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

from edgeship_agent.contract.errors import InputError

#: Source: TensorFlow Lite schema v3, ``file_identifier "TFL3"``; it stands behind the 4-byte root offset.
_IDENTIFIER: Final = b"TFL3"


def read_tflite(path: Path) -> tuple[list[dict[str, Any]], list[str], int]:
    """Read a TFLite model.

    Returns:
        Inputs and outputs as fields of an inspected tensor; the name of every operator; bytes of all constants.

    Raises:
        InputError: not a TFLite file, or damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    data = path.read_bytes()
    if data[4:8] != _IDENTIFIER:
        raise InputError("not a TFLite model", file=path, expected="a flatbuffer with the identifier TFL3",
                         next_step="export the model again")  # fmt: skip
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
        return _read(model, schema)
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise InputError("damaged or truncated", file=path, expected="a whole TFLite model",
                         next_step="export the model again") from error  # fmt: skip


def _read(model: Any, schema: Any) -> tuple[list[dict[str, Any]], list[str], int]:
    types = {value: name.lower() for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    builtin = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    names = []
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        custom = code.customCode.decode() if isinstance(code.customCode, bytes) else code.customCode
        names.append(f"CUSTOM::{custom}" if custom else builtin.get(number, f"operator {number}"))
    operators = [names[operator.opcodeIndex] for graph in model.subgraphs for operator in graph.operators or ()]
    main = model.subgraphs[0]
    tensors = [
        _tensor(role, main.tensors[index], types)
        for role, indices in (("input", main.inputs), ("output", main.outputs))
        for index in indices
    ]
    weights = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    return tensors, operators, weights


def _tensor(role: str, tensor: Any, types: dict[int, str]) -> dict[str, Any]:
    quantization = tensor.quantization
    scaled = quantization is not None and quantization.scale is not None and len(quantization.scale) == 1
    shape = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return {
        "role": role,
        "name": tensor.name.decode() if isinstance(tensor.name, bytes) else str(tensor.name),
        "dtype": types.get(tensor.type, "unknown"),
        "shape": tuple("N" if size < 0 else int(size) for size in (() if shape is None else shape)),
        "scale": float(quantization.scale[0]) if scaled else 0.0,
        "zero_point": int(quantization.zeroPoint[0]) if scaled and quantization.zeroPoint is not None else 0,
    }
