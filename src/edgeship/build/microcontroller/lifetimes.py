"""From which step to which each tensor of a TFLite file is needed. Pure.

Source: TensorFlow Lite Micro, ``AllocationInfoBuilder::MarkAllocationLifetimes``: every operator is a step; the graphs
that an operator calls are planned inside it; inputs live from the start of their graph, outputs to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeship.build.microcontroller.planner import Buffer
from edgeship.build.tflite_file import TfliteModel, TfliteOperator

#: Operator → its options that name the graphs it calls, in the order in which they are planned.
_CALLS: Final = {
    "IF": ("thenSubgraphIndex", "elseSubgraphIndex"),
    "CALL_ONCE": ("initSubgraphIndex",),
    "WHILE": ("condSubgraphIndex", "bodySubgraphIndex"),
}
#: Graphs within graphs, at most: a file whose graphs call each other in a circle is refused.
_MAX_DEPTH: Final = 16


class Scratch:
    """Memory that one operator wants while it runs.

    Args:
        graph: index of its graph.
        operator: index in that graph.
        size_bytes: wanted.
    """

    def __init__(self, graph: int, operator: int, size_bytes: int) -> None:
        self.graph = graph
        self.operator = operator
        self.size_bytes = size_bytes


def buffers_of(model: TfliteModel, scratch: Sequence[Scratch] = ()) -> tuple[Buffer, ...]:
    """Everything that shares the changing part of the arena, in the order in which TFLM adds it to its plan.

    Args:
        model: the file.
        scratch: what operators want besides.

    Raises:
        ValueError: its graphs call each other in a circle.
    """
    marks = _Marks(model)
    marks.run(0, 0)
    found = []
    for graph_index, graph in enumerate(model.graphs):
        for index, tensor in enumerate(graph.tensors):
            span = marks.tensors.get((graph_index, index))
            if span and not tensor.constant and not tensor.variable and tensor.size_bytes:
                found.append(
                    Buffer(name=tensor.name, size_bytes=tensor.size_bytes, first_use=span[0], last_use=span[1])
                )
    for each in scratch:
        span = marks.operators.get((each.graph, each.operator))
        if span and each.size_bytes:
            found.append(Buffer(name="scratch", size_bytes=each.size_bytes, first_use=span[0], last_use=span[1]))
    return tuple(found)


class _Marks:
    """The walk over all operators.

    Attributes:
        tensors: (graph, tensor) → first and last step.
        operators: (graph, operator) → first and last step.
    """

    def __init__(self, model: TfliteModel) -> None:
        self._model = model
        self._step = 0
        self.tensors: dict[tuple[int, int], tuple[int, int]] = {}
        self.operators: dict[tuple[int, int], tuple[int, int]] = {}

    def run(self, graph_index: int, depth: int) -> None:
        """Mark one graph and those that it calls."""
        if depth > _MAX_DEPTH or not 0 <= graph_index < len(self._model.graphs):
            raise ValueError("graphs call each other in a circle, or one that does not exist")
        graph = self._model.graphs[graph_index]
        for index in (*graph.inputs, *graph.outputs):
            self._create(graph_index, index)
        for position, operator in enumerate(graph.operators):
            self._operate(graph_index, position, operator, depth)
        for index in graph.outputs:
            self._use(graph_index, index)

    def _operate(self, graph_index: int, position: int, operator: TfliteOperator, depth: int) -> None:
        self._step += 1
        started = self._step
        for index in operator.outputs:
            self._create(graph_index, index)
        for key in _CALLS.get(operator.name, ()):
            self._step += 1
            self.run(int(operator.options.get(key, -1)), depth + 1)
        for index in (*operator.inputs, *operator.outputs):
            self._use(graph_index, index)
        self.operators[graph_index, position] = (started, self._step)

    def _create(self, graph_index: int, index: int) -> None:
        self.tensors[graph_index, index] = (self._step, self._step)

    def _use(self, graph_index: int, index: int) -> None:
        if index < 0:  # an input that is left out
            return
        first, _ = self.tensors.get((graph_index, index), (self._step, self._step))
        self.tensors[graph_index, index] = (first, self._step)
