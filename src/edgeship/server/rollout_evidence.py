"""What a rollout is judged from: each device's reports, and its windows of the new version since it was offered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, func, select

from edgeship.rollout import DeviceEvidence
from edgeship.server.context import ServerContext
from edgeship.server.monitor import drift_evidence
from edgeship.server.store import reports, schema, windows
from edgeship.server.store.joint import Part
from edgeship.server.store.rollouts import Member, MemberPart, Rollout
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.sketch import ExponentialSketch, merge, quantile

#: So many of a device's newest windows give its latency and its hard stops.
RECENT_WINDOWS: Final = 60
#: So many of its windows from before the offer are what it is compared with.
EARLIER_WINDOWS: Final = 30
#: Ends of an update attempt that prove the bundle bad on that device; one device suffices.
HARD_STOP_REASONS: Final = frozenset(
    {
        *("golden_mismatch", "golden_crash", "golden_error"),
        *("activation", "activation_failed", "crash_loop", "no_answer", "nan_output", "constant_class"),
        "shadow_memory",
    }
)
_TABLE: Final = schema.windows


class Traffic(Struct, frozen=True, kw_only=True):
    """What some windows add up to.

    Attributes:
        calls: answered + failed.
        latency_p99_ms: None where nothing was measured.
        hard_stops: reasons named by the device, without repeats.
    """

    windows: int = 0
    calls: int = 0
    failures: int = 0
    crashes: int = 0
    latency_p99_ms: float | None = None
    hard_stops: tuple[str, ...] = ()


def gather(
    context: ServerContext, connection: Connection, rollout: Rollout, reached: Sequence[Member]
) -> list[DeviceEvidence]:
    """Evidence of the devices that a rollout has reached so far, by device id; of each model of a joint release."""
    ordered = sorted(reached, key=lambda known: known.device_id)
    return [_of_part(context, connection, rollout, known, part) for known in ordered for part in known.parts]


def _of_part(
    context: ServerContext, connection: Connection, rollout: Rollout, known: Member, part: MemberPart
) -> DeviceEvidence:
    report = reports.newest(connection, known.device_id, rollout.id, known.attempt, part.model)
    loaded = "" if report is None else report.loaded_digest
    common: dict[str, Any] = {
        "device_id": known.device_id,
        "stratum": known.stratum,
        "state": part.state,
        "reason": part.reason,
        "without_field_traffic": part.without_field_traffic,
        "loaded_digest_matches": loaded == part.digest if loaded else None,
        "model": part.model if rollout.is_joint else "",
    }
    if known.offered_at_s is None:
        return DeviceEvidence(**common)
    since = traffic_since(connection, part, known.device_id, known.offered_at_s)
    before = _traffic_before(connection, known, part)
    stops = since.hard_stops + ((part.reason,) if part.reason in HARD_STOP_REASONS else ())
    key = (known.device_id, part.model, part.version)
    drift = drift_evidence(context, connection, key, known.offered_at_s, len(rollout.parts))
    return DeviceEvidence(
        **common,
        windows=since.windows,
        calls=since.calls,
        failures=since.failures,
        crashes=since.crashes,
        latency_p99_ms=since.latency_p99_ms,
        latency_p99_before_ms=None if before is None else before.latency_p99_ms,
        calls_before=None if before is None else before.calls,
        failures_before=None if before is None else before.failures,
        prediction_drift=drift.prediction,
        data_drift=drift.data,
        hard_stops=tuple(dict.fromkeys(stops)),
    )


def traffic_since(connection: Connection, part: Part, device_id: str, since_s: float) -> Traffic:
    """What a device did with a model of the release since a time; counts over all windows, latency over the newest."""
    where = (
        _TABLE.c.device_id == device_id,
        _TABLE.c.model == part.model,
        _TABLE.c.version == part.version,
        _TABLE.c.digest == part.digest,
        _TABLE.c.received_at_s >= since_s,
    )
    sums = [func.coalesce(func.sum(_TABLE.c[name]), 0) for name in ("inferences", "failures", "crashes")]
    count, inferences, failures, crashes = connection.execute(select(func.count(), *sums).where(*where)).one()
    newest = select(_TABLE.c.payload).where(*where).order_by(_TABLE.c.received_at_s.desc(), _TABLE.c.seq.desc())
    recent = [windows.decode(payload) for payload in connection.execute(newest.limit(RECENT_WINDOWS)).scalars()]
    return Traffic(
        windows=int(count),
        calls=int(inferences) + int(failures),
        failures=int(failures),
        crashes=int(crashes),
        latency_p99_ms=latency_p99_ms(recent),
        hard_stops=tuple(dict.fromkeys(stop for window in recent for stop in window.hard_stops)),
    )


def latency_p99_ms(some: Iterable[Window]) -> float | None:
    """p99 over the calls of some windows, from their merged histograms; None where there is no call."""
    merged = ExponentialSketch()
    for window in some:
        added = merge(merged, window.latency_us)
        assert isinstance(added, ExponentialSketch)
        merged = added
    value_us = quantile(merged, 0.99)
    return None if value_us is None else value_us / 1000.0


def _traffic_before(connection: Connection, known: Member, part: MemberPart) -> Traffic | None:
    """The device's newest windows of what it ran before; None where it ran nothing or said nothing."""
    if not part.previous_digest:
        return None
    query = (
        select(_TABLE.c.payload)
        .where(
            _TABLE.c.device_id == known.device_id,
            _TABLE.c.model == part.model,
            _TABLE.c.version == part.previous_version,
            _TABLE.c.digest == part.previous_digest,
            _TABLE.c.received_at_s < (known.offered_at_s or 0.0),
        )
        .order_by(_TABLE.c.received_at_s.desc(), _TABLE.c.seq.desc())
        .limit(EARLIER_WINDOWS)
    )
    earlier = [windows.decode(payload) for payload in connection.execute(query).scalars()]
    if not earlier:
        return None
    failures = sum(window.failures for window in earlier)
    return Traffic(
        windows=len(earlier),
        calls=sum(window.inferences for window in earlier) + failures,
        failures=failures,
        latency_p99_ms=latency_p99_ms(earlier),
    )
