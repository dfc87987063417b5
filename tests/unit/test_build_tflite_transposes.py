"""Transpositions around slices and padding are taken out of TFLite files, and the answers stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgeship.build.backends.tflite_transposes import with_fewer_transposes
from edgeship.build.tflite_file import read_tflite
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.engine import Array
from tests.tflite_files import Ops, TfliteWriter, Types

FIRST = (0, 3, 1, 2)
LAST = (0, 2, 3, 1)


class Net(TfliteWriter):
    """A writer that knows the operators of a shortcut."""

    def floats(self, name: str, *shape: int) -> int:
        return self.tensor(name, shape, Types.FLOAT32)

    def integers(self, name: str, values: object) -> int:
        array = np.array(values, np.int32)
        return self.tensor(name, array.shape, Types.INT32, data=array)

    def turned(self, before: int, after: int, order: tuple[int, ...]) -> None:
        axes = self.integers(f"order{after}", order)
        self.operator(Ops.TRANSPOSE, [before, axes], [after], options=schema.TransposeOptionsT())

    def sliced(self, before: int, after: int, axis: int) -> None:
        """Every second value of one axis, from its second one on, all of the others by their masks."""
        options = schema.StridedSliceOptionsT()
        options.beginMask = options.endMask = 0b1111 & ~(1 << axis)
        options.endMask |= 1 << axis
        begin, end, stride = ([value if each == axis else rest for each in range(4)]
                              for value, rest in ((1, 0), (0, 0), (2, 1)))  # fmt: skip
        places = [self.integers(f"{word}{after}", each) for word, each in (("b", begin), ("e", end), ("s", stride))]
        self.operator(Ops.STRIDED_SLICE, [before, *places], [after], options=options)


def shortcut(path: Path, *, read_twice: bool = False) -> Path:
    """``x`` [1, 6, 8, 3] float32: channels first, every second row and column, two channels more, channels last."""
    net = Net()
    x, first = net.floats("x", 1, 6, 8, 3), net.floats("first", 1, 3, 6, 8)
    rows, columns = net.floats("rows", 1, 3, 3, 8), net.floats("columns", 1, 3, 3, 4)
    padded, last, y = net.floats("padded", 1, 5, 3, 4), net.floats("last", 1, 3, 4, 5), net.floats("y", 1, 3, 4, 5)
    net.turned(x, first, FIRST)
    net.sliced(first, rows, 2)
    net.sliced(rows, columns, 3)
    pads = net.integers("pads", [[0, 0], [1, 1], [0, 0], [0, 0]])
    net.operator(Ops.PAD, [columns, pads], [padded], options=schema.PadOptionsT())
    net.turned(padded, last, LAST)
    net.operator(Ops.ADD, [last, last], [y], options=schema.AddOptionsT())
    return net.write(path, [x], [y, first] if read_twice else [y])


def ended(path: Path) -> Path:
    """``x`` [1, 4, 6, 3] float32: a sum, channels first, what is above zero, its mean over rows and columns."""
    net = Net()
    x, added, first = net.floats("x", 1, 4, 6, 3), net.floats("added", 1, 4, 6, 3), net.floats("first", 1, 3, 4, 6)
    above, y = net.floats("above", 1, 3, 4, 6), net.floats("y", 1, 3)
    net.operator(Ops.ADD, [x, x], [added], options=schema.AddOptionsT())
    net.turned(added, first, FIRST)
    net.operator(Ops.RELU, [first], [above])
    axes = net.integers("axes", [-1, 2])
    net.operator(Ops.MEAN, [above, axes], [y], options=schema.ReducerOptionsT())
    return net.write(path, [x], [y])


def given_back(path: Path) -> Path:
    """``x`` [1, 4, 6, 3] float32, whose absolute values leave the graph from the second transposition."""
    net = Net()
    x, first = net.floats("x", 1, 4, 6, 3), net.floats("first", 1, 3, 4, 6)
    sizes, y = net.floats("sizes", 1, 3, 4, 6), net.floats("y", 1, 4, 6, 3)
    net.turned(x, first, FIRST)
    net.operator(Ops.ABS, [first], [sizes], options=schema.AbsOptionsT())
    net.turned(sizes, y, LAST)
    return net.write(path, [x], [y])


def _answers(path: Path) -> list[Array]:
    engine = open_engine("litert", path)
    shape = engine.signature.inputs[0].shape
    answers = [each.copy() for each in engine.run([np.random.default_rng(5).normal(0, 1, shape).astype(np.float32)])]
    engine.close()
    return answers


def _kinds(path: Path) -> list[str]:
    return [each.name for each in read_tflite(path).main.operators]


@pytest.mark.parametrize(
    ("write", "left"),
    [(shortcut, ["STRIDED_SLICE", "PAD", "ADD"]), (ended, ["ADD", "MEAN"]), (given_back, ["ABS"])],
)
def test_they_go_and_the_answers_stay(write: Callable[[Path], Path], left: list[str], tmp_path: Path) -> None:
    before, after = write(tmp_path / "before.tflite"), tmp_path / "after.tflite"
    after.write_bytes(with_fewer_transposes(before.read_bytes()))
    assert _kinds(after) == left
    for one, other in zip(_answers(before), _answers(after), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    # what nothing reads any more is gone: calibrators read every tensor
    graph = read_tflite(after).main
    used = {index for each in graph.operators for index in (*each.inputs, *each.outputs)}
    assert used == set(range(len(graph.tensors)))


def test_a_transposition_that_others_read_stays(tmp_path: Path) -> None:
    data = shortcut(tmp_path / "m.tflite", read_twice=True).read_bytes()
    assert with_fewer_transposes(data) == data
