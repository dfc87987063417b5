"""ONNX loops and recurrent layers written out step by step: converters lower them wrongly, or to nothing that runs.

Source of the formulas: ONNX operators, LSTM-14 and GRU-14 ("Equations (Default)").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from edgeship.build.sources import SourceModel
from edgeship.build.unroll_loops import LOOPS, MOST_STEPS, write_out
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime.engine import Array

#: Gates that stand one below the other in a layer's weights.
_GATES: Final = {"LSTM": 4, "GRU": 3}
_LEAST_OPSET: Final = 10
#: Positions of a layer's inputs.
_BIAS, _LENGTHS, _HIDDEN, _CELL, _PEEPHOLES = 3, 4, 5, 6, 7


class NothingToUnroll(ConversionError):
    """The model has no loop and no recurrent layer: the way does not apply to it."""


def unroll(_source: SourceModel, model: Path, folder: Path) -> Path:
    """Replace every Loop and Scan by its steps, every LSTM and GRU by the products and gates of its steps.

    Args:
        model: an ONNX file with fixed sizes.
        folder: to write in.

    Raises:
        NothingToUnroll: it has none of them.
        ConversionError: one is of a kind that has no such form here, or has too many steps.
    """
    document = onnx.load(str(model))
    loops = any(node.op_type in LOOPS and not node.domain for node in document.graph.node)
    document = shape_inference.infer_shapes(write_out(document) if loops else document)
    layers = [node for node in document.graph.node if node.op_type in _GATES and not node.domain]
    if not layers and not loops:
        raise NothingToUnroll("it has no loop and no recurrent layer")
    opset = max((entry.version for entry in document.opset_import if not entry.domain), default=0)
    if layers and opset < _LEAST_OPSET:
        raise ConversionError(f"recurrent layers of opset {opset} are not written out")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in document.graph.initializer}
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
              for value in (*document.graph.input, *document.graph.value_info)}  # fmt: skip
    read = {name for node in document.graph.node for name in node.input} | {each.name for each in document.graph.output}
    nodes: list[Any] = []
    for index, node in enumerate(document.graph.node):
        if node in layers:
            del node.output[3:]
            node.output[:] = [name if name in read else "" for name in node.output]
            layer = _Layer(node, f"unrolled{index}", constants, shapes)
            nodes += layer.nodes()
            document.graph.initializer.extend(layer.made)
        else:
            nodes.append(node)
    del document.graph.node[:], document.graph.value_info[:]
    document.graph.node.extend(nodes)
    gone = {name for layer in layers for name in layer.input} - {name for node in nodes for name in node.input}
    for tensor in [each for each in document.graph.initializer if each.name in gone]:
        document.graph.initializer.remove(tensor)
    file = folder / "model.onnx"
    onnx.save(document, str(file))
    return file


class _Layer:
    """One recurrent layer in both directions.

    Args:
        node: the operator.
        prefix: of every new name.
        constants: name → value.
        shapes: name → sizes.
    """

    def __init__(self, node: Any, prefix: str, constants: dict[str, Array], shapes: dict[str, list[int]]) -> None:
        self._node = node
        self._prefix = prefix
        self._options = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        self._inputs = [*node.input, *[""] * (_PEEPHOLES + 1 - len(node.input))]
        self._outputs = [*node.output, *[""] * (3 - len(node.output))]
        self._check(constants)
        sizes = shapes.get(node.input[0], [])
        if len(sizes) != 3 or 0 in sizes or sizes[0] > MOST_STEPS:
            raise ConversionError(f"a recurrent layer over {sizes or 'unknown'} steps, batch, values is not written "
                                  f"out; at most {MOST_STEPS} known steps are")  # fmt: skip
        self._steps, self._batch, _ = sizes
        self._weights = [constants[name] for name in self._inputs[1:3]]
        self._hidden = int(self._weights[1].shape[-1])
        bias = self._inputs[_BIAS]
        width = _GATES[node.op_type] * self._hidden
        self._bias = constants[bias] if bias else np.zeros((len(self._weights[0]), 2 * width), np.float32)
        self._made: dict[str, Array] = {}

    def _check(self, constants: dict[str, Array]) -> None:
        options, inputs = self._options, self._inputs
        foreign = sorted(set(options) - {"hidden_size", "direction", "linear_before_reset", "layout", "input_forget"})
        if foreign or options.get("layout") or options.get("input_forget"):
            raise ConversionError(f"a recurrent layer with {', '.join(foreign) or 'another layout'} is not written out")
        if inputs[_LENGTHS] or inputs[_PEEPHOLES] or any(name and name not in constants for name in inputs[1:4]):
            raise ConversionError("a recurrent layer with peepholes, lengths or computed weights is not written out")

    @property
    def made(self) -> list[Any]:
        """New constants."""
        return [numpy_helper.from_array(value, name) for name, value in self._made.items()]

    def nodes(self) -> Iterator[Any]:
        """Operators in the place of the layer."""
        directions = {b"forward": (False,), b"reverse": (True,), b"bidirectional": (False, True)}
        ways = directions[self._options.get("direction", b"forward")]
        every: list[list[str]] = []
        ends: list[tuple[str, str]] = []
        for way, backwards in enumerate(ways):
            states, last, made = self._direction(way, backwards=backwards)
            yield from made
            every.append(states)
            ends.append(last)
        yield from self._gathered(every, ends)

    def _direction(self, way: int, *, backwards: bool) -> tuple[list[str], tuple[str, str], list[Any]]:
        """States of every step in order, the last hidden and cell state, and the operators that make them."""
        p, made = f"{self._prefix}_{way}", list[Any]()
        width = _GATES[self._node.op_type] * self._hidden
        before, after = self._bias[way][:width], self._bias[way][width:].copy()
        apart = self._node.op_type == "GRU" and bool(self._options.get("linear_before_reset"))
        if not apart:
            before, after = before + after, np.zeros_like(after)
        made += [
            helper.make_node(
                "MatMul", [self._inputs[0], self._constant(f"{p}_w", self._weights[0][way].T)], [f"{p}_m"]
            ),
            helper.make_node("Add", [f"{p}_m", self._constant(f"{p}_b", before)], [f"{p}_x"]),
        ]
        state = (self._start(_HIDDEN, way, made), self._start(_CELL, way, made))
        states = [""] * self._steps
        for step in reversed(range(self._steps)) if backwards else range(self._steps):
            q = f"{p}_{step}"
            at = self._constant(f"{self._prefix}_at{step}", np.array(step, np.int64))
            made.append(helper.make_node("Gather", [f"{p}_x", at], [f"{q}_x"], axis=0))
            cell = self._lstm if self._node.op_type == "LSTM" else self._gru
            state, nodes = cell(q, way, state, after)
            made += nodes
            states[step] = state[0]
        return states, state, made

    def _lstm(self, q: str, way: int, state: tuple[str, str], _after: Array) -> tuple[tuple[str, str], list[Any]]:
        node, size = helper.make_node, self._hidden
        recurrent = self._constant(f"{self._prefix}_{way}_r", self._weights[1][way].T)
        made = [node("MatMul", [state[0], recurrent], [f"{q}_r"]), node("Add", [f"{q}_x", f"{q}_r"], [f"{q}_g"])]
        for position, (gate, kind) in enumerate((("i", "Sigmoid"), ("o", "Sigmoid"), ("f", "Sigmoid"), ("c", "Tanh"))):
            made += [
                self._part(f"{q}_g", f"{q}_{gate}0", position * size),
                node(kind, [f"{q}_{gate}0"], [f"{q}_{gate}"]),
            ]
        made += [
            node("Mul", [f"{q}_f", state[1]], [f"{q}_kept"]),
            node("Mul", [f"{q}_i", f"{q}_c"], [f"{q}_new"]),
            node("Add", [f"{q}_kept", f"{q}_new"], [f"{q}_cell"]),
            node("Tanh", [f"{q}_cell"], [f"{q}_shown"]),
            node("Mul", [f"{q}_o", f"{q}_shown"], [f"{q}_h"]),
        ]
        return (f"{q}_h", f"{q}_cell"), made

    def _gru(self, q: str, way: int, state: tuple[str, str], after: Array) -> tuple[tuple[str, str], list[Any]]:
        node, size, p = helper.make_node, self._hidden, f"{self._prefix}_{way}"
        weights = self._weights[1][way]
        gates = self._constant(f"{p}_rg", weights[: 2 * size].T)
        shown = self._constant(f"{p}_rh", weights[2 * size :].T)
        made = [
            node("MatMul", [state[0], gates], [f"{q}_r0"]),
            node("Add", [f"{q}_r0", self._constant(f"{p}_bg", after[: 2 * size])], [f"{q}_r1"]),
            self._part(f"{q}_x", f"{q}_xg", 0, 2 * size),
            node("Add", [f"{q}_xg", f"{q}_r1"], [f"{q}_g0"]),
            node("Sigmoid", [f"{q}_g0"], [f"{q}_g"]),
            self._part(f"{q}_g", f"{q}_z", 0),
            self._part(f"{q}_g", f"{q}_reset", size),
            self._part(f"{q}_x", f"{q}_xh", 2 * size),
        ]
        if self._options.get("linear_before_reset"):
            made += [
                node("MatMul", [state[0], shown], [f"{q}_h0"]),
                node("Add", [f"{q}_h0", self._constant(f"{p}_bh", after[2 * size :])], [f"{q}_h1"]),
                node("Mul", [f"{q}_reset", f"{q}_h1"], [f"{q}_h2"]),
            ]
        else:
            made += [
                node("Mul", [f"{q}_reset", state[0]], [f"{q}_h1"]),
                node("MatMul", [f"{q}_h1", shown], [f"{q}_h2"]),
            ]
        made += [
            node("Add", [f"{q}_xh", f"{q}_h2"], [f"{q}_h3"]),
            node("Tanh", [f"{q}_h3"], [f"{q}_new"]),
            node("Sub", [state[0], f"{q}_new"], [f"{q}_apart"]),
            node("Mul", [f"{q}_z", f"{q}_apart"], [f"{q}_kept"]),
            node("Add", [f"{q}_new", f"{q}_kept"], [f"{q}_h"]),
        ]
        return (f"{q}_h", ""), made

    def _gathered(self, every: list[list[str]], ends: list[tuple[str, str]]) -> Iterator[Any]:
        """The layer's outputs: all states [steps, directions, batch, values], and the last ones."""
        node, p = helper.make_node, self._prefix
        four = self._constant(f"{p}_four", np.array([1, 1, self._batch, self._hidden], np.int64))
        three = self._constant(f"{p}_three", np.array([1, self._batch, self._hidden], np.int64))
        if self._outputs[0]:
            steps = []
            for step in range(self._steps):
                states = [each[step] for each in every]
                yield from _joined(states, f"{p}_y{step}", shape=four, axis=1)
                steps.append(f"{p}_y{step}")
            yield node("Concat" if len(steps) > 1 else "Identity", steps, [self._outputs[0]],
                       **({"axis": 0} if len(steps) > 1 else {}))  # fmt: skip
        for output, which in zip(self._outputs[1:], (0, 1), strict=True):
            if output:
                yield from _joined([end[which] for end in ends], output, shape=three, axis=0)

    def _start(self, position: int, way: int, made: list[Any]) -> str:
        """The state before the first step: [batch, values]."""
        name = f"{self._prefix}_{way}_start{position}"
        given = self._inputs[position]
        if not given:
            return self._constant(name, np.zeros((self._batch, self._hidden), np.float32))
        at = self._constant(f"{self._prefix}_at{way}", np.array(way, np.int64))
        made.append(helper.make_node("Gather", [given, at], [name], axis=0))
        return name

    def _part(self, name: str, output: str, start: int, size: int = 0) -> Any:
        """A slice of the last axis."""
        begin, end, axis = (
            self._constant(f"{self._prefix}_n{value}", np.array([value], np.int64))
            for value in (start, start + (size or self._hidden), 1)
        )
        return helper.make_node("Slice", [name, begin, end, axis], [output])

    def _constant(self, name: str, value: Array) -> str:
        self._made.setdefault(name, np.array(value, order="C"))
        return name


def _joined(states: list[str], output: str, *, shape: str, axis: int) -> Iterator[Any]:
    """States of all directions, each given a shape, beside each other; a single one is not joined with anything."""
    if len(states) == 1:
        yield helper.make_node("Reshape", [states[0], shape], [output])
        return
    names = [f"{output}_way{way}" for way in range(len(states))]
    for name, state in zip(names, states, strict=True):
        yield helper.make_node("Reshape", [state, shape], [name])
    yield helper.make_node("Concat", names, [output], axis=axis)
