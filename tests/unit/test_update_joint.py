"""What comes next for a release: every pair of states, records that were torn apart, and what a goal may ask."""

from __future__ import annotations

import itertools

import pytest
from msgspec import structs

from edgeship_agent.contract.goal import ArmGoal, ModelGoal
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.joint import (
    RELEASE_MEMBER,
    Work,
    begins_anew,
    can_be_taken_back,
    cause_of,
    ending_of,
    is_wanted,
    missing_from,
    next_work,
    refusal_of,
    shared_reason,
    starts_of,
    waits_for,
)
from edgeship_agent.update.machine import Event, can_cancel, transition

S = UpdateState


def goal(model: str, **changes: object) -> ModelGoal:
    arm = ArmGoal(version="2", digest=f"sha256:{model}", size_bytes=7)
    return ModelGoal(**{"model": model, "arms": (arm,), "deployment": "d", "release": "line@2", **changes})


def pair(ear: UpdateState, eye: UpdateState, *, ear_seq: int = 5, eye_seq: int = 6) -> list[Attempt]:
    first, second = starts_of([goal("ear"), goal("eye")])
    return [structs.replace(first, state=ear, seq=ear_seq), structs.replace(second, state=eye, seq=eye_seq)]


@pytest.mark.parametrize(
    ("ear", "eye", "work"),
    [
        (S.ACCEPTED, S.ACCEPTED, Work.PREPARE),
        (S.STAGED, S.DOWNLOADING, Work.PREPARE),
        (S.STAGED, S.WAIT_WINDOW, Work.PREPARE),
        (S.STAGED, S.STAGED, Work.BEGIN),
        (S.ACTIVATING, S.STAGED, Work.BEGIN),  # torn: one record of two was written
        (S.ACTIVATING, S.ACTIVATING, Work.SWITCH),
        (S.PROBATION, S.ACTIVATING, Work.SWITCH),  # torn
        (S.PROBATION, S.PROBATION, Work.PROVE),
        (S.COMMITTED, S.COMMITTED, Work.DONE),
        (S.ROLLING_BACK, S.PROBATION, Work.TURN_BACK),  # torn
        (S.ROLLING_BACK, S.ACTIVATING, Work.TURN_BACK),
        (S.ROLLING_BACK, S.ROLLING_BACK, Work.RESTORE),
        (S.ROLLED_BACK, S.ROLLING_BACK, Work.RESTORE),  # torn
        (S.INCONSISTENT, S.ROLLING_BACK, Work.RESTORE),
        (S.REJECTED, S.STAGED, Work.END),
        (S.STAGED, S.FAILED_CLEAN, Work.END),
        (S.CANCELED, S.DOWNLOADING, Work.END),
        (S.REJECTED, S.FAILED_CLEAN, Work.DONE),
        (S.FAILED_CLEAN, S.ACTIVATING, Work.TURN_BACK),  # torn, and the second look found damage
    ],
)
def test_the_least_advanced_decides(ear: UpdateState, eye: UpdateState, work: Work) -> None:
    assert next_work(pair(ear, eye)) is work
    assert next_work(pair(eye, ear)[::-1]) is work


def test_one_that_was_committed_after_both_went_on_probation_had_the_other_beside_it() -> None:
    assert next_work(pair(S.COMMITTED, S.PROBATION, ear_seq=7, eye_seq=6)) is Work.COMMIT
    # committed long before: it ran already, or belongs to an earlier run of the same attempt
    assert next_work(pair(S.COMMITTED, S.PROBATION, ear_seq=2, eye_seq=6)) is Work.PROVE
    assert next_work(pair(S.COMMITTED, S.STAGED, ear_seq=7, eye_seq=6)) is Work.BEGIN


def test_no_pair_of_states_switches_or_commits_one_without_the_other() -> None:
    """Whatever two records say: what is done next suits every attempt that is under way, or ends it."""
    steps = {
        Work.BEGIN: ({S.STAGED}, Event.PASS),
        Work.SWITCH: ({S.ACTIVATING}, Event.PASS),
        Work.PROVE: ({S.PROBATION}, Event.PASS),
        Work.COMMIT: ({S.PROBATION}, Event.PASS),
        Work.RESTORE: ({S.ROLLING_BACK}, Event.PASS),
    }
    for ear, eye in itertools.product([state for state in S if state is not S.IDLE], repeat=2):
        work = next_work(pair(ear, eye))
        under_way = [state for state in (ear, eye) if not state.is_terminal]
        assert (work is Work.DONE) == (not under_way)
        if work in steps:
            states, event = steps[work]
            assert states & set(under_way)
            for state in states & set(under_way):
                transition(state, event)
            assert not any(can_cancel(state) for state in under_way) or work is Work.BEGIN
        if work is Work.END:
            for state in under_way:
                assert transition(state, Event.FAIL) is S.FAILED_CLEAN
                assert transition(state, Event.CANCEL) is S.CANCELED
                assert transition(state, Event.SUPERSEDE) is S.SUPERSEDED
        if can_be_taken_back(pair(ear, eye)):
            assert all(can_cancel(state) for state in under_way)


def test_the_others_end_for_the_reason_of_the_one_at_fault() -> None:
    ear, eye = pair(S.STAGED, S.REJECTED)
    eye = structs.replace(eye, reason="golden_mismatch", detail="off by 3")
    cause = cause_of([ear, eye])
    assert cause is eye
    said = shared_reason(cause)
    assert said == {"reason": RELEASE_MEMBER, "detail": "eye 2 of the same release: golden_mismatch: off by 3"}
    assert ending_of(cause) is Event.FAIL
    assert ending_of(structs.replace(eye, state=S.CANCELED)) is Event.CANCEL
    assert ending_of(structs.replace(eye, state=S.SUPERSEDED)) is Event.SUPERSEDE
    assert cause_of([structs.replace(ear, state=S.FAILED_CLEAN, **said), ear]) is None
    assert shared_reason(None)["reason"] == RELEASE_MEMBER


def test_a_staged_model_says_what_it_waits_for() -> None:
    ear, eye = pair(S.VERIFYING, S.ACCEPTED)
    assert waits_for([ear, eye], ear) == "waits for eye of the release line@2"
    assert waits_for([ear, structs.replace(eye, state=S.STAGED)], ear) == ""
    alone = structs.replace(ear, release="", members=())
    assert waits_for([alone], alone) == ""


def test_any_member_tells_who_is_missing() -> None:
    ear, eye = starts_of([goal("ear"), goal("eye")])
    under_way = structs.replace(ear, state=S.STAGED, seq=9, previous_digest="sha256:old", previous_version="1")
    assert missing_from([under_way]) == [eye]
    assert missing_from([under_way, eye]) == []


def test_what_cannot_be_followed_is_said() -> None:
    assert refusal_of([goal("ear"), goal("eye")]) == ("", "")
    half = ArmGoal(version="1", digest="sha256:x", size_bytes=1, share=0.5)
    other = ArmGoal(version="2", digest="sha256:y", size_bytes=1, share=0.5)
    assert refusal_of([goal("ear"), goal("eye", arms=(half, other))])[0] == "arms_unsupported"
    assert refusal_of([goal("ear"), goal("eye", arms=(half,))])[0] == "arms_unsupported"
    assert refusal_of([goal("ear"), goal("ear")])[0] == "bad_release"
    assert refusal_of([goal("ear"), goal("eye", attempt=2)])[0] == "bad_release"
    assert refusal_of([goal("ear", release="", arms=(half, other))]) == ("", ""), "arms of a model alone"


@pytest.mark.parametrize(
    ("ear", "eye", "may"),
    [
        (S.ACCEPTED, S.ACCEPTED, True),
        (S.STAGED, S.DOWNLOADING, True),
        (S.COMMITTED, S.STAGED, True),  # it ran already
        (S.ACTIVATING, S.STAGED, False),  # torn: the switch was decided
        (S.PROBATION, S.PROBATION, False),
        (S.REJECTED, S.DOWNLOADING, False),  # it ends anyway, and for that reason
    ],
)
def test_a_release_is_taken_back_before_the_line_and_as_a_whole(ear: UpdateState, eye: UpdateState, may: bool) -> None:
    assert can_be_taken_back(pair(ear, eye)) is may
    assert can_be_taken_back(pair(eye, ear)) is may


def test_a_release_is_wanted_as_it_is_or_not_at_all() -> None:
    goals = [goal("ear"), goal("eye")]
    ear, eye = starts_of(goals)
    other = ArmGoal(version="3", digest="sha256:other", size_bytes=7)
    assert is_wanted(ear, goals)
    assert is_wanted(eye, goals[::-1]), "whatever the order"
    assert not is_wanted(ear, [goal("ear")]), "the other is gone"
    assert not is_wanted(ear, [goal("ear"), goal("eye", arms=(other,))]), "the other is another"
    assert not is_wanted(ear, [goal("ear"), goal("eye", arms=(other,), release="")])
    assert not is_wanted(ear, [*goals, goal("nose")])
    assert not is_wanted(ear, [goal("ear", attempt=2), goal("eye", attempt=2)])
    assert not is_wanted(ear, [goal("ear"), goal("eye", attempt=2)]), "what cannot be followed asks for nothing"
    assert not is_wanted(ear, [])
    (alone,) = starts_of([goal("ear", release="")])
    assert not is_wanted(structs.replace(alone, members=()), goals)


@pytest.mark.parametrize(
    ("state", "reason", "anew"),
    [
        (S.SUPERSEDED, "superseded", True),
        (S.CANCELED, RELEASE_MEMBER, True),
        (S.ROLLED_BACK, RELEASE_MEMBER, True),
        (S.REJECTED, "golden_mismatch", False),  # a fault of its own stays one
        (S.COMMITTED, "", False),
        (S.STAGED, "", False),
    ],
)
def test_what_ended_for_others_begins_anew_without_them(state: UpdateState, reason: str, anew: bool) -> None:
    ended = structs.replace(starts_of([goal("ear"), goal("eye")])[0], state=state, reason=reason)
    assert begins_anew(ended, starts_of([goal("ear")])[0]) is anew
    assert not begins_anew(ended, starts_of([goal("eye"), goal("ear")])[1]), "with the same, the server counts on"
