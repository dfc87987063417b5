"""The first page: one sentence about the fleet, what needs a person, who runs what, who is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from litestar import Request, Response, get
from litestar.di import NamedDependency
from msgspec import Struct
from sqlalchemy import Connection

from edgeship.charts import Child, Markup, Segment, element, fragment, stacked_bar, version_bar
from edgeship.rollout import RolloutState
from edgeship.server.context import ServerContext
from edgeship.server.event_bus import Event
from edgeship.server.pages import queries
from edgeship.server.pages.layout import Page, respond
from edgeship.server.pages.queries import Device, Incident
from edgeship.server.pages.verdicts import headline
from edgeship.server.pages.words import (
    clock,
    command,
    path,
    plural,
    section,
    state_word,
    subject_link,
)
from edgeship.server.store import events, rollouts
from edgeship.server.store.rollouts import Rollout

MAX_NEEDS: Final = 5
_EVENTS: Final = 10
#: Presence → colour of its segment.
_PRESENCE: Final = {"online": "#0072B2", "stale": "#8C6D1F", "offline": "#7A7A7A", "revoked": "#4D4D4D"}
_WAITING: Final = frozenset(
    {RolloutState.PAUSED, RolloutState.WAITING_APPROVAL, RolloutState.HALTED, RolloutState.ROLLBACK_INCOMPLETE}
)


class Fleet(Struct, frozen=True, kw_only=True):
    """Everything that the page shows."""

    now_s: float
    devices: list[Device]
    rollouts: list[Rollout]
    incidents: list[Incident]
    events: list[Event]


class Need(Struct, frozen=True, kw_only=True):
    """Something that a person should look at."""

    state: str
    sentence: str
    href: str


@get("/", sync_to_thread=True, include_in_schema=False)
def fleet_page(request: Request[Any, Any, Any], context: NamedDependency[ServerContext]) -> Response[str]:
    """The fleet at a glance."""

    def build(connection: Connection, now_s: float) -> Page:
        fleet = Fleet(
            now_s=now_s,
            devices=queries.list_devices(connection, now_s, context.config.silence_s),
            rollouts=rollouts.list_all(connection),
            incidents=queries.list_incidents(connection, state="open"),
            events=events.newest(connection, _EVENTS),
        )
        return Page(title="Fleet", section="Fleet", body=render(fleet))

    return respond(request, context, build)


def render(fleet: Fleet) -> Markup:
    """The page's content."""
    if not fleet.devices:
        return _empty()
    return fragment(
        element("h1", "Fleet"),
        element("p", sentence(fleet), class_="lead"),
        _needs_list(needs(fleet)),
        element("div", _versions(fleet), _presence(fleet.devices), class_="columns"),
        section("Last events", event_list(fleet.events, fleet.now_s), _more_events()),
    )


def _empty() -> Markup:
    return fragment(
        element("h1", "Fleet"),
        element("p", "No device has reported yet.", class_="lead"),
        element("p", "Start an agent with a configuration that names this server; it appears here by itself:"),
        element("p", command("edgeship-agent run --config agent.toml")),
    )


def sentence(fleet: Fleet) -> str:
    """The state of the fleet in one line: who is there, what runs, what is wrong."""
    there = Counter(device.presence for device in fleet.devices)
    count = len(fleet.devices)
    parts = [f"{plural(count, 'device')}, {_presence_words(there, count)}"]
    for model, versions in sorted(versions_by_model(fleet.devices).items()):
        parts.append(_model_words(model, versions, count))
    opened = len(fleet.incidents)
    parts.append(plural(opened, "open incident") if opened else "no open incident")
    return "; ".join(parts) + "."


def _presence_words(there: Counter[queries.Presence], count: int) -> str:
    if there["online"] == count:
        return "all online" if count > 1 else "online"
    names: tuple[queries.Presence, ...] = ("online", "stale", "offline", "revoked")
    return ", ".join(f"{there[name]} {name}" for name in names if there[name])


def _model_words(model: str, versions: Counter[str], count: int) -> str:
    version, most = max(versions.items(), key=lambda pair: (pair[1], pair[0]))
    who = "all" if most == count else f"{most} of {count}"
    return f"{model} {version} runs on {who}"


def versions_by_model(devices: Sequence[Device]) -> dict[str, Counter[str]]:
    """Model → version → how many devices have it loaded."""
    found: dict[str, Counter[str]] = {}
    for device in devices:
        for arm in device.running:
            found.setdefault(arm.model, Counter())[arm.version] += 1
    return found


def needs(fleet: Fleet) -> list[Need]:
    """What needs a person, the most urgent first: security, stopped rollouts, incidents, silent devices."""
    security = [entry for entry in fleet.incidents if entry.kind == "security"]
    others = [entry for entry in fleet.incidents if entry.kind != "security"]
    found = [_incident_need(entry) for entry in security]
    found += [_rollout_need(rollout) for rollout in latest_rollouts(fleet.rollouts) if _needs_person(rollout)]
    found += [_incident_need(entry) for entry in sorted(others, key=lambda e: (e.severity != "alert", -e.opened_at_s))]
    gone = sorted(device.id for device in fleet.devices if device.presence == "offline")
    if gone:
        names = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
        found.append(Need(state="offline", sentence=f"{plural(len(gone), 'device')} offline: {names}", href="/devices"))
    return found


def latest_rollouts(found: Sequence[Rollout]) -> list[Rollout]:
    """The newest rollout of every model: older ones are history."""
    newest: dict[str, Rollout] = {}
    for rollout in found:
        known = newest.get(rollout.model)
        if known is None or rollout.number > known.number:
            newest[rollout.model] = rollout
    return sorted(newest.values(), key=lambda rollout: -rollout.number)


def _needs_person(rollout: Rollout) -> bool:
    return rollout.state in _WAITING or rollout.state is RolloutState.ROLLED_BACK


def _rollout_need(rollout: Rollout) -> Need:
    return Need(state=rollout.state.value, sentence=headline(rollout), href=path("rollouts", rollout.id))


def _incident_need(incident: Incident) -> Need:
    return Need(
        state=incident.severity,
        sentence=incident.sentence,
        href=path("incidents", str(incident.id)),
    )


def _needs_list(found: Sequence[Need]) -> Markup:
    if not found:
        return section("Needs you", element("p", state_word("ok", shown="nothing"), " needs a person right now."))
    items = [
        element("li", state_word(need.state), " ", element("a", need.sentence, href=need.href))
        for need in found[:MAX_NEEDS]
    ]
    rest = len(found) - MAX_NEEDS
    more = element("li", element("a", f"and {rest} more", href="/incidents")) if rest > 0 else None
    return section("Needs you", element("ul", items, more, class_="needs"))


def _versions(fleet: Fleet) -> Markup:
    trying = {(r.model, r.version) for r in fleet.rollouts if r.state.is_active}
    bars: list[Child] = []
    for model, versions in sorted(versions_by_model(fleet.devices).items()):
        parts = [
            Segment(
                label=version,
                count=count,
                canary=(model, version) in trying,
                href=path("releases", model, version),
            )
            for version, count in sorted(versions.items())
        ]
        without = len(fleet.devices) - sum(versions.values())
        if without > 0:
            parts.append(Segment(label="none", count=without))
        bars.append(version_bar(f"{model}: who runs what", _model_words(model, versions, len(fleet.devices)), parts))
    if not bars:
        bars.append(element("p", "No device has loaded a model yet.", class_="muted"))
    return section("Versions", bars)


def _presence(devices: Sequence[Device]) -> Markup:
    there = Counter(device.presence for device in devices)
    parts = [
        Segment(label=name, count=there[name], colour=colour)  # type: ignore[index]
        for name, colour in _PRESENCE.items()
        if there[name]  # type: ignore[index]
    ]
    finding = _presence_words(there, len(devices))
    return section("Devices", stacked_bar("Who is there", finding, parts))


def event_list(found: Sequence[Event], now_s: float) -> Markup:
    """Events, newest first."""
    if not found:
        return element("p", "Nothing has happened yet.", class_="muted")
    items = [
        element(
            "li",
            clock(event.at_s, now_s),
            element("span", _line(event), class_="what"),
        )
        for event in found
    ]
    return element("ol", items, class_="timeline")


def _line(event: Event) -> Markup:
    """What happened, with its subject as a link; a sentence that begins with the subject does not repeat it."""
    name = event.subject.partition("/")[2].replace("/", " ")
    if name and event.sentence.startswith(name):
        return fragment(subject_link(event.subject), event.sentence.removeprefix(name))
    return fragment(subject_link(event.subject), ": ", event.sentence)


def _more_events() -> Markup:
    return element("p", element("a", "All events", href="/events"))
