"""Staged rollouts over a real database: stages, gates that fail closed, halts, rollbacks, operators, restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship_agent.contract.messages import UpdateState
from tests.fleets import BROKEN, MODEL, POLICY, Fleet, open_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with open_fleet(tmp_path) as fleet:
        fleet.add_devices()
        yield fleet


def states(document: dict[str, object]) -> dict[str, str]:
    devices = document["devices"]
    assert isinstance(devices, list)
    return {device["id"]: device["state"] for device in devices}


def test_a_good_version_goes_to_a_canary_of_each_runtime_and_then_to_all(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("2.0")
    rollout = fleet.create("2.0", stages="20%,100%")
    fleet.step()
    fleet.step()
    canaries = [name for name, version in fleet.versions().items() if version == "2.0"]
    assert sorted(name.split("-")[0] for name in canaries) == ["litert", "onnxruntime", "openvino"]
    document = fleet.run(rollout, ["completed"])
    assert set(fleet.versions().values()) == {"2.0"}
    assert document["stage_states"] == ["passed", "passed"]
    assert document["reason"].startswith("Promoted at stage 2: every gate holds on 6 devices")
    assert document["previous_versions"] == ["1.0"]


def test_a_bad_version_is_halted_and_rolled_back_everywhere_it_went(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("3.0")
    for device in fleet.devices.values():
        device.answers["3.0"] = BROKEN
    rollout = fleet.create("3.0")
    document = fleet.run(rollout, ["rolled_back"])
    assert set(fleet.versions().values()) == {"1.0"}
    assert document["stage_states"] == ["failed", "pending"]
    assert document["reason"].startswith("Halted at stage 1: ")
    assert "output/class" in document["reason"]
    assert "exceeds the limit 0.1 (3 of 3 devices)" in document["reason"]
    assert "all 3 devices that had it run 1.0 again" in document["reason"]
    reached = {device["id"] for device in document["devices"] if device["activated_at_s"] is not None}
    assert len(reached) == 3
    assert set(states(document).values()) == {"rolled_back", "canceled"}
    release = fleet.http.get(f"/api/v1/releases/{MODEL}/3.0").json()
    assert release["state"] == "blocked"
    assert release["blocked_by"] == rollout
    again = fleet.http.post("/api/v1/rollouts", json={"model": MODEL, "version": "3.0"})
    assert again.status_code == 400
    assert "blocked" in again.json()["error"]
    last = {goal.device_id: goal for goal in fleet.goals}
    for device_id in reached:
        [model] = last[device_id].models
        assert model.is_rollback
        assert model.arms[0].version == "1.0"


def test_generations_only_grow(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("3.0")
    for device in fleet.devices.values():
        device.answers["3.0"] = BROKEN
    fleet.run(fleet.create("3.0"), ["rolled_back"])
    newest: dict[str, int] = {}
    for goal in fleet.goals:
        assert goal.generation >= newest.get(goal.device_id, 0)
        newest[goal.device_id] = goal.generation
    assert max(newest.values()) == 3


def test_no_data_pauses_and_never_promotes(fleet: Fleet) -> None:
    fleet.add_release("1.0")
    rollout = fleet.create("1.0")
    document = fleet.run(rollout, ["paused"], limit=90, calls=0)
    assert document["stage_states"][0] == "inconclusive"
    assert document["reason"].startswith("Paused undecided after")
    assert fleet.act(rollout, "resume").status_code == 200
    assert fleet.run(rollout, ["completed"])["stage_states"] == ["passed", "passed"]


def test_a_commit_without_field_traffic_is_no_pass(fleet: Fleet) -> None:
    fleet.add_release("1.0")
    for device in fleet.devices.values():
        device.stop_at = UpdateState.PROBATION
    rollout = fleet.create("1.0", stages="100%")
    fleet.step()
    fleet.step()
    for device in fleet.devices.values():
        assert device.goal is not None
        [goal] = device.goal.models
        marked = device.report(goal, UpdateState.COMMITTED, loaded=goal.arms[0].digest)
        import msgspec

        fleet.tell(msgspec.structs.replace(marked, seq=marked.seq + 1, without_field_traffic=True))
    document = fleet.run(rollout, ["paused", "completed"], limit=90)
    assert document["state"] == "paused"
    assert "without field traffic" in document["reason"]


def test_failed_calls_and_crashes_halt(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("2.0")
    rollout = fleet.create("2.0")
    fleet.step()
    fleet.step(calls=0)
    canary = next(d for d in fleet.devices.values() if d.loaded[MODEL][0] == "2.0")
    canary.send_window(100, crashes=2)
    document = fleet.run(rollout, ["rolled_back"])
    assert document["reason"].startswith(f"Halted at stage 1: 2 worker crashes: 2 on {canary.id}")


def test_a_golden_mismatch_on_one_device_halts_and_is_explained(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("2.0")
    for device in fleet.devices.values():
        device.refuse = "golden_mismatch"
    rollout = fleet.create("2.0")
    document = fleet.run(rollout, ["rolled_back"])
    assert "golden mismatch" in document["reason"]
    device = next(each["id"] for each in document["devices"] if each["offered_at_s"])
    for attempt in (f"{rollout}.1", rollout, "1", ""):
        found = fleet.http.get(f"/api/v1/explain/refusal/{device}/{attempt}").json()
        assert found["replay"] == "identical"
        assert found["rules"][0]["id"] == "golden_mismatch"
        assert "golden inputs" in found["rules"][0]["rule"]


def test_every_verdict_replays_from_its_stored_evidence(fleet: Fleet) -> None:
    good = fleet.install("1.0")
    fleet.add_release("3.0")
    for device in fleet.devices.values():
        device.answers["3.0"] = BROKEN
    bad = fleet.create("3.0")
    live = fleet.http.get(f"/api/v1/explain/rollout/{bad}").json()
    assert live["replay"] == "not decided yet"
    fleet.run(bad, ["rolled_back"])
    for rollout in (good, bad):
        found = fleet.http.get(f"/api/v1/explain/rollout/{rollout}").json()
        assert found["replay"] == "identical"
        assert found["rules"]
        assert found["window"].startswith(tuple("123456789"))
    drift = fleet.http.get(f"/api/v1/explain/rollout/{bad}/prediction_drift").json()
    [rule] = drift["rules"]
    assert rule["holds"] is False
    assert rule["low"] > rule["limit"] == 0.1
    assert len(rule["devices"]) == 3
    missing = fleet.http.get(f"/api/v1/explain/rollout/{bad}/nonsense")
    assert missing.status_code == 400


def test_offline_devices_are_pending_until_they_return(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("3.0")
    for device in fleet.devices.values():
        device.answers["3.0"] = BROKEN
    rollout = fleet.create("3.0")
    fleet.step()
    fleet.step(calls=0)
    gone = next(d for d in fleet.devices.values() if d.loaded[MODEL][0] == "3.0")
    gone.online = False
    with fleet.context.write() as connection:
        from edgeship.server.store import devices

        devices.save_offline(connection, gone.id)
    document = fleet.run(rollout, ["rollback_incomplete"], limit=120)
    assert f"1 of 3 devices have not confirmed it: {gone.id}" in document["reason"]
    waiting = next(device for device in document["devices"] if device["id"] == gone.id)
    assert waiting["reason"] == "offline: takes the rollback when it returns"
    gone.connect()
    document = fleet.run(rollout, ["rolled_back"])
    assert fleet.versions()[gone.id] == "1.0"
    assert document["reason"].count("Rolled back: ") == 1


def test_a_server_restart_in_the_middle_goes_on_from_the_database(tmp_path: Path) -> None:
    with open_fleet(tmp_path) as fleet:
        fleet.add_devices()
        fleet.install("1.0")
        fleet.add_release("2.0")
        rollout = fleet.create("2.0")
        fleet.step()
        fleet.step()
        before = fleet.show(rollout)
        devices, clock, profile = fleet.devices, fleet.clock, fleet.profile_hash
    with open_fleet(tmp_path, clock) as fleet:
        fleet.devices, fleet.profile_hash = devices, profile
        for device in devices.values():
            device.fleet = fleet
            device.connect()
        after = fleet.show(rollout)
        assert states(after) == states(before)
        assert fleet.run(rollout, ["completed"])["stage_states"] == ["passed", "passed"]
        assert set(fleet.versions().values()) == {"2.0"}


def test_a_first_install_that_is_bad_leaves_no_model(fleet: Fleet) -> None:
    fleet.add_release("1.0")
    for device in fleet.devices.values():
        device.answers["1.0"] = BROKEN
    document = fleet.run(fleet.create("1.0"), ["rolled_back"])
    assert set(fleet.versions().values()) == {""}
    assert "run no version of it" in document["reason"]


def test_pause_resume_abort_and_rollback_by_an_operator(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("2.0")
    rollout = fleet.create("2.0")
    fleet.step()
    fleet.step()
    paused = fleet.act(rollout, "pause", by="ada", reason="lunch").json()
    assert paused["state"] == "paused"
    assert paused["reason"] == "Paused by ada: lunch"
    for _ in range(10):
        fleet.step()
    assert fleet.show(rollout)["state"] == "paused"
    assert list(fleet.versions().values()).count("2.0") == 3
    stale = fleet.act(rollout, "resume", revision=paused["revision"] - 1)
    assert stale.status_code == 422
    assert "changed meanwhile" in stale.json()["error"]
    assert fleet.act(rollout, "resume", revision=paused["revision"]).status_code == 200
    assert fleet.act(rollout, "resume").status_code == 409
    aborted = fleet.act(rollout, "abort").json()
    assert aborted["state"] == "aborted"
    assert list(fleet.versions().values()).count("2.0") == 3
    assert fleet.act(rollout, "rollback", by="ada").status_code == 200
    fleet.run(rollout, ["rolled_back"])
    assert set(fleet.versions().values()) == {"1.0"}
    assert fleet.act(rollout, "rollback").status_code == 409


def test_abort_gives_devices_on_the_way_back_what_they_had(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("2.0")
    for device in fleet.devices.values():
        device.stop_at = UpdateState.DOWNLOADING
    rollout = fleet.create("2.0")
    fleet.step()
    fleet.step()
    document = fleet.act(rollout, "abort").json()
    assert set(states(document).values()) == {"canceled"}
    fleet.step()
    assert all(
        device.goal is not None and device.goal.models[0].arms[0].version == "1.0" for device in fleet.devices.values()
    )


def test_a_completed_rollout_can_be_taken_back(fleet: Fleet) -> None:
    fleet.install("1.0")
    second = fleet.install("2.0")
    assert fleet.act(second, "rollback", reason="users complain").status_code == 200
    document = fleet.run(second, ["rolled_back"])
    assert set(fleet.versions().values()) == {"1.0"}
    assert document["reason"].startswith("Rolled back by operator: users complain. ")


def test_late_joiners_come_with_the_last_stage(fleet: Fleet) -> None:
    fleet.add_release("1.0")
    rollout = fleet.create("1.0")
    fleet.step()
    from tests.fleets import Device

    late = fleet.devices["litert-9"] = Device(fleet, "litert-9", "x86-64-litert", "litert")
    late.connect()
    fleet.step()
    fleet.step()
    [row] = [device for device in fleet.show(rollout)["devices"] if device["id"] == "litert-9"]
    assert row["stage_index"] == 1
    assert late.loaded == {}
    fleet.run(rollout, ["completed"])
    assert late.loaded[MODEL][0] == "1.0"


def test_a_device_with_an_open_incident_is_no_canary(fleet: Fleet) -> None:
    from edgeship.server.store import incidents
    from edgeship.server.store.incidents import NewIncident

    fleet.add_release("1.0")
    with fleet.context.write() as connection:
        for device_id in ("litert-0", "openvino-1"):
            new = NewIncident(
                kind="data_drift", device_id=device_id, model=MODEL, version="0", severity="alert", sentence="s",
                evidence={},
            )  # fmt: skip
            incidents.open_incident(connection, new, 0.0)
    rollout = fleet.create("1.0")
    canaries = {device["id"] for device in fleet.show(rollout)["devices"] if device["stage_index"] == 0}
    assert {"litert-1", "openvino-0"} <= canaries
    assert len(canaries) == 3


def test_devices_without_a_variant_and_those_that_run_it_are_told_apart(fleet: Fleet) -> None:
    from tests.fleets import Device

    fleet.install("1.0")
    odd = fleet.devices["pi-0"] = Device(fleet, "pi-0", "raspberry-pi-5", "litert")
    odd.connect()
    fresh = fleet.devices["litert-8"] = Device(fleet, "litert-8", "x86-64-litert", "litert")
    fresh.connect()
    rollout = fleet.create("1.0", stages="100%")
    found = states(fleet.show(rollout))
    assert found["pi-0"] == "no_variant"
    assert found["litert-8"] == "queued"
    assert list(found.values()).count("already_running") == 6
    fleet.run(rollout, ["completed"])
    assert odd.loaded == {}


def test_a_device_that_runs_something_else_later_is_a_regression(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("2.0")
    rollout = fleet.create("2.0")
    fleet.step()
    fleet.step(calls=0)
    canary = next(d for d in fleet.devices.values() if d.loaded[MODEL][0] == "2.0")
    canary.loaded[MODEL] = ("1.0", "sha256:" + "0" * 64)
    document = fleet.run(rollout, ["rolled_back", "rolling_back"])
    assert "regressed" in document["reason"]


def test_repeated_and_late_reports_change_nothing(fleet: Fleet) -> None:
    fleet.install("1.0")
    device = fleet.devices["litert-0"]
    before = fleet.show("r1")
    for report in device.reports:
        fleet.tell(report)
    assert fleet.show("r1") == before


def test_what_cannot_be_rolled_out_is_refused_in_words(fleet: Fleet) -> None:
    def refused(**body: object) -> str:
        answer = fleet.http.post("/api/v1/rollouts", json={"model": MODEL, "version": "1.0", **body})
        assert answer.status_code == 400, answer.text
        assert answer.json()["exit_code"] == 2
        return str(answer.json()["error"])

    assert "no such release" in refused()
    fleet.add_release("1.0")
    assert "percentage" in refused(stages="20")
    assert "unknown field" in refused(policy={"max_drfit": 0.1})
    assert "no device has site=moon" in refused(filter={"site": "moon"})
    fleet.create("1.0")
    assert "r1 of the same model is running" in refused()
    assert fleet.create("1.0") == "r1"  # the very same request: its answer may have been lost
    assert "r1 of the same model is running" in refused(policy=POLICY, seed=8)


def test_a_dry_run_lists_device_and_digest_and_stores_nothing(fleet: Fleet) -> None:
    bundle = fleet.add_release("1.0")
    body = {"model": MODEL, "version": "1.0", "filter": {"site": "a"}}
    document = fleet.http.post("/api/v1/rollouts/preview", json=body).json()
    digests = {file.digest for each in bundle.manifest.variants for file in each.files if file.role == "model"}
    assert {device["device_id"] for device in document["devices"]} == {"litert-0", "onnxruntime-0", "openvino-0"}
    assert {device["model_digest"] for device in document["devices"]} == digests
    assert fleet.http.get("/api/v1/rollouts").json()["rollouts"] == []


def test_an_unreached_device_is_no_failure_and_a_silent_one_is(fleet: Fleet) -> None:
    fleet.install("1.0")
    fleet.add_release("2.0")
    never = fleet.devices["litert-0"]
    never.online = False
    rollout = fleet.create("2.0", stages="100%", policy={"soak_s": 5.0, "offer_timeout_s": 20.0, "min_windows": 2})
    silent = fleet.devices["openvino-0"]
    silent.stop_at = UpdateState.PROBATION
    fleet.step()
    fleet.step()
    silent.online = False
    document = fleet.run(rollout, ["rolling_back"], limit=40)
    found = states(document)
    assert found["litert-0"] == "offline_unreached"
    assert "openvino-0 lost after activate" in document["reason"]
