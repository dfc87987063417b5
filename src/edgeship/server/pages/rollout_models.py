"""The models of a joint release in its rollout: what each changes, what is found out about it, how it stands."""

from __future__ import annotations

from collections.abc import Sequence

from edgeship.charts import Child, Markup
from edgeship.rollout import DeviceState, GateResult
from edgeship.server.pages.words import plural, release_link, rows_table, section, state_word
from edgeship.server.store.joint import Part
from edgeship.server.store.rollouts import Member, MemberPart, Rollout


def render(rollout: Rollout, members: Sequence[Member]) -> Markup | None:
    """One row per model; nothing where the release is one model."""
    if not rollout.is_joint:
        return None
    rows = [_row(rollout, part, members) for part in rollout.parts]
    header = ("model", "before", "verdict", "finding", "devices")
    caption = "All of them switch at once, and are committed or taken back together; the worst decides"
    return section("Switches together", rows_table(caption, header, rows))


def update_words(member: Member) -> str:
    """State of a device's own update attempt; of each model where they are several and differ."""
    words = [part.substate.replace("_", " ") or "no report yet" for part in member.parts]
    if len(set(words)) > 1:
        return ", ".join(f"{part.model} {word}" for part, word in zip(member.parts, words, strict=True))
    return words[0] if words else member.substate.replace("_", " ") or "no report yet"


def _row(rollout: Rollout, part: Part, members: Sequence[Member]) -> tuple[Child, ...]:
    stands = [found for member in members if (found := member.part(part.model)) is not None]
    before = sorted({each.previous_version for each in stands if each.previous_version})
    word, finding = _finding(rollout, part.model)
    return (
        release_link(part.model, part.version),
        "unchanged" if before == [part.version] else ", ".join(before) or "none",
        word,
        finding,
        _stand_words(stands),
    )


def _finding(rollout: Rollout, model: str) -> tuple[Markup, str]:
    """Word and sentence of the first of a model's gates that does not hold; the judge put broken ones first."""
    mine: list[GateResult] = [
        gate for gate in (rollout.verdict.gates if rollout.verdict else ()) if gate.model == model
    ]
    open_gates = [gate for gate in mine if gate.holds is not True]
    if not mine:
        return state_word("inconclusive", shown="not judged yet"), "no data"
    if not open_gates:
        return state_word("ok", shown="holds"), f"All {len(mine)} gates of its own hold."
    gate = open_gates[0]
    word = state_word("inconclusive", shown="undecided") if gate.holds is None else state_word("failed", shown="broken")
    return word, gate.sentence.removeprefix(f"{model}: ")


def _stand_words(stands: Sequence[MemberPart]) -> str:
    states = [each.state for each in stands]
    order: list[DeviceState] = list(dict.fromkeys(sorted(states)))
    words = [f"{states.count(state)} {state.value.replace('_', ' ')}" for state in order]
    return f"{plural(len(stands), 'device')}: {', '.join(words)}" if words else "none"
