"""Incidents and the audit trail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from sqlalchemy import Connection

from edgeship.charts import Markup, element, fragment
from edgeship.server.context import ServerContext
from edgeship.server.pages import queries
from edgeship.server.pages.devices import incident_table
from edgeship.server.pages.fleet import event_list
from edgeship.server.pages.layout import Page, PageNotFound, respond
from edgeship.server.pages.queries import Incident
from edgeship.server.pages.words import (
    clock,
    command,
    device_link,
    facts,
    path,
    plural,
    release_link,
    section,
    state_word,
)
from edgeship.server.store import events, rollouts
from edgeship.server.store.rollouts import Decision

_EVENTS: Final = 200


@get("/incidents", sync_to_thread=True, include_in_schema=False)
def incidents_page(request: Request[Any, Any, Any], context: NamedDependency[ServerContext]) -> Response[str]:
    """Every incident, open ones first."""

    def build(connection: Connection, now_s: float) -> Page:
        body = render_list(queries.list_incidents(connection), now_s)
        return Page(title="Incidents", section="Incidents", body=body)

    return respond(request, context, build)


@get("/incidents/{incident_id:int}", sync_to_thread=True, include_in_schema=False)
def incident_page(
    request: Request[Any, Any, Any], incident_id: FromPath[int], context: NamedDependency[ServerContext]
) -> Response[str]:
    """One incident with its evidence."""

    def build(connection: Connection, now_s: float) -> Page:
        incident = queries.find_incident(connection, incident_id)
        if incident is None:
            raise PageNotFound(f"There is no incident {incident_id}; the list of incidents names all.")
        decisions = rollouts.decisions(connection, f"incident/{incident_id}")
        body = render(incident, decisions, now_s)
        return Page(title=f"Incident {incident_id}", section="Incidents", body=body)

    return respond(request, context, build)


@get("/events", sync_to_thread=True, include_in_schema=False)
def events_page(request: Request[Any, Any, Any], context: NamedDependency[ServerContext]) -> Response[str]:
    """What happened, newest first."""

    def build(connection: Connection, now_s: float) -> Page:
        found = events.newest(connection, _EVENTS)
        lead = f"The newest {plural(len(found), 'event')}." if found else "Nothing has happened yet."
        body = fragment(
            element("h1", "Events"), element("p", lead, class_="lead"), event_list(found, now_s) if found else None
        )
        return Page(title="Events", section="Events", body=body)

    return respond(request, context, build)


def render_list(found: Sequence[Incident], now_s: float) -> Markup:
    """The list of incidents."""
    opened = [entry for entry in found if entry.state == "open"]
    devices = sorted({entry.device_id for entry in opened if entry.device_id})
    lead = f"{plural(len(opened), 'open incident')} on {', '.join(devices[:5])}." if opened else "No incident is open."
    return fragment(element("h1", "Incidents"), element("p", lead, class_="lead"), incident_table(found, now_s))


def render(incident: Incident, decisions: Sequence[Decision], now_s: float) -> Markup:
    """One incident."""
    kind = "good" if incident.state == "closed" else "bad"
    drift = path("drift", incident.device_id, incident.model, incident.version)
    items = [
        element("li", clock(entry.at_s, now_s), element("span", entry.sentence, class_="what")) for entry in decisions
    ]
    evidence = msgspec.json.format(msgspec.json.encode(incident.evidence), indent=2).decode()
    return fragment(
        element("h1", f"Incident {incident.id} ", state_word(incident.state)),
        element(
            "div",
            element("p", f"{incident.device_id}: {incident.sentence}", class_="lead"),
            class_=f"verdict verdict-{kind}",
        ),
        facts(
            [
                ("device", device_link(incident.device_id) if incident.device_id else "none"),
                ("release", release_link(incident.model, incident.version) if incident.model else "none"),
                ("kind", incident.kind.replace("_", " ")),
                ("severity", incident.severity),
                ("opened", clock(incident.opened_at_s, now_s)),
                ("closed", clock(incident.closed_at_s, now_s) if incident.closed_at_s is not None else "open"),
                ("figures", element("a", "drift of this device and version", href=drift)),
                ("why", command(f"edgeship explain incident/{incident.id}")),
            ]
        ),
        section("Decisions", element("ol", items, class_="timeline")) if items else None,
        section(
            "Evidence",
            element(
                "details",
                element("summary", "What it was decided from"),
                element("pre", evidence, class_="scroll small"),
            ),
        ),
    )
