"""When something is wrong enough to tell somebody: the rules that open and close incidents.

Only committed versions have incidents. While a version is in a rollout on a device, the same figures are evidence of
the rollout's verdict instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from edgeship.drift import AlarmState, DriftState, SignalDistance, next_alarm
from edgeship.rollout import RolloutState
from edgeship.server.context import ServerContext
from edgeship.server.drift_figures import Figures
from edgeship.server.store import devices, drift, incidents, schema
from edgeship.server.store.drift import ModelKey
from edgeship.server.store.incidents import NewIncident
from edgeship.statistics import newcombe_independent, wilson
from edgeship_agent.contract.profile import Family

#: Share of failed calls above which a version performs badly, proven by the lower end of its interval.
MAX_FAILED_RATIO: Final = 0.05
#: Share of calls whose input breaks the documented schema, above which the source upstream has changed.
MAX_FAULT_RATIO: Final = 0.05
#: Classes that a request to retrain names, the worst first.
_MOST_CLASSES: Final = 10
#: Worker deaths within the newest windows.
MAX_CRASHES: Final = 3

#: Accuracy below that of the build by more than this, proven by the interval of the difference.
MAX_ACCURACY_DROP: Final = 0.05

_KINDS: Final = {Family.INPUT: "data_drift", Family.OUTPUT: "prediction_drift"}
_NEXT: Final = {
    "data_drift": "look at the sensor and at what feeds it; if the change is here to stay, retrain with recent data",
    "prediction_drift": "compare with labelled samples of this device; if the answers are wrong, roll back or retrain",
    "concept_drift": "retrain with recent data: the evidence names device, windows and classes",
    "performance": "read the agent's log of the device; roll back if it began with this version",
    "infrastructure": "read the worker's last words in the agent's log; check memory and temperature",
}


class Finding(Struct, frozen=True, kw_only=True):
    """What one rule sees in one look.

    Attributes:
        hot: above its limit; None where there is not enough data to say.
        sentence: the number and the limit, for people.
        evidence: the same for machines.
    """

    kind: str
    hot: bool | None
    sentence: str = ""
    evidence: dict[str, Any] = {}


def is_committed(connection: Connection, key: ModelKey) -> bool:
    """Whether a device runs a version for good, and no live rollout is still about to judge it there."""
    device_id, model, version = key
    row = devices.find(connection, device_id)
    if row is None or not _runs(row.running, model, version, state="committed"):
        return False
    rollouts, members = schema.rollouts, schema.rollout_devices
    query = (
        select(rollouts.c.state, rollouts.c.parts)
        .join(members, members.c.rollout_id == rollouts.c.id)
        .where(members.c.device_id == device_id)
    )
    return not any(
        RolloutState(state).is_active and any((part["model"], part["version"]) == (model, version) for part in parts)
        for state, parts in connection.execute(query)
    )


def apply(
    context: ServerContext, connection: Connection, key: ModelKey, figures: Figures, alarms: Mapping[str, AlarmState]
) -> dict[str, AlarmState]:
    """Move every alarm by one look; open and close incidents where one turns.

    Returns:
        The alarms after it, by kind of incident.
    """
    settings = context.config.drift
    after = dict(alarms)
    for finding in _findings(figures):
        if finding.hot is None:
            continue
        # crashes and failures are counts of things that happened: they need no second look
        at_once = finding.kind in ("performance", "infrastructure")
        k, n = (1, 1) if at_once else (settings.alarm_hot, settings.alarm_of)
        after[finding.kind], turn = next_alarm(after.get(finding.kind, AlarmState()), finding.hot, k, n)
        if turn == "open":
            _open(context, connection, key, finding, figures)
        elif turn == "close":
            _close(context, connection, key, finding)
    return after


def close_replaced(context: ServerContext) -> None:
    """Close incidents of versions that their device does not run any more."""
    with context.read() as connection:
        gone = [row for row in incidents.list_incidents(connection, incidents.OPEN) if _is_replaced(connection, row)]
    if not gone:
        return
    with context.write() as connection:
        for row in gone:
            sentence = f"{row.device_id} does not run {row.model} {row.version} any more"
            incidents.close_incident(connection, row.id, sentence, {}, context.clock())
            drift.forget_alarms(connection, (row.device_id, row.model, row.version))
            context.record(connection, "incident_closed", f"device/{row.device_id}", sentence, {"incident": row.id})


def _is_replaced(connection: Connection, incident: Any) -> bool:
    """Another version of the model is committed; one in probation may still go back to this one."""
    row = devices.find(connection, incident.device_id)
    if row is None or _runs(row.running, incident.model, incident.version):
        return False
    return any(arm["model"] == incident.model and arm["state"] == "committed" for arm in row.running)


def _runs(running: list[dict[str, str]], model: str, version: str, state: str = "") -> bool:
    return any(
        arm["model"] == model and arm["version"] == version and (not state or arm["state"] == state) for arm in running
    )


def _findings(figures: Figures) -> list[Finding]:
    found = [_drift(figures, family) for family in _KINDS]
    faults = _schema_faults(figures)  # data drift as well, in plainer words, and it needs no reference
    if faults.hot or found[0].hot is None:
        found[0] = faults
    return [*found, _concept(figures), _failures(figures), _crashes(figures)]


def _drift(figures: Figures, family: Family) -> Finding:
    kind = _KINDS[family]
    if not figures.judged(family):
        return Finding(kind=kind, hot=None)
    named = figures.worst(family)
    assert named is not None
    return Finding(
        kind=kind,
        hot=named.state is DriftState.ALERT,
        sentence=drift_sentence(named),
        evidence={"distance": msgspec.to_builtins(named), "distances": msgspec.to_builtins(figures.judged(family))},
    )


def drift_sentence(distance: SignalDistance) -> str:
    """A distance for people: signal, number, interval, limit, samples."""
    against = "its own first windows" if distance.reference == "device" else "the model's baseline"
    return (
        f"{distance.signal} is {distance.value:.2f} away from {against} "
        f"({distance.statistic.replace('_', ' ')}, 99 % {distance.low:.2f}…{distance.high:.2f}, "
        f"limit {distance.alert:.2f}, n={distance.n})"
    )


def _schema_faults(figures: Figures) -> Finding:
    faults: dict[str, int] = {}
    for window in figures.recent:
        for check, count in window.schema_faults.items():
            faults[check] = faults.get(check, 0) + count
    check, count = max(faults.items(), key=lambda item: item[1], default=("", 0))
    # a call may break a check in several features, so the share is bounded by one
    low = wilson(min(count, figures.samples), figures.samples).low if figures.samples else 0.0
    sentence = f"inputs break the schema check '{check}' {count} times in {figures.samples} calls (limit 5 %)"
    evidence = {"schema_faults": faults, "samples": figures.samples, "low": low, "limit": MAX_FAULT_RATIO}
    return Finding(kind="data_drift", hot=low > MAX_FAULT_RATIO, sentence=sentence, evidence=evidence)


def _concept(figures: Figures) -> Finding:
    """Accuracy by labels against the accuracy that the build proved: what no look at inputs or outputs can tell."""
    seen = figures.accuracy
    if seen is None:
        return Finding(kind="concept_drift", hot=None)
    change = newcombe_independent(seen.baseline * seen.baseline_n, seen.baseline_n, seen.correct, seen.labelled)
    drop, low, high = -change.change, -change.high, -change.low
    sentence = (
        f"accuracy by labels {seen.correct / seen.labelled:.1%} (n={seen.labelled}) against {seen.baseline:.1%} when "
        f"it was built: a drop of {drop:+.1%} (95 % {low:+.1%}…{high:+.1%}, limit {MAX_ACCURACY_DROP:.0%})"
    )
    evidence = {
        "labelled": seen.labelled,
        "correct": seen.correct,
        "baseline": seen.baseline,
        "baseline_n": seen.baseline_n,
        "drop": drop,
        "low": low,
        "high": high,
        "limit": MAX_ACCURACY_DROP,
        "label_windows": [list(window) for window in seen.windows],
        "retrain": {
            "windows": [list(window) for window in seen.windows],
            "classes": [
                {"class": label, "recall": right / n, "n": n} for label, right, n in seen.worst_recalls(_MOST_CLASSES)
            ],
        },
    }
    return Finding(kind="concept_drift", hot=low > MAX_ACCURACY_DROP, sentence=sentence, evidence=evidence)


def _failures(figures: Figures) -> Finding:
    failures = sum(window.failures for window in figures.recent)
    calls = figures.samples + failures
    if calls == 0:
        return Finding(kind="performance", hot=None)
    low = wilson(failures, calls).low
    sentence = f"{failures} of {calls} calls failed ({failures / calls:.1%}, at least {low:.1%}, limit 5 %)"
    evidence = {"failures": failures, "calls": calls, "low": low, "limit": MAX_FAILED_RATIO}
    return Finding(kind="performance", hot=low > MAX_FAILED_RATIO, sentence=sentence, evidence=evidence)


def _crashes(figures: Figures) -> Finding:
    crashes = sum(window.crashes for window in figures.recent)
    sentence = f"the worker died {crashes} times in the newest {len(figures.recent)} windows (limit {MAX_CRASHES - 1})"
    evidence = {"crashes": crashes, "windows": len(figures.recent), "limit": MAX_CRASHES - 1}
    return Finding(kind="infrastructure", hot=crashes >= MAX_CRASHES, sentence=sentence, evidence=evidence)


def _open(context: ServerContext, connection: Connection, key: ModelKey, finding: Finding, figures: Figures) -> None:
    if incidents.find_open(connection, finding.kind, key) is not None:
        return
    device_id, model, version = key
    evidence = {
        **finding.evidence,
        "windows": [[window.boot_id, window.seq] for window in figures.recent],
        "samples": figures.samples,
        "profile_hash": figures.profile_hash,
        "next_step": _NEXT[finding.kind],
    }
    incident = NewIncident(
        kind=finding.kind,
        device_id=device_id,
        model=model,
        version=version,
        severity="alert",
        sentence=f"{device_id}: {finding.sentence}",
        evidence=evidence,
    )
    number = incidents.open_incident(connection, incident, context.clock())
    context.record(connection, "incident_opened", f"device/{device_id}", incident.sentence, {"incident": number})


def _close(context: ServerContext, connection: Connection, key: ModelKey, finding: Finding) -> None:
    row = incidents.find_open(connection, finding.kind, key)
    if row is None:
        return
    sentence = f"{key[0]}: {finding.kind.replace('_', ' ')} is over: {finding.sentence}"
    incidents.close_incident(connection, row.id, sentence, finding.evidence, context.clock())
    context.record(connection, "incident_closed", f"device/{key[0]}", sentence, {"incident": row.id})
