"""A rollout in four lines, as an operator reads it."""

from __future__ import annotations

from typing import Any

import pytest

from edgeship.cli.rollout_lines import ENDED, STATES, status_lines
from edgeship.rollout import RolloutState

NOW_S = 1_795_000_000.0
HALTED: dict[str, Any] = {
    "id": "r42",
    "model": "mobilenet",
    "version": "1.4",
    "previous_versions": ["1.3"],
    "state": "rolled_back",
    "stages": [0.05, 0.2, 0.5, 1.0],
    "stage_states": ["passed", "failed", "pending", "pending"],
    "stage_index": 1,
    "reason": "Halted at stage 2: p99 latency in ms 12.1 on pi-7 exceeds the limit 10",
    "ended_at_s": NOW_S,
    "devices": [
        {"id": "pi-7", "state": "rolled_back", "activated_at_s": NOW_S - 2460.0},
        {"id": "pi-8", "state": "canceled", "activated_at_s": None},
    ],
}


def test_a_halted_rollout_says_what_how_far_why_and_what_next() -> None:
    head, rail, why, following = status_lines(HALTED, NOW_S)
    assert head.startswith("r42 mobilenet 1.3→1.4   ✖ ROLLED BACK ")
    assert head.endswith("(automatic)   fleet healthy on 1.3")
    assert rail == "5 % ✔ ── 20 % ✖ ── 50 % ── 100 %      1 device had it for 41 min"
    assert why == "why   Halted at stage 2: p99 latency in ms 12.1 on pi-7 exceeds the limit 10"
    assert following == "next  edgeship explain rollout/r42"


@pytest.mark.parametrize("state", list(RolloutState))
def test_every_state_has_a_word_and_a_next_step(state: RolloutState) -> None:
    lines = status_lines({**HALTED, "state": state.value, "ended_at_s": None}, NOW_S)
    assert STATES[state.value][1] in lines[0]
    assert lines[-1].startswith("next  edgeship ")


def test_watching_ends_wherever_nothing_moves_without_a_person() -> None:
    still = {state.value for state in RolloutState if not state.is_active} | {"paused"}
    assert set(ENDED) == still


def test_nobody_has_had_it_yet() -> None:
    running = {**HALTED, "state": "running", "ended_at_s": None, "devices": HALTED["devices"][1:]}
    assert status_lines(running, NOW_S)[1].endswith("no device has had it yet")
