"""Release pages: what a version is, what it claims per target, what it does in the field, where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Struct
from sqlalchemy import Connection

from edgeship.charts import (
    Axis,
    Child,
    Markup,
    ScatterPoint,
    element,
    format_interval,
    format_value,
    fragment,
    scatter_plot,
)
from edgeship.server.context import ServerContext
from edgeship.server.pages import joint, queries
from edgeship.server.pages.field import field_cell, observed_lines
from edgeship.server.pages.layout import SLOW_POLL_S, Page, PageNotFound, respond
from edgeship.server.pages.release_figures import BuildFigures, devices_running, read_build, read_manifest
from edgeship.server.pages.words import (
    clock,
    command,
    device_link,
    duration,
    facts,
    path,
    plural,
    release_link,
    rollout_link,
    rows_table,
    section,
    short_digest,
    state_word,
)
from edgeship.server.store import joint as joint_store
from edgeship.server.store import releases as store
from edgeship.server.store.joint import JointRelease
from edgeship.server.store.releases import Release
from edgeship.server.version_table import RECENT_S, VersionRow, version_rows
from edgeship_agent.contract.manifest import BundleManifest, MetricClaim, Variant

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ReleaseView(Struct, frozen=True, kw_only=True):
    """Everything that a release's page shows.

    Attributes:
        row: its own line of the version table.
        versions: every version of the model, newest first.
        device_ids: who has it loaded.
        joined_in: joint releases that hold it.
    """

    now_s: float
    release: Release
    row: VersionRow
    versions: list[VersionRow]
    device_ids: tuple[str, ...]
    manifest: BundleManifest
    build: tuple[BuildFigures, ...]
    has_report: bool
    joined_in: list[JointRelease]


@get("/releases", sync_to_thread=True, include_in_schema=False)
def releases_page(request: Request[Any, Any, Any], context: NamedDependency[ServerContext]) -> Response[str]:
    """Every release, by model."""

    def build(connection: Connection, now_s: float) -> Page:
        models = sorted({release.model for release in store.list_all(connection)})
        tables = {model: version_rows(connection, model, now_s) for model in models}
        joined = joint_store.list_all(connection)
        together = section("Switch together", joint.table(joined, now_s)) if joined else None
        return Page(title="Releases", section="Releases", body=render_list(tables, together), poll_s=SLOW_POLL_S)

    return respond(request, context, build)


@get("/releases/{model:str}/{version:str}", sync_to_thread=True, include_in_schema=False)
def release_page(
    request: Request[Any, Any, Any],
    model: FromPath[str],
    version: FromPath[str],
    context: NamedDependency[ServerContext],
) -> Response[str]:
    """One release."""

    def build(connection: Connection, now_s: float) -> Page:
        joined = joint_store.find(connection, model, version)
        if joined is not None:
            body = joint.render(joint.read_view(connection, joined, now_s))
            return Page(title=f"{model} {version}", section="Releases", body=body, poll_s=SLOW_POLL_S)
        release = store.find(connection, model, version)
        if release is None:
            raise PageNotFound(f"There is no release {model} {version}; the list of releases names all.")
        versions = version_rows(connection, model, now_s)
        devices = queries.list_devices(connection, now_s, context.config.silence_s)
        files = store.read_files(connection, model, version)
        view = ReleaseView(
            now_s=now_s,
            release=release,
            row=next(row for row in versions if row.version == version),
            versions=versions,
            device_ids=devices_running(devices, model, version),
            manifest=read_manifest(files.manifest),
            build=read_build(files.build),
            has_report=files.report is not None,
            joined_in=joint_store.holding(connection, model, version),
        )
        title = f"{model} {version}"
        return Page(title=title, section="Releases", body=render(view), poll_s=SLOW_POLL_S)

    return respond(request, context, build)


def render_list(tables: dict[str, list[VersionRow]], together: Markup | None = None) -> Markup:
    """All releases: what switches together, and one version table per model."""
    if not tables:
        return fragment(
            element("h1", "Releases"),
            element("p", "No release has been added yet.", class_="lead"),
            element("p", command("edgeship releases add build/bundle")),
        )
    count = sum(len(rows) for rows in tables.values())
    blocked = sum(row.status == "blocked" for rows in tables.values() for row in rows)
    lead = f"{plural(count, 'release')} of {plural(len(tables), 'model')}, {blocked or 'none'} blocked."
    return fragment(
        element("h1", "Releases"),
        element("p", lead, class_="lead"),
        together,
        [section(model, version_table(model, rows)) for model, rows in tables.items()],
    )


def render(view: ReleaseView) -> Markup:
    """One release."""
    release = view.release
    return fragment(
        element("h1", f"{release.model} {release.version} ", _status(view.row)),
        _lead(view),
        section("Switches together", joint.table(view.joined_in, view.now_s)) if view.joined_in else None,
        section("Versions", version_table(release.model, view.versions)),
        section("Variants", _variants(view)),
        _trade_off(view.build),
        element(
            "div",
            section("Where it runs", _where(view.device_ids)),
            section("Signature and lineage", _lineage(view)),
            class_="columns",
        ),
        section("Inputs and output", _contract(view.manifest)),
    )


def _status(row: VersionRow) -> Markup:
    state = {"in rollout": "in_progress"}.get(row.status, row.status)
    return state_word(state, shown=row.status)


def _lead(view: ReleaseView) -> Markup:
    release, running = view.release, len(view.device_ids)
    where = f"runs on {plural(running, 'device')}" if running else "runs on no device"
    variants = plural(len(view.manifest.variants), "variant")
    return joint.lead(release, f"{metric_words(view.row.metric)} (weakest of {variants}); {where}.")


def metric_words(claim: MetricClaim | None) -> str:
    """A claim in short: ``top1 97.1 %``."""
    return "no data" if claim is None else f"{claim.name} {format_value(claim.value, 'fraction')}"


def version_table(model: str, rows: Sequence[VersionRow]) -> Markup:
    """Versions of a model side by side: accuracy, latency, status, traffic share."""
    cells: list[tuple[Child, ...]] = [
        (
            release_link(model, row.version),
            fragment(_status(row), " ", rollout_link(row.rollout) if row.rollout else None),
            "no data" if row.metric is None else _claim(row.metric),
            (observed_lines(row.observed) or ["no labels"])[0],
            format_value(row.latency_p99_ms, "ms"),
            format_value(row.traffic_share, "fraction"),
            f"{row.calls:,}" if row.calls else "no data",
            plural(row.devices, "device"),
        )
        for row in rows
    ]
    header = ("version", "status", "accuracy", "in the field", "latency p99", "traffic", "calls", "loaded on")
    caption = (
        "Accuracy of the weakest variant as built, and by labels from the field; "
        f"latency and traffic of the last {duration(RECENT_S)}"
    )
    return fragment(rows_table(caption, header, cells), _field(model, rows))


def _field(model: str, rows: Sequence[VersionRow]) -> Markup | None:
    """Labels, business figures and the paired figures of a shadow, of the versions that have some."""
    cells: list[tuple[Child, ...]] = [
        (release_link(model, row.version), field_cell(row.observed, row.outcomes, row.shadow))
        for row in rows
        if row.observed is not None or row.outcomes or row.shadow is not None
    ]
    caption = (
        "From the field: labels, business figures in the unit that ends their name, and what ran unseen as a shadow"
    )
    return rows_table(caption, ("version", "figures"), cells) if cells else None


def _claim(claim: MetricClaim) -> str:
    interval = format_interval(claim.low, claim.high, "fraction")
    return f"{format_value(claim.value, 'fraction')} ({interval}, n = {claim.n:,})"


def _drop(claim: MetricClaim) -> str:
    interval = format_interval(claim.drop_low, claim.drop_high, "fraction", signed=True)
    return f"{format_value(claim.drop, 'fraction', signed=True)} ({interval})"


def _variants(view: ReleaseView) -> Markup:
    built = {figures.label: figures for figures in view.build}
    rows: list[tuple[Child, ...]] = [
        _variant_row(variant, built.get(variant.label)) for variant in view.manifest.variants
    ]
    header = ("target", "runtime", "precision", "size", "accuracy", "drop", "relative RMS", "built: p50 / p99")
    return rows_table("One per target and runtime; a positive drop is worse than the source", header, rows)


def _variant_row(variant: Variant, built: BuildFigures | None) -> tuple[Child, ...]:
    size = sum(file.size_bytes for file in variant.files if file.role in {"model", "weights"})
    latency: Child = "no data"
    if built is not None:
        figures = f"{format_value(built.latency_p50_ms, 'ms')} / {format_value(built.latency_p99_ms, 'ms')}"
        latency = figures if built.on_target else f"{figures} (not measured on {variant.target})"
    return (
        variant.target,
        f"{variant.runtime} {variant.runtime_version}",
        variant.precision,
        format_value(size, "bytes"),
        _claim(variant.metric),
        _drop(variant.metric),
        format_value(variant.relative_rms),
        latency,
    )


def _trade_off(build: Sequence[BuildFigures]) -> Markup | None:
    points = [
        ScatterPoint(
            label=figures.label,
            mark=_LETTERS[index % len(_LETTERS)],
            x=float(figures.size_bytes),
            y=figures.metric.value,
            low=figures.metric.low,
            high=figures.metric.high,
            chosen=figures.chosen,
        )
        for index, figures in enumerate(build)
        if figures.metric is not None and figures.size_bytes
    ]
    if not points:
        return None
    chosen = [point.label for point in points if point.chosen]
    finding = f"Chosen: {', '.join(chosen)}." if chosen else "None was chosen."
    size, accuracy = Axis(name="size", unit="bytes"), Axis(name="accuracy", unit="fraction")
    chart = scatter_plot("Size against accuracy of every candidate", finding, points, x_axis=size, y_axis=accuracy)
    return section("What was tried", chart)


def _where(device_ids: Sequence[str]) -> Markup:
    if not device_ids:
        return element("p", "It runs on no device.", class_="muted")
    return element("ul", [element("li", device_link(name)) for name in device_ids])


def _lineage(view: ReleaseView) -> Markup:
    release, lineage = view.release, view.manifest.lineage
    report = path("api", "v1", "releases", release.model, release.version, "report.html")
    tools = ", ".join(f"{name} {version}" for name, version in sorted(lineage.tools.items()))
    return facts(
        [
            ("bundle", short_digest(release.digest)),
            ("author key", fragment(short_digest(release.author_key), " (Ed25519, checked when it was added)")),
            ("source", fragment(lineage.source.file, " ", short_digest(lineage.source.digest))),
            ("calibration", short_digest(lineage.calibration_digest)),
            ("evaluation", short_digest(lineage.evaluation_digest)),
            ("tools", tools or "none named"),
            ("added", clock(release.added_at_s, view.now_s)),
            ("report", element("a", "build report", href=report) if view.has_report else "did not come along"),
            ("same", command(f"edgeship releases show {release.model} {release.version}")),
        ]
    )


def _contract(manifest: BundleManifest) -> Markup:
    rows: list[tuple[Child, ...]] = [
        (
            f"{tensor} · {feature.name}",
            feature.unit,
            feature.meaning or "not documented",
            f"{format_value(feature.low)}…{format_value(feature.high)}",
            "documented" if feature.documented else "observed",
        )
        for tensor, features in manifest.input_schema.items()
        for feature in features[:20]
    ]
    output = manifest.output
    return fragment(
        rows_table("Input schema", ("feature", "unit", "meaning", "range", "from"), rows, empty="no data"),
        facts(
            [
                ("output", output.kind),
                ("labels", ", ".join(output.labels[:20]) or "not named"),
                ("activation", output.activation),
            ]
        ),
    )
