"""Device pages: who it is, what it runs against what it should, how fast, how far it drifted, what it reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Struct
from sqlalchemy import Connection, Row

from edgeship.charts import Child, Curve, Markup, ecdf_plot, element, format_value, fragment
from edgeship.server.context import ServerContext
from edgeship.server.event_bus import Event
from edgeship.server.pages import queries
from edgeship.server.pages.device_figures import (
    VersionFigures,
    field_table,
    figures_of,
    infrastructure,
    model_table,
    wanted_arms,
)
from edgeship.server.pages.fleet import event_list
from edgeship.server.pages.layout import Page, PageNotFound, respond
from edgeship.server.pages.queries import Device, DriftState, Incident, ReportLine, Speed
from edgeship.server.pages.words import (
    clock,
    command,
    device_link,
    drift_link,
    facts,
    path,
    plural,
    release_link,
    rows_table,
    section,
    state_word,
)
from edgeship.server.store import devices as device_store
from edgeship.server.store import events, goals, windows
from edgeship.server.store.goals import Assignment
from edgeship_agent.contract.sketch import ExponentialSketch, bucket_bounds

_LINES = 20


class DeviceView(Struct, frozen=True, kw_only=True):
    """Everything that a device's page shows.

    Attributes:
        speed: (model version, how fast it was) of at most two versions, the newest first.
        totals: windows and calls per version.
        books: the server's own count of stored, repeated and lost windows.
    """

    now_s: float
    device: Device
    wanted: list[Assignment]
    speed: list[tuple[str, Speed]]
    totals: Sequence[Row[Any]]
    books: dict[str, int]
    drift: list[DriftState]
    incidents: list[Incident]
    reports: list[ReportLine]
    events: list[Event]
    figures: list[VersionFigures]


@get("/devices", sync_to_thread=True, include_in_schema=False)
def devices_page(request: Request[Any, Any, Any], context: NamedDependency[ServerContext]) -> Response[str]:
    """Every device."""

    def build(connection: Connection, now_s: float) -> Page:
        found = queries.list_devices(connection, now_s, context.config.silence_s)
        opened = queries.list_incidents(connection, state="open")
        return Page(title="Devices", section="Devices", body=render_list(found, opened, now_s))

    return respond(request, context, build)


@get("/devices/{device_id:str}", sync_to_thread=True, include_in_schema=False)
def device_page(
    request: Request[Any, Any, Any], device_id: FromPath[str], context: NamedDependency[ServerContext]
) -> Response[str]:
    """One device."""

    def build(connection: Connection, now_s: float) -> Page:
        device = queries.find_device(connection, device_id, now_s, context.config.silence_s)
        if device is None:
            raise PageNotFound(f"There is no device {device_id}; the list of devices names all.")
        return Page(title=device_id, section="Devices", body=render(_view(connection, device, now_s)))

    return respond(request, context, build)


def _view(connection: Connection, device: Device, now_s: float) -> DeviceView:
    versions = queries.versions_seen(connection, device.id)[:2]
    return DeviceView(
        now_s=now_s,
        device=device,
        wanted=goals.assignments_of(connection, device.id),
        speed=[(f"{m} {v}", queries.speed_of(connection, device.id, m, v)) for m, v in versions],
        totals=windows.totals(connection, device.id),
        books=device_store.books(connection, device.id),
        drift=queries.drift_states(connection, device.id),
        incidents=queries.list_incidents(connection, device_id=device.id, limit=_LINES),
        reports=queries.reports_of(connection, device.id),
        events=events.newest(connection, _LINES, f"device/{device.id}"),
        figures=figures_of(connection, device.id),
    )


def render_list(found: Sequence[Device], opened: Sequence[Incident], now_s: float) -> Markup:
    """The list of all devices: first those that need a look, then by name."""
    if not found:
        return fragment(
            element("h1", "Devices"),
            element("p", "No device has reported yet.", class_="lead"),
            element("p", command("edgeship-agent run --config agent.toml")),
        )
    open_by_device: dict[str, int] = {}
    for incident in opened:
        open_by_device[incident.device_id] = open_by_device.get(incident.device_id, 0) + 1
    there = sum(device.presence == "online" for device in found)
    rows: list[tuple[Child, ...]] = [
        (
            device_link(device.id),
            state_word(device.presence),
            _running_words(device),
            device.target,
            _incident_words(open_by_device.get(device.id, 0)),
            ", ".join(f"{key}={value}" for key, value in sorted(device.tags.items())) or "none",
            clock(device.last_seen_s, now_s),
        )
        for device in sorted(found, key=lambda device: device.id)
    ]
    header = ("device", "state", "runs", "target", "incidents", "tags", "last heard")
    lead = f"{plural(len(found), 'device')}, {there if there < len(found) else 'all'} online."
    return fragment(element("h1", "Devices"), element("p", lead, class_="lead"), rows_table("By name", header, rows))


def _running_words(device: Device) -> Markup:
    parts: list[Child] = []
    for arm in device.running:
        parts += [", " if parts else None, release_link(arm.model, arm.version)]
        if arm.state and arm.state != "committed":
            parts.append(fragment(" ", state_word(arm.state)))
        if arm.fallback:
            parts.append(fragment(" ", state_word("fallback")))
    return fragment(parts) if parts else element("span", "no model", class_="muted")


def _incident_words(count: int) -> Child:
    return state_word("alert", shown=f"{count} open") if count else "none"


def render(view: DeviceView) -> Markup:
    """One device's page."""
    device = view.device
    return fragment(
        element("h1", device.id, " ", state_word(device.presence)),
        element("p", sentence(view), class_="lead"),
        section("Models", model_table(device.running, view.wanted)),
        section("Latency", _latency(view.speed), _stream_delay(view.speed)),
        section("In the field", field_table(view.figures)),
        section("Drift", _drift(view)),
        section("Incidents", incident_table(view.incidents, view.now_s)),
        element(
            "div",
            section("Identity", _identity(view)),
            section("Timeline", event_list(view.events, view.now_s)),
            class_="columns",
        ),
        section("Update reports", _reports(view)),
        section("Windows", _windows(view)),
        section("Infrastructure", infrastructure(view.figures, device.outbox, view.now_s)),
    )


def sentence(view: DeviceView) -> str:
    """What the device runs and whether that is what it should run, in one line."""
    device = view.device
    wanted = wanted_arms(view.wanted)
    parts = []
    for arm in device.running:
        goal = wanted.get((arm.model, arm.arm or "main"))
        if goal is None or goal.digest == arm.digest:
            parts.append(f"runs {arm.model} {arm.version}" + (", as wanted" if goal else ""))
        else:
            parts.append(f"runs {arm.model} {arm.version}, shall run {goal.version}")
    parts += [f"serves {arm.model} in full precision, since the variant of the build failed there "
              f"({arm.fallback.replace('_', ' ')})" for arm in device.running if arm.fallback]  # fmt: skip
    missing = sorted(set(wanted) - {(arm.model, arm.arm or "main") for arm in device.running})
    parts += [f"shall run {key[0]} {wanted[key].version} and does not" for key in missing]
    opened = sum(incident.state == "open" for incident in view.incidents)
    parts.append(plural(opened, "open incident") if opened else "no open incident")
    if not device.running and not wanted:
        parts.insert(0, "runs no model and shall run none")
    return f"{device.id} " + "; ".join(parts) + "."


def _identity(view: DeviceView) -> Markup:
    device = view.device
    return facts(
        [
            ("target", device.target),
            ("processor", " ".join([device.arch, *device.isa])),
            ("runtimes", ", ".join(f"{name} {version}" for name, version in sorted(device.runtimes.items())) or "none"),
            ("tags", ", ".join(f"{key}={value}" for key, value in sorted(device.tags.items())) or "none"),
            ("agent", device.agent_version),
            ("goal", f"generation {device.goal_generation}"),
            ("first heard", clock(device.first_seen_s, view.now_s)),
            ("last heard", clock(device.last_seen_s, view.now_s)),
            ("same", command(f"edgeship devices show {device.id}")),
        ]
    )


def latency_curve(label: str, sketch: ExponentialSketch) -> Curve:
    """A cumulative distribution in ms from a sketch in µs; every point is the upper bound of its bucket."""
    total = sketch.total
    points, seen = [], sketch.zero_count
    for index in sorted(sketch.counts):
        seen += sketch.counts[index]
        points.append((bucket_bounds(index, sketch.scale)[1] / 1000.0, seen / total))
    return Curve(label=label, points=tuple(points), n=total)


def _latency(found: Sequence[tuple[str, Speed]]) -> Markup:
    curves = [latency_curve(label, speed.latency_us) for label, speed in found]
    measured = [curve for curve in curves if curve.points]
    if not measured:
        return element("p", "no data: no window with answered calls has arrived.", class_="muted")
    figures = [f"{curve.label} p99 {format_value(curve.quantile(0.99), 'ms')}" for curve in measured]
    return ecdf_plot("Latency per call", " · ".join(figures) + ", preprocessing included.", curves)


def _stream_delay(found: Sequence[tuple[str, Speed]]) -> Markup | None:
    """Delays of ``edgeship-agent stream``; nothing where no stream ran."""
    curves = [latency_curve(label, speed.stream_delay_us) for label, speed in found if speed.stream_delay_us.total]
    if not curves:
        return None
    figures = [f"{curve.label} p50 {format_value(curve.quantile(0.5), 'ms')}, "
               f"p99 {format_value(curve.quantile(0.99), 'ms')}" for curve in curves]  # fmt: skip
    return ecdf_plot(
        "Delay of a stream", " · ".join(figures) + ", from the input's time until the answer was out.", curves
    )


def _drift(view: DeviceView) -> Markup:
    rows: list[tuple[Child, ...]] = [
        (
            drift_link(view.device.id, state.model, state.version, f"{state.model} {state.version}"),
            state_word(state.state),
            state.worst_signal or "none",
            format_value(state.worst_value) if state.state != "no_data" else "no data",
            f"{state.sample_count:,}",
            clock(state.updated_at_s, view.now_s),
        )
        for state in view.drift
    ]
    header = ("version", "state", "worst signal", "distance", "samples", "judged")
    return rows_table("Worst signal per version", header, rows, empty="no data: nothing has been compared yet.")


def incident_table(found: Sequence[Incident], now_s: float) -> Markup:
    """Incidents as a table."""
    rows: list[tuple[Child, ...]] = [
        (
            element("a", f"incident {entry.id}", href=path("incidents", str(entry.id))),
            state_word(entry.state),
            entry.kind.replace("_", " "),
            device_link(entry.device_id) if entry.device_id else "",
            entry.sentence,
            clock(entry.opened_at_s, now_s),
            clock(entry.closed_at_s, now_s) if entry.closed_at_s is not None else "open",
        )
        for entry in found
    ]
    header = ("incident", "state", "kind", "device", "finding", "opened", "closed")
    return rows_table("Open ones first", header, rows, empty="No incident has been opened.")


def _reports(view: DeviceView) -> Markup:
    rows: list[tuple[Child, ...]] = [
        (
            f"{line.deployment} · attempt {line.attempt} · {line.seq}",
            state_word(line.state),
            release_link(line.model, line.version),
            " ".join(part for part in (line.reason.replace("_", " "), line.detail) if part) or "",
            ", ".join(f"{name} {format_value(value)}" for name, value in sorted(line.figures.items())),
            clock(line.received_at_s, view.now_s),
        )
        for line in view.reports
    ]
    header = ("report", "state", "release", "reason", "figures", "received")
    return rows_table("The device's own journal, newest first", header, rows, empty="No update has been reported yet.")


def _windows(view: DeviceView) -> Markup:
    rows: list[tuple[Child, ...]] = [
        (
            release_link(row.model, row.version),
            row.variant,
            f"{row.windows:,}",
            f"{row.inferences:,}",
            f"{row.failures:,}",
            f"{row.crashes:,}",
            clock(row.newest_s, view.now_s),
        )
        for row in view.totals
    ]
    outbox = view.device.outbox
    books = (
        f"The device made {outbox.created:,}, of which {outbox.acknowledged:,} are safe here, {outbox.waiting:,} wait "
        f"and {outbox.evicted:,} were given up. The server stored {view.books['stored']:,} and dropped "
        f"{view.books['duplicates']:,} repeats."
    )
    header = ("version", "variant", "windows", "calls", "failed", "crashes", "newest")
    return fragment(rows_table("Stored windows", header, rows, empty="no data: no window yet."), element("p", books))
