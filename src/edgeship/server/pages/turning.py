"""When did it turn? The figure that a rollout was judged by, over time, on the device that showed it most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from edgeship.charts import BandPoint, Markup, difference_band, format_value
from edgeship.drift import SignalDistance
from edgeship.rollout import GateResult
from edgeship.server.pages.drift_history import (
    COLUMNS,
    History,
    Span,
    columns_of,
    read_history,
    span_of,
    worst_by_column,
)
from edgeship.server.store.rollouts import Member, Rollout
from edgeship.statistics import newcombe_independent

_FAILURE_GATES: Final = ("failed_increase", "failed_calls")
_DRIFT_GATES: Final = {"prediction_drift": "output", "data_drift": "input"}
#: What is looked at first where several gates name a device.
_ORDER: Final = ("prediction_drift", "data_drift", *_FAILURE_GATES)


def difference_chart(connection: Connection, blobs: Path, rollout: Rollout, members: Sequence[Member]) -> Markup | None:
    """The gate that decided (or, while nothing is decided, the first that has data) over time; None for no data."""
    for gate in _candidates(rollout):
        device_id = gate.devices[0]
        history = read_history(connection, blobs, (device_id, rollout.model, rollout.version))
        span = span_of([history])
        if span is None:
            continue
        if gate.id in _DRIFT_GATES:
            return _drift_chart(gate, history, span)
        previous = next((member.previous_version for member in members if member.device_id == device_id), "")
        before = read_history(connection, blobs, (device_id, rollout.model, previous))
        return _failure_chart(history, before, span, rollout.policy.max_failed_increase)
    return None


def _candidates(rollout: Rollout) -> list[GateResult]:
    gates = rollout.verdict.gates if rollout.verdict else ()
    usable = [gate for gate in gates if gate.id in _ORDER and gate.devices]
    return sorted(usable, key=lambda gate: (gate.holds is not False, _ORDER.index(gate.id)))


def _drift_chart(gate: GateResult, history: History, span: Span) -> Markup:
    found = worst_by_column(columns_of(history, span), _DRIFT_GATES[gate.id])
    points = [_drift_point(label, distance) for label, distance in zip(span.labels(), found, strict=True)]
    title = f"When did it turn? {gate.id.replace('_', ' ').capitalize()} on {history.device_id}"
    known = [point for point in points if point.value is not None]
    if not known:
        return difference_band(title, "no data", points, limit=gate.limit, unit="")
    over = next((p for p in known if gate.limit is not None and p.low is not None and p.low > gate.limit), None)
    limit = format_value(gate.limit)
    finding = f"Over the limit {limit} from {over.label} on." if over else f"Never proven over the limit {limit}."
    return difference_band(title, finding, points, limit=gate.limit, unit="")


def _drift_point(label: str, distance: SignalDistance | None) -> BandPoint:
    if distance is None:
        return BandPoint(label=label, value=None)
    return BandPoint(label=label, value=distance.value, low=distance.low, high=distance.high)


def _failure_chart(history: History, before: History, span: Span, limit: float) -> Markup:
    calls_before = sum(window.inferences + window.failures for window in before.windows)
    failures_before = sum(window.failures for window in before.windows)
    calls, failures = [0] * COLUMNS, [0] * COLUMNS
    for window in history.windows:
        column = span.column(window.ended_at_s)
        calls[column] += window.inferences + window.failures
        failures[column] += window.failures
    points = []
    for label, answered, failed in zip(span.labels(), calls, failures, strict=True):
        if not answered or not calls_before:
            points.append(BandPoint(label=label, value=None))
            continue
        change = newcombe_independent(failures_before, calls_before, failed, answered)
        points.append(BandPoint(label=label, value=change.change, low=change.low, high=change.high))
    title = f"When did it turn? Failed calls on {history.device_id} against before"
    finding = f"Before the update {failures_before:,} of {calls_before:,} calls failed." if calls_before else "no data"
    return difference_band(title, finding, points, limit=limit)
