"""The incidents table: what is wrong with a committed version on a device, from opening to closing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Row, insert, select, update

from edgeship.server.store import schema

_table = schema.incidents
OPEN = "open"
CLOSED = "closed"


class NewIncident(Struct, frozen=True, kw_only=True):
    """What is known when an incident opens.

    Attributes:
        kind: ``data_drift``, ``prediction_drift``, ``concept_drift``, ``performance``, ``infrastructure`` or
            ``cloned_device`` (with no model and no version).
        severity: ``warn`` or ``alert``.
        sentence: for people: what, where, the number and the limit.
        evidence: what the decision was made from.
    """

    kind: str
    device_id: str
    model: str
    version: str
    severity: str
    sentence: str
    evidence: dict[str, Any]


def open_incident(connection: Connection, incident: NewIncident, now_s: float) -> int:
    """Insert an incident and the decision behind it.

    Returns:
        Its number.
    """
    values = {name: getattr(incident, name) for name in NewIncident.__struct_fields__}
    key = connection.execute(
        insert(_table).values(state=OPEN, opened_at_s=now_s, closed_at_s=None, **values)
    ).inserted_primary_key
    assert key is not None
    number = int(key[0])
    _decide(connection, number, now_s, ("incident_opened", incident.sentence), incident.evidence)
    return number


def close_incident(
    connection: Connection, number: int, sentence: str, evidence: Mapping[str, Any], now_s: float
) -> None:
    """Close an incident; its own sentence stays, why it closed is a decision of its own."""
    connection.execute(update(_table).where(_table.c.id == number).values(state=CLOSED, closed_at_s=now_s))
    _decide(connection, number, now_s, ("incident_closed", sentence), evidence)


def find(connection: Connection, number: int) -> Row[Any] | None:
    """One incident, or None."""
    return connection.execute(select(_table).where(_table.c.id == number)).one_or_none()


def find_open(connection: Connection, kind: str, key: tuple[str, str, str]) -> Row[Any] | None:
    """The open incident of a kind on a device, model and version, or None."""
    device_id, model, version = key
    query = select(_table).where(
        _table.c.state == OPEN,
        _table.c.kind == kind,
        _table.c.device_id == device_id,
        _table.c.model == model,
        _table.c.version == version,
    )
    return connection.execute(query.order_by(_table.c.id).limit(1)).one_or_none()


def list_incidents(connection: Connection, state: str = "", device_id: str = "", limit: int = 500) -> list[Row[Any]]:
    """Incidents, newest first; empty arguments do not filter."""
    query = select(_table).order_by(_table.c.id.desc()).limit(limit)
    if state:
        query = query.where(_table.c.state == state)
    if device_id:
        query = query.where(_table.c.device_id == device_id)
    return list(connection.execute(query))


def decisions(connection: Connection, number: int) -> list[Row[Any]]:
    """Why an incident opened and closed, oldest first."""
    table = schema.decisions
    query = select(table).where(table.c.subject == f"incident/{number}").order_by(table.c.id)
    return list(connection.execute(query))


def _decide(
    connection: Connection, number: int, now_s: float, what: tuple[str, str], evidence: Mapping[str, Any]
) -> None:
    kind, sentence = what
    connection.execute(
        insert(schema.decisions).values(
            subject=f"incident/{number}", at_s=now_s, kind=kind, sentence=sentence, evidence=dict(evidence)
        )
    )
