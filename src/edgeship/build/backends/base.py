"""What a backend takes and gives: one float artifact, and quantized ones made from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from edgeship.build.sources import SourceModel
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime.engine import Array, TensorInfo

if TYPE_CHECKING:
    from edgeship.build.backends.calibration import Calibration

Samples = Sequence[Mapping[str, Array]]
#: Estimator → what it does, in words.
ESTIMATOR_WORDS: Final = {
    "minmax": "min–max", "p99.9": "percentile 99.9", "p99.99": "percentile 99.99", "p99.999": "percentile 99.999",
    "mse": "least squared error", "mean": "mean of ranges", "average": "moving average of ranges",
}  # fmt: skip
_ROUNDING_WORDS: Final = {
    "nearest": "", "corrected": "bias corrected", "compensated": "weights rounded with compensation",
}  # fmt: skip
_TOOL_WORDS: Final = {"": "", "nncf": "by NNCF", "fast": "NNCF's fast bias correction",
                      "full": "NNCF's full bias correction"}  # fmt: skip
#: Precision → what it is, in words.
PRECISION_WORDS: Final = {
    "fp16": "half-precision weights",
    "dynamic": "int8 weights, activations quantized in every call",
    "int4": "4-bit weights",
    "int16x8": "16-bit activations, int8 weights",
}
#: Of the inputs, of the outputs.
Bindings = tuple[tuple[Binding, ...], tuple[Binding, ...]]


class Scheme(Struct, frozen=True, kw_only=True):
    """How numbers are rounded.

    Attributes:
        precision: of the result: ``int8``, ``int8io`` (inputs and outputs too), ``fp16``, ``dynamic``, ``int4``,
            ``int16x8``.
        activation: ``uint8`` or ``int8``.
        weight_bits: 7 leaves one bit unused, so that a pair of products cannot saturate in 16 bits; without VNNI, x86
            multiplies pairs of bytes into 16 bits. Source: ONNX Runtime, quantization guide, "reduce_range".
        per_channel: whether weights have one scale an output, or one for all.
        matmul_per_tensor: one scale for every matrix that is multiplied, not one a channel.
        estimator: where the ranges of activations come from; see :mod:`edgeship.build.search.ranges`.
        rounding: of weights: ``nearest``, ``corrected`` (to nearest, the mean of the error taken off the bias) or
            ``compensated`` (each error made good by the weights beside it, then the bias likewise).
        tool: a quantizer other than the runtime's first: ``nncf`` for ONNX files; ``fast`` and ``full`` name NNCF's own
            bias corrections.
        symmetric: whether activations of both signs have no zero point.
        integer_ends: whether inputs and outputs are int8 too, for hardware that takes nothing else.
        floats: names of operators that stay in float; ``part`` says in a word which those are.
        exact: those of them whose weights are not stored in 8 bits either.
    """

    precision: str = "int8"
    activation: str = "int8"
    weight_bits: int = 8
    per_channel: bool = True
    matmul_per_tensor: bool = False
    estimator: str = "minmax"
    rounding: str = "nearest"
    tool: str = ""
    symmetric: bool = False
    integer_ends: bool = False
    floats: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    part: str = ""

    @property
    def types(self) -> str:
        """``u8s8``, ``s8s8`` or ``u8s7``: type of activations, then of weights."""
        return f"{'u8' if self.activation == 'uint8' else 's8'}s{self.weight_bits}"

    @property
    def name(self) -> str:
        """One word that tells it from others of the same search; a folder's name."""
        words = [
            self.types if self.precision == "int8" else self.precision,
            self.tool,
            "tensor" if not self.per_channel else "",
            "matmul" if self.matmul_per_tensor else "",
            "symmetric" if self.symmetric else "",
            "ends" if self.integer_ends else "",
            self.estimator if self.estimator != "minmax" else "",
            self.rounding if self.rounding != "nearest" else "",
            f"float-{hashlib.sha256(repr(self.floats).encode()).hexdigest()[:8]}" if self.floats else "",
            "exact" if self.exact else "",
        ]
        return "-".join(word for word in words if word)

    @property
    def text(self) -> str:
        """In words, for reports."""
        if self.precision not in {"int8", "int8io"}:
            return PRECISION_WORDS[self.precision]
        products = ", matrix products per tensor" if self.matmul_per_tensor else ""
        words = [
            f"{self.types} {'per channel' if self.per_channel else 'per tensor'}{products}",
            ESTIMATOR_WORDS[self.estimator],
            "7-bit weights" if self.weight_bits == 7 else "",
            _ROUNDING_WORDS[self.rounding],
            "activations without zero point" if self.symmetric else "",
            _TOOL_WORDS[self.tool],
            "int8 inputs and outputs" if self.integer_ends else "",
            f"{self.part} in float" if self.part else "",
        ]
        return ", ".join(word for word in words if word)


class Job(Struct, frozen=True, kw_only=True):
    """What every backend works from.

    Attributes:
        source: the trained model.
        samples: prepared calibration inputs, batch axis of 1 included, in order.
        checks: a few prepared inputs on which a float file must say what the source says.
        expected: the source's outputs for them, batch axes included.
        folder: an empty folder of this backend's own.
    """

    source: SourceModel
    samples: Samples
    checks: Samples
    expected: Samples
    folder: Path


class Artifact(Struct, frozen=True, kw_only=True):
    """One file that a runtime can load.

    Attributes:
        model: the file; OpenVINO's weights lie beside it.
        weights: OpenVINO's ``.bin``, else None.
        scheme: in words, empty for fp32.
        notes: fallbacks and conditions.
        fallbacks: those of the notes that ``--strict`` does not accept.
        plain: the file before arithmetic of the contract was put in front of it, which is what quantizers read.
        reference: whether LiteRT's reference kernels stand in for those of a microcontroller.
        state: what the file keeps from step to step; see :class:`edgeship_agent.contract.manifest.Variant`.
    """

    runtime: str
    precision: str
    model: Path
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    weights: Path | None = None
    scheme: str = ""
    notes: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    state: str = ""
    reference: bool = False
    plain: Artifact | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that the runtime needs."""
        return (self.model,) if self.weights is None else (self.model, self.weights)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.files)


class Backend(Protocol):
    """One runtime's reader and quantizer."""

    def convert(self, job: Job, model: Path) -> Artifact:
        """The float artifact, bound to the source's names and layout by running it.

        Args:
            job: what it must compute.
            model: a float file that the runtime reads, from the end of a route; only read.

        Raises:
            ConversionError: it cannot be made, or does not compute what the source computes.
        """

    def quantize(self, job: Job, float_artifact: Artifact, scheme: Scheme) -> Artifact:
        """An artifact of another precision, from the float one.

        Raises:
            ConversionError: it cannot be made.
        """

    def calibration(self, job: Job, float_artifact: Artifact) -> Calibration:
        """What the float file and the job's samples say: operators, ranges."""


def bind(name: str, info: TensorInfo, transpose: tuple[int, ...] = ()) -> Binding:
    """A binding from a source's name to a file's tensor.

    Args:
        name: in the source.
        info: in the file.
        transpose: axes (batch included) that take the source's layout to the file's.
    """
    same = transpose == tuple(range(len(transpose)))
    return Binding(
        name=name,
        artifact_name=info.name,
        artifact_index=info.index,
        dtype=info.dtype,
        shape=info.shape,
        transpose=() if same else transpose,
        scale=info.scale,
        zero_point=info.zero_point,
    )
