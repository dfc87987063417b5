"""What pages say about rollouts, devices and the fleet, in words."""

from __future__ import annotations

import pytest
from msgspec import structs

from edgeship.rollout import (
    DeviceEvidence,
    DeviceState,
    DriftFigure,
    RolloutState,
    StageState,
    ThresholdPolicy,
    judge,
)
from edgeship.server.pages import fleet, rollout_page, verdicts
from edgeship.server.pages.queries import Device, Incident, Outbox, Presence, Running
from edgeship.server.store.rollouts import Member, Rollout

POLICY = ThresholdPolicy(soak_s=60.0, latency_p99_ms=10.0)


def evidence(device_id: str, drift: float) -> DeviceEvidence:
    figure = DriftFigure(
        signal="output/class", statistic="js_distance", value=drift, low=drift - 0.05, high=drift + 0.05, n=500
    )
    return DeviceEvidence(
        device_id=device_id,
        stratum="a",
        state=DeviceState.SUCCEEDED,
        windows=5,
        calls=500,
        latency_p99_ms=2.0,
        prediction_drift=figure,
        loaded_digest_matches=True,
    )


def rollout(state: RolloutState, drift: float = 0.02, reason: str = "Waiting: nothing yet") -> Rollout:
    verdict = judge(POLICY, [evidence("cam-1", drift)], elapsed_s=100.0)
    failed = StageState.FAILED if verdict.gates[0].holds is False else StageState.SOAKING
    return Rollout(
        id="r3",
        number=3,
        model="digits",
        version="v3",
        digest="sha256:0",
        policy=POLICY,
        stages=(0.5, 1.0),
        filter={},
        seed=1,
        state=state,
        stage_index=0,
        stage_states=(failed, StageState.PENDING),
        stage_started_s=0.0,
        reason=reason,
        verdict=verdict,
        revision=1,
        created_at_s=0.0,
        updated_at_s=0.0,
    )


def member(device_id: str, **changes: object) -> Member:
    known = Member(rollout_id="r3", device_id=device_id, stage_index=0, stratum="a", state=DeviceState.SUCCEEDED)
    return structs.replace(known, **changes)


STOPPED = (
    RolloutState.HALTED,
    RolloutState.ROLLING_BACK,
    RolloutState.ROLLED_BACK,
    RolloutState.ROLLBACK_INCOMPLETE,
)


@pytest.mark.parametrize("state", STOPPED)
def test_a_halted_rollout_says_what_where_why_with_number_and_limit(state: RolloutState) -> None:
    sentence = verdicts.headline(rollout(state, drift=0.43))
    assert sentence.startswith("digits v3 was halted at stage 1 of 2 (50 %): prediction drift 0.43 ")
    assert "on cam-1 exceeds the limit 0.1" in sentence


def test_a_rollout_that_a_person_took_back_names_their_reason_and_blames_no_gate() -> None:
    sentence = verdicts.headline(rollout(RolloutState.ROLLING_BACK, reason="Rolled back: by operator"))
    assert sentence == "digits v3 was taken back at stage 1 of 2 (50 %): by operator."


def test_the_consequence_counts_only_devices_that_ran_it() -> None:
    had = member("a", activated_at_s=100.0, previous_version="v2")
    words = verdicts.consequence(rollout(RolloutState.ROLLED_BACK, drift=0.43), [had, member("b")], 160.0)
    assert words == "1 device had it for 1 min; every one of them is back on v2. digits v3 is blocked."
    assert (
        verdicts.consequence(rollout(RolloutState.HALTED, drift=0.43), [member("b")], 9.0) == "No device ever ran it."
    )


def test_the_stage_that_was_halted_is_marked_and_the_next_was_never_reached() -> None:
    drawn = verdicts.phases(rollout(RolloutState.ROLLED_BACK, drift=0.43), [member("a")])
    assert [(phase.mark, phase.word) for phase in drawn] == [("failed", "halted"), ("pending", "never reached")]


def test_counting_gates_have_no_place_beside_limits() -> None:
    known = rollout(RolloutState.RUNNING)
    assert known.verdict is not None
    labels = [row.label for row in verdicts.interval_rows(known.verdict.gates)]
    assert "prediction drift" in labels
    assert "traffic" not in labels


def test_a_device_that_went_back_with_the_rollout_is_no_failure_but_one_with_trouble_is() -> None:
    stopped = rollout(RolloutState.ROLLED_BACK, drift=0.43)
    taken = member("fine", state=DeviceState.ROLLED_BACK, substate="committed", previous_version="v2")
    own = member("sick", state=DeviceState.ROLLED_BACK, substate="rolled_back", reason="golden_mismatch")
    view = rollout_page.RolloutView(now_s=0.0, rollout=stopped, members=[taken, own], decisions=[], events=[])
    page = rollout_page.render(view)
    assert "back on v2" in page
    assert "rolled back: golden mismatch" in page
    assert page.count("rolled back: ") == 1


def test_every_state_of_a_rollout_has_a_page() -> None:
    for state in RolloutState:
        known = rollout(state)
        view = rollout_page.RolloutView(now_s=0.0, rollout=known, members=[], decisions=[], events=[])
        assert "digits v3" in rollout_page.render(view)
        unjudged = structs.replace(view, rollout=structs.replace(known, verdict=None))
        assert "no data: the stage has not been judged yet" in rollout_page.render(unjudged)


def device(device_id: str, version: str = "v2", presence: Presence = "online") -> Device:
    running = (Running(model="digits", version=version, digest="sha256:0"),) if version else ()
    return Device(
        id=device_id,
        target="t",
        arch="x86_64",
        isa=(),
        runtimes={},
        tags={},
        agent_version="1",
        presence=presence,
        first_seen_s=0.0,
        last_seen_s=0.0,
        goal_generation=1,
        running=running,
        outbox=Outbox(),
    )


def incident(number: int, kind: str = "data_drift") -> Incident:
    return Incident(
        id=number,
        kind=kind,
        device_id=f"cam-{number}",
        model="digits",
        version="v2",
        state="open",
        severity="alert",
        sentence=f"cam-{number}: moved",
        opened_at_s=float(number),
    )


def view(**changes: object) -> fleet.Fleet:
    empty = fleet.Fleet(now_s=0.0, devices=[device("a"), device("b")], rollouts=[], incidents=[], events=[])
    return structs.replace(empty, **changes)


def test_the_fleet_in_one_sentence() -> None:
    assert fleet.sentence(view()) == "2 devices, all online; digits v2 runs on all; no open incident."
    mixed = view(devices=[device("a"), device("b"), device("c", "v3", "stale"), device("d", "", "offline")])
    assert fleet.sentence(mixed) == (
        "4 devices, 2 online, 1 stale, 1 offline; digits v2 runs on 2 of 4; no open incident."
    )


def test_an_empty_fleet_says_what_to_do_and_counts_nothing() -> None:
    page = fleet.render(view(devices=[]))
    assert "No device has reported yet" in page
    assert "edgeship-agent run" in page


def test_what_needs_a_person_is_ranked_and_never_more_than_five() -> None:
    stopped = rollout(RolloutState.ROLLED_BACK, drift=0.43)
    many = view(
        incidents=[incident(number) for number in range(9)] + [incident(10, "security")],
        rollouts=[stopped],
        devices=[device("a", presence="offline")],
    )
    ranked = fleet.needs(many)
    assert ranked[0].sentence.startswith("cam-10")
    assert ranked[1].state == "rolled_back"
    page = fleet.render(many)
    assert page.count("<li>") - page.count("<time") >= 5
    assert "and 7 more" in page


def test_a_rollout_that_a_newer_one_replaced_needs_nobody() -> None:
    old = rollout(RolloutState.ROLLED_BACK, drift=0.43)
    newer = structs.replace(rollout(RolloutState.COMPLETED), id="r4", number=4)
    assert fleet.needs(view(rollouts=[newer, old])) == []
    assert "nothing needs a person right now" in fleet.render(view(rollouts=[newer, old])).replace("</span>", "")
