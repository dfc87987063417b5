"""Frozen graphs: where they begin and end, and where they can be cut."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tensorflow as tf
from tensorflow.python.eager import context

from .files import RESTORING, Refused, check_operators, first_line, graph_def

_STARTS: Final = frozenset({"Placeholder", "PlaceholderWithDefault"})
#: Operators without a result that anybody would ask for.
_SILENT: Final = frozenset({"NoOp", "Assert", "Print", "PrintV2", "Const"})
#: Operators that turn numbers round and compute nothing: a cut behind one of them is as good as before it.
_MOVING: Final = frozenset({"Reshape", "ExpandDims", "Squeeze", "Transpose", "Identity", "Cast"})
_MOST_NAMED: Final = 4
#: ONNX operators that conversions are made for; tf2onnx 1.17 was written for up to 18, every runtime here knows 17.
OPSET: Final = 17
_MOST_TRIED: Final = 400


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The part of a graph between its ends.

    Attributes:
        inputs: name, dtype and shape of each.
        outputs: names.
        call: the inputs' tensors to the outputs'.
        frames: it loops by TensorFlow 1's frames.
    """

    inputs: tuple[tuple[str, Any, Any], ...]
    outputs: tuple[str, ...]
    call: Callable[[Sequence[Any]], Sequence[Any]]
    notes: tuple[str, ...]
    frames: bool


def has_frames(graph: Any) -> bool:
    """Whether a graph loops by TensorFlow 1's frames rather than by functions."""
    return any(node.op in {"Enter", "RefEnter"} for node in graph.node)


def node_name(tensor: str) -> str:
    """The operator of a tensor: ``conv:0`` and ``^conv`` are of ``conv``."""
    return tensor.lstrip("^").partition(":")[0]


def open_graph(path: Path, starts: Sequence[str], ends: Sequence[str]) -> Cut:
    """Read a frozen graph and cut it at the named tensors.

    Args:
        path: the ``.pb`` file.
        starts: tensors that become inputs; empty for the placeholders.
        ends: tensors that become outputs; empty for those that nothing uses.

    Raises:
        Refused: damaged, no such tensor, or an input that no device can be fed; with tensors at which it can be cut.
    """
    graph = graph_def(path)
    with tf.Graph().as_default() as place:
        try:
            tf.import_graph_def(graph, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise Refused(f"TensorFlow does not accept the graph: {first_line(error)}") from error
        outputs = [_tensor(place, name) for name in ends] or _last(place)
        inputs = [_tensor(place, name) for name in starts] or _first(place, outputs)
    used = _upstream(outputs, inputs)
    check_operators((operator.node_def for operator in used), RESTORING)
    left = [operator.name for operator in used if operator.type in _STARTS and operator.outputs[0] not in inputs]
    if left and starts:
        raise Refused(f"cut at {', '.join(starts)}, the graph still needs {left[0]}",
                      f"name it too: --input-tensor {left[0]}")  # fmt: skip
    strange = [each for each in inputs if not _is_number(each)]
    if strange:
        raise _no_number(strange[0], inputs, outputs)
    if not inputs:
        raise Refused(
            "the graph has no placeholder that its outputs depend on", "name its inputs with --input-tensor NAME"
        )
    names = [each.name for each in inputs]
    results = [each.name for each in outputs]
    note = f"cut at {', '.join(_plain(name) for name in names)}" if starts else ""
    return Cut(
        inputs=tuple((_plain(each.name), each.dtype, each.shape) for each in inputs),
        outputs=tuple(_plain(name) for name in results),
        call=caller(graph, names, results),
        notes=(note,) if note else (),
        frames=has_frames(graph),
    )


def caller(graph: Any, starts: Sequence[str], ends: Sequence[str]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that runs a frozen graph from some tensors to others.

    Everything in between is made anew for the shapes it is given, so that a fixed batch reaches every operator.
    """
    needed = _between(graph, starts, ends)
    for function in needed.library.function:
        # importing a graph makes its functions known to the graph alone, not to what runs it
        if not context.context().has_function(function.signature.name):
            context.context().add_function_def(function)

    def call(values: Sequence[Any]) -> Sequence[Any]:
        found = tf.graph_util.import_graph_def(
            needed, input_map=dict(zip(starts, values, strict=True)), return_elements=list(ends), name="model"
        )
        return list(found)

    return call


def _between(graph: Any, starts: Sequence[str], ends: Sequence[str]) -> Any:
    """The operators that the ends need, with placeholders in the starts' places."""
    cut = {node_name(name) for name in starts}
    nodes = {node.name: node for node in graph.node}
    waiting, keep = [node_name(name) for name in ends], set()
    while waiting:
        name = waiting.pop()
        if name in keep:
            continue
        keep.add(name)
        if name not in cut:
            waiting.extend(node_name(each) for each in nodes[name].input)
    part = tf.compat.v1.GraphDef()
    part.versions.CopyFrom(graph.versions)
    for node in graph.node:
        if node.name in keep and node.name not in cut:
            part.node.add().CopyFrom(node)
    for name in starts:
        _stand_in(part, nodes[node_name(name)], name)
    _add_functions(part, graph)
    return part


def _add_functions(part: Any, graph: Any) -> None:
    """The functions that the part calls, directly or through others; a SavedModel's graph has those for saving too."""
    known = {function.signature.name: function for function in graph.library.function}
    waiting: list[Any] = list(part.node)
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        called = {one.name for value in node.attr.values() for one in (value.func, *value.list.func) if one.name}
        for name in sorted((called | {node.op}) & known.keys() - found):
            found.add(name)
            waiting.extend(known[name].node_def)
    part.library.function.extend(known[name] for name in sorted(found))


def _stand_in(part: Any, node: Any, tensor: str) -> None:
    """A placeholder under the operator's name, which ``input_map`` then replaces."""
    if any(each.name == node.name for each in part.node):
        raise Refused(f"two inputs are results of one operator, {node.name}", "cut behind it")
    if tensor.partition(":")[2] not in {"", "0"}:
        raise Refused(f"{tensor} is not its operator's first result", "cut behind it")
    place = part.node.add()
    place.op, place.name = "Placeholder", node.name
    key = next((key for key in ("dtype", "T", "DstT", "out_type", "output_dtype") if key in node.attr), None)
    place.attr["dtype"].type = node.attr[key].type if key else tf.float32.as_datatype_enum


def _plain(name: str) -> str:
    """``wav_data:0`` → ``wav_data``; other results keep their number."""
    return name.removesuffix(":0")


def _tensor(place: Any, name: str) -> Any:
    try:
        return place.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError) as error:
        near = [each.name for each in place.get_operations() if name.partition(":")[0].lower() in each.name.lower()]
        raise Refused(f"the graph has no tensor {name!r}",
                      f"there is {', '.join(near[:_MOST_NAMED])}" if near else "") from error  # fmt: skip


def _last(place: Any) -> list[Any]:
    """Results that nothing uses and that an input reaches."""
    reached = _downstream(operator for operator in place.get_operations() if operator.type in _STARTS)
    found = [
        operator.outputs[0]
        for operator in place.get_operations()
        if operator.type not in _SILENT and operator.outputs and operator in reached
        and not any(tensor.consumers() for tensor in operator.outputs)
    ]  # fmt: skip
    if not found:
        raise Refused("the graph has no output that depends on an input", "name one with --output-tensor NAME")
    return found


def _first(place: Any, outputs: Sequence[Any]) -> list[Any]:
    used = set(_upstream(outputs, ()))
    return [each.outputs[0] for each in place.get_operations() if each.type in _STARTS and each in used]


def _downstream(operators: Iterable[Any]) -> set[Any]:
    waiting, found = list(operators), set()
    while waiting:
        operator = waiting.pop()
        if operator not in found:
            found.add(operator)
            waiting.extend(user for tensor in operator.outputs for user in tensor.consumers())
    return found


def _upstream(outputs: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """Operators that the outputs need, down to the inputs, which are not followed further."""
    stops = {tensor.op for tensor in inputs}
    waiting = [tensor.op for tensor in outputs]
    found: dict[Any, None] = {}
    while waiting:
        operator = waiting.pop()
        if operator in found:
            continue
        found[operator] = None
        if operator not in stops:
            waiting.extend(tensor.op for tensor in operator.inputs)
    return list(found)


def _is_number(tensor: Any) -> bool:
    return bool(tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool)


def _no_number(tensor: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Refused:
    """An input of text or the like: what makes numbers of it, and behind what the graph can be cut."""
    path = _foreign(inputs, outputs)
    kinds = ", ".join(dict.fromkeys(each.type for each in path))
    through = f", which is turned into numbers by {kinds}, and no edge runtime has these" if path else ""
    candidates = cut_candidates(inputs, outputs)
    where = "; ".join(f"{_plain(each.name)} {each.dtype.name} {each.shape}" for each in candidates)
    return Refused(f"the graph starts from {_plain(tensor.name)}, a {tensor.dtype.name}{through}",
                   f"cut it behind them with --input-tensor NAME: {where}" if where else
                   "cut it with --input-tensor NAME at a tensor of numbers")  # fmt: skip


def _foreign(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Operators on the way that no converter knows, in the graph's order."""
    from tf2onnx import handler, tfonnx

    assert tfonnx, "its import registers what tf2onnx can convert"
    known = set(handler.tf_op.create_mapping(OPSET, None))
    used = set(_upstream(outputs, ()))
    reached = _downstream(tensor.op for tensor in inputs) & used
    graph = outputs[0].graph
    return [each for each in graph.get_operations() if each in reached and each.type not in known | _STARTS]


def cut_candidates(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Tensors behind the last unknown operator through which everything goes, of known shape: the first few."""
    blocked = _foreign(inputs, outputs)
    if not blocked:
        return []
    graph = outputs[0].graph
    order = {operator: index for index, operator in enumerate(graph.get_operations())}
    behind = _downstream(blocked) & set(_upstream(outputs, ()))
    found: list[Any] = []
    for operator in sorted(behind, key=order.__getitem__)[:_MOST_TRIED]:
        if found and operator.type not in _MOVING:
            break
        tensor = operator.outputs[0] if operator.outputs else None
        if tensor is None or tensor in outputs or not _is_number(tensor) or not _is_shaped(tensor):
            continue
        rest = set(_upstream(outputs, [tensor])) - {operator}
        if not any(each.type in _STARTS or each in blocked for each in rest):
            found.append(tensor)
    return found[:_MOST_NAMED]


def _is_shaped(tensor: Any) -> bool:
    return tensor.shape.rank is not None and tensor.shape.rank > 1 and all(
        size is not None for size in tensor.shape.as_list()[1:]
    )  # fmt: skip
