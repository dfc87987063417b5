"""One rollout, understood in five seconds: verdict with its number, stages, intervals, causes, timeline, devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from edgeship.charts import (
    Child,
    Markup,
    element,
    format_interval,
    format_value,
    fragment,
    interval_plot,
    phase_rail,
)
from edgeship.rollout import GateResult, RolloutState
from edgeship.rollout.wording import reason_words
from edgeship.server.arm_comparison import Compared
from edgeship.server.event_bus import Event
from edgeship.server.pages import rollout_models
from edgeship.server.pages.verdicts import (
    broken_gate,
    consequence,
    gate_name,
    headline,
    interval_rows,
    phases,
    rail_words,
    verdict_finding,
    was_taken_back,
)
from edgeship.server.pages.words import (
    clock,
    command,
    device_link,
    facts,
    path,
    plural,
    release_link,
    rows_table,
    section,
    short_digest,
    state_kind,
    state_word,
)
from edgeship.server.store.rollouts import Decision, Member, Rollout

#: State → what a person can do, the primary action first. Abort and roll back always stand last.
_ACTIONS: Final = {
    RolloutState.RUNNING: ("pause", "abort", "rollback"),
    RolloutState.PAUSED: ("resume", "abort", "rollback"),
    RolloutState.SCHEDULED: ("abort",),
    RolloutState.VALIDATED: ("abort",),
    RolloutState.COMPLETED: ("rollback",),
    RolloutState.ABORTED: ("rollback",),
    RolloutState.ROLLBACK_INCOMPLETE: ("rollback",),
}
#: Taking something back or ending it is never the button that stands out.
_PRIMARY: Final = frozenset({"pause", "resume"})
_ACTION_WORDS: Final = {"pause": "Pause", "resume": "Resume", "abort": "Abort", "rollback": "Roll back"}


class RolloutView(Struct, frozen=True, kw_only=True):
    """Everything that the page shows.

    Attributes:
        difference: chart of when it turned, or None where there is nothing to compare.
        comparison: of a release that shares the traffic with the version from before; else empty.
    """

    now_s: float
    rollout: Rollout
    members: list[Member]
    decisions: list[Decision]
    events: list[Event]
    difference: Markup | None = None
    comparison: Sequence[Compared] = ()


def render(view: RolloutView) -> Markup:
    """The page's content, top to bottom in the order in which it is asked."""
    rollout = view.rollout
    return fragment(
        element(
            "h1",
            f"Rollout {rollout.id} · {rollout.model} {_from_versions(view.members)}{rollout.version} ",
            state_word(rollout.state.value),
        ),
        _verdict(view),
        _actions(rollout),
        phase_rail("Stages", _rail_finding(view), phases(rollout, view.members)),
        rollout_models.render(rollout, view.members),
        element("div", _gates(view), _difference(view), class_="columns"),
        _comparison(view),
        element("div", _causes(view), _timeline(view), class_="columns"),
        _devices(view),
        _definition(view),
    )


def render_list(found: Sequence[Rollout], now_s: float) -> Markup:
    """The list of all rollouts."""
    if not found:
        return fragment(
            element("h1", "Rollouts"),
            element("p", "No release has been rolled out yet.", class_="lead"),
            element("p", command("edgeship rollouts create MODEL VERSION --stages 20%,100%")),
        )
    active = sum(rollout.state.is_active for rollout in found)
    rows: list[tuple[Child, ...]] = [
        (
            element("a", rollout.id, href=path("rollouts", rollout.id)),
            release_link(rollout.model, rollout.version),
            state_word(rollout.state.value),
            element("span", rail_words(rollout), class_="word"),
            headline(rollout),
            clock(rollout.updated_at_s, now_s),
        )
        for rollout in found
    ]
    return fragment(
        element("h1", "Rollouts"),
        element("p", f"{plural(len(found), 'rollout')}, {active or 'none'} active.", class_="lead"),
        rows_table("Newest first", ("rollout", "release", "state", "stages", "why", "changed"), rows),
    )


def _from_versions(members: Sequence[Member]) -> str:
    previous = sorted({member.previous_version for member in members if member.previous_version})
    return f"{', '.join(previous[:3])} → " if previous else ""


def _verdict(view: RolloutView) -> Markup:
    second = consequence(view.rollout, view.members, view.now_s)
    return element(
        "div",
        element("p", headline(view.rollout), class_="lead"),
        element("p", second) if second else None,
        class_=f"verdict verdict-{state_kind(view.rollout.state.value)}",
    )


def _actions(rollout: Rollout) -> Markup:
    actions = _ACTIONS.get(rollout.state, ())
    forms = [
        element(
            "form",
            element("button", _ACTION_WORDS[action], type="submit", class_="primary" if action in _PRIMARY else None),
            method="post",
            action=path("rollouts", rollout.id, action),
        )
        for action in actions
    ]
    same = f"edgeship rollouts {actions[0]} {rollout.id}" if actions else f"edgeship explain rollout/{rollout.id}"
    return element("div", forms, command(same), class_="actions")


def _rail_finding(view: RolloutView) -> str:
    passed = sum(state.value == "passed" for state in view.rollout.stage_states)
    return f"{passed} of {plural(len(view.rollout.stages), 'stage')} passed."


def _gates(view: RolloutView) -> Markup:
    verdict = view.rollout.verdict
    if verdict is None:
        return section("Is it worse?", element("p", "no data: the stage has not been judged yet.", class_="muted"))
    rows = interval_rows(verdict.gates)
    chart = interval_plot("Gates against their limits", verdict_finding(view.rollout), rows) if rows else None
    return section("Is it worse?", chart, _gate_table(verdict.gates))


def _difference(view: RolloutView) -> Markup | None:
    title = "When did it turn?" if broken_gate(view.rollout) else "Over time"
    return section(title, view.difference) if view.difference else None


#: Figures of :func:`compare_arms` in words, and those that compare a shadow with the answers beside it.
_COMPARED: Final = {
    "failed_ratio": "failed calls",
    "latency_p99_ms": "latency p99",
    "disagreement": "inputs of another class",
    "relative_rms": "relative RMS of the outputs",
}
_PAIRED: Final = frozenset({"disagreement", "relative_rms"})


def _comparison(view: RolloutView) -> Markup | None:
    if not view.comparison:
        return None
    rows: list[tuple[Child, ...]] = [
        (
            _COMPARED.get(row.name, row.name.replace("_", " ")),
            "the reference" if row.name in _PAIRED else _figure(row.before, row),
            _figure(row.after, row),
            "no interval" if row.change is None else _change(row),
            f"{row.n_after:,}" if row.name in _PAIRED else f"{row.n_before:,} and {row.n_after:,}",
        )
        for row in view.comparison
    ]
    caption = "Over the devices of this rollout since it began; both answer at the same time"
    if view.rollout.mirror:
        caption = "Over the devices of this rollout since it began; what the shadow answers reaches nobody"
    before = ", ".join(sorted({member.previous_version for member in view.members if member.previous_version}))
    header = ("figure", before or "before", view.rollout.version, "difference (95 %)", "n")
    return section("Side by side", rows_table(caption, header, rows))


def _figure(value: float | None, row: Compared) -> str:
    return "no data" if value is None else format_value(value, row.unit)


def _change(row: Compared) -> str:
    assert row.change is not None and row.low is not None and row.high is not None  # a change has its interval
    interval = format_interval(row.low, row.high, row.unit, signed=True)
    return f"{format_value(row.change, row.unit, signed=True)} ({interval})"


def _gate_table(gates: Sequence[GateResult]) -> Markup:
    words = {True: state_word("ok", shown="holds"), False: state_word("failed", shown="broken")}
    rows: list[tuple[Child, ...]] = [
        (
            gate_name(gate),
            words.get(gate.holds) if gate.holds is not None else state_word("inconclusive", shown="undecided"),
            gate.sentence,
            gate.rule,
            ", ".join(gate.devices[:5]) + (f" and {len(gate.devices) - 5} more" if len(gate.devices) > 5 else ""),
        )
        for gate in gates
    ]
    table = rows_table("Every gate, broken ones first", ("gate", "verdict", "finding", "rule", "devices"), rows)
    return element("details", element("summary", f"All {len(gates)} gates in words"), table)


def _causes(view: RolloutView) -> Markup:
    causes: dict[str, list[str]] = {}
    for member in view.members:
        if was_taken_back(view.rollout, member):
            continue
        if member.state.is_failure or member.state.value == "rejected":
            cause = f"{member.state.value.replace('_', ' ')}{_reason(member.reason)}"
            causes.setdefault(cause, []).append(member.device_id)
    rows: list[tuple[Child, ...]] = [
        (cause, len(names), _device_links(names)) for cause, names in sorted(causes.items(), key=lambda c: -len(c[1]))
    ]
    table = rows_table("Devices by what ended their update", ("cause", "devices", "which"), rows)
    back = sum(was_taken_back(view.rollout, member) for member in view.members)
    rest = f" {plural(back, 'device')} had no trouble of their own and went back with the rollout." if back else ""
    content = table if rows else element("p", f"No device failed to update.{rest}", class_="muted")
    return section("Failures by cause", content)


def _reason(reason: str) -> str:
    return f": {reason_words(reason)}" if reason else ""


def _device_links(names: Sequence[str]) -> Markup:
    links: list[Child] = []
    for name in names[:5]:
        links += [", " if links else None, device_link(name)]
    return fragment(links, f" and {len(names) - 5} more" if len(names) > 5 else None)


def _timeline(view: RolloutView) -> Markup:
    lines = {(entry.at_s, entry.sentence) for entry in view.decisions} | {(e.at_s, e.sentence) for e in view.events}
    seen: set[str] = set()
    items = []
    for at_s, sentence in sorted(lines):
        if sentence not in seen:
            seen.add(sentence)
            items.append(element("li", clock(at_s, view.now_s), element("span", sentence, class_="what")))
    content = element("ol", items, class_="timeline") if items else element("p", "Nothing yet.", class_="muted")
    return section("Timeline", content)


def _devices(view: RolloutView) -> Markup:
    rows: list[tuple[Child, ...]] = [
        (
            device_link(member.device_id),
            _member_state(view.rollout, member),
            rollout_models.update_words(member),
            member.stage_index + 1,
            member.stratum,
            member.previous_version or "none",
            reason_words(member.reason) + (" (without field traffic)" if member.without_field_traffic else ""),
        )
        for member in view.members
    ]
    header = ("device", "state", "update", "stage", "stratum", "before", "reason")
    return section("Devices", rows_table("By stage", header, rows, empty="No device is part of this rollout."))


def _member_state(rollout: Rollout, member: Member) -> Markup:
    if was_taken_back(rollout, member):
        return state_word("current", shown=f"back on {member.previous_version or 'none'}")
    return state_word(member.state.value)


def _definition(view: RolloutView) -> Markup:
    rollout = view.rollout
    wanted = ", ".join(f"{key}={value}" for key, value in sorted(rollout.filter.items()))
    limits = [(name, getattr(rollout.policy, name)) for name in rollout.policy.__struct_fields__]
    table = rows_table("Limits of the policy", ("limit", "value"), [(name, f"{value}") for name, value in limits])
    return section(
        "Definition",
        facts(
            [
                ("release", release_link(rollout.model, rollout.version)),
                ("content" if rollout.is_joint else "bundle", short_digest(rollout.digest)),
                ("devices", wanted or "the whole fleet"),
                ("policy", rollout.policy.name),
                ("seed", str(rollout.seed)),
                ("created", clock(rollout.created_at_s, view.now_s)),
                ("ended", clock(rollout.ended_at_s, view.now_s) if rollout.ended_at_s else "not yet"),
                ("why", command(f"edgeship explain rollout/{rollout.id}")),
            ]
        ),
        element("details", element("summary", "Policy"), table),
    )
