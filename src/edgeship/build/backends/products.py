"""Whether a lower precision applies to a graph at all: it makes products of weights cheaper; some models have none."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx

from edgeship_agent.contract.errors import ConversionError

#: Operators that multiply by weights. Source: ONNX Runtime, quantization guide, list of quantized operators.
_PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN", "Einsum"})
_CLASSICAL: Final = "ai.onnx.ml"


def refuse_without_products(model: Path, runtime: str) -> None:
    """Refuse to quantize trees, support vectors and the like, whose numbers are no weights of products.

    Raises:
        ConversionError: the file has operators of classical machine learning and no product of weights.
    """
    nodes = onnx.load(str(model), load_external_data=False).graph.node
    classical = sorted({node.op_type for node in nodes if node.domain == _CLASSICAL})
    if classical and not any(node.op_type in _PRODUCTS for node in nodes):
        holds = "holds numbers of its own" if len(classical) == 1 else "hold numbers of their own"
        raise ConversionError(f"no lower precision applies to it: {', '.join(classical)} {holds}, which no quantizer "
                              "reads", target=runtime)  # fmt: skip
