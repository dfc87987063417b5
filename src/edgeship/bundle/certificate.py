"""The documents beside a variant that a machine reads: its parity certificate, and where it came from.

Files in a bundle: JSON maps with a version; readers ignore unknown fields. Reproducible facts only: the same inputs
give the same bytes, so there is no date, no latency and no path in them.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

from edgeship_agent.contract.manifest import MetricClaim, Source

CERTIFICATE_VERSION: Final = 1
LINEAGE_VERSION: Final = 1
#: Names of the documents among the layers of a variant.
CERTIFICATE_FILE: Final = "certificate.json"
LINEAGE_FILE: Final = "lineage.json"
CARD_FILE: Final = "README.md"
BOM_FILE: Final = "bom.cdx.json"


class CertifiedFile(Struct, frozen=True, kw_only=True):
    """One file of the artifact that was verified."""

    path: str
    digest: str
    size_bytes: int


class Ran(Struct, frozen=True, kw_only=True):
    """What ran while the artifact was verified.

    Attributes:
        isa: ISA class, such as ``x86_64+vnni``.
        arithmetic: precision that float arithmetic was held to.
        threads: of the runtime.
        on_device: whether it ran on a device that the build measured on, and not on the machine that built.
    """

    runtime: str
    runtime_version: str
    isa: str
    arithmetic: str = "fp32"
    threads: int = 1
    on_device: bool = False


class UsedData(Struct, frozen=True, kw_only=True):
    """A data set: its content in order, and how many samples it has."""

    digest: str
    samples: int


class Share(Struct, frozen=True, kw_only=True):
    """A share of samples with its 95 % Wilson interval."""

    count: int
    n: int
    value: float
    low: float
    high: float


class CertifiedRule(Struct, frozen=True, kw_only=True):
    """A rule that the artifact was judged by, with what its answer is worked out from.

    Attributes:
        rule: in words, with its limit.
        low, high: interval of the value, at the confidence that ``evidence`` names.
        evidence: counts and confidence, as a gate of build.json has them.
        unit: of value, limit and interval.
    """

    id: str
    rule: str
    value: float | None
    limit: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    holds: bool | None
    evidence: dict[str, float] = field(default_factory=dict)
    unit: str = "fraction"


class Certificate(Struct, frozen=True, kw_only=True):
    """How close one artifact is to its source, on which data, in which runtime.

    Attributes:
        variant: label ``target/runtime/precision``.
        scheme: how it was quantized, empty for a float artifact.
        source_digest: of the trained model.
        relative_rms: ‖q − f‖₂ ÷ ‖f‖₂ over the source's first output on the evaluation set; None where not finite.
        sqnr_db: ``−20·log₁₀`` of it; None where the two are equal or it is not finite.
        cosine: ⟨q, f⟩ ÷ (‖q‖₂·‖f‖₂) over the same values; None where one of the two is zero or not finite.
        worst_group_rms: largest relative RMS of one channel group of the first output.
        other_outputs: name → relative RMS of the other outputs; of classes and counts the share that differs.
        agreement: samples whose highest class is the source's; None where the output is not read as classes.
        metric: task metric with its 95 % interval, and the paired drop with its own.
        counts: paired counts behind ``metric`` (``both``, ``only_source``, ``only_variant``, ``neither``); empty where
            the metric is not a share of right answers.
        unit, drop_unit: of the metric and of its drop: ``fraction``, ``dB`` or empty for a plain number.
        rules: those whose value does not depend on a clock.
    """

    schema_version: int = CERTIFICATE_VERSION
    variant: str
    files: tuple[CertifiedFile, ...]
    scheme: str
    source_digest: str
    ran: Ran
    calibration: UsedData
    evaluation: UsedData
    relative_rms: float | None
    sqnr_db: float | None
    cosine: float | None
    worst_group_rms: float | None
    other_outputs: dict[str, float | None] = field(default_factory=dict)
    agreement: Share | None = None
    metric: MetricClaim
    counts: dict[str, float] = field(default_factory=dict)
    unit: str = "fraction"
    drop_unit: str = "fraction"
    distinct_predictions: int = 0
    distinct_reference: int = 0
    rules: tuple[CertifiedRule, ...] = ()


class LineageDocument(Struct, frozen=True, kw_only=True):
    """Where a bundle came from, as far as the same inputs give the same answer.

    The commit of the working folder is not in it: the model file is the input, and the same file gives the same bundle
    at every commit. It stands in build.json; ``--lineage commit=…`` makes it an input. Source: ADR 0011.

    Attributes:
        data: role → the data set.
        tools: name → version of everything that had a hand in it.
        license: SPDX expression, empty where it was not given.
        given: what ``--lineage KEY=VALUE`` said, and what a tracker said of the source.
    """

    schema_version: int = LINEAGE_VERSION
    source: Source
    data: dict[str, UsedData]
    tools: dict[str, str]
    license: str = ""
    given: dict[str, str] = field(default_factory=dict)
