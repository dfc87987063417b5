"""An OpenVINO network's operators, weights and tensors, for the search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino

from edgeship.build.backends.base import Samples
from edgeship.build.search.graph import Layer, Operator, pair, planar
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime.bound import to_artifact
from edgeship_agent.runtime.engine import Array

_SILENT_KINDS: Final = frozenset({"Constant", "Result", "Parameter"})
#: Operators with weights at their second place → the axis that counts their outputs, the groups' axis left out.
_WEIGHTED: Final = {"Convolution": 0, "GroupConvolution": 0, "ConvolutionBackpropData": 1,
                    "GroupConvolutionBackpropData": 1, "MatMul": -1}  # fmt: skip
_SETTINGS: Final = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}


class OpenVinoGraph:
    """A float ``.xml`` file.

    Args:
        model: the file, its weights beside it.
        inputs: how the source's inputs reach it.
    """

    def __init__(self, model: Path, inputs: Sequence[Binding]) -> None:
        self._model = model
        self._inputs = inputs

    def operators(self) -> tuple[Operator, ...]:
        """In the order of their execution; :func:`tensor_name` names their tensors."""
        network = self._read()
        return tuple(
            Operator(
                name=node.get_friendly_name(),
                kind=node.get_type_name(),
                inputs=tuple(tensor_name(port.get_source_output()) for port in node.inputs()
                             if port.get_source_output().get_node().get_type_name() != "Constant"),
                outputs=tuple(tensor_name(port) for port in node.outputs()),
                layer=_layer(node),
                fan_in=_fan_in(node),
            )
            for node in network.get_ordered_ops()
            if node.get_type_name() not in _SILENT_KINDS
        )  # fmt: skip

    def watch(self, samples: Samples) -> Iterator[dict[str, Array]]:
        """Every float tensor of every sample, the graph's inputs among them."""
        names, request = self._watched
        order = sorted(self._inputs, key=lambda each: each.artifact_index)
        for sample in samples:
            request.infer([to_artifact(each, sample[each.name]) for each in order])
            yield {name: np.array(request.get_output_tensor(index).data) for index, name in enumerate(names)}

    @cached_property
    def _watched(self) -> tuple[list[str], Any]:
        """Every float tensor's name, and a request for all of them: a graph of a thousand compiles for seconds."""
        network = self._read()
        ports = [port for node in network.get_ordered_ops() if node.get_type_name() not in {"Constant", "Result"}
                 for port in node.outputs() if port.get_element_type() == openvino.Type.f32]  # fmt: skip
        names = [tensor_name(port) for port in ports]
        watched = openvino.Model([openvino.opset13.result(port) for port in ports], network.get_parameters())
        return names, openvino.compile_model(watched, "CPU", _SETTINGS).create_infer_request()

    def write(self, weights: Mapping[str, Array], biases: Mapping[str, Array], file: Path) -> None:
        """The same network with other weights, and with something added to biases.

        Args:
            weights: operator → weights in the layout of its layer.
            biases: operator → what its bias gains, [outputs].
            file: where to write.
        """
        network = self._read()
        nodes = {node.get_friendly_name(): node for node in network.get_ordered_ops()}
        for name, weight in weights.items():
            constant = nodes[name].input_value(1).get_node()
            _put(nodes[name], 1, _stored(nodes[name], weight, constant.data.shape))
        for name, gain in biases.items():
            adder, side = _bias_of(nodes[name])
            before = adder.input_value(side).get_node().data
            _put(adder, side, before + gain.reshape(before.shape))
        openvino.save_model(network, str(file), compress_to_fp16=False)

    def _read(self) -> Any:
        return openvino.Core().read_model(str(self._model))


def tensor_name(port: Any) -> str:
    """Name of an operator's output: the operator's own, ``.1`` and so on behind it for further outputs."""
    index = port.get_index()
    name = str(port.get_node().get_friendly_name())
    return f"{name}.{index}" if index else name


def _fan_in(node: Any) -> int:
    """Products that one output value sums, from the weights' sizes; 0 where they are computed."""
    kind = node.get_type_name()
    if kind not in _WEIGHTED:
        return 0
    weights = node.input_value(1).get_node()
    if weights.get_type_name() == "Convert":
        weights = weights.input_value(0).get_node()
    sizes = [int(size) for size in weights.get_output_shape(0)] if weights.get_type_name() == "Constant" else []
    if len(sizes) < 2:
        return 0
    if kind == "MatMul":
        return sizes[-1 if node.get_attributes()["transpose_b"] else -2]
    if kind in {"GroupConvolution", "GroupConvolutionBackpropData"}:
        sizes = sizes[1:]
    return math.prod(sizes) // sizes[_WEIGHTED[kind]]


def _layer(node: Any) -> Layer | None:
    kind = node.get_type_name()
    if kind not in {"Convolution", "GroupConvolution", "MatMul"}:
        return None
    constant = node.input_value(1).get_node()
    alone = constant.get_type_name() == "Constant" and len(constant.output(0).get_target_inputs()) == 1
    if not alone or constant.get_element_type() != openvino.Type.f32:
        return None
    attributes = node.get_attributes()
    weight = np.array(constant.data)
    bias = _bias_of(node)[0] is not None
    if kind == "MatMul":
        if weight.ndim != 2 or attributes["transpose_a"]:
            return None
        return Layer(weight=weight if attributes["transpose_b"] else weight.T, convolution=False, bias=bias)
    groups = int(weight.shape[0]) if kind == "GroupConvolution" else 1
    if kind == "GroupConvolution":
        weight = weight.reshape(-1, *weight.shape[2:])
    return _convolution(node, weight, groups, bias=bias) if weight.ndim in {3, 4} else None


def _convolution(node: Any, weight: Array, groups: int, *, bias: bool) -> Layer:
    attributes = node.get_attributes()
    automatic = str(attributes["auto_pad"])
    (top, left), (bottom, right) = (pair(attributes[f"pads_{side}"], height=0) for side in ("begin", "end"))
    return Layer(
        weight=planar(weight),
        convolution=True,
        bias=bias,
        groups=groups,
        strides=pair(attributes["strides"]),
        dilations=pair(attributes["dilations"]),
        pads=None if automatic == "same_upper" else ((top, bottom), (left, right)),
    )


def _bias_of(node: Any) -> tuple[Any, int]:
    """The Add behind an operator whose other side is a constant with one value an output; and which side that is."""
    targets = list(node.output(0).get_target_inputs())
    if len(targets) != 1 or targets[0].get_node().get_type_name() != "Add":
        return None, 0
    adder = targets[0].get_node()
    side = 1 - targets[0].get_index()
    constant = adder.input_value(side).get_node()
    outputs = _outputs(node)
    fits = constant.get_type_name() == "Constant" and constant.data.size == outputs
    return (adder, side) if fits and len(constant.output(0).get_target_inputs()) == 1 else (None, 0)


def _outputs(node: Any) -> int:
    shape = node.output(0).get_partial_shape()
    axis = shape.rank.get_length() - 1 if node.get_type_name() == "MatMul" else 1
    return int(shape[axis].get_length()) if shape[axis].is_static else 0


def _stored(node: Any, weight: Array, shape: tuple[int, ...]) -> Array:
    """Weights in the network's own layout."""
    if node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]:
        return weight.T
    return weight.reshape(shape)


def _put(node: Any, side: int, values: Array) -> None:
    constant = openvino.opset13.constant(np.ascontiguousarray(values, dtype=np.float32))
    constant.set_friendly_name(node.input_value(side).get_node().get_friendly_name())
    node.input(side).replace_source_output(constant.output(0))
