"""ONNX files in the forms that onnx2tf lowers: in others it hands an operator on to one that LiteRT does not have.

Source: the checks of onnx2tf 2.6.9 before it lowers an operator, ``op_registry`` of its ``flatbuffer_direct`` backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from edgeship.build.backends.onnx_names import free, names_of

_ONE_DIMENSION: Final = 3
_SIGNAL_AXES: Final = 3
#: Where the height goes: [batch, channels, height, length].
_HEIGHT: Final = 2
#: From here on, ``Unsqueeze`` and ``Squeeze`` take their axes as an input.
_AXES_ARE_AN_INPUT: Final = 13
_ONNX: Final = frozenset({"", "ai.onnx"})


def with_lowered_forms(data: bytes) -> bytes:
    """The same model with grouped convolutions over one dimension as such over two, and STFTs of plain signals.

    Where it has none of them, the same bytes.
    """
    model = onnx.ModelProto.FromString(data)
    forms = _Forms(model)
    nodes = []
    for node in model.graph.node:
        made = _FORMS[node.op_type](forms, node) if node.op_type in _FORMS and node.domain in _ONNX else None
        nodes += made or [node]
    if len(nodes) == len(model.graph.node):
        return data
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


class _Forms:
    """What a form is made with: constants, names and axes of one model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._graph = model.graph
        self._opset = max((each.version for each in model.opset_import if each.domain in _ONNX), default=0)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._taken = names_of(model.graph)

    def free(self, name: str) -> str:
        return free(name, self._taken)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a constant; None for what a node computes."""
        return tuple(self._constants[name].dims) if name in self._constants else None

    def inferred(self, name: str) -> tuple[int, ...]:
        """Of any tensor, with 0 for sizes that are free; () for what ONNX cannot tell."""
        known = shape_inference.infer_shapes(self._model).graph
        found = [each for values in (known.value_info, known.input) for each in values if each.name == name]
        return tuple(axis.dim_value for axis in found[0].type.tensor_type.shape.dim) if found else ()

    def expanded(self, name: str, axis: int) -> str:
        """A copy of a constant with one more axis."""
        values = np.expand_dims(numpy_helper.to_array(self._constants[name]), axis)
        return self._added(values, f"{name}_expanded")

    def axis(self, kind: str, given: str, made: str, axis: int) -> Any:
        """``Unsqueeze`` or ``Squeeze`` of one axis."""
        if self._opset < _AXES_ARE_AN_INPUT:
            return helper.make_node(kind, [given], [made], axes=[axis])
        return helper.make_node(kind, [given, self._added(np.array([axis], np.int64), f"{made}_axes")], [made])

    def _added(self, values: Any, name: str) -> str:
        found = self.free(name)
        self._graph.initializer.append(numpy_helper.from_array(values, found))
        return found


def _planar(forms: _Forms, node: Any) -> list[Any] | None:
    """A convolution with several groups of several channels each, over one dimension: one high, over two.

    ``x [N, C, L]`` becomes ``[N, C, 1, L]``, is convolved with the weights as ``[O, C / groups, 1, K]``, and loses its
    height again: the same products in the same sums. One group, and one channel in each, onnx2tf takes as they are.
    """
    shape = forms.shape(node.input[1])
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    if shape is None or len(shape) != _ONE_DIMENSION or groups == 1 or shape[1] == 1:
        return None
    inside, convolved = forms.free(f"{node.input[0]}_planar"), forms.free(f"{node.output[0]}_planar")
    planar = _copy(node)
    planar.input[0], planar.output[0] = inside, convolved
    planar.input[1] = forms.expanded(node.input[1], _HEIGHT)
    for attribute in planar.attribute:
        if attribute.name in {"kernel_shape", "strides", "dilations"}:
            attribute.ints.insert(0, 1)
        elif attribute.name == "pads":
            before, after = attribute.ints
            attribute.ints[:] = [0, before, 0, after]
    return [forms.axis("Unsqueeze", node.input[0], inside, _HEIGHT), planar,
            forms.axis("Squeeze", convolved, node.output[0], _HEIGHT)]  # fmt: skip


def _plain_signal(forms: _Forms, node: Any) -> list[Any] | None:
    """An STFT of real signals as ONNX has them, ``[N, L, 1]``, of such as onnx2tf has them, ``[N, L]``."""
    shape = forms.inferred(node.input[0])
    if len(shape) != _SIGNAL_AXES or shape[-1] != 1:
        return None
    plain = _copy(node)
    plain.input[0] = forms.free(f"{node.input[0]}_plain")
    return [forms.axis("Squeeze", node.input[0], plain.input[0], _SIGNAL_AXES - 1), plain]


def _copy(node: Any) -> Any:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made


_FORMS: Final[dict[str, Callable[[_Forms, Any], list[Any] | None]]] = {"Conv": _planar, "STFT": _plain_signal}
