"""What exporters of classical models write by default, and nothing else: maps from class to score, and wrong shapes.

No runtime but ONNX Runtime has such maps, and a fleet's answers are tensors: what a map is made from is the output, the
classes by which it was read are its names.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, Final

import onnx
from msgspec import Struct
from onnx import helper

_MAP: Final = "ZipMap"
#: The version of ONNX in a file that had none of its operators. Source: onnx, docs/Versioning.md, for IR version 3.
_OPSET: Final = 8
#: Operator → its attribute that says how many numbers it gives a sample: one row each. Source: ONNX, ai.onnx.ml.
_REGRESSORS: Final = {"TreeEnsembleRegressor": "n_targets", "LinearRegressor": "targets", "SVMRegressor": ""}


class Unmapped(Struct, frozen=True, kw_only=True):
    """What was changed.

    Attributes:
        classes: names of the first output's entries; empty where they are 0, 1, … in order.
    """

    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def may_hold_maps(path: Path) -> bool:
    """Whether a file names the operator anywhere."""
    if not path.stat().st_size:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(_MAP.encode()) >= 0


def mend_shapes(model: Any) -> bool:
    """Give outputs of regressions, which the file says to have one axis, their two; whether there were any, in memory.

    CatBoost writes ``[N]``, and ONNX Runtime refuses what was prepared for that.
    """
    outputs = {value.name: value for value in model.graph.output}
    wrong = []
    for node in model.graph.node:
        value = outputs.get(node.output[0]) if node.op_type in _REGRESSORS else None
        if value is not None and len(value.type.tensor_type.shape.dim) == 1:
            found = {each.name: each.i for each in node.attribute}
            value.type.tensor_type.shape.dim.add().dim_value = found.get(_REGRESSORS[node.op_type], 1) or 1
            wrong.append(value.name)
    return bool(wrong)


def take_away(model: Any) -> Unmapped | None:
    """Give tensors in the place of maps, the scores first, in the model in memory; None where it has no maps.

    Labels that are texts go where there are scores: nothing that runs on a device answers with texts.
    """
    graph = model.graph
    outputs = {value.name: value for value in graph.output}
    maps = [node for node in graph.node if node.op_type == _MAP and node.output[0] in outputs]
    if not maps:
        return None
    names = {node.output[0]: _classes(node) for node in maps}
    for node in maps:
        outputs[node.output[0]].CopyFrom(_scores(graph, node.output[0], len(names[node.output[0]])))
        node.CopyFrom(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))
    if not any(each.domain in {"", "ai.onnx"} for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", _OPSET))
    texts = [name for name, value in outputs.items() if value.type.tensor_type.elem_type == onnx.TensorProto.STRING]
    ordered = [*names, *(name for name in outputs if name not in names and name not in texts)]
    kept = [onnx.ValueInfoProto.FromString(outputs[name].SerializeToString()) for name in ordered]
    del graph.output[:]
    graph.output.extend(kept)
    _prune(graph)
    first = next(iter(names.values()))
    plain = first == tuple(str(place) for place in range(len(first)))
    notes = [f"{', '.join(names)}: maps from class to score in the file, tensors in that order of classes here"]
    notes += [f"{', '.join(texts)}: texts, left out; the scores say the class"] if texts else []
    return Unmapped(classes=() if plain else first, notes=tuple(notes))


def _classes(node: Any) -> tuple[str, ...]:
    """Keys of a map, in the order of the scores."""
    found = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    texts = [each.decode("utf-8", "replace") for each in found.get("classlabels_strings", ())]
    return tuple(texts or [str(each) for each in found.get("classlabels_int64s", ())])


def _scores(graph: Any, name: str, count: int) -> Any:
    """A tensor [N, classes], with the inputs' own first axis."""
    value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, count])
    constants = {tensor.name for tensor in graph.initializer}
    axes = [each.type.tensor_type.shape.dim for each in graph.input if each.name not in constants]
    if axes and axes[0]:
        value.type.tensor_type.shape.dim[0].CopyFrom(axes[0][0])
    return value


def _prune(graph: Any) -> None:
    """Without operators that no output needs; they stand in the order of their execution."""
    needed = {value.name for value in graph.output}
    idle = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            idle.append(node)
        else:
            needed |= _read(node)
    for node in idle:
        graph.node.remove(node)


def _read(node: Any) -> set[str]:
    """Names that a node reads, its subgraphs included."""
    inner = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    return {*node.input}.union(*(_read(each) for graph in inner for each in graph.node),
                               *({value.name for value in graph.output} for graph in inner))  # fmt: skip
