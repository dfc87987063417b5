"""Parts of a device's page: models by arm, what the field says, and infrastructure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from sqlalchemy import Connection

from edgeship.charts import Child, Markup, Unit, element, format_value, fragment
from edgeship.server.pages.field import field_cell
from edgeship.server.pages.queries import Outbox, Running, versions_seen
from edgeship.server.pages.words import clock, plural, release_link, rows_table, short_digest, state_word
from edgeship.server.store import labels, windows
from edgeship.server.store.goals import Assignment
from edgeship.server.version_table import Observed, Outcome, observed_of, outcome_of
from edgeship_agent.contract.messages import Window

_MAIN, _CHALLENGER, _SHADOW = "main", "b", "shadow"
_MOST_VERSIONS = 5
_ARM_WORDS = {_MAIN: "", _CHALLENGER: "beside it", _SHADOW: "shadow"}


class WantedArm(Struct, frozen=True, kw_only=True):
    """One arm of a device's goal.

    Attributes:
        share: of the traffic, 0–1.
        mirror: of the inputs, for a shadow.
    """

    version: str
    digest: str
    share: float = 1.0
    mirror: float = 0.0


class VersionFigures(Struct, frozen=True, kw_only=True):
    """One version on one device; ``newest`` is its newest window."""

    model: str
    version: str
    observed: Observed | None
    outcomes: tuple[Outcome, ...]
    newest: Window | None


def figures_of(connection: Connection, device_id: str) -> list[VersionFigures]:
    """What is known of the versions that a device ran last, the newest first."""
    found = []
    calls = {(row.model, row.version): int(row.inferences) for row in windows.totals(connection, device_id)}
    for model, version in versions_seen(connection, device_id)[:_MOST_VERSIONS]:
        noted = labels.by_version(connection, model, device_ids=[device_id]).get(version)
        sums = labels.outcomes(connection, model, device_ids=[device_id])
        newest = windows.newest(connection, (device_id, model, version), 1)
        found.append(
            VersionFigures(
                model=model,
                version=version,
                observed=observed_of(noted, calls.get((model, version), 0)),
                outcomes=tuple(outcome_of(each) for each in sums if each.version == version),
                newest=newest[-1] if newest else None,
            )
        )
    return found


def wanted_arms(assigned: Sequence[Assignment]) -> dict[tuple[str, str], WantedArm]:
    """What a device shall run, by model and arm.

    >>> goal = Assignment(device_id="d", model="m", version="2", digest="b", size_bytes=1, deployment="r1", share=0.2,
    ...     base_version="1", base_digest="a")
    >>> {arm: (wanted.version, wanted.share) for (_, arm), wanted in wanted_arms([goal]).items()}
    {'main': ('1', 0.8), 'b': ('2', 0.2)}
    """
    found = {}
    for goal in assigned:
        release = WantedArm(version=goal.version, digest=goal.digest, share=goal.share, mirror=goal.mirror)
        if not goal.base_version:
            found[goal.model, _MAIN] = release
            continue
        rest = WantedArm(version=goal.base_version, digest=goal.base_digest, share=1.0 - goal.share)
        found[goal.model, _MAIN] = rest
        found[goal.model, _SHADOW if goal.mirror else _CHALLENGER] = release
    return found


def model_table(running: Sequence[Running], assigned: Sequence[Assignment]) -> Markup:
    """One row for every arm that is loaded or wanted."""
    loaded = {(arm.model, arm.arm or _MAIN): arm for arm in running}
    wanted = wanted_arms(assigned)
    order = list(_ARM_WORDS)
    keys = sorted(
        loaded.keys() | wanted.keys(), key=lambda key: (key[0], order.index(key[1]) if key[1] in order else 9)
    )
    rows: list[tuple[Child, ...]] = []
    for model, name in keys:
        arm, goal = loaded.get((model, name)), wanted.get((model, name))
        words = _ARM_WORDS.get(name, name)
        rows.append(
            (
                f"{model}, {words}" if words else model,
                fragment(release_link(model, arm.version), " ", short_digest(arm.digest)) if arm else "none",
                fragment(release_link(model, goal.version), " ", short_digest(goal.digest)) if goal else "nothing said",
                _agreement(arm, goal),
                _traffic(goal),
                _variant(arm) if arm else "none",
                (arm.retained_version if arm else "") or "none",
            )
        )
    header = ("model", "loaded", "wanted", "agreement", "gets", "variant", "kept for rollback")
    return rows_table("Loaded is what the device says it runs", header, rows, empty="No model is loaded or wanted.")


def _traffic(goal: WantedArm | None) -> str:
    if goal is None:
        return "nothing said"
    if goal.mirror:
        return f"copies of {format_value(goal.mirror, 'fraction')} of inputs"
    return f"{format_value(goal.share, 'fraction')} of traffic"


def _variant(arm: Running) -> Child:
    if not arm.fallback:
        return arm.variant
    return fragment(arm.variant, " ", state_word("fallback", shown=f"stands in: {arm.fallback.replace('_', ' ')}"))


def _agreement(arm: Running | None, goal: WantedArm | None) -> Child:
    if arm is None:
        return state_word("pending", shown="waiting") if goal else None
    if goal is None:
        return "not asked for"
    if arm.digest == goal.digest:
        return state_word("current", shown="as wanted")
    return state_word("in_progress", shown="differs")


def field_table(found: Sequence[VersionFigures]) -> Markup:
    """Labels and business figures of the versions on this device."""
    rows: list[tuple[Child, ...]] = [
        (release_link(each.model, each.version), field_cell(each.observed, each.outcomes))
        for each in found
        if each.observed is not None or each.outcomes
    ]
    empty = "no labels and no business figures: the application has sent none."
    return rows_table("By labels and outcomes that the application sent", ("version", "figures"), rows, empty=empty)


def infrastructure(found: Sequence[VersionFigures], outbox: Outbox, now_s: float) -> Markup:
    """The newest window's gauges of every version, and how often the agent did not end by itself."""
    rows: list[tuple[Child, ...]] = [
        (
            release_link(each.model, each.version),
            _gauge(each.newest, "memory_bytes", "bytes"),
            _gauge(each.newest, "cpu_ratio", "fraction"),
            _temperature(each.newest),
            clock(each.newest.ended_at_s, now_s),
        )
        for each in found
        if each.newest is not None
    ]
    header = ("version", "memory of its worker", "share of one processor", "hottest sensor", "window ended")
    ends = "Its agent never ended by a power cut or a kill."
    if outbox.unclean_ends:
        ends = (
            f"Its agent ended by a power cut or a kill {plural(outbox.unclean_ends, 'time')}; each may have cost the "
            "windows of one flush interval that had not arrived here."
        )
    table = rows_table("At the end of the newest window", header, rows, empty="no data: no window yet.")
    return fragment(table, element("p", ends))


def _gauge(window: Window, name: str, unit: Unit) -> str:
    return format_value(window.gauges[name], unit) if name in window.gauges else "no data"


def _temperature(window: Window) -> str:
    found = window.gauges.get("temperature_c")
    return "no data" if found is None else f"{found:.1f} °C"
