"""What is known of a model before it is built, as data for the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, field

STANDARD_DOMAINS: Final = ("", "ai.onnx")
#: Precisions of inputs and outputs that a build turns into float32.
OTHER_FLOATS: Final = frozenset({"float16", "bfloat16", "float64"})


class OperatorUse(Struct, frozen=True, kw_only=True):
    """An operator of a model.

    Attributes:
        domain: empty for ONNX's own.
        dtypes: types of its inputs, where known.
        max_rank: highest rank of its inputs, 0 where unknown.
    """

    op: str
    domain: str = ""
    count: int = 1
    dtypes: tuple[str, ...] = ()
    max_rank: int = 0

    @property
    def label(self) -> str:
        """``Conv``, or ``com.example::Conv`` outside the standard domain."""
        return self.op if self.domain in STANDARD_DOMAINS else f"{self.domain}::{self.op}"


class Partitions(Struct, frozen=True, kw_only=True):
    """How a runtime splits a model between a delegate and its own kernels.

    Attributes:
        provider: the delegate or execution provider.
        count: pieces that it took; between two pieces tensors change hands.
        inside: operators in them.
        outside: operator → how often it stays with the runtime's own kernels.
        refused: why the runtime did not load the model at all, empty where it did.
    """

    provider: str
    count: int = 0
    inside: int = 0
    outside: Mapping[str, int] = field(default_factory=dict)
    refused: str = ""


class ModelFacts(Struct, frozen=True, kw_only=True):
    """What a model is made of.

    Attributes:
        format: ``onnx`` or ``tflite``.
        weight_bytes: of all constants.
        peak_activation_bytes: largest sum of live tensors for a batch of one; None where shapes are not known.
        dynamic_inputs: inputs with an unknown size besides the batch; ``shape_options``: the options that give it to
            them, where the file cannot be looked into before.
        io_dtypes: types of inputs and outputs.
        quantized: whether its operators work on integers already.
        opset: of ONNX's own domain, 0 for other formats; ``ir_version`` likewise.
        unsupported: runtime → labels of operators that the installed runtime does not take; a runtime that could not be
            asked is missing. ``tflm`` is LiteRT's form for microcontrollers.
        partitions: runtime → how it splits the model; a runtime that could not be asked is missing.
        arena_bytes: what the tensor arena of a microcontroller needs; None where it could not be planned.
    """

    format: str = "onnx"
    operators: tuple[OperatorUse, ...]
    weight_bytes: int
    peak_activation_bytes: int | None = None
    dynamic_inputs: tuple[str, ...] = ()
    shape_options: tuple[str, ...] = ()
    io_dtypes: tuple[str, ...] = ()
    quantized: bool = False
    opset: int = 0
    ir_version: int = 0
    unsupported: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    partitions: Mapping[str, Partitions] = field(default_factory=dict)
    arena_bytes: int | None = None


class CheckResult(Struct, frozen=True, kw_only=True):
    """One thing that was checked.

    Attributes:
        runtime: empty where it is about the target as a whole.
        holds: True, False, or None where it could not be told.
        sentence: what was found.
        next_step: what to do where it does not hold.
        sure: whether a failure is certain whatever the build does, so that it need not begin.
    """

    id: str
    runtime: str = ""
    holds: bool | None
    sentence: str
    next_step: str = ""
    sure: bool = False
