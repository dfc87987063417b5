"""An ONNX graph as the search sees it: operators in order, the tensors between them, and any part of it as a file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from msgspec import Struct
from onnx import helper, numpy_helper, shape_inference

from edgeship.build.model_facts import CONSTANT_WEIGHTS_IR
from edgeship_agent.contract.errors import InputError
from edgeship_agent.runtime.engine import Array

#: Operators whose result depends on the shape of a tensor alone.
_SHAPE_ONLY: Final = frozenset({"Shape", "Size"})


class Boundary(Struct, frozen=True, kw_only=True):
    """Where a part begins and ends.

    Attributes:
        inputs: tensors that it is fed, in the order of their first use.
        outputs: tensors that the rest of the graph or the user reads.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Graph:
    """One ONNX file.

    An *operator* is a node with at least one input that changes from call to call; nodes that compute constants belong
    to whatever uses them. Operators are numbered in the order of the file, which is a topological one.

    Args:
        document: the model, weights included; not changed.
    """

    def __init__(self, document: Any) -> None:
        self.document = document
        graph = document.graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._weights_sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        constants = {*self._weights, *self._weights_sparse}
        self.inputs = tuple(value.name for value in graph.input if value.name not in constants)
        self.outputs = tuple(value.name for value in graph.output)
        self._changing = set(self.inputs)
        self._producer: dict[str, Any] = {}
        self.operators: list[Any] = []
        for node in graph.node:
            for name in node.output:
                self._producer[name] = node
            if any(name in self._changing for name in reads(node)):
                self.operators.append(node)
                self._changing.update(name for name in node.output if name)
        self._read_by: dict[str, set[int]] = {}
        for index, node in enumerate(self.operators):
            for name in reads(node):
                self._read_by.setdefault(name, set()).add(index)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Tensors that change from call to call, the inputs left out, in the order in which they are computed."""
        return tuple(name for node in self.operators for name in node.output if name)

    def boundary(self, part: Collection[int]) -> Boundary:
        """Where a part begins and ends.

        Args:
            part: positions of operators.
        """
        inside = {name for index in part for name in self.operators[index].output if name}
        inputs = dict.fromkeys(
            name
            for index in sorted(part)
            for name in reads(self.operators[index])
            if name in self._changing and name not in inside
        )
        wanted = set(self.outputs)
        outputs = [
            name
            for index in sorted(part)
            for name in self.operators[index].output
            if name and (name in wanted or self._read_by.get(name, set()) - set(part))
        ]
        return Boundary(inputs=tuple(inputs), outputs=tuple(outputs))

    def ancestors(self, part: Collection[int]) -> frozenset[int]:
        """A part and every operator that it depends on."""
        found = set(part)
        waiting = list(part)
        position = {id(node): index for index, node in enumerate(self.operators)}
        while waiting:
            for name in reads(self.operators[waiting.pop()]):
                node = self._producer.get(name)
                index = position.get(id(node), -1)
                if index >= 0 and index not in found:
                    found.add(index)
                    waiting.append(index)
        return frozenset(found)

    def between(self, boundary: Boundary) -> list[Any] | None:
        """Every node that leads from the inputs to the outputs, in order; None where the inputs do not suffice."""
        given = set(boundary.inputs)
        needed: set[int] = set()
        waiting = [name for name in boundary.outputs if name not in given]
        seen = set(waiting)
        while waiting:
            name = waiting.pop()
            node = self._producer.get(name)
            if node is None:
                if name in self._weights or name in self._weights_sparse:
                    continue
                return None
            needed.add(id(node))
            more = [each for each in reads(node) if each and each not in given and each not in seen]
            seen.update(more)
            waiting.extend(more)
        return [node for node in self.document.graph.node if id(node) in needed]

    def extract(self, boundary: Boundary, seen: Mapping[str, Array], types: Mapping[str, int] | None = None) -> Any:
        """A part as a model of its own.

        Args:
            boundary: where it begins and ends; :meth:`between` finds nodes for it.
            seen: tensor → what a run gave, for shapes and types; ``[samples, …]``.
            types: tensor → ONNX element type, where this file's may differ from those of the run; then nothing is said
                of the outputs' shapes, which may be what is wrong.

        Raises:
            KeyError: nothing is known of an input.
        """
        nodes = self.between(boundary) or []
        used = {name for node in nodes for name in reads(node)} | set(boundary.outputs)
        known = dict(types or {})
        graph = helper.make_graph(
            nodes,
            self.document.graph.name or "part",
            [_value(name, seen[name], known.get(name)) for name in boundary.inputs],
            [
                _value(name, seen[name], known.get(name)) if types is None else _bare(name, known.get(name))
                for name in boundary.outputs
            ],
            [tensor for name, tensor in self._weights.items() if name in used],
            sparse_initializer=[tensor for name, tensor in self._weights_sparse.items() if name in used],
        )
        return helper.make_model(
            graph,
            opset_imports=self.document.opset_import,
            functions=self.document.functions,
            # the part's weights are constants, even where an old file lists the whole's among its inputs
            ir_version=max(self.document.ir_version, CONSTANT_WEIGHTS_IR),
            producer_name="edgeship",
        )

    def element_types(self) -> dict[str, int]:
        """Tensor → ONNX element type, as far as shape inference tells."""
        try:
            inferred = shape_inference.infer_shapes(self.document)
        except (shape_inference.InferenceError, RuntimeError, ValueError):
            inferred = self.document
        graph = inferred.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        return {value.name: value.type.tensor_type.elem_type for value in values
                if value.type.tensor_type.elem_type}  # fmt: skip


def read(path: Path) -> Graph:
    """Read an ONNX file for the search, however wrong what it computes may be.

    Raises:
        InputError: it cannot be parsed, or holds no operators.
    """
    if not path.is_file():
        raise InputError("no such model file", file=path, next_step="check the path")
    try:
        document = onnx.load(str(path))
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as error:
        raise InputError("not a readable ONNX model: the file is damaged or truncated", file=path,
                         next_step="copy or export the file again") from error  # fmt: skip
    if not document.graph.node:
        raise InputError("not a readable ONNX model: the file is damaged or truncated", file=path,
                         expected="a graph with operators", got="none",
                         next_step="copy or export the file again")  # fmt: skip
    return Graph(document)


def watched(graph: Graph, names: Sequence[str]) -> Any:
    """The model with these tensors as its outputs, and no others."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.document)
    declared = {value.name: value for value in model.graph.output}
    outputs = [declared.get(name) or helper.make_empty_tensor_value_info(name) for name in names]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


def settled(graph: Graph, seen: Mapping[str, Array]) -> Graph:
    """The graph with what depends on shapes alone as constants: a part of it need not be fed its own shapes.

    Args:
        graph: with a batch of 1 or fixed sizes.
        seen: tensor → what a run gave; ``[samples, …]``.
    """
    weights = {tensor.name for tensor in graph.document.graph.initializer}
    fixed: set[str] = set()
    for node in graph.document.graph.node:
        names = [name for name in reads(node) if name]
        computed = node.op_type in _SHAPE_ONLY or (
            any(name in fixed for name in names) and all(name in fixed or name in weights for name in names)
        )
        if computed and all(name in seen for name in node.output if name):
            fixed.update(name for name in node.output if name)
    fixed -= set(graph.outputs)
    if not fixed:
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.document)
    kept = [node for node in model.graph.node if not all(name in fixed for name in node.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(seen[name][0]), name) for name in sorted(fixed))
    return Graph(model)


def reads(node: Any) -> Iterator[str]:
    """Names of tensors that a node reads, those that its inner graphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            own = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
            for each in inner.node:
                yield from (name for name in reads(each) if name not in own)
                own.update(each.output)
            yield from (value.name for value in inner.output if value.name not in own)


def _bare(name: str, kind: int | None) -> Any:
    return helper.make_tensor_value_info(name, kind, None) if kind else helper.make_empty_tensor_value_info(name)


def _value(name: str, seen: Array, kind: int | None) -> Any:
    shape = seen.shape[1:]
    return helper.make_tensor_value_info(name, kind or helper.np_dtype_to_tensor_dtype(seen.dtype), shape)
