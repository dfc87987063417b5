"""ai-edge-quantizer with ranges that we give it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeship.build.backends.base import Scheme
from edgeship.build.backends.calibration import Calibration
from edgeship.build.backends.tflite_masks import with_bounded_masks
from edgeship.build.backends.tflite_ranks import with_equal_ranks
from edgeship_agent.contract.errors import ConversionError


def quantize(calibration: Calibration, scheme: Scheme) -> bytes:
    """A quantized TFLite file.

    ``Quantizer.calibrate()`` averages the ranges of successive samples (factor .95) and clips; the ranges here are
    gathered by us and given to the quantizer beneath.

    Args:
        calibration: of the float file.
        scheme: what to do.

    Raises:
        ConversionError: a precision that TFLite files do not have.
    """
    from ai_edge_quantizer import quantizer

    if scheme.precision not in _PRECISIONS:
        raise ConversionError(f"{scheme.precision} is no precision of TFLite files", target="litert")
    path = str(calibration.file(scheme))
    recipe = _PRECISIONS[scheme.precision](scheme, path)
    ranges = _ranges(calibration, scheme) if scheme.precision in _STATIC else None
    data = Path(path).read_bytes()
    if scheme.precision in _STATIC and calibration.statistics.lowest_masked:
        data = with_bounded_masks(data, sums=calibration.logits, products=calibration.pure_masks)
    model = bytearray(with_equal_ranks(data))
    result = quantizer.Quantizer(model, recipe).quantize(
        ranges, enable_progress_bar=False, enable_progress_report=False
    )
    return bytes(result.quantized_model)


def _ranges(calibration: Calibration, scheme: Scheme) -> dict[str, Any]:
    shapes = calibration.statistics.shapes
    return {
        name: {"min": _end(low, shapes[name]), "max": _end(high, shapes[name])}
        for name, (low, high) in calibration.ranges(scheme.estimator).items()
    }


def _end(value: float, shape: tuple[int, ...]) -> Any:
    """One end of a range, as many axes as the tensor has: that is how the quantizer broadcasts it."""
    return np.full([1] * len(shape), value, np.float32)


def _outputs_are_used(path: str) -> bool:
    """Whether an output of the graph is an operator's input too: kept float, it would be read as if it were int8."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    graph = tfl_flatbuffer_utils.read_model(path).subgraphs[0]
    return any(index in graph.outputs for operator in graph.operators for index in operator.inputs)


def _int8(scheme: Scheme, path: str) -> Any:
    """Float ends are converted faster inside than by the caller."""
    floats = not scheme.integer_ends
    recipe = _eight_bits(scheme, float_ends=floats, float_outputs=floats and not _outputs_are_used(path))
    return [*recipe, *_float_parts(path, divisions=not scheme.integer_ends)]


def _float_parts(path: str, *, divisions: bool) -> list[dict[str, Any]]:
    """Rules for what int8 cannot hold: bodies of loops, of whose tensors no ranges are known, and divisors.

    A divisor near zero becomes zero in 8 bits, and LiteRT ends the call with an error.

    Args:
        path: the float file.
        divisions: whether they may stay in float; a file that is all integers has no choice.
    """
    from ai_edge_quantizer import recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    manager = recipe_manager.RecipeManager()
    model = tfl_flatbuffer_utils.read_model(path)
    names = [tfl_flatbuffer_utils.get_tensor_name(graph.tensors[index]) for graph in model.subgraphs[1:]
             for operator in graph.operators or () for index in operator.outputs[:1]]  # fmt: skip
    if names:
        manager.add_quantization_config(regex=_any_of(names), operation_name=TFLOperationName.ALL_SUPPORTED,
                                        algorithm_key=AlgorithmName.NO_QUANTIZE)  # fmt: skip
    if divisions:
        manager.add_quantization_config(regex=".*", operation_name=TFLOperationName.DIV,
                                        algorithm_key=AlgorithmName.NO_QUANTIZE)  # fmt: skip
    rules: list[dict[str, Any]] = manager.get_quantization_recipe()
    return rules


def _int16x8(_scheme: Scheme, path: str) -> Any:
    """Activations of 16 bits, weights of 8; the ends in float, as they are with int8."""
    from ai_edge_quantizer import recipe, recipe_manager
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai16())
    # with one scale a channel, LiteRT's BATCH_MATMUL answers nothing but zeros
    manager.add_static_config(
        ".*", TFLOperationName.BATCH_MATMUL, 16, 8, weight_granularity=QuantGranularity.TENSORWISE
    )
    _keep_ends(manager, outputs=not _outputs_are_used(path))
    return manager.get_quantization_recipe()


def _keep_ends(manager: Any, *, inputs: bool = True, outputs: bool) -> None:
    """Leave a model's inputs, its outputs or both in float."""
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    for end in [TFLOperationName.INPUT] * inputs + [TFLOperationName.OUTPUT] * outputs:
        manager.add_quantization_config(regex=".*", operation_name=end, algorithm_key=AlgorithmName.NO_QUANTIZE)


def _dynamic(_scheme: Scheme, _path: str) -> Any:
    """Int8 weights; activations are quantized anew in every call."""
    from ai_edge_quantizer import recipe

    return recipe.dynamic_wi8_afp32()


def _half(_scheme: Scheme, _path: str) -> Any:
    """Half-precision weights, widened when the file is loaded."""
    from ai_edge_quantizer import recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import (
        ComputePrecision,
        OpQuantizationConfig,
        TensorDataType,
        TensorQuantizationConfig,
        TFLOperationName,
    )

    manager = recipe_manager.RecipeManager()
    manager.add_quantization_config(
        regex=".*",
        operation_name=TFLOperationName.ALL_SUPPORTED,
        algorithm_key=AlgorithmName.FLOAT_CASTING,
        op_config=OpQuantizationConfig(
            weight_tensor_config=TensorQuantizationConfig(num_bits=16, dtype=TensorDataType.FLOAT),
            compute_precision=ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
    )
    return manager.get_quantization_recipe()


def _eight_bits(scheme: Scheme, *, float_ends: bool, float_outputs: bool) -> Any:
    """Everything in int8 but what the scheme leaves in float.

    Args:
        scheme: the float operators, and whether products have one scale.
        float_ends: float inputs are converted faster inside than by the caller.
        float_outputs: likewise outputs, where none of them is read again.
    """
    from ai_edge_quantizer import recipe, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    # with one scale a channel, LiteRT's BATCH_MATMUL answers nothing but zeros
    products = [TFLOperationName.BATCH_MATMUL]
    products += [TFLOperationName.FULLY_CONNECTED] if scheme.matmul_per_tensor or not scheme.per_channel else []
    products += [] if scheme.per_channel else [TFLOperationName.CONV_2D, TFLOperationName.DEPTHWISE_CONV_2D]
    for product in products:
        manager.add_static_config(".*", product, 8, 8, weight_granularity=QuantGranularity.TENSORWISE)
    if scheme.floats:
        kept = _any_of(scheme.floats)
        manager.add_quantization_config(regex=kept, operation_name=TFLOperationName.ALL_SUPPORTED,
                                        algorithm_key=AlgorithmName.NO_QUANTIZE)  # fmt: skip
        # a product in float reads weights that are stored in 8 bits, and widened when the file is loaded
        packed = _any_of([name for name in scheme.floats if name not in set(scheme.exact)])
        for product, granularity in ((TFLOperationName.FULLY_CONNECTED, QuantGranularity.CHANNELWISE),
                                     (TFLOperationName.BATCH_MATMUL, QuantGranularity.CHANNELWISE)):  # fmt: skip
            manager.add_weight_only_config(packed, product, 8, granularity)
    _keep_ends(manager, inputs=float_ends, outputs=float_outputs)
    return manager.get_quantization_recipe()


def _any_of(names: Sequence[str]) -> str:
    """One expression for some operators, each known by its outputs with a semicolon behind each.

    One rule for each would be tried on every operator, and expressions by the thousand compiled for each again.

    >>> _any_of(["a/b", "c"])
    '(^|;)(a/b|c);'
    """
    return f"(^|;)({'|'.join(map(re.escape, names))});"


#: Precision → what makes its recipe, from the scheme and the float file.
_PRECISIONS: Final[dict[str, Callable[[Scheme, str], Any]]] = {
    "int8": _int8, "int8io": _int8, "int16x8": _int16x8, "dynamic": _dynamic, "fp16": _half,
}  # fmt: skip
#: Those that need ranges.
_STATIC: Final = frozenset({"int8", "int8io", "int16x8"})
