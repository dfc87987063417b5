"""ai-edge-quantizer with ranges that we give it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from edgeship.build.backends.base import Scheme
from edgeship.build.backends.calibration import Calibration


def quantize(calibration: Calibration, scheme: Scheme) -> bytes:
    """A quantized TFLite file.

    ``Quantizer.calibrate()`` averages the ranges of successive samples (factor .95) and clips; the ranges here are
    gathered by us and given to the quantizer beneath.

    Args:
        calibration: of the float file.
        scheme: what to do.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    path = str(calibration.file(scheme))
    graph = tfl_flatbuffer_utils.read_model(path).subgraphs[0]
    manager = _rules(scheme, float_outputs=not _outputs_are_used(graph))
    shapes = calibration.statistics.shapes
    ranges = {
        name: {"min": _end(low, shapes[name]), "max": _end(high, shapes[name])}
        for name, (low, high) in calibration.ranges(scheme.estimator).items()
    }
    result = quantizer.Quantizer(path, manager.get_quantization_recipe()).quantize(
        ranges, enable_progress_bar=False, enable_progress_report=False
    )
    return bytes(result.quantized_model)


def _end(value: float, shape: tuple[int, ...]) -> Any:
    """One end of a range, as many axes as the tensor has: that is how the quantizer broadcasts it."""
    return np.full([1] * len(shape), value, np.float32)


def _outputs_are_used(graph: Any) -> bool:
    """Whether an output of the graph is an operator's input too: kept float, it would be read as if it were int8."""
    return any(index in graph.outputs for operator in graph.operators for index in operator.inputs)


def _rules(scheme: Scheme, *, float_outputs: bool) -> Any:
    """Everything in int8 but the ends: float inputs and outputs are converted faster inside than by the caller."""
    from ai_edge_quantizer import recipe, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    # with one scale a channel, LiteRT's BATCH_MATMUL answers nothing but zeros
    products = [TFLOperationName.BATCH_MATMUL]
    products += [TFLOperationName.FULLY_CONNECTED] if scheme.matmul_per_tensor else []
    for product in products:
        manager.add_static_config(".*", product, 8, 8, weight_granularity=QuantGranularity.TENSORWISE)
    for name in scheme.floats:
        # an operator is known by its outputs, each with a semicolon behind it
        manager.add_quantization_config(
            regex=f"(^|;){re.escape(name)};", operation_name=TFLOperationName.ALL_SUPPORTED,
            algorithm_key=AlgorithmName.NO_QUANTIZE,
        )  # fmt: skip
    for end in [TFLOperationName.INPUT, *([TFLOperationName.OUTPUT] if float_outputs else [])]:
        manager.add_quantization_config(regex=".*", operation_name=end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return manager
