"""What a model is made of, read from its file, and what the installed runtimes say about its operators."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from edgeship.build import fixed_sizes, partitions
from edgeship.build.tflite_file import read_tflite
from edgeship.targets import ModelFacts, OperatorUse, Partitions
from edgeship_agent.contract.errors import InputError
from edgeship_agent.runtime import RUNTIMES, runtime_version

#: Weights need not be inputs from this version of ONNX's representation on. Source: ONNX, docs/IR.md.
CONSTANT_WEIGHTS_IR: Final = 4
_STANDARD: Final = ("", "ai.onnx")
#: Operators that only a quantized model has. Source: ONNX operators, "QuantizeLinear" and the integer ones.
_INTEGER_OPERATORS: Final = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QuantizeLinear"}
)
#: TFLite operators on variables that live outside tensors.
_VARIABLES: Final = frozenset({"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"})
#: Of a number in a list of an attribute; whole numbers and texts are as long as they are.
_NUMBER_BYTES: Final = 4
#: How OpenVINO names what it cannot read, in its different front ends.
_NAMED: Final = re.compile(r"(?:ONNX operations:|found for operations:|translator found for:?|failed for:)\s*([^\n]+)")


def read_onnx(path: Path) -> Any:
    """Read an ONNX file (a ``ModelProto``).

    Raises:
        InputError: missing, truncated, not ONNX, or not a valid graph.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path))
    except (OSError, DecodeError, onnx.checker.ValidationError) as error:
        reason = getattr(error, "strerror", None) or "truncated, or not ONNX"
        raise InputError(f"cannot be read: {reason}", file=path, expected="a whole ONNX model",
                         next_step="export the model again") from error  # fmt: skip
    if not model.graph.node or not model.opset_import:
        raise InputError("holds no graph", file=path, expected="a whole ONNX model",
                         next_step="export the model again")  # fmt: skip
    return model


def facts_of(path: Path, runtimes: Collection[str] = RUNTIMES, *, pieces: bool = True) -> ModelFacts:
    """Everything that :func:`edgeship.targets.check` asks about an ONNX or a TFLite model.

    Args:
        path: the file.
        runtimes: those that are asked where they are installed.
        pieces: whether they are asked how they split it, too: a process of its own for each.

    Raises:
        InputError: the file cannot be used, or is of another format.
    """
    suffix = path.suffix.lower()
    if suffix == ".tflite":
        from edgeship.build.tflite_facts import facts_of_tflite

        return facts_of_tflite(path, runtimes)
    if suffix != ".onnx":
        raise InputError("cannot be looked into before it is converted", file=path, expected=".onnx or .tflite",
                         got=suffix or "no suffix",
                         next_step=f"edgeship build {shlex.quote(str(path))} -t TARGET …")  # fmt: skip
    return _facts_of_onnx(path, runtimes, pieces=pieces)


def _facts_of_onnx(path: Path, runtimes: Collection[str], *, pieces: bool) -> ModelFacts:
    model = read_onnx(path)
    types = _tensor_types(model)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    unsupported, split = _asked(path, model, runtimes, pieces=pieces)
    operators = _operators(model, types)
    dynamic = tuple(value.name for value in inputs if None in (types.get(value.name) or ("", ()))[1][1:])
    peak = _peak_activation_bytes(model, types, constants)
    return ModelFacts(
        format="onnx",
        operators=operators,
        weight_bytes=weight_bytes(model),
        peak_activation_bytes=_peak_once_folded(path, weight_bytes(model)) if peak is None and not dynamic else peak,
        dynamic_inputs=dynamic,
        io_dtypes=tuple(sorted({types[v.name][0] for v in [*inputs, *model.graph.output] if v.name in types})),
        quantized=any(use.op in _INTEGER_OPERATORS for use in operators),
        opset=next((each.version for each in model.opset_import if each.domain in _STANDARD), 0),
        ir_version=int(model.ir_version),
        unsupported=unsupported,
        partitions=split,
    )


def _asked(
    path: Path, model: Any, runtimes: Collection[str], *, pieces: bool
) -> tuple[dict[str, tuple[str, ...]], dict[str, Partitions]]:
    """What the installed runtimes say of an ONNX model's operators, and how they split it."""
    unsupported: dict[str, tuple[str, ...]] = {}
    split: dict[str, Partitions] = {}
    if "onnxruntime" in runtimes and runtime_version("onnxruntime"):
        unsupported["onnxruntime"] = _unknown_to_onnxruntime(model)
        if pieces and not unsupported["onnxruntime"]:
            split["onnxruntime"] = partitions.of_model("onnxruntime", "CPUExecutionProvider", path)
    if "openvino" in runtimes and runtime_version("openvino"):
        unsupported["openvino"] = unknown_to_openvino(path)
    return unsupported, split


def weight_bytes(model: Any) -> int:
    """Bytes of all constants of a ``ModelProto``, those of sub-graphs included.

    Initializers, ``Constant`` nodes, and what operators of other domains hold in lists, as tree ensembles do.
    """
    tensors = [attribute.t for node in nodes_of(model.graph) for attribute in node.attribute if attribute.HasField("t")]
    tensors += [tensor for graph in graphs_of(model.graph) for tensor in graph.initializer]
    lists = [
        attribute
        for node in nodes_of(model.graph)
        if node.domain not in _STANDARD or node.op_type == "Constant"
        for attribute in node.attribute
    ]
    in_tensors: int = sum(math.prod(tensor.dims) * _item_size(tensor.data_type) for tensor in tensors)
    in_lists: int = sum(
        _NUMBER_BYTES * len(each.floats) + each.ByteSize() * bool(each.ints or each.strings) for each in lists
    )
    return in_tensors + in_lists


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and its sub-graphs: bodies of loops, branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)


def nodes_of(graph: Any) -> Iterator[Any]:
    """Every node of a graph, those of its sub-graphs included."""
    for each in graphs_of(graph):
        yield from each.node


def _item_size(data_type: int) -> int:
    import onnx

    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    except (KeyError, TypeError, ValueError):
        return 0


def _tensor_types(model: Any) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Tensor → (numpy's name of its type, shape with None for what is not known), by shape inference."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model
    graph = inferred.graph
    types = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        tensor = value.type.tensor_type
        if not tensor.elem_type or not tensor.HasField("shape"):
            continue
        sizes = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        types[value.name] = ("string" if dtype == "object" else dtype, sizes)  # NumPy holds texts as objects
    return types


def _operators(model: Any, types: dict[str, tuple[str, tuple[int | None, ...]]]) -> tuple[OperatorUse, ...]:
    found: dict[tuple[str, str], list[Any]] = {}
    for node in nodes_of(model.graph):
        domain = "" if node.domain in _STANDARD else node.domain
        found.setdefault((domain, node.op_type), []).append(node)
    uses = []
    for (domain, op), nodes in sorted(found.items()):
        known = [types[name] for node in nodes for name in node.input if name in types]
        uses.append(
            OperatorUse(
                op=op,
                domain=domain,
                count=len(nodes),
                dtypes=tuple(sorted({dtype for dtype, _ in known})),
                max_rank=max((len(shape) for _, shape in known), default=0),
            )
        )
    return tuple(uses)


def _peak_once_folded(path: Path, size_bytes: int) -> int | None:
    """The same where sizes inside are computed from fixed ones."""
    if not runtime_version("onnxruntime"):
        return None
    with TemporaryDirectory(prefix="edgeship-") as folder:
        model = fixed_sizes.folded(path, Path(folder), size_bytes)
    if model is None:
        return None
    return _peak_activation_bytes(model, _tensor_types(model), {tensor.name for tensor in model.graph.initializer})


def _peak_activation_bytes(
    model: Any, types: dict[str, tuple[str, tuple[int | None, ...]]], constants: set[str]
) -> int | None:
    """Largest sum of tensors that live at the same time, batch of one, in the order of the file."""
    import numpy as np

    sizes: dict[str, int] = {}
    for name, (dtype, shape) in types.items():
        if name not in constants:
            known = [1 if axis == 0 and size is None else size for axis, size in enumerate(shape)]
            if any(size is None for size in known):
                return None
            item_bytes = np.dtype("O" if dtype == "string" else dtype).itemsize
            sizes[name] = math.prod(size or 0 for size in known) * item_bytes
    folded = {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    made = [name for node in model.graph.node for name in node.output if name and name not in folded]
    if any(name not in sizes for name in made):
        return None
    last_use = {name: index for index, node in enumerate(model.graph.node) for name in node.input}
    last_use.update({value.name: len(model.graph.node) for value in model.graph.output})
    live = {value.name for value in model.graph.input if value.name in sizes}
    peak = 0
    for index, node in enumerate(model.graph.node):
        live |= {name for name in node.output if name in sizes and name not in folded}
        peak = max(peak, sum(sizes[name] for name in live))
        live = {name for name in live if last_use.get(name, index) > index}
    return peak


def _unknown_to_onnxruntime(model: Any) -> tuple[str, ...]:
    """Operators without a kernel of the installed ONNX Runtime and without a definition by other operators."""
    import onnx
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    kernels: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for kernel in get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            kernels.setdefault((kernel.domain, kernel.op_name), []).append(kernel.version_range)
    opsets = {"" if each.domain in _STANDARD else each.domain: each.version for each in model.opset_import}
    local = {(function.domain, function.name) for function in model.functions}
    unknown = set()
    for node in nodes_of(model.graph):
        if node.op_type == "Constant":  # becomes an initializer, without a kernel
            continue
        domain = "" if node.domain in _STANDARD else node.domain
        version = opsets.get(domain, 1)
        defined = (node.domain, node.op_type) in local
        try:
            schema = onnx.defs.get_schema(node.op_type, version, domain)
            defined, version = defined or schema.has_function, schema.since_version
        except onnx.defs.SchemaError:
            pass
        ranges = kernels.get((domain, node.op_type), [])
        if not defined and not any(low <= version <= high for low, high in ranges):
            unknown.add(OperatorUse(op=node.op_type, domain=domain).label)
    return tuple(sorted(unknown))


def _keeping_state(path: Path) -> tuple[str, ...]:
    """Operators of a TFLite file that keep a state inside it: nothing but LiteRT does, and tf2onnx cannot help."""
    if path.suffix.lower() != ".tflite":
        return ()
    model = read_tflite(path)
    found = {
        operator.name
        for graph in model.graphs
        for operator in graph.operators
        if operator.name in _VARIABLES or any(graph.tensors[index].variable for index in operator.inputs if index >= 0)
    }
    return (f"{', '.join(sorted(found))}, whose state stays in the file from step to step",) if found else ()


def unknown_to_openvino(path: Path) -> tuple[str, ...]:
    """Operators that the installed OpenVINO cannot read, or that its CPU plug-in cannot run."""
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(str(path))
    except RuntimeError as error:
        if kept := _keeping_state(path):
            return kept
        named = _NAMED.findall(str(error))
        names = {re.sub(r"^ai\.onnx\.", "", part).strip(" .") for text in named for part in re.split(r"[,\s]+", text)}
        first = str(error).strip().splitlines()[-1][:160]
        return tuple(sorted(name for name in names if name)) or (f"something in it: {first}",)
    try:
        taken = core.query_model(model, "CPU")
    except RuntimeError:  # it mistakes a quantized Slice before a Pad; the graph that is converted need not end it
        return ()
    return tuple(sorted({op.get_type_name() for op in model.get_ordered_ops() if op.get_friendly_name() not in taken}))
