"""Drift pages: the fleet's heat map, one device's signals, and the two histograms of one signal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec
from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Struct
from sqlalchemy import Connection, select

from edgeship.charts import (
    Child,
    HeatRow,
    Markup,
    element,
    format_interval,
    format_value,
    fragment,
    heat_map,
    histogram_pair,
)
from edgeship.drift import Limits, SignalDistance, merge_windows, worst
from edgeship.server.context import ServerContext
from edgeship.server.pages import queries
from edgeship.server.pages.drift_history import (
    History,
    Span,
    by_signal,
    columns_of,
    compare_seen,
    read_history,
    span_of,
    worst_by_column,
)
from edgeship.server.pages.layout import SLOW_POLL_S, Page, PageNotFound, respond
from edgeship.server.pages.queries import DriftState
from edgeship.server.pages.words import (
    command,
    device_link,
    drift_link,
    path,
    plural,
    release_link,
    rows_table,
    section,
    state_word,
)
from edgeship.server.store import schema
from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import BundleManifest
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import SignalProfile
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch, Sketch

#: So many devices have a row in the fleet's heat map; the table below it names all.
_ROWS: Final = 8
_LIMIT: Final = Limits().alert


class SignalView(Struct, frozen=True, kw_only=True):
    """One device and version, and the signal that is looked at.

    Attributes:
        figures: newest comparison with the baseline, per signal, as the monitor judged it.
        own: the same against the device's own first windows; empty until there are enough.
        current: sketches of the newest windows, added up.
        labels: class names in the order of the output.
    """

    history: History
    span: Span | None
    columns: list[tuple[SignalDistance, ...]]
    figures: tuple[SignalDistance, ...]
    own: tuple[SignalDistance, ...]
    current: dict[str, Sketch]
    chosen: str
    labels: tuple[str, ...]
    state: DriftState | None


@get("/drift", sync_to_thread=True, include_in_schema=False)
def drift_page(request: Request[Any, Any, Any], context: NamedDependency[ServerContext]) -> Response[str]:
    """Who drifts."""

    def build(connection: Connection, now_s: float) -> Page:
        states = queries.drift_states(connection)
        running = {
            (device.id, arm.model, arm.version)
            for device in queries.list_devices(connection, now_s, context.config.silence_s)
            for arm in device.running
        }
        current = [state for state in states if (state.device_id, state.model, state.version) in running]
        histories = [
            read_history(connection, context.blobs, (state.device_id, state.model, state.version))
            for state in current[:_ROWS]
        ]
        return Page(title="Drift", section="Drift", body=render_fleet(current, histories), poll_s=SLOW_POLL_S)

    return respond(request, context, build)


@get("/drift/{device_id:str}/{model:str}/{version:str}", sync_to_thread=True, include_in_schema=False)
def signal_page(
    request: Request[Any, Any, Any],
    device_id: FromPath[str],
    model: FromPath[str],
    version: FromPath[str],
    context: NamedDependency[ServerContext],
) -> Response[str]:
    """One device's signals."""
    signal = request.query_params.get("signal", "")

    def build(connection: Connection, _now_s: float) -> Page:
        history = read_history(connection, context.blobs, (device_id, model, version))
        if not history.windows:
            raise PageNotFound(f"There are no windows of {model} {version} on {device_id}; the drift page names all.")
        view = _view(connection, history, signal, context.config.drift.recent_windows)
        return Page(title=f"Drift of {device_id}", section="Drift", body=render_signals(view), poll_s=SLOW_POLL_S)

    return respond(request, context, build)


def _view(connection: Connection, history: History, signal: str, recent: int) -> SignalView:
    states = queries.drift_states(connection, history.device_id)
    state = next((s for s in states if (s.model, s.version) == (history.model, history.version)), None)
    newest = history.windows[-recent:]
    judged = [msgspec.convert(figure, SignalDistance) for figure in state.figures] if state else []
    figures = tuple(figure for figure in judged if figure.reference == "baseline")
    if not figures and history.profile:
        figures = compare_seen(history.profile, newest)
    leading = worst(figures)
    span = span_of([history])
    return SignalView(
        history=history,
        span=span,
        columns=columns_of(history, span) if span else [],
        figures=figures,
        own=tuple(figure for figure in judged if figure.reference == "device"),
        current=_merged(newest),
        chosen=signal or (leading.signal if leading else ""),
        labels=_labels(connection, history.model, history.version),
        state=state,
    )


def _merged(newest: Sequence[Window]) -> dict[str, Sketch]:
    try:
        return merge_windows(newest)
    except ContractError:  # sketches that do not fit each other are shown as "no data"
        return {}


def _labels(connection: Connection, model: str, version: str) -> tuple[str, ...]:
    table = schema.releases
    query = select(table.c.manifest).where(table.c.model == model, table.c.version == version)
    data = connection.execute(query).scalar_one_or_none()
    if data is None:
        return ()
    try:
        return msgspec.json.decode(data, type=BundleManifest).output.labels
    except msgspec.MsgspecError:  # the page shows class numbers instead of names
        return ()


def render_fleet(states: Sequence[DriftState], histories: Sequence[History]) -> Markup:
    """The fleet's drift: worst devices first."""
    hot = [state for state in states if state.state == "alert"]
    if not states:
        return fragment(
            element("h1", "Drift"),
            element("p", "no data: no device has sent enough windows of its current model yet.", class_="lead"),
        )
    names = ", ".join(state.device_id for state in hot[:5]) + (f" and {len(hot) - 5} more" if len(hot) > 5 else "")
    lead = (
        f"{plural(len(hot), 'device')} over the limit of {format_value(_LIMIT)}: {names}."
        if hot
        else f"No device is over the limit of {format_value(_LIMIT)}."
    )
    rows: list[tuple[Child, ...]] = [
        (
            device_link(state.device_id),
            release_link(state.model, state.version),
            state_word(state.state),
            drift_link(state.device_id, state.model, state.version, state.worst_signal or "signals"),
            format_value(state.worst_value) if state.state != "no_data" else "no data",
            f"{state.sample_count:,}",
        )
        for state in states
    ]
    header = ("device", "version", "state", "worst signal", "distance", "samples")
    return fragment(
        element("h1", "Drift"),
        element("p", lead, class_="lead"),
        _fleet_map(histories, lead),
        section("Devices", rows_table("Worst first, committed versions", header, rows)),
        element("p", "The same: ", command("edgeship drift show")),
    )


def _fleet_map(histories: Sequence[History], lead: str) -> Markup | None:
    span = span_of(histories)
    if span is None:
        return None
    rows = [
        HeatRow(
            label=f"{history.device_id} · {history.model} {history.version}",
            values=tuple(None if found is None else found.low for found in worst_by_column(columns_of(history, span))),
            limit=_LIMIT,
            href=path("drift", history.device_id, history.model, history.version),
        )
        for history in histories
    ]
    title = "Proven distance from the baseline, worst signal of each device"
    return heat_map(title, lead, rows, span.labels())


def render_signals(view: SignalView) -> Markup:
    """One device's signals over time, and the histograms of one of them."""
    history = view.history
    leading = worst(view.figures)
    return fragment(
        element("h1", f"Drift of {history.device_id} · {history.model} {history.version} ", _state(view)),
        element("p", _sentence(history, leading), class_="lead"),
        _signal_map(view, leading),
        _histograms(view),
        section("Signals", _figure_table(view, view.figures, "Newest windows against the bundle's baseline")),
        section("Against its own first windows", _figure_table(view, view.own, "Newest windows against its first")),
        element("p", device_link(history.device_id), " · ", release_link(history.model, history.version)),
    )


def _state(view: SignalView) -> Markup:
    return state_word(view.state.state if view.state else "no_data")


def _sentence(history: History, leading: SignalDistance | None) -> str:
    if history.profile is None:
        return "no data: the baseline that these windows were made over is not on this server."
    if leading is None:
        return "no data: too few calls for a comparison."
    verb = {"alert": "exceeds", "warn": "comes near"}.get(leading.state.value, "keeps to")
    interval = format_interval(leading.low, leading.high, level_percent=99)
    return (
        f"{leading.signal} {verb} the limit of {format_value(leading.alert)}: distance {format_value(leading.value)} "
        f"({interval}) from the baseline, n = {leading.n:,}."
    )


def _href(view: SignalView, signal: str) -> str:
    history = view.history
    return path("drift", history.device_id, history.model, history.version) + "?" + _query(signal)


def _query(signal: str) -> str:
    return "signal=" + path(signal).removeprefix("/")


def _signal_map(view: SignalView, leading: SignalDistance | None) -> Markup | None:
    if view.span is None or not view.figures:
        return None
    rows = [
        HeatRow(
            label=name,
            values=tuple(None if found is None else found.low for found in values),
            limit=_LIMIT,
            href=_href(view, name),
        )
        for name, values in by_signal(view.columns).items()
    ]
    finding = f"{leading.signal} moved most." if leading else "no data"
    return heat_map("Proven distance from the baseline over time", finding, rows, view.span.labels())


def _histograms(view: SignalView) -> Markup | None:
    profile = view.history.profile
    signal = profile.signal(view.chosen) if profile else None
    if signal is None:
        return None
    found = next((figure for figure in view.figures if figure.signal == signal.name), None)
    finding = f"Distance {format_value(found.value)}, limit {format_value(found.alert)}." if found else "no data"
    bins, before, now = histogram_bins(signal, view.current.get(signal.name), view.labels)
    title = f"{signal.name}: baseline and now"
    return section("Then and now", histogram_pair(title, finding, bins, before, now))


def histogram_bins(
    signal: SignalProfile, current: Sketch | None, labels: Sequence[str]
) -> tuple[list[str], list[int], list[int]]:
    """Names and counts of the bins of a signal: of the baseline, and now.

    >>> from edgeship_agent.contract.profile import Family
    >>> reference = BinnedSketch(counts=(1, 2, 3))
    >>> signal = SignalProfile(name="x", family=Family.INPUT, edges=(0.5, 1.0), reference=reference)
    >>> histogram_bins(signal, BinnedSketch(counts=(0, 0, 9)), ())
    (['< 0.5', '0.5…1', '≥ 1'], [1, 2, 3], [0, 0, 9])
    """
    if isinstance(signal.reference, CategorySketch):
        counts = current.counts if isinstance(current, CategorySketch) else {}
        classes = sorted({*signal.reference.counts, *counts})
        names = [labels[index] if 0 <= index < len(labels) else str(index) for index in classes]
        return names, [signal.reference.counts.get(i, 0) for i in classes], [counts.get(i, 0) for i in classes]
    edges = [format_value(edge) for edge in signal.edges]
    if not edges:
        return [], [], []
    inner = [f"{low}…{high}" for low, high in pairwise(edges)]
    before = list(signal.reference.counts)
    same_bins = isinstance(current, BinnedSketch) and len(current.counts) == len(before)
    now = list(current.counts) if same_bins and isinstance(current, BinnedSketch) else [0] * len(before)
    return [f"< {edges[0]}", *inner, f"≥ {edges[-1]}"], before, now


def _figure_table(view: SignalView, found: Sequence[SignalDistance], caption: str) -> Markup:
    figures = sorted(found, key=lambda figure: (-figure.low, -figure.value, figure.signal))
    rows: list[tuple[Child, ...]] = [
        (
            element("a", figure.signal, href=_href(view, figure.signal)),
            state_word(figure.state.value),
            "no data" if figure.state.value == "no_data" else format_value(figure.value),
            format_interval(figure.low, figure.high).removeprefix("95 % "),
            f"{figure.n:,}",
            ", ".join(f"{name.replace('_', ' ')} {format_value(value)}" for name, value in figure.also.items()),
        )
        for figure in figures
    ]
    header = ("signal", "state", "distance", "99 % interval", "n", "also")
    return rows_table(caption, header, rows, empty="no data: not enough windows yet.")
