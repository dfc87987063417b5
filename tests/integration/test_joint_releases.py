"""Models that switch together: joined, rolled out under one verdict, taken back as one, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeship_agent.contract.goal import GoalState
from edgeship_agent.contract.messages import UpdateState
from tests import fleets
from tests.fleets import BROKEN, Fleet, open_fleet

POLICY = {**fleets.POLICY, "soak_s": 2.0}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with open_fleet(tmp_path) as fleet:
        fleet.add_devices(per_target=1)
        for model, version in (("detector", "d1"), ("reader", "r1")):
            fleet.add_release(version, model)
        yield fleet


def join(fleet: Fleet, version: str, *members: str, name: str = "gate") -> Any:
    body = {"name": name, "version": version, "members": list(members)}
    return fleet.http.post("/api/v1/releases/join", json=body)


def joined(fleet: Fleet, version: str, *members: str) -> dict[str, Any]:
    answer = join(fleet, version, *members)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()["release"]
    return document


def refused(answer: Any) -> str:
    assert answer.status_code == 400, answer.text
    assert isinstance(answer.text, str)
    return answer.text


def asked(fleet: Fleet, model: str, version: str, **options: Any) -> Any:
    body = {"model": model, "version": version, "policy": POLICY, "seed": 7, "stages": "100%", **options}
    return fleet.http.post("/api/v1/rollouts", json=body)


def roll_out(fleet: Fleet, version: str, until: str, **options: Any) -> dict[str, Any]:
    answer = asked(fleet, "gate", version, **options)
    assert answer.status_code == 201, answer.text
    return fleet.run(answer.json()["id"], [until])


def loaded(fleet: Fleet) -> set[tuple[str, ...]]:
    """What devices have loaded, in words; one entry where all have the same."""
    return {
        tuple(f"{model} {version}" for model, (version, _) in sorted(device.loaded.items()))
        for device in fleet.devices.values()
    }


def newest_goals(fleet: Fleet) -> list[GoalState]:
    return list({goal.device_id: goal for goal in fleet.goals}.values())


def test_joining_names_what_is_wrong(fleet: Fleet) -> None:
    missing = refused(join(fleet, "1.0", "detector@d1", "reader@r9", "writer@w1"))
    assert "no such release: reader@r9, writer@w1" in missing
    assert "detector@d1" in missing
    assert "detector twice" in refused(join(fleet, "1.0", "detector@d1", "detector@d1"))
    assert "nothing to join" in refused(join(fleet, "1.0", "detector@d1"))
    assert "MODEL@VERSION" in refused(join(fleet, "1.0", "detector@d1", "reader"))
    assert "a model has this name" in refused(join(fleet, "1.0", "detector@d1", "reader@r1", name="reader"))
    assert "not a name" in refused(join(fleet, "1@0", "detector@d1", "reader@r1"))
    first = joined(fleet, "1.0", "reader@r1", "detector@d1")
    assert [part["model"] for part in first["parts"]] == ["detector", "reader"]
    again = join(fleet, "1.0", "detector@d1", "reader@r1").json()
    assert (again["created"], again["release"]) == (False, first)
    fleet.add_release("r2", "reader")
    changed = join(fleet, "1.0", "detector@d1", "reader@r2")
    assert "a version never changes" in changed.text
    assert changed.json()["exit_code"] == 1
    with pytest.raises(AssertionError, match="a joint release has this name"):
        fleet.add_release("1.0", "gate")
    listed = fleet.http.get("/api/v1/releases", params={"model": "detector"}).json()
    assert [each["name"] for each in listed["joint"]] == ["gate"]
    shown = fleet.http.get("/api/v1/releases/gate/1.0").json()
    assert [each["version"] for each in shown["members"]] == ["d1", "r1"]


def test_all_models_go_out_in_one_goal_and_only_together(fleet: Fleet) -> None:
    joined(fleet, "1.0", "detector@d1", "reader@r1")
    rollout = roll_out(fleet, "1.0", "completed")
    for goal in newest_goals(fleet):
        assert [(each.model, each.arms[0].version) for each in goal.models] == [("detector", "d1"), ("reader", "r1")]
        assert {(each.release, each.deployment, each.attempt) for each in goal.models} == {("gate@1.0", "r1", 1)}
    assert loaded(fleet) == {("detector d1", "reader r1")}
    assert rollout["reason"].startswith("Completed") or "2 models" in rollout["reason"]
    assert "3 devices for each of 2 models" in rollout["reason"]
    by_model = {gate["model"] for gate in rollout["verdict"]["gates"]}
    assert by_model == {"", "detector", "reader"}
    fleet.add_release("r2", "reader")
    joined(fleet, "2.0", "detector@d1", "reader@r2")
    second = roll_out(fleet, "2.0", "completed")
    assert loaded(fleet) == {("detector d1", "reader r2")}, "the detector did not change and was ready at once"
    assert second["previous_versions"] == ["1.0"]
    alone = refused(asked(fleet, "reader", "r1"))
    assert "reader changes only together with detector there: it runs gate 2.0" in alone
    assert "detector 1.0" not in alone
    page = fleet.http.get("/rollouts/r2").text
    assert "Switches together" in page
    assert "unchanged" in page
    assert "All 4 gates of its own hold." in page
    for path in ("/releases", "/releases/gate/2.0", "/releases/reader/r2", "/", "/devices/onnxruntime-0"):
        answer = fleet.http.get(path)
        assert answer.status_code == 200, path
        assert "gate" in answer.text or path.startswith("/devices")


def test_one_model_that_is_wrong_takes_all_of_them_back(fleet: Fleet) -> None:
    joined(fleet, "1.0", "detector@d1", "reader@r1")
    roll_out(fleet, "1.0", "completed")
    fleet.add_release("r2", "reader")
    fleet.add_release("d2", "detector")
    joined(fleet, "2.0", "detector@d2", "reader@r2")
    for device in fleet.devices.values():
        device.answers["r2"] = BROKEN
    halted = roll_out(fleet, "2.0", "rolled_back")
    assert loaded(fleet) == {("detector d1", "reader r1")}
    assert "reader: prediction drift" in halted["reason"]
    assert "detector:" not in halted["reason"]
    assert "run 1.0 again" in halted["reason"]
    for goal in newest_goals(fleet):
        back = [(each.model, each.arms[0].version, each.is_rollback, each.release) for each in goal.models]
        assert back == [("detector", "d1", True, "gate@1.0"), ("reader", "r1", True, "gate@1.0")]
    releases = fleet.http.get("/api/v1/releases").json()
    assert {each["version"]: each["state"] for each in releases["joint"]} == {"2.0": "blocked", "1.0": "available"}
    assert {each["state"] for each in releases["releases"]} == {"available"}, "in other company they may be right"
    assert "the release is blocked" in refused(asked(fleet, "gate", "2.0"))
    explained = fleet.http.get("/api/v1/explain/rollout/r2").json()
    assert explained["replay"] == "identical"
    assert explained["rules"][0]["model"] == "reader"
    assert explained["rules"][0]["holds"] is False
    page = fleet.http.get("/rollouts/r2").text
    assert "prediction drift, reader" in page


def test_a_device_that_refuses_one_model_refuses_the_release(fleet: Fleet) -> None:
    joined(fleet, "1.0", "detector@d1", "reader@r1")
    device = fleet.devices["onnxruntime-0"]
    device.refuse, device.refuse_model = "memory", "reader"
    fleet.step()
    rollout = roll_out(fleet, "1.0", "paused", policy={**POLICY, "judge_timeout_s": 8.0})
    stands = next(each for each in rollout["devices"] if each["id"] == device.id)
    assert (stands["state"], stands["reason"]) == ("rejected", "reader: memory")
    assert {part["model"]: part["reason"] for part in stands["parts"]} == {
        "detector": "release_member",
        "reader": "memory",
    }
    assert "onnxruntime-0 refused it (reader: memory)" in rollout["reason"]
    why = fleet.http.get(f"/api/v1/explain/refusal/{device.id}/{rollout['id']}").json()
    assert why["rules"][0]["id"] == "memory", "the sibling only followed"
    assert device.loaded == {}


def test_what_was_never_joined_goes_back_as_it_was(fleet: Fleet) -> None:
    joined(fleet, "1.0", "detector@d1", "reader@r1")
    assert asked(fleet, "detector", "d1").status_code == 201
    fleet.run("r1", ["completed"])
    rollout = roll_out(fleet, "1.0", "completed")
    fleet.act(rollout["id"], "rollback")
    taken = fleet.run(rollout["id"], ["rolled_back"])
    assert loaded(fleet) == {("detector d1",)}, "there was no reader before"
    assert taken["previous_versions"] == ["detector d1"]
    assert {each.release for goal in newest_goals(fleet) for each in goal.models} == {""}
    fleet.add_release("d2", "detector")
    assert asked(fleet, "detector", "d2").status_code == 201, "and each model is free again"


def test_two_that_ran_alone_are_free_again_after_the_way_back(fleet: Fleet) -> None:
    for number, (model, version) in enumerate((("detector", "d1"), ("reader", "r1")), start=1):
        assert asked(fleet, model, version).status_code == 201
        fleet.run(f"r{number}", ["completed"])
    fleet.add_release("d2", "detector")
    fleet.add_release("r2", "reader")
    joined(fleet, "2.0", "detector@d2", "reader@r2")
    rollout = roll_out(fleet, "2.0", "completed")
    assert rollout["previous_versions"] == ["detector d1 and reader r1"]
    fleet.act(rollout["id"], "rollback")
    fleet.run(rollout["id"], ["rolled_back"])
    assert loaded(fleet) == {("detector d1", "reader r1")}
    labels = {each.release for goal in newest_goals(fleet) for each in goal.models}
    assert labels == {"gate@before 2.0"}, "they go back by one switch"
    assert asked(fleet, "detector", "d2").status_code == 201


@pytest.mark.parametrize("together", [True, False])
def test_what_a_later_rollout_went_back_to_can_be_taken_back_too(fleet: Fleet, together: bool) -> None:
    """The second version came back when the third was taken back; then the second is taken back."""
    for number in (1, 2, 3):
        if number > 1:
            fleet.add_release(f"r{number}", "reader")
        if together:
            joined(fleet, f"{number}.0", "detector@d1", f"reader@r{number}")
        wanted = ("gate", f"{number}.0") if together else ("reader", f"r{number}")
        assert asked(fleet, *wanted).status_code == 201
        fleet.run(f"r{number}", ["completed"])
    for number in (3, 2):
        fleet.act(f"r{number}", "rollback")
        fleet.run(f"r{number}", ["rolled_back"])
        assert {device.loaded["reader"][0] for device in fleet.devices.values()} == {f"r{number - 1}"}


def test_what_is_refused_of_a_joint_release(fleet: Fleet) -> None:
    joined(fleet, "1.0", "detector@d1", "reader@r1")
    assert "switches as one" in refused(asked(fleet, "gate", "1.0", ab_share=0.5))
    assert "switches as one" in refused(asked(fleet, "gate", "1.0", shadow_share=0.5))
    fleet.devices["onnxruntime-0"].stop_at = UpdateState.STAGED
    running = asked(fleet, "gate", "1.0").json()["id"]
    assert asked(fleet, "gate", "1.0").json()["id"] == running, "the very same request is that rollout again"
    assert f"{running} of reader is running" in refused(asked(fleet, "reader", "r1"))
    fleet.add_release("w1", "writer")
    assert join(fleet, "1.0", "reader@r1", "writer@w1", name="desk").status_code == 201
    assert f"{running} of reader is running" in refused(asked(fleet, "desk", "1.0"))
    fleet.act(running, "abort")


def test_a_blocked_model_blocks_what_holds_it(fleet: Fleet) -> None:
    joined(fleet, "1.0", "detector@d1", "reader@r1")
    rollout = asked(fleet, "reader", "r1").json()["id"]
    fleet.step()
    fleet.act(rollout, "rollback", reason="it reads 8 as 3")
    blocked = fleet.http.get("/api/v1/releases/gate/1.0").json()
    assert blocked["state"] == "blocked"
    assert blocked["blocked_by"] == rollout
    assert "it holds reader r1, which is blocked" in blocked["blocked_reason"]
    assert "it reads 8 as 3" in refused(asked(fleet, "gate", "1.0"))
    assert "a blocked release cannot be joined: reader r1" in refused(join(fleet, "1.1", "detector@d1", "reader@r1"))
    assert "blocked" in fleet.http.get("/releases/gate/1.0").text
