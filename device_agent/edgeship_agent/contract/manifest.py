"""The bundle manifest (``edgeship.json``): what a model expects, answers and promises, for every variant of it.

A file on disk: a JSON map with a version; unknown fields are ignored by readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final, Union

from msgspec import UNSET, Struct, UnsetType, field

MANIFEST_VERSION: Final = 1
#: Runtime of a variant → the one that runs its files where it is all there is, with a name and versions of its own.
STAND_INS: Final = {"litert": "tflite-runtime"}
#: Precision of what a quantized variant falls back to.
FULL_PRECISION: Final = "fp32"


class TensorSpec(Struct, frozen=True, kw_only=True):
    """One input or output of the source model.

    Attributes:
        dtype: numpy's name.
        shape: sizes; -1 for the batch axis and nothing else.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def batched(self) -> bool:
        """Whether its first axis is the batch: 1 or free. States and scalars may have none.

        >>> [TensorSpec(name="t", dtype="float32", shape=shape).batched for shape in ((-1, 4), (1, 4), (2, 1, 4), ())]
        [True, True, False, False]
        """
        return bool(self.shape) and self.shape[0] in {-1, 1}

    @property
    def call_shape(self) -> tuple[int, ...]:
        """Shape of one call: the batch axis pinned to 1.

        >>> TensorSpec(name="x", dtype="float32", shape=(-1, 4)).call_shape
        (1, 4)
        """
        return (1, *self.shape[1:]) if self.batched else self.shape


class Cast(Struct, frozen=True, kw_only=True, tag="cast", tag_field="op"):
    """Change the type; floats to integers round half to even and saturate."""

    dtype: str


class Scale(Struct, frozen=True, kw_only=True, tag="scale", tag_field="op"):
    """Multiply by ``factor``."""

    factor: float


class Offset(Struct, frozen=True, kw_only=True, tag="offset", tag_field="op"):
    """Add ``value``."""

    value: float


class Normalize(Struct, frozen=True, kw_only=True, tag="normalize", tag_field="op"):
    """``(x − mean) ÷ std`` along ``axis``, one number a channel (or one for all)."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis: int = -1


class Reshape(Struct, frozen=True, kw_only=True, tag="reshape", tag_field="op"):
    """New shape of one sample (without the batch axis)."""

    shape: tuple[int, ...]


class Transpose(Struct, frozen=True, kw_only=True, tag="transpose", tag_field="op"):
    """Reorder the axes of one sample (without the batch axis)."""

    axes: tuple[int, ...]


class Pad(Struct, frozen=True, kw_only=True, tag="pad", tag_field="op"):
    """Pad one sample with ``value``: (before, after) per axis."""

    widths: tuple[tuple[int, int], ...]
    value: float = 0.0


class Resize(Struct, frozen=True, kw_only=True, tag="resize", tag_field="op"):
    """Resize an image sample of shape [height, width, channels] (or [height, width])."""

    height: int
    width: int
    method: str = "bilinear"


class Crop(Struct, frozen=True, kw_only=True, tag="crop", tag_field="op"):
    """Centre crop of an image sample."""

    height: int
    width: int


class ColourOrder(Struct, frozen=True, kw_only=True, tag="colour_order", tag_field="op"):
    """Reverse the last axis: RGB ↔ BGR."""


class LogMel(Struct, frozen=True, kw_only=True, tag="log_mel", tag_field="op"):
    """Sound [samples] → mel bands [frames, bins]; frame ``i`` begins at sample ``i · hop_length``.

    Attributes:
        rate_hz: of the sound.
        frame_length, hop_length: in samples; only whole frames count.
        fft_length: a frame is filled up with zeros to this; 0 for ``frame_length``.
        low_hz, high_hz: of the bands.
        window: ``hann`` or ``hamming`` (periodic), or ``none``.
        power: of the magnitude: 1 or 2.
        scale: ``htk`` (2595 log10(1 + f ÷ 700)) or ``slaney`` (linear to 1 kHz).
        triangles: where the bands' slopes are straight: over ``mel``, as in TensorFlow, or over ``hz``, as in librosa.
        norm: ``slaney`` for bands of equal area, or ``none``.
        log: ``natural``, ``db`` (10 log10) or ``none``.
        floor: a band below it counts as it, before the logarithm.
        offset: added to a band before the logarithm.
        centred: reflect half a frame at both ends, so that frame ``i`` has its middle at ``i · hop_length``.
    """

    rate_hz: float
    frame_length: int
    hop_length: int
    bins: int
    high_hz: float
    low_hz: float = 0.0
    fft_length: int = 0
    window: str = "hann"
    power: int = 2
    scale: str = "htk"
    triangles: str = "mel"
    norm: str = "none"
    log: str = "natural"
    floor: float = 0.0
    offset: float = 0.0
    centred: bool = False


class Dct(Struct, frozen=True, kw_only=True, tag="dct", tag_field="op"):
    """The first coefficients of the cosine transform (II) along the last axis: MFCC, behind ``log_mel``.

    Attributes:
        norm: ``ortho``, or ``htk`` (√(2 ÷ N) for the first coefficient too, as in TensorFlow).
    """

    coefficients: int
    norm: str = "ortho"


class Impute(Struct, frozen=True, kw_only=True, tag="impute", tag_field="op"):
    """Put a number in the place of NaN: one value a column of the last axis, or one for all."""

    values: tuple[float, ...]


class OneHot(Struct, frozen=True, kw_only=True, tag="one_hot", tag_field="op"):
    """Put one column a known value in the place of a column of the last axis: 1 where it has that value, else 0.

    Attributes:
        unknown: what another value does: ``zeros`` (all columns 0) or ``refuse`` (the input is an error).
    """

    column: int
    values: tuple[float, ...]
    unknown: str = "zeros"


class Categories(Struct, frozen=True, kw_only=True, tag="categories", tag_field="op"):
    """Put the position among known values in the place of a column of the last axis.

    Attributes:
        unknown: what stands for any other value.
    """

    column: int
    values: tuple[float, ...]
    unknown: float = -1.0


Step = Union[
    Cast,
    Scale,
    Offset,
    Normalize,
    Reshape,
    Transpose,
    Pad,
    Resize,
    Crop,
    ColourOrder,
    LogMel,
    Dct,
    Impute,
    OneHot,
    Categories,
]


class StreamWindow(Struct, frozen=True, kw_only=True):
    """How samples are cut from a stream: the raw sample's first axis is time, and ``length`` of it.

    Attributes:
        hop: how far the next sample begins behind the last one.
    """

    length: int
    hop: int


class InputContract(Struct, frozen=True, kw_only=True):
    """How the application's raw input becomes a model input.

    Attributes:
        tensor: name of the model input.
        dtype: type of the raw input.
        shape: shape of one raw sample without the batch axis; -1 where any size is taken.
        steps: applied in order; none means that the array is fed as it is.
        batched: whether the model input has a batch axis of 1 in front of the sample; states and scalars may not.
        sequence: whether the first axis of a raw sample is time: its steps go through the model one by one, from a
            state that is as new, and the answers have that axis too. A call is one sequence.
        folded: what comes after ``steps`` and is part of the variants' files, or of their bindings; element by element,
            with axes counted from the last one.
        window: how samples are cut from a stream; unset, and not written, where each message is one sample.
    """

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    batched: bool = True
    folded: tuple[Step, ...] = ()
    sequence: bool = False
    window: StreamWindow | UnsetType = UNSET


class Feature(Struct, frozen=True, kw_only=True):
    """One documented input feature.

    Attributes:
        low, high: valid range of the raw input; documented, or as observed in the reference data.
        documented: False where name, unit and meaning were not given and the range was only observed.
    """

    name: str
    unit: str = "unknown"
    meaning: str = ""
    low: float | None = None
    high: float | None = None
    documented: bool = False


class OutputContract(Struct, frozen=True, kw_only=True):
    """What the application may rely on.

    Attributes:
        kind: ``classification`` or ``raw``.
        labels: class names in the order of the output, empty where unknown.
        activation: what the device applies to the first output to read it as probabilities: ``softmax`` or ``none``.
        units: unit of a raw output.
        thresholds: name → value of decision thresholds.
        postprocessing: names of the postprocessing steps, in order.
    """

    kind: str = "classification"
    labels: tuple[str, ...] = ()
    activation: str = "none"
    units: str = ""
    thresholds: dict[str, float] = field(default_factory=dict)
    postprocessing: tuple[str, ...] = ()


class Binding(Struct, frozen=True, kw_only=True):
    """How a source tensor is called and laid out inside one variant's file.

    Attributes:
        name: name in the source model.
        artifact_name: name in the file.
        artifact_index: position among the file's inputs or outputs.
        dtype: type in the file.
        shape: shape in the file, batch axis included (-1 for any).
        transpose: axes (batch included) that take the source's layout to the file's; empty for the same.
        scale, zero_point: of an integer input or output in the file; scale 0 for none.
        steps: what an input needs before the rest, where this file does not do it itself: the contract's folded steps.
    """

    name: str
    artifact_name: str
    artifact_index: int
    dtype: str
    shape: tuple[int, ...]
    transpose: tuple[int, ...] = ()
    scale: float = 0.0
    zero_point: int = 0
    steps: tuple[Step, ...] = ()


class BundleFile(Struct, frozen=True, kw_only=True):
    """A file of a variant: a layer of its OCI manifest.

    Attributes:
        role: ``model``, ``weights`` (OpenVINO's .bin), ``golden_inputs``, ``golden_outputs`` or ``profile``.
    """

    path: str
    role: str
    digest: str
    size_bytes: int


class MetricClaim(Struct, frozen=True, kw_only=True):
    """A task metric on held-out data, as fractions; a positive drop is worse than the source.

    Attributes:
        low, high: 95 % Wilson interval of ``value``.
        drop, drop_low, drop_high: 95 % paired Newcombe interval of the difference to the source.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    drop: float
    drop_low: float
    drop_high: float


class Golden(Struct, frozen=True, kw_only=True):
    """What the golden inputs must give on a device.

    Attributes:
        relative_rms: largest ‖device − golden‖₂ ÷ ‖golden‖₂ over the first output.
        isa_class: ISA class that the golden outputs were made on, such as ``x86_64`` or ``x86_64+vnni``.
        other_isa_relative_rms: the wider tolerance where the device is of another ISA class; the top class must also
            agree wherever its margin exceeds the quantization step.
        margin: top-1 margin (in the first output's unit) from which on the top class must agree.
    """

    relative_rms: float
    isa_class: str
    other_isa_relative_rms: float
    margin: float = 0.0


class Variant(Struct, frozen=True, kw_only=True):
    """One artifact: a target, a runtime and a precision.

    Attributes:
        runtime_version: version that verified it; ``runtime_range`` is what a device may have (``>=1.20,<2``).
        min_memory_bytes: measured need of the worker process.
        state: what the file keeps from step to step, which every call begins anew: empty for nothing, ``variables``
            that the runtime sets back, or ``resources`` that loading the file again does.
    """

    target: str
    runtime: str
    precision: str
    arch: str
    runtime_version: str
    runtime_range: str
    min_memory_bytes: int
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    files: tuple[BundleFile, ...]
    golden: Golden
    metric: MetricClaim
    relative_rms: float
    state: str = ""

    @property
    def label(self) -> str:
        """``target/runtime/precision``."""
        return f"{self.target}/{self.runtime}/{self.precision}"

    def file(self, role: str) -> BundleFile | None:
        """The file of that role, or None."""
        return next((file for file in self.files if file.role == role), None)


class Source(Struct, frozen=True, kw_only=True):
    """The trained model that a bundle was built from."""

    file: str
    format: str
    digest: str
    size_bytes: int


class Lineage(Struct, frozen=True, kw_only=True):
    """Where a bundle came from; reproducible facts only, so no dates.

    Attributes:
        tools: name → version of everything that had a hand in it.
    """

    source: Source
    calibration_digest: str
    evaluation_digest: str
    tools: dict[str, str]
    notes: dict[str, str] = field(default_factory=dict)


class BundleManifest(Struct, frozen=True, kw_only=True):
    """Everything that a device or a server must know about a bundle."""

    schema_version: int = MANIFEST_VERSION
    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_contracts: tuple[InputContract, ...]
    input_schema: dict[str, tuple[Feature, ...]]
    output: OutputContract
    variants: tuple[Variant, ...]
    lineage: Lineage


def runtime_for(runtime: str, installed: Collection[str]) -> str:
    """Which of the installed runtimes runs the files of a runtime; empty for none.

    >>> runtime_for("litert", ["tflite-runtime"]), runtime_for("litert", ["litert", "tflite-runtime"])
    ('tflite-runtime', 'litert')
    >>> runtime_for("openvino", ["tflite-runtime"])
    ''
    """
    return next((name for name in (runtime, STAND_INS.get(runtime, "")) if name in installed), "")


def output_contract_hash(contract: OutputContract) -> str:
    """Identity of an output contract: sha256 (hex) over labels in order, units, thresholds and postprocessing.

    >>> a = output_contract_hash(OutputContract(labels=("cat", "dog")))
    >>> a == output_contract_hash(OutputContract(labels=("dog", "cat")))
    False
    """
    parts = [
        contract.kind,
        contract.activation,
        contract.units,
        *(f"label {label}" for label in contract.labels),
        *(f"threshold {name} {value!r}" for name, value in sorted(contract.thresholds.items())),
        *(f"step {step}" for step in contract.postprocessing),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
