"""How a model is run: apart from what runs it, so that a supervisor need not load numpy (13 MB) to know."""

from __future__ import annotations

from msgspec import Struct


class EngineOptions(Struct, frozen=True, kw_only=True):
    """How a model is run.

    Attributes:
        threads: threads of one inference; one unless asked for.
        precision: ``fp32`` (also for int8 files, whose float operators then run in f32), or ``fp16`` / ``bf16`` where
            the runtime may choose the arithmetic (OpenVINO). Nothing is ever lowered in silence.
        reference: what the file says instead of what is fast. LiteRT: its reference kernels, of the arithmetic that
            TensorFlow Lite Micro has. ONNX Runtime: operators between QuantizeLinear and DequantizeLinear in float.
    """

    threads: int = 1
    precision: str = "fp32"
    reference: bool = False
