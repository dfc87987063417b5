"""Biases of one value for all channels, which OpenVINO misreads in int8: made to differ in their last bit."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import openvino

#: Layers → the axis of their channels.
_CHANNELS: Final = {"MatMul": -1, "Convolution": 1, "GroupConvolution": 1}


def with_unlike_biases(network: Any) -> None:
    """Give biases whose values are all the same another last bit in the last channel, in place.

    The CPU plugin of OpenVINO 2026.4.1 fuses such a bias, a single number or a vector, in its own way, and is wrong
    in int8: a classifier's relative RMS is 455, where it is .017 with a bias that differs in one bit. A multiplication
    by 1, as ONNX's Gemm brings along, is taken out, so that bias and layer are neighbours.
    """
    for node in network.get_ordered_ops():
        if node.get_type_name() == "Multiply":
            _take_out(node)
    for node in network.get_ordered_ops():
        if node.get_type_name() == "Add":
            _make_unlike(node)
    network.validate_nodes_and_infer_types()


def _take_out(multiplication: Any) -> None:
    for place in (0, 1):
        number, other = multiplication.input_value(place), multiplication.input_value(1 - place)
        constant = number.get_node()
        if (
            constant.get_type_name() != "Constant"
            or other.get_partial_shape() != multiplication.get_output_partial_shape(0)
        ):
            continue
        value = np.asarray(constant.data)
        if value.size == 1 and value.reshape(()) == 1.0:
            for reader in multiplication.output(0).get_target_inputs():
                reader.replace_source_output(other)
            return


def _make_unlike(addition: Any) -> None:
    for place in (0, 1):
        constant, layer = addition.input_value(place).get_node(), addition.input_value(1 - place).get_node()
        axis, shape = _CHANNELS.get(layer.get_type_name()), layer.get_output_partial_shape(0)
        if axis is None or constant.get_type_name() != "Constant" or shape.rank.is_dynamic or shape[axis].is_dynamic:
            continue
        value = np.asarray(constant.data)
        channels = shape[axis].get_length()
        same = value.size and (value == value.flat[0]).all() and value.flat[0] != 0.0
        if not same or value.dtype != np.float32 or value.size not in {1, channels} or channels == 1:
            continue
        sizes = [1] * len(shape)
        sizes[axis] = channels
        unlike = np.full(channels, value.flat[0], np.float32)
        unlike[-1] = np.nextafter(unlike[-1], np.float32(0.0))
        addition.input(place).replace_source_output(openvino.opset13.constant(unlike.reshape(sizes)).output(0))
