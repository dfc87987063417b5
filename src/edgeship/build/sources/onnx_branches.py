"""ONNX graphs that branch on something that is fixed by now: a pinned shape, or an input with a given value.

A model for two sampling rates holds a branch for each. Once its input has one length, the other branch does not fit
that length, and ONNX Runtime refuses the whole file for it. What the build does not run must not be in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from edgeship.build.quiet import quiet
from edgeship.build.sources.request import InputValue
from edgeship_agent.contract.errors import ConfigError, ConversionError

#: Operators whose result's size depends on the numbers in their inputs, whatever these are; or that are never the same.
_FREE: Final = frozenset({"NonZero", "Unique", "NonMaxSuppression", "Compress", "Bernoulli", "Multinomial",
                          "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})  # fmt: skip
#: Operators whose result's size follows from the size of the first input and the numbers in the others.
_BY_VALUES: Final = frozenset({"Reshape", "Slice", "Pad", "Expand", "Tile", "TopK", "Resize", "Upsample", "Squeeze",
                               "Unsqueeze", "Split", "OneHot", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin",
                               "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
                               "ReduceSumSquare", "CenterCropPad", "Col2Im", "STFT", "DFT", "AffineGrid",
                               "MaxUnpool"})  # fmt: skip
#: Operators whose result's size follows from numbers alone.
_OF_VALUES: Final = frozenset({"ConstantOfShape", "Range", "HannWindow", "HammingWindow", "BlackmanWindow",
                               "MelWeightMatrix", "EyeLike"})  # fmt: skip
#: Operators that ask for a size, and not for numbers.
_OF_SIZE: Final = frozenset({"Shape", "Size"})
_MOST_ROUNDS: Final = 200


def give_values(model: Any, values: tuple[InputValue, ...], path: Path) -> None:
    """Make inputs constants, in the model in memory.

    Raises:
        ConfigError: not an input, or one that holds more than one number.
    """
    inputs = {value.name: value for value in model.graph.input}
    for given in values:
        if given.name not in inputs:
            raise ConfigError("not an input of the model", file=path, key="--input-value",
                              expected=" | ".join(inputs), got=given.name, next_step="name one of them")  # fmt: skip
        kind = inputs[given.name].type.tensor_type
        sizes = [axis.dim_value for axis in kind.shape.dim]
        if any(size > 1 for size in sizes):
            raise ConfigError("holds more than one number", file=path, key=f"--input-value {given.name}",
                              expected="a scalar", got=f"shape {sizes}", next_step="feed it with the data")  # fmt: skip
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        array = np.full([1] * len(sizes), given.value).astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(array, given.name))
        model.graph.input.remove(inputs[given.name])


def keep_taken(model: Any, path: Path) -> int:
    """Put the branch that is taken in the place of every ``If`` whose condition is fixed; how many there were.

    Args:
        model: in memory, its inputs pinned; changed.
        path: for messages.

    Raises:
        ConversionError: ONNX Runtime cannot compute a condition.
    """
    replaced = 0
    for _ in range(_MOST_ROUNDS):
        known = _fixed_values(model)
        fixed = [node for node in model.graph.node if node.op_type == "If" and node.input[0] in known]
        if not fixed:
            break
        found = _computed(model, list(dict.fromkeys(node.input[0] for node in fixed)), path)
        for node in fixed:
            _inline(model, node, "then_branch" if found[node.input[0]] else "else_branch")
        replaced += len(fixed)
    if replaced:
        _drop_unused(model)
    return replaced


def branching_inputs(model: Any) -> tuple[str, ...]:
    """Scalar inputs that a condition depends on."""
    makers = _makers(model)
    scalars = {value.name for value in model.graph.input if not value.type.tensor_type.shape.dim}
    names = [node.input[0] for node in model.graph.node if node.op_type == "If"]
    return tuple(sorted({name for start in names for name in _ancestors(start, makers) if name in scalars}))


def _makers(model: Any) -> dict[str, Any]:
    return {name: node for node in model.graph.node for name in node.output}


def _fixed_values(model: Any) -> set[str]:
    """Tensors whose numbers follow from constants and from pinned sizes alone."""
    graph = model.graph
    values = {"", *(tensor.name for tensor in graph.initializer)}
    sizes = set(values)
    for value in graph.input:
        if all(axis.dim_value > 0 for axis in value.type.tensor_type.shape.dim):
            sizes.add(value.name)
    for node in graph.node:  # in the order of the graph, in which everything is made before it is used
        if _graphs(node) or node.op_type in _FREE:
            continue
        if node.op_type in _OF_SIZE:
            known = node.input[0] in sizes
            values.update(node.output if known else ())
        else:
            known = _has_size(node, sizes, values)
            values.update(node.output if values.issuperset(node.input) else ())
        sizes.update(node.output if known else ())
    return values


def _has_size(node: Any, sizes: set[str], values: set[str]) -> bool:
    """Whether the size of a node's results is fixed."""
    if values.issuperset(node.input):
        return True
    if node.op_type in _OF_VALUES:
        return False
    if node.op_type in _BY_VALUES:
        return node.input[0] in sizes and values.issuperset(node.input[1:])
    return sizes.issuperset(node.input)


def _ancestors(name: str, makers: Mapping[str, Any]) -> set[str]:
    """Names of everything that a tensor depends on, itself included; what branches use is not followed."""
    waiting, seen = [name], set()
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += makers[current].input if current in makers else ()
    return seen


def _computed(model: Any, names: list[str], path: Path) -> dict[str, bool]:
    """Values of conditions, by a run on zeros with the sizes left free: pinned, what is never run would be refused."""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.value_info[:]
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, None) for name in names)
    feeds = {}
    weights = {tensor.name for tensor in probe.graph.initializer}
    for value in probe.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        shape = [axis.dim_value or 1 for axis in kind.shape.dim]
        feeds[value.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
        for axis in kind.shape.dim:
            axis.Clear()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        with quiet():
            session = onnxruntime.InferenceSession(probe.SerializeToString(), options,
                                                   providers=["CPUExecutionProvider"])  # fmt: skip
            values = session.run(names, feeds)
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ConversionError(f"the branch that is taken cannot be found: {reason}", file=path) from error
    return {name: bool(np.asarray(value).reshape(-1)[0]) for name, value in zip(names, values, strict=True)}


def _graphs(node: Any) -> list[Any]:
    return [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]


def _inline(model: Any, node: Any, name: str) -> None:
    """A branch's operators in the place of its ``If``."""
    graph = model.graph
    branch = next(attribute.g for attribute in node.attribute if attribute.name == name)
    # other branches may call their tensors the same, and names are unique in what is around them
    own = [each for other in branch.node for each in other.output] + [each.name for each in branch.initializer]
    renamed = {each: f"{node.output[0]}/{each}" for each in own if each}
    nodes = [_renamed(each, renamed) for each in branch.node]
    for tensor in branch.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = renamed.get(tensor.name, tensor.name)
        graph.initializer.append(copy)
    nodes += [
        helper.make_node("Identity", [renamed.get(inner.name, inner.name)], [outer])
        for inner, outer in zip(branch.output, node.output, strict=True)
    ]
    position = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, each in enumerate(nodes):
        graph.node.insert(position + offset, each)


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A copy with other names, in its own graphs too."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(each, each) for each in node.input]
    copy.output[:] = [names.get(each, each) for each in node.output]
    for graph in _graphs(copy):
        inner = [_renamed(each, names) for each in graph.node]
        del graph.node[:]
        graph.node.extend(inner)
        for output in graph.output:
            output.name = names.get(output.name, output.name)
    return copy


def _drop_unused(model: Any) -> None:
    """Operators and weights that only the other branches used."""
    graph = model.graph
    makers = _makers(model)
    waiting, needed = [output.name for output in graph.output], set()
    while waiting:
        current = waiting.pop()
        if current in needed:
            continue
        needed.add(current)
        if current in makers:
            waiting += _used(makers[current])
    for node in [each for each in graph.node if needed.isdisjoint(each.output)]:
        graph.node.remove(node)
    for tensor in [each for each in graph.initializer if each.name not in needed]:
        graph.initializer.remove(tensor)


def _used(node: Any) -> list[str]:
    """What a node takes, in its own graphs too."""
    inner = [name for graph in _graphs(node) for each in graph.node for name in _used(each)]
    outputs = [output.name for graph in _graphs(node) for output in graph.output]
    return [*node.input, *inner, *outputs]
