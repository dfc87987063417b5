"""The versions of a model side by side: what was claimed, what is observed, who runs it, who answers the calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, func, select

from edgeship.rollout import RolloutState
from edgeship.server.rollout_evidence import latency_p99_ms
from edgeship.server.store import devices, releases, rollouts, schema, windows
from edgeship.server.store.releases import Release
from edgeship_agent.contract.manifest import BundleManifest, MetricClaim
from edgeship_agent.contract.wire import read_json

#: Traffic and latency are those of the last quarter of an hour.
RECENT_S: Final = 900.0
_MOST_WINDOWS: Final = 500
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
    """

    version: str
    status: str
    rollout: str
    metric: MetricClaim | None
    devices: int
    calls: int
    traffic_share: float | None
    latency_p99_ms: float | None


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
            )
        )
    return rows


def _weakest(variants: Sequence[VariantRow]) -> MetricClaim | None:
    return min((row.metric for row in variants), key=lambda metric: metric.value, default=None)


def _status(connection: Connection, release: Release, loaded: int) -> tuple[str, str]:
    if release.state == releases.BLOCKED:
        return "blocked", release.blocked_by
    for rollout in rollouts.in_states(connection, _IN_ROLLOUT):
        if (rollout.model, rollout.version) == (release.model, release.version):
            return "in rollout", rollout.id
    return ("committed" if loaded else "available"), ""


def _calls(connection: Connection, model: str, since_s: float) -> dict[str, int]:
    query = select(_TABLE.c.version, func.sum(_TABLE.c.inferences)).where(
        _TABLE.c.model == model, _TABLE.c.received_at_s >= since_s
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
