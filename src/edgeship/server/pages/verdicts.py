"""A rollout in words: what happened to it, why, with the number and the limit, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeship.charts import IntervalRow, Phase, Unit
from edgeship.charts.rail import PhaseMark
from edgeship.rollout import DeviceState, GateResult, RolloutState, StageState
from edgeship.server.pages.words import duration, plural
from edgeship.server.store.rollouts import Member, Rollout

_STOPPED: Final = frozenset(
    {RolloutState.HALTED, RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK, RolloutState.ROLLBACK_INCOMPLETE}
)
#: Gates that count what has been seen so far: the more the better, so they have no place beside limits.
_COUNTING: Final = frozenset({"traffic", "arrivals"})
#: Judged by their count, so an interval beside the limit would tell another story.
_COUNTED: Final = frozenset({"failed_devices"})
_UNITS: Final[dict[str, Unit]] = {
    "failed_calls": "fraction",
    "failed_increase": "fraction",
    "failed_devices": "fraction",
    "latency_p99_ms": "ms",
    "crashes": "count",
    "hard_stops": "count",
}
_LABELS: Final = {
    "failed_calls": "failed calls",
    "failed_increase": "rise of failed calls",
    "failed_devices": "failed devices",
    "latency_p99_ms": "latency p99",
    "latency_ratio": "latency p99 ÷ before",
    "prediction_drift": "prediction drift",
    "data_drift": "data drift",
    "hard_stops": "hard stops",
}
_MARKS: Final[dict[StageState, PhaseMark]] = {
    StageState.PENDING: "pending",
    StageState.OFFERING: "active",
    StageState.SOAKING: "active",
    StageState.JUDGING: "active",
    StageState.PASSED: "passed",
    StageState.FAILED: "failed",
    StageState.INCONCLUSIVE: "paused",
}


def broken_gate(rollout: Rollout) -> GateResult | None:
    """The gate that halted it: the worst one, or None where none is broken."""
    gates = rollout.verdict.gates if rollout.verdict else ()
    return next((gate for gate in gates if gate.holds is False), None)


def headline(rollout: Rollout) -> str:
    """The first sentence of a rollout's page: what, where, why, with the number and the limit."""
    name, where = f"{rollout.model} {rollout.version}", stage_words(rollout)
    gate = broken_gate(rollout)
    if rollout.state in _STOPPED:
        why = _without_details(gate.sentence) if gate else without_word(rollout.reason)
        word = "was halted at" if gate else "was taken back at"
        return f"{name} {word} {where}: {why}."
    if rollout.state is RolloutState.COMPLETED:
        return f"{name} passed every stage: {without_word(rollout.reason)}."
    if rollout.state is RolloutState.ABORTED:
        return f"{name} was aborted at {where}: {without_word(rollout.reason)}."
    if rollout.state is RolloutState.PAUSED:
        return f"{name} is paused at {where}: {without_word(rollout.reason)}."
    waiting = rollout.verdict.sentence if rollout.verdict else rollout.reason
    return f"{name} is {rollout.state.value.replace('_', ' ')} at {where}: {without_word(waiting) or 'no verdict yet'}."


def consequence(rollout: Rollout, members: Sequence[Member], now_s: float) -> str:
    """The second sentence: how far it went, and what the fleet runs now."""
    had = [member for member in members if member.activated_at_s is not None]
    if rollout.state not in _STOPPED:
        return ""
    if not had:
        return "No device ever ran it."
    first = min(member.activated_at_s or now_s for member in had)
    length = duration((rollout.ended_at_s or now_s) - first)
    reached = f"{plural(len(had), 'device')} had it for {length}"
    previous = sorted({member.previous_version for member in had if member.previous_version})
    target = " and ".join(previous) if previous else "no model"
    if rollout.state is RolloutState.ROLLED_BACK:
        return f"{reached}; every one of them is back on {target}. {rollout.model} {rollout.version} is blocked."
    if rollout.state is RolloutState.ROLLBACK_INCOMPLETE:
        return f"{reached}; not every one has confirmed that it is back on {target}."
    return f"{reached}; they are going back to {target}."


def stage_words(rollout: Rollout) -> str:
    """Which stage it is at: ``stage 1 of 2 (50 %)``."""
    share = rollout.stages[min(rollout.stage_index, len(rollout.stages) - 1)]
    return f"stage {rollout.stage_index + 1} of {len(rollout.stages)} ({percent_words(share)})"


def percent_words(share: float) -> str:
    """A share of the fleet.

    >>> percent_words(0.2), percent_words(0.125)
    ('20 %', '12.5 %')
    """
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def phases(rollout: Rollout, members: Sequence[Member]) -> list[Phase]:
    """The stages for the phase rail, with how many devices each has."""
    drawn = []
    for index, (share, state) in enumerate(zip(rollout.stages, rollout.stage_states, strict=True)):
        count = sum(member.stage_index == index for member in members)
        word, mark = state.value, _MARKS[state]
        if state is StageState.FAILED or (index == rollout.stage_index and rollout.state in _STOPPED):
            word, mark = "halted", "failed"
        elif index == rollout.stage_index and rollout.state is RolloutState.PAUSED:
            word, mark = "paused", "paused"
        elif index > rollout.stage_index and not rollout.state.is_active and mark == "pending":
            word = "never reached"
        drawn.append(Phase(label=percent_words(share), word=word, mark=mark, detail=plural(count, "device")))
    return drawn


def rail_words(rollout: Rollout) -> str:
    """The stages as text: ``50 % ✖ ─ 100 % ○``."""
    glyphs = {"passed": "✔", "active": "●", "failed": "✖", "paused": "▲", "pending": "○"}
    return " ─ ".join(f"{phase.label} {glyphs[phase.mark]}" for phase in phases(rollout, ()))


def interval_rows(gates: Sequence[GateResult]) -> list[IntervalRow]:
    """Every gate with a limit as a row of the interval chart; broken ones come first, as the judge ordered them."""
    return [
        IntervalRow(
            label=gate_name(gate),
            value=gate.value,
            low=None if gate.id in _COUNTED else gate.low,
            high=None if gate.id in _COUNTED else gate.high,
            limit=gate.limit,
            holds=gate.holds,
            unit=_UNITS.get(gate.id, ""),
            n=gate.n,
            level_percent=gate.level_percent,
        )
        for gate in gates
        if gate.id not in _COUNTING
    ]


def gate_label(gate_id: str) -> str:
    """A gate's name for people.

    >>> gate_label("latency_p99_ms"), gate_label("never_seen")
    ('latency p99', 'never seen')
    """
    return _LABELS.get(gate_id, gate_id.replace("_", " "))


def gate_name(gate: GateResult) -> str:
    """A gate's name for people, with the model that it is about where there are several."""
    return f"{gate_label(gate.id)}, {gate.model}" if gate.model else gate_label(gate.id)


def verdict_finding(rollout: Rollout) -> str:
    """What the interval chart says."""
    if rollout.verdict is None:
        return "The stage has not been judged yet."
    gates = rollout.verdict.gates
    broken = sum(gate.holds is False for gate in gates)
    undecided = sum(gate.holds is None for gate in gates)
    if not broken and not undecided:
        return f"All {len(gates)} gates hold."
    return f"{broken} of {len(gates)} gates {'is' if broken == 1 else 'are'} broken, {undecided} undecided."


def _without_details(sentence: str) -> str:
    """A finding without the signal and statistic in brackets at its end; they stand below, with the gates."""
    return sentence.partition(" [")[0]


def was_taken_back(rollout: Rollout, member: Member) -> bool:
    """Whether a device had no trouble of its own and only went back together with the rollout."""
    own = member.substate in {"committed", ""}
    return rollout.state in _STOPPED and member.state is DeviceState.ROLLED_BACK and own


def without_word(sentence: str) -> str:
    """A verdict without the word that the page says itself (``Halted: …``), and without its full stop.

    >>> without_word("Halted: too slow.")
    'too slow'
    """
    for word in ("Halted: ", "Paused: ", "Waiting: ", "Promoted: ", "Completed: ", "Aborted: ", "Rolled back: "):
        sentence = sentence.removeprefix(word)
    return sentence.rstrip(".")
