"""When did it turn? The figure that a rollout was judged by, over time, on the device that showed it most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import structs
from sqlalchemy import Connection

from edgeship.charts import BandPoint, Markup, difference_band
from edgeship.drift import SignalDistance
from edgeship.rollout import GateResult
from edgeship.server.pages.drift_history import (
    MOST_COLUMNS,
    History,
    Span,
    columns_of,
    read_history,
    span_of,
    worst_by_column,
)
from edgeship.server.pages.words import clock_text
from edgeship.server.store.rollouts import Member, Rollout
from edgeship.statistics import newcombe_independent

#: A window of the version before may end a little after the new one's first began.
_OVERLAP_S: Final = 1.0
_FAILURE_GATES: Final = ("failed_increase", "failed_calls")
_DRIFT_GATES: Final = {"prediction_drift": "output", "data_drift": "input"}
#: What is looked at first where several gates name a device.
_ORDER: Final = ("prediction_drift", "data_drift", *_FAILURE_GATES)


def difference_chart(connection: Connection, blobs: Path, rollout: Rollout, members: Sequence[Member]) -> Markup | None:
    """The gate that decided (or, while nothing is decided, the first that has data) over time; None for no data."""
    for gate in _candidates(rollout):
        device_id = gate.devices[0]
        model, version, previous = _versions(rollout, gate, members)
        history = _during(rollout, read_history(connection, blobs, (device_id, model, version), limit=200))
        if not history.windows:
            continue
        before = _until(read_history(connection, blobs, (device_id, model, previous), limit=200), history)
        if gate.id in _DRIFT_GATES:
            policy = rollout.policy
            limit = policy.max_drift if gate.id == "prediction_drift" else policy.max_data_drift
            return _drift_chart(gate, history, before, limit)
        return _failure_chart(history, before, rollout.policy.max_failed_increase)
    return None


def _versions(rollout: Rollout, gate: GateResult, members: Sequence[Member]) -> tuple[str, str, str]:
    """Which model a gate is about, and its version in the rollout and before on the gate's first device."""
    member = next((member for member in members if member.device_id == gate.devices[0]), None)
    if not gate.model:
        return rollout.model, rollout.version, "" if member is None else member.previous_version
    version = next((part.version for part in rollout.parts if part.model == gate.model), "")
    part = None if member is None else member.part(gate.model)
    return gate.model, version, "" if part is None else part.previous_version


def _during(rollout: Rollout, history: History) -> History:
    """Windows that began before the rollout ended: what came later is not what it was judged by."""
    end_s = rollout.ended_at_s
    if end_s is None:
        return history
    return structs.replace(history, windows=[window for window in history.windows if window.started_at_s <= end_s])


def _until(before: History, history: History) -> History:
    """The last windows of the version before that ended when the new one's first began."""
    start_s = min(window.started_at_s for window in history.windows)
    kept = [window for window in before.windows if window.ended_at_s <= start_s + _OVERLAP_S]
    return structs.replace(before, windows=kept[-len(history.windows) :])


def _candidates(rollout: Rollout) -> list[GateResult]:
    gates = rollout.verdict.gates if rollout.verdict else ()
    usable = [gate for gate in gates if gate.id in _ORDER and gate.devices]
    return sorted(usable, key=lambda gate: (gate.holds is not False, _ORDER.index(gate.id)))


def _span(history: History, before: History) -> Span:
    span = span_of([history, before])
    assert span is not None, "a history without windows has no chart"
    return structs.replace(span, count=min(MOST_COLUMNS, len(history.windows) + len(before.windows)))


def _drift_chart(gate: GateResult, history: History, before: History, limit: float) -> Markup:
    span, family = _span(history, before), _DRIFT_GATES[gate.id]
    after = worst_by_column(columns_of(history, span), family)
    earlier = worst_by_column(columns_of(before, span), family)
    found = [new or old for new, old in zip(after, earlier, strict=True)]
    points = [_drift_point(label, distance) for label, distance in zip(span.labels(), found, strict=True)]
    title = f"{gate.id.replace('_', ' ').capitalize()} on {history.device_id}"
    known = [point for point in points if point.value is not None]
    if not known:
        return difference_band(title, "no data", points, limit=limit, unit="")
    over = next((p for p in known if p.low is not None and p.low > limit), None)
    switched = clock_text(min(window.started_at_s for window in history.windows))
    finding = f"Over the limit {limit:g} from {over.label} on" if over else f"Never proven over the limit {limit:g}"
    finding += f"; {history.version} answers since {switched}."
    return difference_band(title, finding, points, limit=limit, unit="")


def _drift_point(label: str, distance: SignalDistance | None) -> BandPoint:
    if distance is None:
        return BandPoint(label=label, value=None)
    return BandPoint(label=label, value=distance.value, low=distance.low, high=distance.high)


def _failure_chart(history: History, before: History, limit: float) -> Markup:
    span = _span(history, structs.replace(before, windows=[]))
    calls_before = sum(window.inferences + window.failures for window in before.windows)
    failures_before = sum(window.failures for window in before.windows)
    calls, failures = [0] * span.count, [0] * span.count
    for window in history.windows:
        column = span.column((window.started_at_s + window.ended_at_s) / 2.0)
        calls[column] += window.inferences + window.failures
        failures[column] += window.failures
    points = []
    for label, answered, failed in zip(span.labels(), calls, failures, strict=True):
        if not answered or not calls_before:
            points.append(BandPoint(label=label, value=None))
            continue
        change = newcombe_independent(failures_before, calls_before, failed, answered)
        points.append(BandPoint(label=label, value=change.change, low=change.low, high=change.high))
    title = f"Failed calls on {history.device_id} against before"
    finding = f"Before the update {failures_before:,} of {calls_before:,} calls failed." if calls_before else "no data"
    return difference_band(title, finding, points, limit=limit)
