"""What only LiteRT's loader understands in a TFLite file, written plainly for quantizers and converters.

Files made for phones hold weights in half precision, or sparse, and widen them when they are loaded: ``DEQUANTIZE`` and
``DENSIFY`` of constants. ai-edge-quantizer 0.10 finds no values behind such operators and breaks off; tf2onnx 1.17 has
no ``DENSIFY``. Here the widened values stand in the file themselves.

MediaPipe's ``Convolution2DTransposeBias`` is a ``TRANSPOSE_CONV`` with a bias, from before that operator had one.
Source: TensorFlow Lite's XNNPACK delegate, which runs both alike; the options are ``TfLiteTransposeConvParams``.
"""

from __future__ import annotations

import copy
import struct
from typing import Any, Final

import numpy as np

from edgeship.build.backends.tflite_edit import edited, text_of
from edgeship.build.quiet import quiet

#: The custom operator that becomes a built-in one.
TRANSPOSED: Final = "Convolution2DTransposeBias"
_WIDENING: Final = ("DEQUANTIZE", "DENSIFY")
#: Padding, stride across, stride down: 32-bit numbers in the order of the machine that wrote them.
_OPTIONS: Final = struct.Struct("<iii")
#: ``TfLitePadding`` → the schema's ``Padding``: same is 1 and 0, valid 2 and 1.
_PADDINGS: Final = {1: 0, 2: 1}
#: The first version of TRANSPOSE_CONV that takes a bias.
_WITH_BIAS: Final = 3
#: Its place among the inputs: output shape, weights, value, bias.
_BIAS: Final = 3


def with_plain_operators(data: bytes) -> bytes:
    """The same model with constants in float32 and built-in operators, or the very same bytes."""
    return edited(data, _plain)


def with_builtin_operators(data: bytes) -> bytes:
    """The same model with built-in operators, its constants as they are, or the very same bytes."""
    return edited(data, lambda model, schema: not _lies_outside(model) and _transpose(model, schema))


def _lies_outside(model: Any) -> bool:
    """Whether values lie behind the flatbuffer, where writing it anew would lose them."""
    return any(buffer.offset for buffer in model.buffers)


def _plain(model: Any, schema: Any) -> bool:
    if _lies_outside(model):
        return False
    widened = _widen(model, schema)
    return _transpose(model, schema) or widened


def _widen(model: Any, schema: Any) -> bool:
    """Replace operators that widen constants by what they give; whether there were any."""
    kinds = {getattr(schema.BuiltinOperator, name) for name in _WIDENING}
    floats = {schema.TensorType.FLOAT16, schema.TensorType.FLOAT32}
    found = False
    for number, graph in enumerate(model.subgraphs):
        known = {index for index, tensor in enumerate(graph.tensors)
                 if tensor.type in floats and _held(model, tensor)}  # fmt: skip
        widening = []
        for operator in graph.operators or ():
            if _code(model, operator) in kinds and int(operator.inputs[0]) in known:
                widening.append(operator)
                known.add(int(operator.outputs[0]))
        if not widening:
            continue
        results = [int(operator.outputs[0]) for operator in widening]
        for index, values in zip(results, _run(model, number, widening), strict=True):
            _hold(model, graph.tensors[index], values)
        gone = {id(operator) for operator in widening}
        graph.operators = [operator for operator in graph.operators if id(operator) not in gone]
        _drop_unread(model)
        found = True
    return found


def _run(model: Any, number: int, operators: list[Any]) -> list[Any]:
    """What operators on constants give, by running them alone."""
    import flatbuffers
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    alone = copy.copy(model)
    graph = copy.copy(model.subgraphs[number])
    graph.operators = operators
    graph.inputs = []
    graph.outputs = [int(operator.outputs[0]) for operator in operators]
    alone.subgraphs, alone.signatureDefs, alone.metadata = [graph], None, None
    builder = flatbuffers.Builder(1024)
    builder.Finish(alone.Pack(builder), file_identifier=b"TFL3")
    with quiet():
        interpreter: Any = Interpreter(
            model_content=bytes(builder.Output()), num_threads=1,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )  # fmt: skip
        interpreter.allocate_tensors()
        interpreter.invoke()
    return [np.array(interpreter.get_tensor(index)) for index in graph.outputs]


def _hold(model: Any, tensor: Any, values: Any) -> None:
    """Make a tensor a constant."""
    buffer = copy.copy(model.buffers[0])
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    tensor.buffer = len(model.buffers)
    tensor.shape, tensor.shapeSignature, tensor.sparsity = list(values.shape), None, None
    model.buffers.append(buffer)


def _drop_unread(model: Any) -> None:
    """Empty the constants that no operator reads any more; their tensors stay, so that no number changes."""
    needed = {entry.buffer for entry in model.metadata or ()}
    for graph in model.subgraphs:
        read = {int(index) for operator in graph.operators or () for index in operator.inputs}
        read |= {int(index) for index in (*graph.inputs, *graph.outputs)}
        for index, tensor in enumerate(graph.tensors):
            if index in read:
                needed.add(tensor.buffer)
            else:
                tensor.sparsity = None
    for index, buffer in enumerate(model.buffers):
        if index not in needed:
            buffer.data = None


def _transpose(model: Any, schema: Any) -> bool:
    """Write the custom transposed convolution as the built-in one; whether there were any."""
    codes = [index for index, code in enumerate(model.operatorCodes) if text_of(code.customCode) == TRANSPOSED]
    for index in codes:
        code = model.operatorCodes[index]
        number = schema.BuiltinOperator.TRANSPOSE_CONV
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, number, _WITH_BIAS
        code.customCode = None
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            if operator.opcodeIndex in codes:
                _write_transposed(model, graph, operator, schema)
    return bool(codes)


def _write_transposed(model: Any, graph: Any, operator: Any, schema: Any) -> None:
    padding, across, down = _OPTIONS.unpack_from(bytes(operator.customOptions))
    options = schema.TransposeConvOptionsT()
    options.padding, options.strideW, options.strideH = _PADDINGS[padding], across, down
    operator.builtinOptions, operator.builtinOptionsType = options, schema.BuiltinOptions.TransposeConvOptions
    operator.customOptions = None
    value, weights, bias = (int(index) for index in operator.inputs)
    shape = schema.TensorT()
    shape.name, shape.type = f"output_shape_{len(graph.tensors)}", schema.TensorType.INT32
    _hold(model, shape, np.asarray(graph.tensors[operator.outputs[0]].shape, np.int32))
    operator.inputs = [len(graph.tensors), weights, value, bias]
    graph.tensors.append(shape)


def with_separate_biases(data: bytes) -> bytes:
    """The same model with the bias of each transposed convolution added behind it, or the very same bytes.

    tf2onnx 1.17 reads three inputs of TRANSPOSE_CONV and leaves out the fourth, the bias.
    """
    return edited(data, lambda model, schema: not _lies_outside(model) and _separate(model, schema))


def _separate(model: Any, schema: Any) -> bool:
    found = False
    for graph in model.subgraphs:
        operators = []
        for operator in graph.operators or ():
            operators.append(operator)
            transposed = _code(model, operator) == schema.BuiltinOperator.TRANSPOSE_CONV
            if transposed and len(operator.inputs) > _BIAS and operator.inputs[_BIAS] >= 0:
                operators.append(_addition(model, graph, operator, schema))
                found = True
        graph.operators = operators
    return found


def _addition(model: Any, graph: Any, operator: Any, schema: Any) -> Any:
    """Take the bias, and what is fused behind it, off a transposed convolution: the operator that does both."""
    between = copy.copy(graph.tensors[operator.outputs[0]])
    between.name = f"{text_of(between.name)}_without_bias"
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = (*[schema.BuiltinOperator.ADD] * 2, 1)
    addition = schema.OperatorT()
    addition.opcodeIndex = len(model.operatorCodes)
    addition.inputs, addition.outputs = [len(graph.tensors), int(operator.inputs[_BIAS])], list(operator.outputs)
    addition.builtinOptions, addition.builtinOptionsType = schema.AddOptionsT(), schema.BuiltinOptions.AddOptions
    fused = operator.builtinOptions.fusedActivationFunction
    addition.builtinOptions.fusedActivationFunction = fused
    operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.NONE
    operator.inputs, operator.outputs = list(operator.inputs[:_BIAS]), [len(graph.tensors)]
    model.operatorCodes.append(code)
    graph.tensors.append(between)
    return addition


def _code(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def _held(model: Any, tensor: Any) -> bool:
    if not 0 <= tensor.buffer < len(model.buffers):  # a broken file, which the runtime refuses in its own words
        return False
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0
