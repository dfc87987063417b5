"""Bytes to floats in front of a file: the very operations that a device would do in numpy, in their order.

So a float file says what it said before, and a quantized one rounds the same numbers. TFLite has a scale for
bytes, where one of them stands for zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct

from edgeship.build.backends.tflite_edit import text_of
from edgeship.build.folding import operations_of, scale_of
from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.contract.manifest import Binding, Step
from edgeship_agent.runtime.engine import Array

#: Multiplications broadcast from here on. Source: ONNX operator changelog, Mul-7.
_BROADCAST_OPSET: Final = 7
_TFLITE_IDENTIFIER: Final = b"TFL3"
#: Operands that change nothing.
_NEUTRAL: Final = {"mul": 1.0, "div": 1.0, "add": 0.0, "sub": 0.0}
_IN_OPENVINO: Final = {"mul": "multiply", "div": "divide", "add": "add", "sub": "subtract"}


class Head(Struct, frozen=True, kw_only=True):
    """What goes in front of one input of a file.

    Attributes:
        position: among the file's inputs.
        dtype: of that input: ``float32`` or ``float16``.
        operations: ``mul``, ``add``, ``sub`` or ``div``, each with its float32 operand in the file's layout.
        scale, zero_point: all of them as a scale, where a byte stands for zero; zero point −1 where none does.
    """

    position: int
    dtype: str
    operations: tuple[tuple[str, Array], ...]
    scale: float
    zero_point: int


def head_of(binding: Binding, steps: Sequence[Step]) -> Head:
    """The head of a bound input.

    Args:
        binding: says the file's layout.
        steps: folded ones, in the source's layout.
    """
    rank = len(binding.shape)
    turn = binding.transpose or tuple(range(rank))
    operations = [(kind, np.ascontiguousarray(array.transpose(turn))) for kind, array in operations_of(steps, rank)]
    bytes_scale = scale_of(steps, rank)
    return Head(
        position=binding.artifact_index,
        dtype=binding.dtype,
        operations=tuple((kind, array) for kind, array in operations if (array != _NEUTRAL[kind]).any()),
        scale=bytes_scale[0] if bytes_scale else 1.0,
        zero_point=bytes_scale[1] if bytes_scale else -1,
    )


def onnx_head(model: Path, folder: Path, found: Sequence[Head]) -> Path:
    """An ONNX file that takes bytes.

    Raises:
        ConversionError: its opset knows no broadcasting.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    document = onnx.load(str(model))
    graph = document.graph
    opset = max((each.version for each in document.opset_import if each.domain in {"", "ai.onnx"}), default=0)
    if opset < _BROADCAST_OPSET:
        raise ConversionError(f"opset {opset} knows no broadcasting", target="onnxruntime")
    weights = {tensor.name for tensor in graph.initializer}
    values = [value for value in graph.input if value.name not in weights]
    nodes: list[Any] = []
    for head in found:
        value = values[head.position]
        last, stem = value.name, f"{value.name}_bytes"
        value.name = stem
        value.type.tensor_type.elem_type = TensorProto.UINT8
        chain: list[tuple[str, list[str], dict[str, Any]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
        for position, (kind, array) in enumerate(head.operations):
            graph.initializer.append(numpy_helper.from_array(array, f"{stem}_{kind}_{position}"))
            chain.append((kind.capitalize(), [f"{stem}_{kind}_{position}"], {}))
        if head.dtype == "float16":
            chain.append(("Cast", [], {"to": TensorProto.FLOAT16}))
        name = stem
        for position, (kind, more, attributes) in enumerate(chain):
            made = last if position + 1 == len(chain) else f"{stem}_{position}"
            nodes.append(helper.make_node(kind, [name, *more], [made], name=f"{stem}_{kind}_{position}", **attributes))
            name = made
    for position, node in enumerate(nodes):
        graph.node.insert(position, node)
    file = folder / model.name
    file.write_bytes(document.SerializeToString(deterministic=True))
    return file


def openvino_head(model: Path, folder: Path, found: Sequence[Head]) -> Path:
    """An OpenVINO network that takes bytes."""
    import openvino
    from openvino import opset13 as operators

    try:
        with quiet():
            network = openvino.Core().read_model(str(model))
            for head in found:
                old = network.inputs[head.position].get_node()
                names = old.output(0).get_names()
                new = operators.parameter(old.get_partial_shape(), np.uint8, name=old.get_friendly_name())
                made = operators.convert(new, "f32", name=f"bytes_{head.position}_convert")
                for position, (kind, array) in enumerate(head.operations):
                    name = f"bytes_{head.position}_{kind}_{position}"
                    operand = operators.constant(array, name=f"{name}_by")
                    made = getattr(operators, _IN_OPENVINO[kind])(made, operand, name=name)
                if head.dtype == "float16":
                    made = operators.convert(made, "f16", name=f"bytes_{head.position}_half")
                for reader in old.output(0).get_target_inputs():
                    reader.replace_source_output(made.output(0))
                network.replace_parameter(head.position, new)
                new.output(0).set_names(names)
            network.validate_nodes_and_infer_types()
            file = folder / model.name
            # what is compressed already stays so; the arithmetic itself is never halved
            openvino.save_model(network, str(file), compress_to_fp16=False)
    except RuntimeError as error:
        raise ConversionError(f"OpenVINO: {str(error).strip().splitlines()[-1]}", target="openvino") from error
    return file


def tflite_head(model: Path, folder: Path, found: Sequence[Head]) -> Path:
    """A TFLite file that takes bytes.

    The scale of the bytes is all: what quantizes the input takes them at once. Operations are not put in front: with a
    mean for each channel, ResNet-8 took 1.5 % (float) and 6.5 % (int8) longer that way than with numpy in front.

    Raises:
        ConversionError: no byte stands for zero, or each channel has numbers of its own.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    data = model.read_bytes()
    document = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    writer = _TfliteHead(document, schema)
    for head in found:
        if head.dtype != "float32":
            raise ConversionError(f"the file's input is {head.dtype}", target="litert")
        if head.zero_point < 0:
            raise ConversionError("no scale of bytes says it", target="litert")
        writer.add(head)
    builder = flatbuffers.Builder(len(data) + 4096)
    builder.Finish(document.Pack(builder), file_identifier=_TFLITE_IDENTIFIER)
    file = folder / model.name
    file.write_bytes(bytes(builder.Output()))
    return file


class _TfliteHead:
    """A parsed TFLite file that heads are put in front of."""

    def __init__(self, document: Any, schema: Any) -> None:
        self._document = document
        self._schema = schema
        self._graph = document.subgraphs[0]

    def add(self, head: Head) -> None:
        """One head."""
        schema, graph = self._schema, self._graph
        old = int(graph.inputs[head.position])
        raw = self._like(old)
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.array([head.scale], np.float32)
        quantization.zeroPoint = np.array([head.zero_point], np.int64)
        graph.tensors[raw].quantization = quantization
        graph.inputs = [raw if at == head.position else int(index) for at, index in enumerate(graph.inputs)]
        for signature in self._document.signatureDefs or ():
            for entry in signature.inputs if signature.subgraphIndex == 0 else ():
                entry.tensorIndex = raw if int(entry.tensorIndex) == old else entry.tensorIndex
        readers = [each for each in graph.operators if old in [int(index) for index in each.inputs]]
        outside = old in [int(index) for index in graph.outputs]
        if not outside and readers and all(self._kind(each) == "QUANTIZE" for each in readers):
            for each in readers:
                each.inputs = [raw]
            return
        operator = schema.OperatorT()
        operator.opcodeIndex = self._dequantize()
        operator.inputs, operator.outputs = [raw], [old]
        operator.builtinOptions = schema.DequantizeOptionsT()
        operator.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        graph.operators = [operator, *graph.operators]

    def _kind(self, operator: Any) -> str:
        code = self._document.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return next((name for name, value in vars(self._schema.BuiltinOperator).items() if value == number), "")

    def _like(self, index: int) -> int:
        """A tensor of bytes of the same shape."""
        old, new = self._graph.tensors[index], self._schema.TensorT()
        new.shape, new.shapeSignature, new.hasRank = old.shape, old.shapeSignature, old.hasRank
        new.name = f"{text_of(old.name)}_bytes"
        new.type, new.buffer = self._schema.TensorType.UINT8, 0
        self._graph.tensors.append(new)
        return len(self._graph.tensors) - 1

    def _dequantize(self) -> int:
        """Index of the operator's code, added where there is none."""
        number = int(self._schema.BuiltinOperator.DEQUANTIZE)
        codes = self._document.operatorCodes
        for position, code in enumerate(codes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and not code.customCode:
                return position
        code = self._schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        code.version = 1
        codes.append(code)
        return len(codes) - 1
