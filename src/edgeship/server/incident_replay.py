"""Why an incident was opened, and the same finding again from the windows that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, and_, or_, select

from edgeship.drift import SignalDistance, compare_windows
from edgeship.server.context import ServerContext
from edgeship.server.explanation import GONE, Explanation, Rule, replayed
from edgeship.server.profiles import Profiles
from edgeship.server.store import drift, incidents, rollouts, schema, windows
from edgeship_agent.contract.errors import ConfigError, ContractError
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.sketch import Sketch

_DEVICE: Final = "device"


def explain_incident(context: ServerContext, connection: Connection, number: str) -> Explanation:
    """Explain an incident by its number.

    Raises:
        ConfigError: there is none of that number.
    """
    row = incidents.find(connection, int(number)) if number.isdecimal() else None
    if row is None:
        raise ConfigError("no such incident", key=f"incident/{number}", next_step="edgeship incidents list")
    evidence: dict[str, Any] = row.evidence
    seen = _windows_of(connection, row.device_id, _named(evidence))
    advice = str(evidence.get("next_step", "look at the device"))
    decisions = rollouts.decisions(connection, f"incident/{row.id}")
    return Explanation(
        id=f"incident/{row.id}",
        sentence=row.sentence,
        state=row.state,
        decided_at_s=row.opened_at_s,
        window=_window(seen, evidence),
        rules=[_rule(row)],
        advice=advice[:1].upper() + advice[1:] + ".",
        replay=_replay(context, connection, row, seen),
        history=[f"{each.kind}: {each.sentence}" for each in decisions],
        next_steps=[f"edgeship drift show --device {row.device_id}", f"edgeship devices show {row.device_id}"],
    )


def _named(evidence: Mapping[str, Any]) -> list[list[Any]]:
    """The windows that the decision was made from: labels come in other windows than the calls."""
    named: list[list[Any]] = evidence.get("label_windows", evidence.get("windows", []))
    return named


def _windows_of(connection: Connection, device_id: str, keys: Sequence[Sequence[Any]]) -> list[Window]:
    table = schema.windows
    wanted = [and_(table.c.boot_id == boot_id, table.c.seq == seq) for boot_id, seq in keys]
    if not wanted:
        return []
    query = select(table.c.payload).where(table.c.device_id == device_id, or_(*wanted))
    seen = [windows.decode(payload) for payload in connection.execute(query).scalars()]
    order = {(boot_id, seq): index for index, (boot_id, seq) in enumerate(keys)}
    return sorted(seen, key=lambda window: order[window.boot_id, window.seq])


def _window(seen: Sequence[Window], evidence: Mapping[str, Any]) -> str:
    if "within_s" in evidence:
        return f"connections of {evidence['within_s'] / 60:.0f} minutes"
    named = len(_named(evidence))
    calls = sum(window.inferences for window in seen)
    if "labelled" in evidence:
        gone = "" if len(seen) == named else f"; {named - len(seen)} of them are gone"
        return f"{named} windows with {evidence['labelled']} labels{gone}"
    return f"{named} windows with {evidence.get('samples', calls)} calls" + (
        "" if len(seen) == named else f"; {named - len(seen)} of them are gone"
    )


def _rule(row: Row[Any]) -> Rule:
    rule, figures, n = _figures(row.evidence)
    return Rule(
        id=row.kind,
        rule=rule,
        value=figures.get("value"),
        limit=figures.get("limit"),
        low=figures.get("low"),
        high=figures.get("high"),
        n=n,
        holds=False,
        devices=(row.device_id,),
        sentence=row.sentence,
    )


def _figures(evidence: Mapping[str, Any]) -> tuple[str, dict[str, float | None], int]:
    """The rule in words, its numbers, and what they were made from, by the kind of finding."""
    if "distance" in evidence:
        distance = msgspec.convert(evidence["distance"], SignalDistance)
        words = f"lower end of the {distance.statistic.replace('_', ' ')} of {distance.signal} ≤ {distance.alert:g}"
        figures = {"value": distance.value, "limit": distance.alert, "low": distance.low, "high": distance.high}
        return words, dict(figures), distance.n
    limit, low = evidence.get("limit", 0), evidence.get("low")
    if "repeats" in evidence:
        words = f"session numbers come again at most {limit} times in {evidence['within_s'] / 60:.0f} minutes"
        return words, {"value": evidence["repeats"], "limit": limit}, int(evidence["repeats"])
    if "crashes" in evidence:
        count = len(evidence.get("windows", []))
        return f"the worker dies at most {limit} times", {"value": evidence["crashes"], "limit": limit}, count
    if "labelled" in evidence:
        words = f"accuracy falls by at most {limit:.0%} against the build's, by labels"
        drop = {"value": evidence["drop"], "limit": limit, "low": low, "high": evidence["high"]}
        return words, drop, int(evidence["labelled"])
    if "failures" in evidence:
        value = evidence["failures"] / max(1, evidence["calls"])
        return f"failed calls ≤ {limit:.0%}", {"value": value, "limit": limit, "low": low}, evidence["calls"]
    faults: dict[str, int] = evidence.get("schema_faults", {})
    n = int(evidence.get("samples", 0))
    value = max(faults.values(), default=0) / max(1, n)
    return f"calls that break the input schema ≤ {limit:.0%}", {"value": value, "limit": limit, "low": low}, n


def _replay(context: ServerContext, connection: Connection, row: Row[Any], seen: Sequence[Window]) -> str:
    evidence: dict[str, Any] = row.evidence
    if len(seen) != len(_named(evidence)):
        return GONE
    if "distance" in evidence:
        return _replay_distance(context, connection, row, seen)
    if "repeats" in evidence:
        return replayed(evidence["repeats"] > evidence["limit"])
    return replayed(_is_as_counted(row, evidence, seen))


def _is_as_counted(row: Row[Any], evidence: Mapping[str, Any], seen: Sequence[Window]) -> bool:
    """Whether the windows still add up to the counts that the decision was made from."""
    if "labelled" in evidence:
        tallies = [tally for window in seen for tally in window.labels if tally.version == row.version]
        counts = (sum(tally.labelled for tally in tallies), sum(tally.correct for tally in tallies))
        return counts == (evidence["labelled"], evidence["correct"])
    if "crashes" in evidence:
        return bool(sum(window.crashes for window in seen) == evidence["crashes"])
    failures, calls = (sum(getattr(window, name) for window in seen) for name in ("failures", "inferences"))
    if "failures" in evidence:
        return (failures, calls + failures) == (evidence["failures"], evidence["calls"])
    faults: dict[str, int] = {}
    for window in seen:
        for check, count in window.schema_faults.items():
            faults[check] = faults.get(check, 0) + count
    return bool(faults == evidence.get("schema_faults"))


def _replay_distance(context: ServerContext, connection: Connection, row: Row[Any], seen: Sequence[Window]) -> str:
    stored = msgspec.convert(row.evidence["distance"], SignalDistance)
    profile = Profiles(context.blobs).find(row.evidence.get("profile_hash", ""))
    key = (row.device_id, row.model, row.version)
    reference: Mapping[str, Sketch] | None = None
    if stored.reference == _DEVICE:
        own = drift.find_reference(connection, key, row.evidence.get("profile_hash", ""))
        reference = None if own is None else own.signals
    if profile is None or (stored.reference == _DEVICE and reference is None):
        return GONE
    try:
        again = compare_windows(profile, seen, reference, reference=stored.reference)
    except ContractError:
        return GONE
    return replayed(stored in again)
