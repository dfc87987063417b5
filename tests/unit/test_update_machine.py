"""The update table: every step it has, and none that it must not have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship_agent.contract.errors import IllegalTransition
from edgeship_agent.contract.goal import Probation
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.update.machine import (
    MAX_TRANSITIONS,
    TABLE,
    Event,
    Restart,
    breaks_loop,
    can_cancel,
    on_restart,
    transition,
)
from edgeship_agent.update.probation import Observation, Outcome, judge_probation

S = UpdateState


def test_the_good_way() -> None:
    state = S.IDLE
    for event in (Event.ACCEPT, Event.BEGIN, *[Event.PASS] * 6):
        state = transition(state, event)
    assert state is S.COMMITTED


def test_terminal_states_absorb() -> None:
    for state in S:
        if state.is_terminal:
            assert not [event for event in Event if (state, event) in TABLE]


def test_every_state_but_the_ends_leads_to_an_end() -> None:
    ends = {state for state in S if state.is_terminal}
    for _ in range(len(S)):
        ends |= {state for (state, _), following in TABLE.items() if following in ends}
    assert ends == set(S)


def test_cancel_and_supersede_up_to_shadow_only() -> None:
    early = {S.ACCEPTED, S.PRECHECK, S.DOWNLOADING, S.VERIFYING, S.STAGED, S.WAIT_WINDOW, S.SHADOW}
    assert {state for state in S if can_cancel(state)} == early
    for state in (S.ACTIVATING, S.PROBATION, S.ROLLING_BACK):
        with pytest.raises(IllegalTransition, match=state.value):
            transition(state, Event.CANCEL)


def test_nothing_is_activated_without_verification() -> None:
    before_activating = {state for (state, event), following in TABLE.items() if following is S.ACTIVATING}
    assert before_activating == {S.STAGED, S.SHADOW}
    assert {state for (state, _), following in TABLE.items() if following is S.STAGED} == {S.VERIFYING, S.WAIT_WINDOW}


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (S.ACCEPTED, Restart.REDO),
        (S.PRECHECK, Restart.REDO),
        (S.DOWNLOADING, Restart.REDO),
        (S.VERIFYING, Restart.REHASH),
        (S.STAGED, Restart.REHASH),
        (S.ACTIVATING, Restart.READ_POINTER),
        (S.PROBATION, Restart.COUNT_CRASH),
        (S.ROLLING_BACK, Restart.REPEAT_ROLLBACK),
        (S.COMMITTED, Restart.REPORT_AGAIN),
        (S.REJECTED, Restart.REPORT_AGAIN),
    ],
)
def test_restart_table(state: UpdateState, action: Restart) -> None:
    assert on_restart(state) is action


def test_loop_breaker_never_stops_a_rollback() -> None:
    assert breaks_loop(S.DOWNLOADING, MAX_TRANSITIONS) is None
    assert breaks_loop(S.DOWNLOADING, MAX_TRANSITIONS + 1) is Event.FAIL
    assert breaks_loop(S.ROLLING_BACK, 10_000) is None
    for state in S:
        event = breaks_loop(state, MAX_TRANSITIONS + 1)
        assert event is None or (state, event) in TABLE


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_walks_stay_in_the_table(events: list[Event]) -> None:
    state = S.IDLE
    for event in events:
        if (state, event) in TABLE:
            state = transition(state, event)
        else:
            with pytest.raises(IllegalTransition):
                transition(state, event)


LIMITS = Probation(inferences=100, duration_s=10.0, deadline_s=60.0, max_failed_ratio=0.01, latency_p99_ms=5.0)


@pytest.mark.parametrize(
    ("seen", "elapsed_s", "outcome", "reason"),
    [
        (Observation(inferences=100, latency_p99_ms=4.0), 10.0, Outcome.COMMIT, ""),
        (Observation(inferences=99), 59.0, Outcome.WAIT, ""),
        (Observation(inferences=100), 9.9, Outcome.WAIT, ""),
        (Observation(inferences=99), 60.0, Outcome.REPLAY, ""),
        (Observation(inferences=0), 60.0, Outcome.REPLAY, ""),
        (Observation(inferences=5, failures=1), 1.0, Outcome.WAIT, ""),
        (Observation(inferences=5, failures=2), 1.0, Outcome.FAIL, "failed_calls"),
        (Observation(inferences=500, failures=5), 20.0, Outcome.COMMIT, ""),
        (Observation(inferences=500, failures=6), 20.0, Outcome.FAIL, "failed_calls"),
        (Observation(inferences=100, latency_p99_ms=5.1), 20.0, Outcome.FAIL, "latency"),
        (Observation(inferences=10, latency_p99_ms=50.0), 20.0, Outcome.WAIT, ""),
        (Observation(crashes=2), 1.0, Outcome.WAIT, ""),
        (Observation(crashes=3), 1.0, Outcome.FAIL, "crash_loop"),
        (Observation(inferences=100, hard_stops=("nan_output",)), 20.0, Outcome.FAIL, "nan_output"),
    ],
)
def test_probation(seen: Observation, elapsed_s: float, outcome: Outcome, reason: str) -> None:
    verdict = judge_probation(LIMITS, seen, elapsed_s)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)
