"""ONNX files: read, checked, described."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import checker, external_data_helper, helper, shape_inference

from edgeship.build.sources import onnx_branches, onnx_classical
from edgeship.build.sources.model import SourceModel, check_size, digest_of_files
from edgeship.build.sources.request import InputShape, SourceRequest
from edgeship_agent.contract.errors import ConfigError, ConversionError, InputError
from edgeship_agent.contract.manifest import TensorSpec

#: Operator domains that ONNX Runtime brings along. Source: ONNX Runtime, docs/OperatorKernels.md.
KNOWN_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_QUANTIZED: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
                               "MatMulInteger", "DynamicQuantizeLinear"})  # fmt: skip
_FLOATS: Final = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16,
                            onnx.TensorProto.DOUBLE})  # fmt: skip
_DAMAGED: Final = "not a readable ONNX model: the file is damaged or truncated"


def check(request: SourceRequest) -> None:
    """Refuse what is too large, or keeps its weights elsewhere, before any of them is read.

    Raises:
        InputError: larger than protobuf allows, or with weights that are missing or lie elsewhere.
    """
    path = request.path
    check_size(path, path.stat().st_size)
    try:
        model = _read(path)
    except InputError:  # said when it is loaded
        return
    files = _weight_files(model, path)
    check_size(path, sum(file.stat().st_size for file in (path, *files)))


def load(request: SourceRequest) -> SourceModel:
    """Read an ONNX file, with the weight files beside it if it has any.

    Raises:
        InputError: damaged or truncated, or a signature that the fleet cannot serve.
        ConfigError: a given shape that does not fit.
        ConversionError: an operator of an unknown domain.
    """
    check(request)
    path = request.path
    model = _read(path)
    files = (path, *_weight_files(model, path))
    _check_domains(model, path)
    _load_weights(model, path)
    _check(model, path)
    onnx_branches.give_values(model, request.input_values, path)
    pinned = _pin(model, request.input_shapes, path) or bool(request.input_values)
    unmapped = onnx_classical.take_away(model)
    changed = onnx_classical.mend_shapes(model) or pinned or unmapped is not None
    notes = (*(unmapped.notes if unmapped else ()), *(_branches(model, path) if pinned else ()))
    if pinned:
        _forget_shapes(model)
    inputs, outputs = _signature(model, path)
    nodes = list(_nodes(model.graph.node))
    return SourceModel(
        path=path,
        format="onnx",
        data=path.read_bytes() if len(files) == 1 and not changed else model.SerializeToString(deterministic=True),
        digest=digest_of_files(files),
        files=files,
        size_bytes=sum(file.stat().st_size for file in files),
        opset=max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0),
        operators=len(nodes),
        parameters=_parameters(model.graph),
        inputs=inputs,
        outputs=outputs,
        quantized=any(node.op_type in _QUANTIZED for node in nodes),
        notes=notes,
        classes=unmapped.classes if unmapped else (),
        options={"input_values": {each.name: each.value for each in request.input_values}}
        if request.input_values
        else {},
    )


def _read(path: Path) -> Any:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(_DAMAGED, file=path, next_step="copy or export the file again") from error
    if not model.graph.node:
        raise InputError(_DAMAGED, file=path, expected="a graph with operators", got="none",
                         next_step="copy or export the file again")  # fmt: skip
    _free_negative_axes(model)
    return model


def _parameters(graph: Any) -> int:
    """Numbers that a graph holds; of what ``Constant`` holds the floats: PaddlePaddle writes all weights so."""
    held = [attribute.t for node in graph.node if node.op_type == "Constant" for attribute in node.attribute
            if attribute.t.data_type in _FLOATS]  # fmt: skip
    return sum(math.prod(tensor.dims) for tensor in (*graph.initializer, *held))


def _free_negative_axes(model: Any) -> None:
    """Free the axes whose size is written as -1, as PaddlePaddle's exporter does for a size that is not known."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_value < 0:
                axis.ClearField("dim_value")


def _weight_files(model: Any, path: Path) -> tuple[Path, ...]:
    names = {
        entry.value
        for tensor in external_data_helper._get_all_tensors(model)
        if external_data_helper.uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = tuple(path.parent / name for name in sorted(names))
    for name, file in zip(sorted(names), files, strict=True):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError("its weights lie outside of its folder", file=path, expected="a file beside the model",
                             got=name, next_step="put them beside the .onnx file, or export it whole")  # fmt: skip
        if not file.is_file():
            raise InputError(
                "the model's weight file is missing",
                file=path,
                expected=file.name,
                got="no such file",
                next_step="put it beside the .onnx file, or export the model as one file",
            )
    return files


def _load_weights(model: Any, path: Path) -> None:
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (ValueError, checker.ValidationError) as error:
        raise InputError(f"the model's weight file cannot be read: {_first_line(error)}", file=path,
                         next_step="copy or export both files again") from error  # fmt: skip


def _check_domains(model: Any, path: Path) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    nodes = (*_nodes(model.graph.node), *(node for function in model.functions for node in _nodes(function.node)))
    for node in nodes:
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in own:
            raise ConversionError(
                f"operator {node.op_type} is of the domain {node.domain!r}, which no runtime here knows",
                op=node.name or node.op_type,
                file=path,
                next_step="export the model with standard ONNX operators",
            )


def _check(model: Any, path: Path) -> None:
    try:
        checker.check_model(model)
    except (checker.ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"not a valid ONNX model: {_first_line(error)}", file=path,
                         next_step="copy or export the file again")  from error  # fmt: skip


def _nodes(nodes: Any) -> Iterator[Any]:
    """Every node, those of subgraphs included."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _pin(model: Any, shapes: tuple[InputShape, ...], path: Path) -> bool:
    """Give inputs the shapes that the user named, in the model in memory; whether there were any.

    Raises:
        ConfigError: a name or a shape that the model does not have.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    values = {value.name: value for value in model.graph.input if value.name not in weights}
    for position, given in enumerate(shapes):
        name = given.name or (list(values)[position] if position < len(values) else "")
        if name not in values:
            raise ConfigError("not an input of the model", file=path, key="--input-shape", expected=" | ".join(values),
                              got=given.name or "one shape more than inputs", next_step="name one of them")  # fmt: skip
        axes = values[name].type.tensor_type.shape.dim
        fits = len(axes) == len(given.shape) and all(
            not axis.dim_value or axis.dim_value == size for axis, size in zip(axes, given.shape, strict=True)
        )
        if not fits:
            raise ConfigError("does not fit the model's input", file=path, key=f"--input-shape {name}",
                              expected=_shown(values[name]), got=list(given.shape),
                              next_step="give sizes for the free axes only")  # fmt: skip
        for axis, size in zip(axes, given.shape, strict=True):
            axis.dim_value = size
    return bool(shapes)


def _branches(model: Any, path: Path) -> tuple[str, ...]:
    """Keep the branches that are taken; what was done, and which inputs still decide."""
    kept = onnx_branches.keep_taken(model, path)
    said = []
    if kept:
        said.append(f"{kept} branches depend on nothing but fixed sizes and values: only what is taken was kept")
    if open_ := onnx_branches.branching_inputs(model):
        said.append(f"it branches on {', '.join(open_)}: with a fixed value (--input-value {open_[0]}=NUMBER) one "
                    "branch is kept, which other runtimes convert more easily")  # fmt: skip
    return tuple(said)


def _forget_shapes(model: Any) -> None:
    """Free sizes of outputs and values in between follow from the inputs now."""
    del model.graph.value_info[:]
    inferred = shape_inference.infer_shapes(model)
    model.CopyFrom(inferred)


def _signature(model: Any, path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_input(value, path) for value in model.graph.input if value.name not in weights)
    if not inputs:
        raise InputError("the model has no inputs", file=path, next_step="export the model again")
    return inputs, tuple(_output(value, path) for value in model.graph.output)


def _input(value: Any, path: Path) -> TensorSpec:
    shape = _shape(value)
    if -1 in shape[1:]:
        raise InputError(
            "an input that cannot be served one sample at a time",
            file=path,
            key=value.name,
            expected="every axis after the first fixed",
            got=_shown(value),
            next_step=f"give its sizes: --input-shape {value.name}={_example(value)}",
        )
    return TensorSpec(name=value.name, dtype=_dtype(value, path), shape=shape)


def _example(value: Any) -> str:
    """A shape to start from: fixed sizes as they are, 1 for the batch and SIZE for the rest."""
    axes = value.type.tensor_type.shape.dim
    return ",".join(str(axis.dim_value or ("1" if index == 0 else "SIZE")) for index, axis in enumerate(axes))


def _output(value: Any, path: Path) -> TensorSpec:
    return TensorSpec(name=value.name, dtype=_dtype(value, path), shape=_shape(value))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else -1
        for axis in value.type.tensor_type.shape.dim
    )


def _shown(value: Any) -> str:
    axes = (str(axis.dim_value or axis.dim_param or "?") for axis in value.type.tensor_type.shape.dim)
    return "[" + ", ".join(axes) + "]"


def _dtype(value: Any, path: Path) -> str:
    kind = value.type.tensor_type.elem_type
    try:
        return str(helper.tensor_dtype_to_np_dtype(kind).name)
    except (KeyError, TypeError) as error:
        raise InputError(
            "not a tensor of numbers",
            file=path,
            key=value.name,
            next_step="export the model with numeric inputs and outputs",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
