"""The tables: every step that exists, and that nothing else does."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.rollout import (
    DeviceEvent,
    DeviceState,
    RolloutEvent,
    RolloutState,
    StageEvent,
    StageState,
    deadline_event,
    device_event,
    device_transition,
    rollout_transition,
    stage_transition,
)
from edgeship_agent.contract.errors import IllegalTransition
from edgeship_agent.contract.messages import UpdateState


def reachable(start, events, step):
    seen, new = {start}, [start]
    while new:
        state = new.pop()
        for event in events:
            try:
                after = step(state, event)
            except IllegalTransition:
                continue
            if after not in seen:
                seen.add(after)
                new.append(after)
    return seen


def test_every_state_can_be_reached():
    assert reachable(RolloutState.DRAFT, RolloutEvent, rollout_transition) == set(RolloutState)
    assert reachable(StageState.PENDING, StageEvent, stage_transition) == set(StageState)
    assert reachable(DeviceState.QUEUED, DeviceEvent, device_transition) == set(DeviceState)


@pytest.mark.parametrize(
    "path",
    [
        "draft validate validated start running complete completed",
        "draft validate validated ask_approval waiting_approval deny denied",
        "draft validate validated schedule scheduled start running pause paused resume running",
        "running halt halted roll_back rolling_back restored rolled_back",
        "running halt halted roll_back rolling_back rollback_deadline rollback_incomplete restored rolled_back",
        "paused halt halted",
        "running abort aborted roll_back rolling_back",
        "completed roll_back rolling_back",
    ],
)
def test_paths_of_a_rollout(path):
    words = path.split()
    state = RolloutState(words[0])
    for event, expected in zip(words[1::2], words[2::2], strict=True):
        state = rollout_transition(state, RolloutEvent(event))
        assert state.value == expected


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("halted", "resume"),
        ("halted", "complete"),
        ("rolling_back", "resume"),
        ("rolled_back", "start"),
        ("aborted", "resume"),
        ("denied", "start"),
        ("paused", "complete"),
        ("completed", "halt"),
    ],
)
def test_a_rollout_that_was_stopped_does_not_go_on(state, event):
    with pytest.raises(IllegalTransition, match="cannot"):
        rollout_transition(RolloutState(state), RolloutEvent(event))


def test_a_stage_passes_only_from_judging():
    for state in set(StageState) - {StageState.JUDGING}:
        with pytest.raises(IllegalTransition):
            stage_transition(state, StageEvent.PROMOTE)
    assert stage_transition(StageState.PASSED, StageEvent.REGRESS) is StageState.JUDGING


def test_terminal_states_absorb_reports():
    reports = [device_event(state, digest_matches=True) for state in UpdateState]
    for state in DeviceState:
        if state.is_pending or state in (DeviceState.OFFLINE_UNREACHED, DeviceState.SUCCEEDED):
            continue
        for event in reports:
            assert device_transition(state, event) is state


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.sampled_from(list(UpdateState)), max_size=12))
def test_a_doubled_report_changes_nothing(reports):
    once = twice = DeviceState.OFFERED
    for report in reports:
        event = device_event(report, digest_matches=True)
        once = device_transition(once, event)
        twice = device_transition(device_transition(twice, event), event)
    assert once is twice


def test_a_success_is_taken_back_when_another_digest_is_seen():
    assert device_transition(DeviceState.SUCCEEDED, DeviceEvent.WRONG_DIGEST) is DeviceState.REGRESSED
    assert DeviceState.REGRESSED.is_failure
    committed_something_else = device_event(UpdateState.COMMITTED, digest_matches=False)
    assert device_transition(DeviceState.IN_PROGRESS, committed_something_else) is DeviceState.FAILED


def test_silence_means_what_came_before_it():
    assert deadline_event(heard_since_offer=False, activated=False) is DeviceEvent.UNREACHED
    unreached = device_transition(DeviceState.OFFERED, DeviceEvent.UNREACHED)
    assert not unreached.is_failure and not unreached.is_reached
    lost = device_transition(DeviceState.IN_PROGRESS, deadline_event(heard_since_offer=True, activated=True))
    assert lost is DeviceState.LOST_AFTER_ACTIVATE and lost.is_failure
    stuck = device_transition(DeviceState.OFFERED, deadline_event(heard_since_offer=True, activated=False))
    assert stuck is DeviceState.TIMED_OUT and stuck.is_failure


def test_a_device_that_comes_back_late_is_heard():
    assert device_transition(DeviceState.OFFLINE_UNREACHED, DeviceEvent.PROGRESS) is DeviceState.IN_PROGRESS
