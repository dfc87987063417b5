"""ONNX files in fp16, with dynamic int8 products, and with 4-bit weights: ONNX Runtime's own converters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter

from edgeship.build.model_facts import graphs_of
from edgeship.build.quiet import quiet
from edgeship.build.search import floats
from edgeship.build.search.graph import Operator
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime.engine import Array

_RUNTIME: Final = "onnxruntime"
#: Weights that share one scale in 4 bits. Source: ONNX Runtime, ``MatMulNBits``: a power of two, at least 16.
_BLOCK: Final = 32
_LARGEST_FOUR_BITS: Final = 7
#: DequantizeLinear takes blocks and 4-bit integers from here on. Source: ONNX operator changelog.
_BLOCKS_OPSET: Final = 21
#: Source: IEEE 754, binary16.
_LARGEST_HALF: Final = 65504.0
#: Trees, scalers and their like, which ONNX Runtime computes in single precision.
_CLASSICAL: Final = "ai.onnx.ml"
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
#: Dynamic int8 of convolutions lies further off than anything else (build.md, trap 3): products only.
_DYNAMIC: Final = ("MatMul", "Gemm", "Attention", "LSTM", "Gather", "EmbedLayerNormalization")


def lower(model: Path, precision: str, file: Path) -> None:
    """Write a float file in another precision.

    Args:
        model: the float file, only read.
        precision: ``fp16``, ``dynamic`` or ``int4``.
        file: where to write.

    Raises:
        ConversionError: it cannot be made, or nothing in the file would change.
    """
    makers: dict[str, Callable[[Path, Path], None]] = {"fp16": _half, "dynamic": _dynamic, "int4": _four_bits}
    if precision not in makers:
        raise ConversionError(f"{precision} is no precision of ONNX files", target=_RUNTIME)
    try:
        with quiet():
            makers[precision](model, file)
    except ConversionError:
        raise
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise ConversionError(f"{precision}: {line}", target=_RUNTIME) from error


def _half(model: Path, file: Path) -> None:
    """Everything in half precision but the ends, operators that have no such form, and constants that do not fit in.

    Nor what scales the inputs: a half holds a temperature of 300 K to a quarter of a kelvin.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    document = onnx.load(str(model))
    large = {tensor.name for tensor in document.graph.initializer if _too_large(tensor)}
    large |= {node.output[0] for node in document.graph.node if node.op_type == "Constant"
              and any(_too_large(each.t) for each in node.attribute if each.HasField("t"))}  # fmt: skip
    names = {node.name for node in document.graph.node}
    blocked = []
    opsets = {"" if each.domain == "ai.onnx" else each.domain: each.version for each in document.opset_import}
    scaling = _scaling(document.graph)
    for index, node in enumerate(document.graph.node):
        if index in scaling or large.intersection(node.input) or not _takes_half(node, opsets):
            if not node.name:
                node.name = next(name for count in itertools.count(index) if (name := f"float_{count}") not in names)
                names.add(node.name)
            blocked.append(node.name)
    made = convert_float_to_float16(_classical_typed(document), keep_io_types=True, node_block_list=blocked)
    _without_detours(made.graph, frozenset(blocked))
    _save(made, file)


def _scaling(graph: Any) -> frozenset[int]:
    """Places of the nodes that scale the inputs."""
    constants = {each.name for each in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    operators = [
        Operator(name=str(place), kind=node.op_type, outputs=tuple(node.output),
                 inputs=tuple(name for name in node.input if name and name not in constants))
        for place, node in enumerate(graph.node)
    ]  # fmt: skip
    return frozenset(map(int, floats.scaling(operators)))


def _classical_typed(document: Any) -> Any:
    """The model with the floats that classical operators give declared as such.

    ONNX's inference knows few of these operators; where the type of a result is unknown, the converter puts no way back
    to half precision behind it.
    """
    for _ in document.graph.node:
        document = shape_inference.infer_shapes(document)
        if not (found := _floats_of_classical(document.graph)):
            break
        document.graph.value_info.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in found
        )  # fmt: skip
    return document


def _floats_of_classical(graph: Any) -> tuple[str, ...]:
    """Results of classical operators that are float32 by their schema, or as their input is, and not declared."""
    kinds = {each.name: each.type.tensor_type.elem_type for each in (*graph.input, *graph.value_info, *graph.output)}
    kinds |= {each.name: each.data_type for each in graph.initializer}
    found = []
    for node in graph.node:
        if node.domain != _CLASSICAL or not onnx.defs.has(node.op_type, _CLASSICAL):
            continue
        schema = onnx.defs.get_schema(node.op_type, domain=_CLASSICAL)
        taken = {formal.type_str: kinds.get(name, 0) for formal, name in zip(schema.inputs, node.input, strict=False)}
        for formal, name in zip(schema.outputs, node.output, strict=False):
            is_float = formal.type_str == "tensor(float)" or taken.get(formal.type_str) == TensorProto.FLOAT
            if name and is_float and not kinds.get(name):
                found.append(name)
    return tuple(found)


def _takes_half(node: Any, opsets: Mapping[str, int]) -> bool:
    """Whether an operator that takes floats takes half precision too, as ``Celu`` and others do not.

    Operators of other domains are left to the converter, which knows those of ONNX Runtime.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain or not onnx.defs.has(node.op_type, domain):
        return True
    schema = onnx.defs.get_schema(node.op_type, opsets[domain], domain)
    free = {each.type_param_str for each in schema.type_constraints}  # others are of one type, as sizes to resize to
    kinds = [each.types for each in schema.inputs if each.type_str in free]
    return all("tensor(float16)" in each for each in kinds if "tensor(float)" in each)


def _without_detours(graph: Any, floats: Collection[str]) -> None:
    """What an operator in float takes from an input or another one, or hands out, takes no way through halves."""
    made_by = {name: node for node in graph.node for name in node.output}
    for node in [each for each in graph.node if each.op_type == "Cast"]:
        half = made_by.get(node.input[0])
        if half is None or half.op_type != "Cast":
            continue
        maker = made_by.get(half.input[0])
        if (maker is None or maker.name in floats) and _casts_to(node, TensorProto.FLOAT):
            node.input[0] = half.input[0]  # from float32 to float32, which ONNX Runtime drops


def _casts_to(node: Any, kind: int) -> bool:
    return any(each.name == "to" and each.i == kind for each in node.attribute)


def _too_large(tensor: TensorProto) -> bool:
    """Whether it holds a finite number that would be cut off at the largest of half precision."""
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = np.abs(numpy_helper.to_array(tensor))
    return bool(np.any((values > _LARGEST_HALF) & np.isfinite(values)))


def _dynamic(model: Path, file: Path) -> None:
    """Products with int8 weights, those in the bodies of loops too.

    Weights keep to 7 bits: activations are unsigned, and pairs of products with 8 bits saturate on x86 without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graphs = tuple(graphs_of(onnx.load(str(model)).graph))
    _needs(graphs, {"MatMul", "Gemm", "LSTM", "Attention"}, "no matrix products with weights")
    quantize_dynamic(str(model), str(file), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
                     op_types_to_quantize=list(_DYNAMIC), extra_options={"EnableSubgraph": True})  # fmt: skip
    _save(onnx.load(str(file)), file)


def _four_bits(model: Path, file: Path) -> None:
    """Weights of matrix products in 4 bits, one scale for a block of inputs, widened inside the product."""
    document = onnx.load(str(model))
    _needs((document.graph,), _PRODUCTS, "no matrix products with weights, and ONNX Runtime has no 4-bit convolutions")
    opset = next(entry for entry in document.opset_import if entry.domain in {"", "ai.onnx"})
    if opset.version < _BLOCKS_OPSET:
        document = version_converter.convert_version(document, _BLOCKS_OPSET)
    constants = {tensor.name: tensor for tensor in document.graph.initializer}
    done: dict[str, str] = {}
    for node in [each for each in document.graph.node if each.op_type in _PRODUCTS]:
        name = node.input[1] if len(node.input) > 1 else ""
        weight = numpy_helper.to_array(constants[name]) if name in constants else np.empty(0)
        if weight.ndim == 2 and weight.dtype == np.float32:
            if name not in done:
                turned = node.op_type == "Gemm" and any(each.name == "transB" and each.i for each in node.attribute)
                done[name] = _narrow(document.graph, name, weight, axis=1 if turned else 0)
            node.input[1] = done[name]
    used = {name for node in document.graph.node for name in node.input}
    for tensor in [each for each in document.graph.initializer if each.name not in used]:
        document.graph.initializer.remove(tensor)
    _save(document, file)


def _narrow(graph: Any, name: str, weight: Array, *, axis: int) -> str:
    """Put a weight's 4-bit form into the graph and return the name of what widens it again.

    Args:
        graph: changed in place.
        name: of the weight.
        weight: [inputs, outputs], or turned.
        axis: of the inputs.
    """
    columns = np.moveaxis(weight, axis, 0)
    blocks = -(-len(columns) // _BLOCK)
    padded = np.pad(columns, ((0, blocks * _BLOCK - len(columns)), (0, 0))).reshape(blocks, _BLOCK, -1)
    scales = np.abs(padded).max(axis=1) / _LARGEST_FOUR_BITS
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
    steps = np.rint(padded / scales[:, None]).reshape(blocks * _BLOCK, -1)[: len(columns)]
    narrow = np.moveaxis(steps, 0, axis).astype(np.int8)
    graph.initializer.append(
        helper.make_tensor(f"{name}_int4", TensorProto.INT4, narrow.shape, narrow.reshape(-1).tolist())
    )
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(np.moveaxis(scales, 0, axis)),
                                                     f"{name}_scale"))  # fmt: skip
    widened = helper.make_node("DequantizeLinear", [f"{name}_int4", f"{name}_scale"], [f"{name}_widened"],
                               name=f"{name}_widen", axis=axis, block_size=_BLOCK)  # fmt: skip
    graph.node.insert(0, widened)
    return f"{name}_widened"


def _needs(graphs: Sequence[Any], kinds: Collection[str], otherwise: str) -> None:
    constants = {tensor.name for graph in graphs for tensor in graph.initializer}
    nodes = (node for graph in graphs for node in graph.node)
    if not any(node.op_type in kinds and constants.intersection(node.input) for node in nodes):
        raise ConversionError(otherwise, target=_RUNTIME)


def _save(document: Any, file: Path) -> None:
    file.write_bytes(document.SerializeToString(deterministic=True))
