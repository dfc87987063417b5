"""What the source is compared with: a runtime that reads each part, or another file with the same tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import onnx

from edgeship.build.bisect.child import Task
from edgeship.build.bisect.graph import Boundary, Graph
from edgeship_agent.runtime.engine import Array

#: Operators that round to few bits, or compute with such numbers.
QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
                       "MatMulInteger", "DynamicQuantizeLinear", "MatMulNBits", "QLinearAdd",
                       "QGemm"})  # fmt: skip


class Side(Protocol):
    """One side of the comparison."""

    def testable(self, boundary: Boundary) -> bool:
        """Whether it has a part between these tensors."""

    def part(self, boundary: Boundary) -> Any:
        """That part as a model."""

    def task(self, model: Path, inputs: Path, expected: Path) -> Task:
        """How to run it."""


class RuntimeSide:
    """Parts of the source, read and run by a runtime.

    Args:
        source: the graph.
        runtime: its name.
        seen: tensor → what the source computes, ``[samples, …]``.
    """

    def __init__(self, source: Graph, runtime: str, seen: Mapping[str, Array]) -> None:
        self._source = source
        self._seen = seen
        self.runtime = runtime

    def testable(self, boundary: Boundary) -> bool:
        """Whether everything at its ends is a tensor of one size."""
        return _known(boundary, self._seen)

    def part(self, boundary: Boundary) -> Any:
        """The source's own part."""
        return self._source.extract(boundary, self._seen)

    def task(self, model: Path, inputs: Path, expected: Path) -> Task:
        """As devices run it; other runtimes convert it first."""
        kind = "run" if self.runtime == "onnxruntime" else "convert"
        return Task(kind=kind, model=str(model), inputs=str(inputs), expected=str(expected), runtime=self.runtime,
                    outputs=str(model.with_name("outputs.npz")))  # fmt: skip


class ArtifactSide:
    """Parts of another ONNX file, between tensors that it shares with the source.

    Args:
        artifact: the graph.
        seen: tensor → what the source computes, ``[samples, …]``.
    """

    runtime = "onnxruntime"

    def __init__(self, artifact: Graph, seen: Mapping[str, Array]) -> None:
        self.graph = artifact
        self._seen = seen
        self._types = artifact.element_types()
        self._names = {*artifact.inputs, *artifact.tensors}

    def testable(self, boundary: Boundary) -> bool:
        """Whether both files have these tensors, and nothing else leads into the part."""
        names = {*boundary.inputs, *boundary.outputs}
        return names <= self._names and _known(boundary, self._seen) and self.graph.between(boundary) is not None

    def part(self, boundary: Boundary) -> Any:
        """The artifact's part."""
        return self.graph.extract(boundary, self._seen, self._types)

    def task(self, model: Path, inputs: Path, expected: Path) -> Task:
        """As devices run it."""
        return Task(kind="run", model=str(model), inputs=str(inputs), expected=str(expected),
                    outputs=str(model.with_name("outputs.npz")))  # fmt: skip


def is_quantized(model: Any) -> bool:
    """Whether a model rounds to few bits somewhere."""
    return any(node.op_type in QUANTIZED for node in model.graph.node)


def without_rounding(model: Any) -> Any:
    """The model with every pair of quantize and dequantize taken out; dequantized weights stay as they are."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    rounded = {node.output[0]: node for node in found.graph.node if node.op_type == "QuantizeLinear"}
    for node in found.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded:
            before = rounded[node.input[0]].input[0]
            del node.input[:]
            del node.attribute[:]
            node.op_type = "Identity"
            node.input.append(before)
    return found


def _known(boundary: Boundary, seen: Mapping[str, Array]) -> bool:
    names = (*boundary.inputs, *boundary.outputs)
    return bool(boundary.inputs) and bool(boundary.outputs) and all(name in seen for name in names)
