"""Joint releases on pages: what switches together, which versions there are, where each of them stands."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from sqlalchemy import Connection

from edgeship.charts import Child, Markup, element, fragment
from edgeship.server.pages.verdicts import headline, without_word
from edgeship.server.pages.words import (
    clock,
    command,
    facts,
    plural,
    release_link,
    rollout_link,
    rows_table,
    section,
    short_digest,
    state_word,
)
from edgeship.server.store import devices, joint, releases, rollouts
from edgeship.server.store.joint import JointRelease
from edgeship.server.store.releases import Release
from edgeship.server.store.rollouts import Rollout
from edgeship.server.version_table import VersionRow, version_rows


class JointView(Struct, frozen=True, kw_only=True):
    """Everything that the page of a joint release shows.

    Attributes:
        members: the releases that it holds, each with its line of its model's version table.
        versions: every version of it, newest first.
        rollouts: its own, newest first.
        device_count: so many devices have loaded all of its models.
    """

    now_s: float
    release: JointRelease
    members: list[tuple[Release, VersionRow]]
    versions: list[JointRelease]
    rollouts: list[Rollout]
    device_count: int


def read_view(connection: Connection, release: JointRelease, now_s: float) -> JointView:
    """What the page shows, from the database."""
    members = []
    wanted = {part.digest for part in release.parts}
    for part in release.parts:
        held = releases.find(connection, part.model, part.version)
        assert held is not None  # a release that was joined is never removed
        rows = version_rows(connection, part.model, now_s)
        members.append((held, next(row for row in rows if row.version == part.version)))
    return JointView(
        now_s=now_s,
        release=release,
        members=members,
        versions=joint.of_name(connection, release.name),
        rollouts=[
            each
            for each in rollouts.list_all(connection)
            if (each.model, each.version) == (release.name, release.version)
        ],
        device_count=sum(wanted <= {arm["digest"] for arm in row.running} for row in devices.list_all(connection)),
    )


def render(view: JointView) -> Markup:
    """One joint release."""
    release = view.release
    return fragment(
        element("h1", f"{release.name} {release.version} ", state_word(release.state)),
        _lead(view),
        section("Switches together", _members(view)),
        section("Rollouts", _rollouts(view)),
        section("Versions", table(view.versions, view.now_s)),
        section(
            "Definition",
            facts(
                [
                    ("content", short_digest(release.digest)),
                    ("joined", clock(release.added_at_s, view.now_s)),
                    ("same", command(f"edgeship releases show {release.name} {release.version}")),
                ]
            ),
        ),
    )


def table(found: Sequence[JointRelease], now_s: float) -> Markup:
    """Joint releases, one row each."""
    rows: list[tuple[Child, ...]] = [
        (
            release_link(each.name, each.version),
            state_word(each.state),
            _links(each),
            clock(each.added_at_s, now_s),
            without_word(each.blocked_reason),
        )
        for each in found
    ]
    caption = "Devices switch to all models of one at once, or to none"
    return rows_table(caption, ("release", "state", "models", "joined", "blocked because"), rows)


def _links(release: JointRelease) -> Markup:
    links: list[Child] = []
    for part in release.parts:
        links += [" + " if links else None, release_link(part.model, part.version)]
    return fragment(links)


def _lead(view: JointView) -> Markup:
    release = view.release
    models = [part.model for part in release.parts]
    together = f"{', '.join(models[:-1])} and {models[-1]}"
    where = f"runs on {plural(view.device_count, 'device')}" if view.device_count else "runs on no device"
    return lead(release, f"{together} switch as one; it {where}.")


def lead(release: Release | JointRelease, sentence: str) -> Markup:
    """What a page of a release begins with: the sentence; of a blocked one, first why it is."""
    if release.state != releases.BLOCKED:
        return element("p", sentence, class_="lead")
    by = fragment(" By rollout ", rollout_link(release.blocked_by), ".") if release.blocked_by else None
    return element(
        "div",
        element("p", f"Blocked: {without_word(release.blocked_reason)}.", by, class_="lead"),
        element("p", sentence),
        class_="verdict verdict-bad",
    )


def _members(view: JointView) -> Markup:
    rows: list[tuple[Child, ...]] = [
        (
            held.model,
            release_link(held.model, held.version),
            state_word({"in rollout": "in_progress"}.get(row.status, row.status), shown=row.status),
            "no data" if row.metric is None else f"{row.metric.name} {row.metric.value:.1%}",
            plural(row.devices, "device"),
            short_digest(held.digest),
        )
        for held, row in view.members
    ]
    header = ("model", "version", "status", "accuracy as built", "loaded on", "bundle")
    return rows_table("Accuracy of the weakest variant of each", header, rows)


def _rollouts(view: JointView) -> Markup:
    if not view.rollouts:
        same = f"edgeship rollouts create {view.release.name} {view.release.version} --stages 20%,100%"
        return fragment(element("p", "It has not been rolled out yet.", class_="muted"), element("p", command(same)))
    rows: list[tuple[Child, ...]] = [
        (rollout_link(each.id), state_word(each.state.value), headline(each), clock(each.updated_at_s, view.now_s))
        for each in view.rollouts
    ]
    return rows_table("Newest first", ("rollout", "state", "why", "changed"), rows)
