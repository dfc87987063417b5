"""ONNX files in fp16, with dynamic int8 products, and with 4-bit weights: ONNX Runtime's own converters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import onnx

from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import ConversionError

_RUNTIME: Final = "onnxruntime"
#: Weights that share one scale in 4 bits. Source: ONNX Runtime, ``MatMulNBits``: a power of two, at least 16.
_BLOCK: Final = 32
#: Dynamic int8 of convolutions lies further off than anything else (build.md, trap 3): products only.
_DYNAMIC: Final = ("MatMul", "Gemm", "Attention", "LSTM", "Gather", "EmbedLayerNormalization")


def lower(model: Path, precision: str, file: Path) -> None:
    """Write a float file in another precision.

    Args:
        model: the float file, only read.
        precision: ``fp16``, ``dynamic`` or ``int4``.
        file: where to write.

    Raises:
        ConversionError: it cannot be made, or nothing in the file would change.
    """
    makers: dict[str, Callable[[Path, Path], None]] = {"fp16": _half, "dynamic": _dynamic, "int4": _four_bits}
    if precision not in makers:
        raise ConversionError(f"{precision} is no precision of ONNX files", target=_RUNTIME)
    try:
        with quiet():
            makers[precision](model, file)
    except ConversionError:
        raise
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
        raise ConversionError(f"{precision}: {line}", target=_RUNTIME) from error


def _half(model: Path, file: Path) -> None:
    """Everything in half precision but the ends."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    _save(convert_float_to_float16(onnx.load(str(model)), keep_io_types=True), file)


def _dynamic(model: Path, file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _needs(model, {"MatMul", "Gemm", "LSTM", "Attention"}, "no matrix products with weights")
    quantize_dynamic(str(model), str(file), weight_type=QuantType.QInt8, per_channel=True,
                     op_types_to_quantize=list(_DYNAMIC))  # fmt: skip
    _save(onnx.load(str(file)), file)


def _four_bits(model: Path, file: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    _needs(model, {"MatMul"}, "no MatMul with weights, and ONNX Runtime has no 4-bit convolutions")
    settings = DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True)
    quantizer = MatMulNBitsQuantizer(onnx.load(str(model)), algo_config=settings)
    quantizer.process()
    _save(quantizer.model.model, file)


def _needs(model: Path, kinds: set[str], otherwise: str) -> None:
    graph = onnx.load(str(model)).graph
    constants = {tensor.name for tensor in graph.initializer}
    if not any(node.op_type in kinds and constants.intersection(node.input) for node in graph.node):
        raise ConversionError(otherwise, target=_RUNTIME)


def _save(document: Any, file: Path) -> None:
    file.write_bytes(document.SerializeToString(deterministic=True))
