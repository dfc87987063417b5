"""The parity certificate of one artifact, from what the build found. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from edgeship.build.schema import GateReport, MeasuredOn
from edgeship.build.verify import Comparison
from edgeship.bundle.certificate import Certificate, CertifiedFile, CertifiedRule, Ran, Share, UsedData
from edgeship.statistics import wilson
from edgeship_agent.contract.manifest import Variant

#: Rules whose value depends on a clock: they are the report's, since a bundle's digest must not change with the time.
_TIMED: Final = frozenset({"slowdown", "latency_p99_ms"})
_MODEL_ROLES: Final = frozenset({"model", "weights"})


class Used(Struct, frozen=True, kw_only=True):
    """What every certificate of a build refers to."""

    source_digest: str
    calibration: UsedData
    evaluation: UsedData


def certify(
    variant: Variant, comparison: Comparison, gates: Sequence[GateReport], used: Used, *, scheme: str, ran: Ran
) -> Certificate:
    """The certificate of a variant whose files have their digests.

    Args:
        variant: as the manifest names it.
        comparison: with the source, on the evaluation set.
        gates: the rules that it was judged by.
        used: source and data.
        scheme: how it was quantized, empty for a float artifact.
        ran: what ran while it was compared.
    """
    return Certificate(
        variant=variant.label,
        files=tuple(
            CertifiedFile(path=file.path, digest=file.digest, size_bytes=file.size_bytes)
            for file in variant.files
            if file.role in _MODEL_ROLES
        ),
        scheme=scheme,
        source_digest=used.source_digest,
        ran=ran,
        calibration=used.calibration,
        evaluation=used.evaluation,
        relative_rms=comparison.relative_rms,
        sqnr_db=comparison.sqnr_db,
        cosine=comparison.cosine,
        worst_group_rms=comparison.worst_group,
        other_outputs=dict(comparison.other_outputs),
        agreement=None if comparison.agreement is None else _share(comparison.agreement, comparison.samples),
        metric=variant.metric,
        counts=comparison.paired.evidence,
        unit=comparison.metric.unit,
        drop_unit=comparison.metric.drop_unit,
        distinct_predictions=comparison.distinct_predictions,
        distinct_reference=comparison.distinct_reference,
        rules=certified_rules(gates),
    )


def certified_rules(gates: Sequence[GateReport]) -> tuple[CertifiedRule, ...]:
    """The rules that do not depend on a clock, as a certificate holds them."""
    return tuple(
        CertifiedRule(
            id=gate.id, rule=gate.rule, value=gate.value, limit=gate.limit, low=gate.low, high=gate.high, n=gate.n,
            holds=gate.holds, evidence=gate.evidence, unit=gate.unit,
        )
        for gate in gates
        if gate.id not in _TIMED
    )  # fmt: skip


def ran_on(variant: Variant, place: MeasuredOn | None) -> Ran:
    """What ran: on the machine that built, or on the device that the build measured on."""
    if place is None or not place.device:
        return Ran(runtime=variant.runtime, runtime_version=variant.runtime_version, isa=variant.golden.isa_class)
    version = place.runtimes.get(variant.runtime, "")
    return Ran(runtime=variant.runtime, runtime_version=version, isa=place.isa, on_device=True)


def _share(count: int, total: int) -> Share:
    interval = wilson(count, total)
    return Share(count=count, n=total, value=count / total, low=interval.low, high=interval.high)
