"""Small TFLite files written by hand, for tests that need one without a converter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

Types = schema.TensorType
Ops = schema.BuiltinOperator


class TfliteWriter:
    """Collects tensors and operators of one graph, then writes the file."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._buffers = [schema.BufferT()]
        self._codes: list[tuple[int, str]] = []
        self._operators: list[Any] = []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        kind: int = Types.INT8,
        *,
        data: np.ndarray[Any, Any] | None = None,
        scales: Sequence[float] = (),
        zero: int = 0,
        variable: bool = False,
    ) -> int:
        """Add a tensor; -1 in the shape is written as a free axis of size 1."""
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.isVariable = name, kind, variable
        tensor.shape = np.array([abs(size) for size in shape], np.int32)
        if any(size < 0 for size in shape):
            tensor.shapeSignature = np.array(shape, np.int32)
        tensor.buffer = len(self._buffers)
        buffer = schema.BufferT()
        if data is not None:
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        self._buffers.append(buffer)
        if scales:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.array(scales, np.float32)
            tensor.quantization.zeroPoint = np.full(len(scales), zero, np.int64)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def operator(
        self, builtin: int, inputs: Sequence[int], outputs: Sequence[int], *, custom: str = "", options: Any = None
    ) -> None:
        """Add an operator."""
        key = (Ops.CUSTOM if custom else builtin, custom)
        if key not in self._codes:
            self._codes.append(key)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.index(key)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._operators.append(operator)

    def write(self, path: Path, inputs: Sequence[int], outputs: Sequence[int]) -> Path:
        """Write the file."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers = 3, [graph], self._buffers
        model.description = "written by a test"
        model.operatorCodes = []
        for builtin, custom in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
            code.customCode = custom or None
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path


def int8_net(path: Path, *, width: int = 4, custom: str = "", float_ends: bool = False) -> Path:
    """``x`` [1, width] int8 through two fully connected layers to ``y`` [1, 3] int8.

    Args:
        path: where to write it.
        width: of the input and the hidden layer.
        custom: name of an unknown operator between the layers.
        float_ends: float32 inputs and outputs around the int8 inside.
    """
    rng = np.random.default_rng(3)
    net = TfliteWriter()
    x = net.tensor("x", (1, width), scales=[0.05], zero=-3)
    hidden = net.tensor("hidden", (1, width), scales=[0.1])
    between = net.tensor("between", (1, width), scales=[0.1]) if custom else hidden
    y = net.tensor("y", (1, 3), scales=[0.2], zero=5)
    entry = net.tensor("x_float", (1, width), Types.FLOAT32) if float_ends else x
    exit_ = net.tensor("y_float", (1, 3), Types.FLOAT32) if float_ends else y
    if float_ends:
        net.operator(Ops.QUANTIZE, [entry], [x], options=schema.QuantizeOptionsT())
    for name, before, after, size in (("1", x, hidden, width), ("2", between, y, 3)):
        weights = rng.integers(-127, 128, (size, width)).astype(np.int8)
        bias = rng.integers(-50, 50, size).astype(np.int32)
        w = net.tensor(f"w{name}", weights.shape, data=weights, scales=[0.01])
        b = net.tensor(f"b{name}", (size,), Types.INT32, data=bias, scales=[0.0005])
        net.operator(Ops.FULLY_CONNECTED, [before, w, b], [after], options=schema.FullyConnectedOptionsT())
        if custom and name == "1":
            net.operator(0, [hidden], [between], custom=custom)
    if float_ends:
        net.operator(Ops.DEQUANTIZE, [y], [exit_], options=schema.DequantizeOptionsT())
    return net.write(path, [entry], [exit_])


def one_convolution(path: Path) -> Path:
    """``x`` [1, 8, 8, 3] float32 through one convolution and a mean to ``y`` [1, 5] float32."""
    rng = np.random.default_rng(4)
    net = TfliteWriter()
    x = net.tensor("x", (1, 8, 8, 3), Types.FLOAT32)
    w = net.tensor("w", (5, 3, 3, 3), Types.FLOAT32, data=rng.normal(0, 0.3, (5, 3, 3, 3)).astype(np.float32))
    b = net.tensor("b", (5,), Types.FLOAT32, data=rng.normal(0, 0.3, 5).astype(np.float32))
    hidden = net.tensor("hidden", (1, 8, 8, 5), Types.FLOAT32)
    y = net.tensor("y", (1, 5), Types.FLOAT32)
    axes = net.tensor("axes", (2,), Types.INT32, data=np.array([1, 2], np.int32))
    convolution = schema.Conv2DOptionsT()
    convolution.strideH = convolution.strideW = convolution.dilationHFactor = convolution.dilationWFactor = 1
    convolution.fusedActivationFunction = schema.ActivationFunctionType.RELU
    net.operator(Ops.CONV_2D, [x, w, b], [hidden], options=convolution)
    net.operator(Ops.MEAN, [hidden, axes], [y], options=schema.ReducerOptionsT())
    return net.write(path, [x], [y])


def tied(path: Path) -> Path:
    """``x`` [1, 32] float32 three times through one layer to ``y``, its weights copied for each, as converters do."""
    rng = np.random.default_rng(6)
    weights, bias = rng.normal(0, 0.2, (32, 32)).astype(np.float32), rng.normal(0, 0.2, 32).astype(np.float32)
    net = TfliteWriter()
    names = ["x", "a", "b", "y"]
    steps = [net.tensor(name, (1, 32), Types.FLOAT32) for name in names]
    for index, (before, after) in enumerate(itertools.pairwise(steps)):
        w = net.tensor(f"w{index}", weights.shape, Types.FLOAT32, data=weights)
        b = net.tensor(f"b{index}", bias.shape, Types.FLOAT32, data=bias)
        net.operator(Ops.FULLY_CONNECTED, [before, w, b], [after], options=schema.FullyConnectedOptionsT())
    return net.write(path, [steps[0]], [steps[-1]])


def split(path: Path) -> Path:
    """``x`` [1, 8] float32 through a layer whose result is split in three, one part of which nothing reads."""
    rng = np.random.default_rng(7)
    net = TfliteWriter()
    x, y = net.tensor("x", (1, 8), Types.FLOAT32), net.tensor("y", (1, 4), Types.FLOAT32)
    w = net.tensor("w", (12, 8), Types.FLOAT32, data=rng.normal(0, 0.5, (12, 8)).astype(np.float32))
    b = net.tensor("b", (12,), Types.FLOAT32, data=rng.normal(0, 0.5, 12).astype(np.float32))
    axis = net.tensor("axis", (), Types.INT32, data=np.array(1, np.int32))
    wide = net.tensor("wide", (1, 12), Types.FLOAT32)
    parts = [net.tensor(f"part{index}", (1, 4), Types.FLOAT32) for index in range(3)]
    options = schema.SplitOptionsT()
    options.numSplits = len(parts)
    net.operator(Ops.FULLY_CONNECTED, [x, w, b], [wide], options=schema.FullyConnectedOptionsT())
    net.operator(Ops.SPLIT, [axis, wide], parts, options=options)
    net.operator(Ops.MUL, [parts[0], parts[2]], [y], options=schema.MulOptionsT())
    return net.write(path, [x], [y])


def padded_maximum(path: Path) -> Path:
    """``x`` [1, 5, 5, 2] float32 through a convolution and a maximum that is padded with the least number there is."""
    rng = np.random.default_rng(9)
    net = TfliteWriter()
    x = net.tensor("x", (1, 5, 5, 2), Types.FLOAT32)
    w = net.tensor("w", (4, 1, 1, 2), Types.FLOAT32, data=rng.normal(0, 0.5, (4, 1, 1, 2)).astype(np.float32))
    b = net.tensor("b", (4,), Types.FLOAT32, data=rng.normal(0, 0.5, 4).astype(np.float32))
    inner = net.tensor("inner", (1, 5, 5, 4), Types.FLOAT32)
    pads = net.tensor("pads", (4, 2), Types.INT32, data=np.array([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32))
    least = net.tensor("least", (1,), Types.FLOAT32, data=np.array([np.finfo(np.float32).min]))
    padded = net.tensor("padded", (1, 6, 6, 4), Types.FLOAT32)
    y = net.tensor("y", (1, 3, 3, 4), Types.FLOAT32)
    convolution = schema.Conv2DOptionsT()
    convolution.strideH = convolution.strideW = convolution.dilationHFactor = convolution.dilationWFactor = 1
    pool = schema.Pool2DOptionsT()
    pool.strideH = pool.strideW = pool.filterHeight = pool.filterWidth = 2
    net.operator(Ops.CONV_2D, [x, w, b], [inner], options=convolution)
    net.operator(Ops.PADV2, [inner, pads, least], [padded], options=schema.PadV2OptionsT())
    net.operator(Ops.MAX_POOL_2D, [padded], [y], options=pool)
    return net.write(path, [x], [y])


def remembering(path: Path) -> Path:
    """``x`` [1, 2] float32 to ``y`` [1, 3]: a recurrent layer of one step, whose state stays in a variable tensor."""
    rng = np.random.default_rng(8)
    net = TfliteWriter()
    x = net.tensor("x", (1, 2), Types.FLOAT32)
    step_shape = net.tensor("step_shape", (3,), Types.INT32, data=np.array([1, 1, 2], np.int32))
    step = net.tensor("step", (1, 1, 2), Types.FLOAT32)
    w = net.tensor("w", (3, 2), Types.FLOAT32, data=rng.normal(0, 0.5, (3, 2)).astype(np.float32))
    r = net.tensor("r", (3, 3), Types.FLOAT32, data=rng.normal(0, 0.5, (3, 3)).astype(np.float32))
    b = net.tensor("b", (3,), Types.FLOAT32, data=np.zeros(3, np.float32))
    state = net.tensor("state", (1, 3), Types.FLOAT32, variable=True)
    seen = net.tensor("seen", (1, 1, 3), Types.FLOAT32)
    y_shape = net.tensor("y_shape", (2,), Types.INT32, data=np.array([1, 3], np.int32))
    y = net.tensor("y", (1, 3), Types.FLOAT32)
    layer = schema.SequenceRNNOptionsT()
    layer.fusedActivationFunction = schema.ActivationFunctionType.TANH
    net.operator(Ops.RESHAPE, [x, step_shape], [step], options=schema.ReshapeOptionsT())
    net.operator(Ops.UNIDIRECTIONAL_SEQUENCE_RNN, [step, w, r, b, state], [seen], options=layer)
    net.operator(Ops.RESHAPE, [seen, y_shape], [y], options=schema.ReshapeOptionsT())
    return net.write(path, [x], [y])


def repacked(path: Path, change: Callable[[schema.ModelT], None]) -> bytes:
    """A file with a change of its contents, written anew."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
