"""Masks of an ONNX file as numbers that 8 bits hold beside scores."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from edgeship.build.backends.calibration import Calibration
from edgeship.build.backends.onnx_names import free, names_of
from edgeship.build.search.masks import LOWEST

#: Operators by which a constant masks scores: a product where it makes the mask.
_MASKING: Final = frozenset({"Add", "Mul", "Where"})


def bound_masks(document: Any, calibration: Calibration) -> None:
    """Make constants that mask scores :data:`edgeship.build.search.masks.LOWEST` at least, in place.

    The quantizer takes the scale of a constant from its values: minus infinity has none.

    Args:
        document: a float ONNX model.
        calibration: says which tensors lead to a softmax.
    """
    if not calibration.statistics.lowest_masked:
        return
    graph = document.graph
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    taken = names_of(graph)
    for node in graph.node:
        where: Container[str] = calibration.pure_masks if node.op_type == "Mul" else calibration.logits
        if node.op_type not in _MASKING or node.output[0] not in where:
            continue
        for place, name in enumerate(node.input):
            values = numpy_helper.to_array(constants[name]) if name in constants else np.empty(0)
            if values.size and values.min() < LOWEST:
                node.input[place] = free(f"{name}_bounded", taken)
                bounded = np.maximum(values, np.float32(LOWEST))
                graph.initializer.append(numpy_helper.from_array(bounded, node.input[place]))
