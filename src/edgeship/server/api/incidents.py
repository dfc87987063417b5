"""Incidents over the API: what is wrong with a committed version on a device."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import get
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import Struct
from sqlalchemy import Row

from edgeship.server.context import ServerContext
from edgeship.server.store import incidents


class IncidentSummary(Struct, frozen=True, kw_only=True):
    """An incident in the list.

    Attributes:
        kind: ``data_drift``, ``prediction_drift``, ``concept_drift``, ``performance``,
            ``infrastructure`` or ``security``.
        state: ``open`` or ``closed``.
    """

    id: int
    kind: str
    device_id: str
    model: str
    version: str
    state: str
    severity: str
    sentence: str
    opened_at_s: float
    closed_at_s: float | None


class IncidentList(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/incidents``."""

    schema_version: int = 1
    incidents: list[IncidentSummary]


class IncidentDecision(Struct, frozen=True, kw_only=True):
    """Why an incident opened or closed, with the numbers it was decided from."""

    at_s: float
    kind: str
    sentence: str
    evidence: dict[str, Any]


class Incident(IncidentSummary, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/incidents/{id}``."""

    schema_version: int = 1
    evidence: dict[str, Any]
    decisions: list[IncidentDecision]


@get("/api/v1/incidents", sync_to_thread=True)
def list_incidents(
    context: NamedDependency[ServerContext],
    incident_state: Annotated[str | None, QueryParameter(name="state")] = None,
    device: FromQuery[str | None] = None,
) -> IncidentList:
    """Incidents, newest first; ``state=open`` or ``closed`` and ``device=ID`` filter."""
    with context.read() as connection:
        rows = incidents.list_incidents(connection, incident_state or "", device or "")
    return IncidentList(incidents=[IncidentSummary(**_summary(row)) for row in rows])


@get("/api/v1/incidents/{number:int}", sync_to_thread=True)
def show_incident(context: NamedDependency[ServerContext], number: FromPath[int]) -> Incident:
    """One incident with its evidence."""
    with context.read() as connection:
        row = incidents.find(connection, number)
        if row is None:
            raise NotFoundException(f"no incident {number}; `edgeship incidents list` names all")
        decisions = [
            IncidentDecision(at_s=line.at_s, kind=line.kind, sentence=line.sentence, evidence=line.evidence)
            for line in incidents.decisions(connection, number)
        ]
    return Incident(**_summary(row), evidence=row.evidence, decisions=decisions)


def _summary(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in IncidentSummary.__struct_fields__}


router = [list_incidents, show_incident]
