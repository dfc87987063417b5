"""``build.json``: what a build tried, measured and decided. The same document is printed by ``--json``.

A file on disk: a JSON map with a version; readers ignore unknown fields. Shares and drops are fractions; a positive
drop is worse than the source.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

SCHEMA_VERSION: Final = 1

#: What a verdict may say: of a variant, of a target, of the build.
VERDICTS: Final = ("pass", "fail", "inconclusive")


class MeasuredOn(Struct, frozen=True, kw_only=True):
    """The machine that a latency was measured on.

    Attributes:
        isa: ISA class, such as ``x86_64+vnni``.
        device: ``user@host`` of a device that was reached over SSH; empty for the machine of the build.
        runtimes: runtime → version, where that is not this machine's.
    """

    arch: str
    isa: str
    cpu: str
    device: str = ""
    runtimes: dict[str, str] = field(default_factory=dict)


class MetricFigures(Struct, frozen=True, kw_only=True):
    """The task metric of one variant on the evaluation set.

    Attributes:
        name: as it was asked for: ``top1``, ``agreement`` (same class as the source), ``closeness`` (share of samples
            whose own relative RMS against the source is within the limit), or another of docs/guide/metrics.md.
        low, high: 95 % interval of ``value``; Wilson's where the metric is a share.
        drop: what is lost against the source, positive is worse, with its 95 % paired interval: Newcombe's where the
            metric is a share.
        source: the source's value.
        unit: of the values: ``fraction``, ``dB`` or empty for a plain number; ``drop_unit``: of the drop.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    drop: float
    drop_low: float
    drop_high: float
    source: float | None = None
    unit: str = "fraction"
    drop_unit: str = "fraction"


class ClassRecall(Struct, frozen=True, kw_only=True):
    """How often a variant finds one class, and how often the source does.

    Attributes:
        label: the class's name, or its index where it has none.
        source, value: recall of source and variant.
        low, high: 95 % Wilson interval of ``value``.
        drop: what is lost, with its 95 % paired Newcombe interval.
        both, only_source, only_variant, neither: who was right, in samples.
    """

    index: int
    label: str
    n: int
    source: float
    value: float
    low: float
    high: float
    drop: float
    drop_low: float
    drop_high: float
    both: int
    only_source: int
    only_variant: int
    neither: int


class ConfusionCell(Struct, frozen=True, array_like=True):
    """How often one class was answered with another: ``[actual, said, source, variant]`` in JSON.

    Attributes:
        actual, said: indices of classes.
        source, variant: how many samples, by the source and by the variant.
    """

    actual: int
    said: int
    source: int
    variant: int


class ConfusionReport(Struct, frozen=True, kw_only=True):
    """What source and variant answer to the evaluation samples of each class. Counts alone, no samples.

    Attributes:
        against: ``labels``, or ``source`` where there are none: then a class is what the source says.
        classes: of the model.
        labels: their names, empty where they have none.
        samples: in the evaluation set; ``moved``: of these, answered otherwise than by the source.
        cells: those with a count; where ``whole`` is false, only those whose count changes, the largest changes first.
    """

    against: str
    classes: int
    samples: int
    moved: int
    cells: tuple[ConfusionCell, ...]
    whole: bool = True
    labels: tuple[str, ...] = ()


class FieldReport(Struct, frozen=True, kw_only=True):
    """What unlabelled samples say of a variant, and the labels of its disagreements with the source.

    Attributes:
        samples: unlabelled; ``disagreements``: of these, on which the two answer differently.
        labelled: disagreements that have a label; who was right on them: ``both``, ``only_source`` …
        drop: of ``metric`` over all samples, with its interval at ``confidence``.
        look: how many times labels were looked at.
    """

    metric: str
    samples: int
    disagreements: int
    labelled: int
    both: int
    only_source: int
    only_variant: int
    neither: int
    drop: float
    drop_low: float
    drop_high: float
    confidence: float
    look: int


class VariantReport(Struct, frozen=True, kw_only=True):
    """One candidate that was built, run and judged.

    Attributes:
        file: absolute path of the model (OpenVINO: of the .xml).
        size_bytes: of everything that the runtime must load (OpenVINO: .xml and .bin).
        on_target: whether ``measured_on`` is of the target's ISA class; if not, latency judges nothing.
        relative_rms: ‖q − f‖₂ ÷ ‖f‖₂ over the source's first output on the evaluation set; None where it is not finite.
        sqnr_db: 10·log₁₀(Σf² ÷ Σ(q − f)²) in dB; None where the two are equal or it is not finite.
        verdict: ``pass`` (may ship), ``fail`` or ``inconclusive`` (not proven either way).
        reason: why it was chosen or refused, in one sentence.
        worst_group_rms: largest relative RMS of one channel group of the first output.
        distinct_predictions: classes that occur among its predictions; ``distinct_reference`` among the source's.
        scheme: how it was quantized, such as ``u8s8 per channel, min–max``; empty for fp32.
        ran_precision: precision that the runtime was held to while it was verified.
        speedup: p50 of this target's fp32 ÷ p50 of this one, from the same interleaved run.
        notes: everything else worth knowing: fallbacks, saturation, proxies.
        class_recalls: of every class that has samples, where the first output names classes; without labels, against
            what the source says.
        field: what unlabelled samples say, where the build was given some.
        confusion: which classes are answered with which, where the first output names classes; None for fp32.
    """

    target: str
    runtime: str
    precision: str
    file: str
    size_bytes: int
    latency_p50_ms: float
    latency_p99_ms: float
    measured_on: MeasuredOn
    on_target: bool
    metric: MetricFigures
    relative_rms: float | None
    sqnr_db: float | None
    verdict: str
    chosen: bool
    reason: str
    worst_group_rms: float | None = None
    distinct_predictions: int = 0
    distinct_reference: int = 0
    scheme: str = ""
    runtime_version: str = ""
    ran_precision: str = "fp32"
    speedup: float | None = None
    latency_queries: int = 0
    memory_bytes: int = 0
    notes: tuple[str, ...] = ()
    class_recalls: tuple[ClassRecall, ...] = ()
    field: FieldReport | None = None
    confusion: ConfusionReport | None = None


class GateReport(Struct, frozen=True, kw_only=True):
    """One rule applied to one variant, with all that is needed to recompute it (``explain build/<id>``).

    Attributes:
        id: name of the rule: the metric's name, ``class_recall``, ``relative_rms``, ``distinct``, ``slowdown``,
            ``latency_p99_ms``, ``size_bytes``; the same id occurs once per variant.
        rule: such as ``top1 drop_high ≤ 0.01``.
        value, limit: what was measured and what it may be, in the rule's unit.
        low, high: interval of the value, where it has one.
        holds: True, False, or None where it is not decided.
        evidence: the raw counts that the value was computed from, and the confidence of its interval.
        next: what would decide or mend it.
        unit: of value, limit and interval where they are not what the name's end says: ``fraction``, ``dB`` or empty.
    """

    id: str
    target: str
    runtime: str
    precision: str
    rule: str
    value: float | None
    limit: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    holds: bool | None
    sentence: str
    next: str = ""
    evidence: dict[str, float] = field(default_factory=dict)
    unit: str = "fraction"


class Attempt(Struct, frozen=True, kw_only=True):
    """A candidate that could not be built or run at all, or a fallback that was taken.

    Attributes:
        stage: where it went wrong: ``check``, ``conversion``, ``layout``, ``quantization`` or ``runtime``; empty where
            nothing did.
    """

    target: str
    runtime: str
    precision: str
    outcome: str
    reason: str
    stage: str = ""


class OperatorSensitivity(Struct, frozen=True, kw_only=True):
    """What rounding one operator to 8 bits costs.

    Attributes:
        name: by which the runtime's quantizer, and ``--keep-float``, know it.
        kind: the format's name of what it does.
        in_float: whether it stays in float in the variant.
        sqnr_db: signal ÷ (error of its rounded weights + error of its rounded output), by itself, everything before it
            in float; None where it is exact.
        noise_share: its noise ÷ signal as a share of the sum over all operators that are rounded: an estimate.
        removed_share: share of the whole net's squared error that went when it alone was left in float, as measured on
            the selection samples; negative where that grew; None where it was not tried.
    """

    name: str
    kind: str
    in_float: bool
    sqnr_db: float | None
    noise_share: float
    removed_share: float | None = None


class SensitivityReport(Struct, frozen=True, kw_only=True):
    """Which operators an int8 variant loses most in, the worst first.

    Attributes:
        samples: of the calibration data, from which ``sqnr_db`` is worked out.
        operators: those that compute; what only moves numbers about is left out.
    """

    target: str
    runtime: str
    precision: str
    samples: int
    operators: tuple[OperatorSensitivity, ...]


class TargetVerdict(Struct, frozen=True, kw_only=True):
    """What was decided for one target.

    Attributes:
        chosen: label ``target/runtime/precision`` of what ships, or empty.
    """

    target: str
    verdict: str
    chosen: str
    reason: str


class SourceReport(Struct, frozen=True, kw_only=True):
    """The model that was read.

    Attributes:
        parameters: elements of all weights.
        metric: the source's own figures on the evaluation set (its drop is 0).
    """

    file: str
    format: str
    digest: str
    size_bytes: int
    opset: int
    operators: int
    parameters: int
    metric: MetricFigures | None = None


class DataReport(Struct, frozen=True, kw_only=True):
    """A data set that was used."""

    file: str
    role: str
    samples: int
    digest: str


class CalibrationReport(Struct, frozen=True, kw_only=True):
    """Whether the calibration data sets stable ranges, by comparing its samples at even and at odd positions.

    Attributes:
        tensors: that were looked at; ``moving``: of these, whose range moves by more than a fifth between the halves.
        worst: the tensor that moves most, and by which share of its range (``worst_moved``).
    """

    samples: int
    tensors: int
    moving: int
    worst: str
    worst_moved: float


class CodeReport(Struct, frozen=True, kw_only=True):
    """The git checkout that a build ran in.

    Attributes:
        dirty: whether tracked files differ from the commit; None where git did not say.
    """

    commit: str
    dirty: bool | None


class LineageReport(Struct, frozen=True, kw_only=True):
    """Where a build comes from, besides its model file and its data.

    Attributes:
        code: None where the working folder is no git checkout.
        given: what ``--lineage KEY=VALUE`` and a tracker said.
        license: SPDX expression, empty where none was given.
    """

    code: CodeReport | None = None
    given: dict[str, str] = field(default_factory=dict)
    license: str = ""


class CacheReport(Struct, frozen=True, kw_only=True):
    """What of a build came from earlier ones.

    Attributes:
        found, made: results that were there, and that were not.
        saved_s: what the first ones took when they were made, in seconds.
    """

    found: int = 0
    made: int = 0
    saved_s: float = 0.0


class BuildDocument(Struct, frozen=True, kw_only=True):
    """The whole of ``build.json``.

    Attributes:
        verdict: ``pass``, ``fail`` or ``inconclusive``.
        bundle: absolute path of the OCI layout, or None where the verdict is not ``pass``.
        bundle_digest: identity of the bundle.
        timings_s: stage → seconds.
        cache: what came from earlier builds.
        to_label: absolute path of the table of disagreements, where labels would decide (``edgeship gate resume``).
        sensitivity: of every int8 that a search found.
        next: commands that look into what failed.
    """

    schema_version: int = SCHEMA_VERSION
    verdict: str
    bundle: str | None
    variants: tuple[VariantReport, ...]
    name: str = ""
    version: str = ""
    bundle_digest: str = ""
    report: str = ""
    targets: tuple[TargetVerdict, ...] = ()
    gates: tuple[GateReport, ...] = ()
    tried: tuple[Attempt, ...] = ()
    source: SourceReport | None = None
    data: tuple[DataReport, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    cache: CacheReport = CacheReport()
    notes: tuple[str, ...] = ()
    to_label: str = ""
    calibration: CalibrationReport | None = None
    lineage: LineageReport | None = None
    sensitivity: tuple[SensitivityReport, ...] = ()
    next: tuple[str, ...] = ()
