"""Float weights of OpenVINO files, stored in half precision where that holds them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import openvino

from edgeship_agent.runtime.engine import Array

#: Operators with weights at their second place.
_WEIGHTED: Final = frozenset({"Convolution", "GroupConvolution", "MatMul"})
#: Half precision must keep weights this close, relative to their size: rounding alone costs some .0003.
_CLOSE: Final = 0.001
_LARGEST: Final = float(np.finfo(np.float16).max)


def halve_float_weights(network: Any) -> None:
    """Store the weights of what stays in float in half precision, in place.

    The runtime widens such weights when the file is loaded, and computes in float as before. Weights that half
    precision does not hold are left.

    Args:
        network: int8 but for parts of it.
    """
    for node in network.get_ordered_ops():
        if node.get_type_name() not in _WEIGHTED:
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant" or constant.get_element_type() != openvino.Type.f32:
            continue
        weights = np.asarray(constant.data)
        if _held(weights):
            half = openvino.opset13.constant(weights.astype(np.float16))
            node.input(1).replace_source_output(openvino.opset13.convert(half, "f32").output(0))


def halve_constants(network: Any, scaling: Collection[str] = ()) -> bool:
    """Store every float constant in half precision but those that it does not hold, in place.

    OpenVINO's own way, which cuts numbers off at 65504 without a word, is taken where there are none.

    Args:
        network: a float one.
        scaling: operators that scale the inputs, whose constants stay: a half holds 300 K to a quarter of a kelvin.

    Returns:
        Whether it was done here, and is not left to OpenVINO.
    """
    constants = [node for node in network.get_ordered_ops()
                 if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32]  # fmt: skip
    small = [node for node in constants if not (_too_large(np.asarray(node.data)) or _read_by(node, scaling))]
    if len(small) == len(constants):
        return False
    for node in small:
        readers = list(node.output(0).get_target_inputs())
        half = openvino.opset13.constant(np.asarray(node.data).astype(np.float16))
        wide = openvino.opset13.convert(half, "f32")
        for reader in readers:
            reader.replace_source_output(wide.output(0))
    return True


def _read_by(constant: Any, names: Collection[str]) -> bool:
    return any(each.get_node().get_friendly_name() in names for each in constant.output(0).get_target_inputs())


def _too_large(values: Array) -> bool:
    """Whether it holds a finite number that would be cut off at the largest of half precision."""
    return bool(np.any((np.abs(values) > _LARGEST) & np.isfinite(values)))


def _held(weights: Array) -> bool:
    """Whether half precision keeps weights."""
    with np.errstate(over="ignore"):
        error = weights.astype(np.float16).astype(np.float64) - weights
    return bool(np.isfinite(error).all() and (error**2).sum() <= _CLOSE**2 * (weights.astype(np.float64) ** 2).sum())
