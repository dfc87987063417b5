"""The versions of a model side by side: what was claimed, what is observed, who runs it, who answers the calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, func, select

from edgeship.rollout import RolloutState
from edgeship.server.rollout_evidence import latency_p99_ms
from edgeship.server.store import devices, labels, releases, rollouts, schema, windows
from edgeship.server.store.labels import Labelled, OutcomeSums
from edgeship.server.store.releases import Release
from edgeship.statistics import wilson
from edgeship_agent.contract.manifest import BundleManifest, MetricClaim
from edgeship_agent.contract.messages import ShadowTally
from edgeship_agent.contract.wire import read_json

#: The arm whose answers no application sees: no traffic.
SHADOW_ARM: Final = "shadow"
#: Traffic and latency are those of the last quarter of an hour.
RECENT_S: Final = 900.0
_MOST_WINDOWS: Final = 500
#: Two-sided 95 % quantile of the normal distribution.
_Z95: Final = 1.959964
_IN_ROLLOUT: Final = (RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.HALTED, RolloutState.ROLLING_BACK)
_TABLE: Final = schema.windows


class VariantRow(Struct, frozen=True, kw_only=True):
    """What the build proved about one variant.

    Attributes:
        label: ``target/runtime/precision``.
        size_bytes: of the model and its weights.
    """

    label: str
    runtime_version: str
    size_bytes: int
    metric: MetricClaim
    relative_rms: float


class Observed(Struct, frozen=True, kw_only=True):
    """Accuracy in the field, from labels that came later.

    Attributes:
        low, high: 95 % Wilson interval of ``accuracy``, over predictions.
        n: labelled predictions.
        coverage: of all answered calls of the version, 0–1.
        confidence: mean confidence of the labelled predictions; above the accuracy the model is too sure of itself.
        unknown: labels that came too late, or for predictions of nobody.
        lost: labels for predictions that a device lost with a worker that died.
    """

    accuracy: float
    low: float
    high: float
    n: int
    coverage: float
    confidence: float
    unknown: int = 0
    lost: int = 0


class Outcome(Struct, frozen=True, kw_only=True):
    """A business figure of one version: its mean over ``n`` predictions, with a 95 % normal interval."""

    name: str
    mean: float
    low: float | None
    high: float | None
    n: int


class Shadow(Struct, frozen=True, kw_only=True):
    """How a version did beside the champion, unseen by applications.

    Attributes:
        low, high: 95 % Wilson interval of ``disagreement``, the share of another class.
        relative_rms: ‖candidate - champion‖₂ ÷ ‖champion‖₂ over the first output.
        dropped: inputs that were drawn but went over the budget.
    """

    disagreement: float
    low: float
    high: float
    n: int
    relative_rms: float
    failed: int
    dropped: int


class VersionRow(Struct, frozen=True, kw_only=True):
    """One version of a model.

    Attributes:
        status: ``blocked``, ``in rollout``, ``committed`` or ``available``.
        rollout: id of the rollout that it is in, or that blocked it; empty for none.
        metric: of its weakest variant, as it was proven when it was built.
        devices: online or not, so many have it loaded.
        calls: answered within the last quarter of an hour.
        traffic_share: of all calls of the model in that time, 0–1; None where there were none.
        latency_p99_ms: observed in that time; None where there were no calls.
        observed: accuracy in the field; None without labels.
        outcomes: business figures, by name.
        shadow: None where the version never ran beside another.
    """

    version: str
    status: str
    rollout: str
    metric: MetricClaim | None
    devices: int
    calls: int
    traffic_share: float | None
    latency_p99_ms: float | None
    observed: Observed | None = None
    outcomes: tuple[Outcome, ...] = ()
    shadow: Shadow | None = None


def variant_rows(manifest_bytes: bytes) -> list[VariantRow]:
    """The claims of a release's variants, in the bundle's order."""
    manifest = read_json(manifest_bytes, BundleManifest, file="edgeship.json")
    return [
        VariantRow(
            label=variant.label,
            runtime_version=variant.runtime_version,
            size_bytes=sum(file.size_bytes for file in variant.files if file.role in {"model", "weights"}),
            metric=variant.metric,
            relative_rms=variant.relative_rms,
        )
        for variant in manifest.variants
    ]


def version_rows(connection: Connection, model: str, now_s: float) -> list[VersionRow]:
    """Every version of a model, newest first."""
    known = releases.list_all(connection, model)
    since_s = now_s - RECENT_S
    calls = _calls(connection, model, since_s)
    loaded = _loaded(connection, model)
    total = sum(calls.values())
    noted = labels.by_version(connection, model)
    ever = _calls(connection, model, 0.0)
    figures = labels.outcomes(connection, model)
    rows = []
    for release in known:
        status, rollout_id = _status(connection, release, loaded.get(release.version, 0))
        answered = calls.get(release.version, 0)
        rows.append(
            VersionRow(
                version=release.version,
                status=status,
                rollout=rollout_id,
                metric=_weakest(variant_rows(releases.read_files(connection, model, release.version).manifest)),
                devices=loaded.get(release.version, 0),
                calls=answered,
                traffic_share=answered / total if total else None,
                latency_p99_ms=_latency(connection, release, since_s) if answered else None,
                observed=observed_of(noted.get(release.version), ever.get(release.version, 0)),
                outcomes=tuple(outcome_of(sums) for sums in figures if sums.version == release.version),
                shadow=shadow_of(labels.shadow_sums(connection, model, release.version)),
            )
        )
    return rows


def observed_of(noted: Labelled | None, calls: int) -> Observed | None:
    """Accuracy from labels; None where there are none.

    >>> observed = observed_of(Labelled(labelled=100, correct=90, confidence=0.95), 400)
    >>> (observed.accuracy, round(observed.low, 3), round(observed.high, 3), observed.coverage)
    (0.9, 0.826, 0.945, 0.25)
    """
    if noted is None or not noted.labelled:
        return None
    interval = wilson(noted.correct, noted.labelled)
    return Observed(
        accuracy=noted.correct / noted.labelled,
        low=interval.low,
        high=interval.high,
        n=noted.labelled,
        coverage=min(noted.labelled / calls, 1.0) if calls else 0.0,
        confidence=noted.confidence,
        unknown=noted.unknown,
        lost=noted.lost,
    )


def outcome_of(sums: OutcomeSums) -> Outcome:
    """Mean of a figure with the normal interval of a mean, which takes some thirty predictions to be worth much.

    >>> outcome_of(OutcomeSums(version="1", name="minutes", count=4, total=8.0, square_total=20.0)).mean
    2.0
    """
    mean = sums.total / sums.count
    variance = max(sums.square_total / sums.count - mean * mean, 0.0) * sums.count / max(sums.count - 1, 1)
    half = _Z95 * math.sqrt(variance / sums.count) if sums.count > 1 else None
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Outcome(name=sums.name, mean=mean, low=low, high=high, n=sums.count)


def shadow_of(sums: ShadowTally | None) -> Shadow | None:
    """A candidate's sums as shares; None where nothing was compared."""
    if sums is None or not sums.compared + sums.failed + sums.dropped:
        return None
    interval = wilson(sums.disagreed, sums.compared)
    reference = sums.champion_square_sum
    return Shadow(
        disagreement=sums.disagreed / sums.compared if sums.compared else 0.0,
        low=interval.low,
        high=interval.high,
        n=sums.compared,
        relative_rms=math.sqrt(sums.error_square_sum / reference) if reference else 0.0,
        failed=sums.failed,
        dropped=sums.dropped,
    )


def _weakest(variants: Sequence[VariantRow]) -> MetricClaim | None:
    return min((row.metric for row in variants), key=lambda metric: metric.value, default=None)


def _status(connection: Connection, release: Release, loaded: int) -> tuple[str, str]:
    if release.state == releases.BLOCKED:
        return "blocked", release.blocked_by
    for rollout in rollouts.in_states(connection, _IN_ROLLOUT):
        if any((part.model, part.version) == (release.model, release.version) for part in rollout.parts):
            return "in rollout", rollout.id
    return ("committed" if loaded else "available"), ""


def _calls(connection: Connection, model: str, since_s: float) -> dict[str, int]:
    query = select(_TABLE.c.version, func.sum(_TABLE.c.inferences)).where(
        _TABLE.c.model == model, _TABLE.c.received_at_s >= since_s, _TABLE.c.arm != SHADOW_ARM
    )
    return {version: int(count) for version, count in connection.execute(query.group_by(_TABLE.c.version))}


def _loaded(connection: Connection, model: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in devices.list_all(connection):
        arms: list[dict[str, Any]] = row.running
        for version in {arm["version"] for arm in arms if arm["model"] == model}:
            counts[version] = counts.get(version, 0) + 1
    return counts


def _latency(connection: Connection, release: Release, since_s: float) -> float | None:
    query = (
        select(_TABLE.c.payload)
        .where(
            _TABLE.c.model == release.model,
            _TABLE.c.version == release.version,
            _TABLE.c.received_at_s >= since_s,
        )
        .order_by(_TABLE.c.received_at_s.desc())
        .limit(_MOST_WINDOWS)
    )
    return latency_p99_ms(windows.decode(payload) for payload in connection.execute(query).scalars())
