"""What a backend takes and gives: one float artifact, and quantized ones made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from edgeship.build.sources import SourceModel
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime.engine import Array, TensorInfo

Samples = Sequence[Mapping[str, Array]]
#: Of the inputs, of the outputs.
Bindings = tuple[tuple[Binding, ...], tuple[Binding, ...]]


class Scheme(Struct, frozen=True, kw_only=True):
    """How numbers are rounded.

    Attributes:
        name: ``u8s8``, ``s8s8`` or ``u8s7``: type of activations, then of weights.
        activation: ``uint8`` or ``int8``.
        weight_bits: 7 leaves one bit unused, so that a pair of products cannot saturate in 16 bits; without VNNI, x86
            multiplies pairs of bytes into 16 bits. Source: ONNX Runtime, quantization guide, "reduce_range".
        matmul_per_tensor: one scale for every matrix that is multiplied, not one a channel.
    """

    name: str
    activation: str
    weight_bits: int = 8
    matmul_per_tensor: bool = False

    @property
    def text(self) -> str:
        """In words, for reports."""
        bits = ", 7-bit weights" if self.weight_bits == 7 else ""
        products = ", matrix products per tensor" if self.matmul_per_tensor else ""
        types = self.name.split("-", maxsplit=1)[0]
        return f"{types} per channel{products}, min–max{bits}"


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
        """An int8 artifact, from the float one.

        Raises:
            ConversionError: it cannot be made.
        """


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
