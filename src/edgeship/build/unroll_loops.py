"""ONNX loops written out step by step, where how often they run is known before they do.

Source of the semantics: ONNX operators, Loop-16 and Scan-16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime.engine import Array

LOOPS: Final = frozenset({"Loop", "Scan"})
#: A graph of more steps than this would be larger and slower than any device wants.
MOST_STEPS: Final = 256
_MOST_NODES: Final = 20_000
#: Counters and conditions are small; weights are left to the runtimes' own folding.
_MOST_VALUES: Final = 256
_RANDOM: Final = ("Random", "Bernoulli", "Multinomial")
_AXES_AS_INPUT_OPSET: Final = 13
_SCAN_WITHOUT_BATCH_OPSET: Final = 9


def write_out(document: Any) -> Any:
    """Replace every Loop and Scan by its steps, one after the other.

    Args:
        document: an ONNX model with fixed sizes; left as it is.

    Returns:
        Another model with the same inputs and outputs.

    Raises:
        ConversionError: how often a loop runs depends on the data, or is more than :data:`MOST_STEPS` times.
    """
    return _Writing(document).result()


class _Writing:
    """One pass over a graph in its order; what is small and constant is computed on the way.

    Args:
        document: the model.
    """

    def __init__(self, document: Any) -> None:
        self._opset = max((entry.version for entry in document.opset_import if not entry.domain), default=0)
        self._document = shape_inference.infer_shapes(document)
        graph = self._document.graph
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._kept = {tensor.name for tensor in graph.initializer}
        self._shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
                        for value in (*graph.input, *graph.value_info)}  # fmt: skip
        self._ends = {value.name for value in graph.output}
        self._nodes: list[Any] = []
        self._count = 0

    def result(self) -> Any:
        """The model with its loops written out."""
        graph = self._document.graph
        for node in list(graph.node):
            self._place(node)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in _read_by(node)}
        made = sorted((self._constants.keys() - self._kept) & read)
        graph.initializer.extend(numpy_helper.from_array(np.array(self._constants[name]), name) for name in made)
        for tensor in [each for each in graph.initializer if each.name not in read | self._ends]:
            graph.initializer.remove(tensor)
        return self._document

    def _place(self, node: Any) -> None:
        """Put an operator behind those that are there: its steps, its values, or itself."""
        if node.op_type in LOOPS and not node.domain:
            self._count += 1
            (self._loop if node.op_type == "Loop" else self._scan)(node, f"steps{self._count}")
            return
        values = self._values(node)
        if values is not None:
            self._constants.update(zip(node.output, values, strict=False))
        else:
            self._nodes.append(node)
        if len(self._nodes) > _MOST_NODES:
            raise ConversionError(f"its loops make more than {_MOST_NODES} operators, written out")

    def _values(self, node: Any) -> list[Array] | None:
        """What an operator gives, where that is constant and small; else None."""
        inputs = [name for name in node.input if name]
        if (
            node.domain
            or node.op_type.startswith(_RANDOM)
            or self._ends.intersection(node.output)
            or any(each.HasField("g") or each.graphs for each in node.attribute)
            or any(name not in self._constants for name in inputs)
            or sum(self._constants[name].size for name in inputs) > _MOST_VALUES
        ):
            return None
        try:
            opsets = {"": self._opset}
            found = ReferenceEvaluator(node, opsets=opsets).run(None, {name: self._constants[name] for name in inputs})
        except Exception:  # noqa: BLE001 (the evaluator raises whatever an operator of another version makes of it)
            return None
        arrays = [np.asarray(value) for value in found]
        return arrays if sum(array.size for array in arrays) <= _MOST_VALUES else None

    def _loop(self, node: Any, prefix: str) -> None:
        body = _body(node)
        most = self._known(node.input[0]) if node.input[0] else None
        condition = node.input[1] if len(node.input) > 1 else ""
        states = list(node.input[2:])
        collected: list[list[str]] = []
        shared = self._shared(body, prefix)
        step = 0
        while (most is None or step < int(most.reshape(-1)[0])) and (not condition or self._holds(condition)):
            _check_steps(step + 1)
            at = self._constant(f"{prefix}/{step}/at", np.array(step, np.int64))
            given = [at, condition or self._constant(f"{prefix}/true", np.array(True)), *states]
            results = self._step(body, given, shared, f"{prefix}/{step}")
            condition = results[0] if node.input[1:2] != [""] else ""
            states = results[1 : 1 + len(states)]
            collected.append(results[1 + len(states) :])
            step += 1
        self._finish(node, states, collected, axes=[0] * (len(node.output) - len(states)))

    def _scan(self, node: Any, prefix: str) -> None:
        if self._opset < _SCAN_WITHOUT_BATCH_OPSET:
            raise ConversionError(f"a Scan of opset {self._opset} is not written out")
        body, options = _body(node), {each.name: helper.get_attribute_value(each) for each in node.attribute}
        split = len(node.input) - int(options["num_scan_inputs"])
        states, series = list(node.input[:split]), list(node.input[split:])
        outputs = len(body.output) - split
        axes = options.get("scan_input_axes", [0] * len(series))
        backwards = options.get("scan_input_directions", [0] * len(series))
        steps = self._length(series[0], axes[0])
        shared = self._shared(body, prefix)
        collected: list[list[str]] = []
        for step in range(steps):
            parts = [self._part(name, axis, steps - 1 - step if back else step, f"{prefix}/{step}/in{place}")
                     for place, (name, axis, back) in enumerate(zip(series, axes, backwards, strict=True))]  # fmt: skip
            results = self._step(body, [*states, *parts], shared, f"{prefix}/{step}")
            states = results[:split]
            collected.append(results[split:])
        turned = options.get("scan_output_directions", [0] * outputs)
        places = [[row[place] for row in collected] for place in range(outputs)]
        ordered = [place[::-1] if turn else place for place, turn in zip(places, turned, strict=True)]
        rows = [list(row) for row in zip(*ordered, strict=True)] if ordered else [[] for _ in range(steps)]
        self._finish(node, states, rows, axes=list(options.get("scan_output_axes", [0] * outputs)))

    def _step(self, body: Any, given: Sequence[str], shared: Mapping[str, str], prefix: str) -> list[str]:
        """Place one run of a body; the names of its results."""
        names = {**shared, **{value.name: name for value, name in zip(body.input, given, strict=True)}}
        for node in body.node:
            names.update({name: f"{prefix}/{name}" for name in node.output if name})
            self._place(_renamed(node, names, prefix))
        return [names.get(value.name, value.name) for value in body.output]

    def _shared(self, body: Any, prefix: str) -> dict[str, str]:
        """A body's own constants, once for all steps."""
        return {tensor.name: self._constant(f"{prefix}/{tensor.name}", numpy_helper.to_array(tensor))
                for tensor in body.initializer}  # fmt: skip

    def _finish(self, node: Any, states: Sequence[str], rows: Sequence[Sequence[str]], *, axes: Sequence[int]) -> None:
        """The loop's own outputs: the last states, and what every step gave beside each other."""
        if not rows:
            raise ConversionError(f"the loop {node.name or node.output[0]} never runs")
        for name, state in zip(node.output, states, strict=False):
            if name:
                self._nodes.append(helper.make_node("Identity", [state], [name]))
        for place, (name, axis) in enumerate(zip(node.output[len(states) :], axes, strict=True)):
            if not name:
                continue
            wide = [f"{name}/{step}" for step in range(len(rows))]
            for row, one in zip(rows, wide, strict=True):
                self._nodes.append(self._with_axis(row[place], one, axis))
            self._nodes.append(helper.make_node("Concat", wide, [name], axis=axis))

    def _with_axis(self, name: str, output: str, axis: int) -> Any:
        if self._opset < _AXES_AS_INPUT_OPSET:
            return helper.make_node("Unsqueeze", [name], [output], axes=[axis])
        return helper.make_node("Unsqueeze", [name, self._constant(f"steps/axis{axis}", np.array([axis]))], [output])

    def _part(self, name: str, axis: int, index: int, output: str) -> str:
        at = self._constant(f"steps/at{index}", np.array(index, np.int64))
        self._nodes.append(helper.make_node("Gather", [name, at], [output], axis=axis))
        return output

    def _constant(self, name: str, value: Array) -> str:
        self._constants[name] = value
        return name

    def _known(self, name: str) -> Array:
        if name not in self._constants:
            raise ConversionError("how often a loop runs depends on the data: it cannot be written out")
        value: Array = self._constants[name]
        return value

    def _holds(self, condition: str) -> bool:
        return bool(self._known(condition).reshape(-1)[0])

    def _length(self, series: str, axis: int) -> int:
        sizes = self._shapes.get(series, []) or list(getattr(self._constants.get(series), "shape", ()))
        if not -len(sizes) <= axis < len(sizes) or not sizes[axis]:
            raise ConversionError(f"a Scan over {series}, whose length is not known, cannot be written out")
        _check_steps(sizes[axis])
        return int(sizes[axis])


def _check_steps(steps: int) -> None:
    if steps > MOST_STEPS:
        raise ConversionError(f"a loop of more than {MOST_STEPS} steps is not written out")


def _body(node: Any) -> Any:
    return next(each.g for each in node.attribute if each.name == "body")


def _renamed(node: Any, names: Mapping[str, str], prefix: str) -> Any:
    """A copy of an operator under other names, also where the graphs within it read from outside."""
    copy = onnx.NodeProto.FromString(node.SerializeToString())
    for ends in (copy.input, copy.output):
        ends[:] = [names.get(name, name) for name in ends]
    if copy.name:
        copy.name = f"{prefix}/{copy.name}"
    for graph in _graphs(copy):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inner in graph.node for name in inner.output if name}
        inside = {**names, **{name: f"{prefix}/{name}" for name in own}}
        inner_nodes = [_renamed(inner, inside, prefix) for inner in graph.node]
        del graph.node[:]
        graph.node.extend(inner_nodes)
        for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
            value.name = inside.get(value.name, value.name)
    return copy


def _graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from ([attribute.g] if attribute.HasField("g") else [])
        yield from attribute.graphs


def _read_by(node: Any) -> Iterator[str]:
    """Names that an operator reads, within its graphs too."""
    yield from node.input
    for graph in _graphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from _read_by(inner)
