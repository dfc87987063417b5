"""Devices that are put out of the fleet: no rollout and no rollback waits for them, and lists say what they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeship.server.identity.authority import Authority
from edgeship.server.identity.members import Members, Places
from edgeship.server.store import identities
from tests.fleets import BROKEN, POLICY, Fleet, open_fleet

PLACES = Places(enrol_url="https://fleet:8444", server_url="https://fleet:8443", broker_url="mqtts://fleet:8883")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with open_fleet(tmp_path) as fleet:
        fleet.add_devices(per_target=1)
        for device_id in fleet.devices:
            let_in(fleet, device_id)
        yield fleet


def let_in(fleet: Fleet, device_id: str) -> None:
    now_s = fleet.clock()
    with fleet.context.write() as connection:
        identities.add(connection, {
            "device_id": device_id, "state": identities.ACTIVE, "key_sha256": device_id, "csr": "", "certificate": "",
            "serial": "", "target": "", "tags": {}, "invitation": "e1", "requested_at_s": now_s, "changed_at_s": now_s,
            "expires_at_s": now_s + 86400.0,
        })  # fmt: skip


def put_out(fleet: Fleet, *device_ids: str) -> None:
    context = fleet.context
    members = Members(context, Authority.open(context.data, context.clock), PLACES, lambda _: None)
    for device_id in device_ids:
        assert members.revoke(device_id) == 1
        fleet.devices[device_id].online = False


def states(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {device["id"]: (device["state"], device["reason"]) for device in document["devices"]}


def test_a_rollback_does_not_wait_for_a_device_that_had_succeeded_and_was_put_out(fleet: Fleet) -> None:
    fleet.install("1.0")
    second = fleet.install("2.0")
    put_out(fleet, "litert-0")
    assert fleet.act(second, "rollback").status_code == 200
    document = fleet.run(second, ["rolled_back"], limit=5)
    assert document["reason"].endswith(
        "Rolled back: all 2 devices that had it run 1.0 again; 1 device that had it was put out of the fleet"
    )
    assert states(document)["litert-0"] == ("succeeded", "put out of the fleet")
    assert states(document)["openvino-0"] == ("rolled_back", "runs 1.0 again")
    # let in again, it takes what it was to have
    let_in(fleet, "litert-0")
    device = fleet.devices["litert-0"]
    device.connect()
    fleet.step()
    assert fleet.versions()["litert-0"] == "1.0"


def test_a_rollback_that_was_incomplete_ends_when_the_missing_device_is_put_out(fleet: Fleet) -> None:
    first = fleet.install("1.0")
    fleet.devices["litert-0"].online = False
    assert fleet.act(first, "rollback").status_code == 200
    fleet.step(calls=0)
    fleet.step(61.0, calls=0)
    document = fleet.show(first)
    assert document["state"] == "rollback_incomplete"
    assert "1 of 3 devices have not confirmed it: litert-0" in document["reason"]
    put_out(fleet, "litert-0")
    fleet.run(first, ["rolled_back"], limit=3, calls=0)


def test_a_rollback_of_nobody_who_is_left_ends_and_says_so(fleet: Fleet) -> None:
    first = fleet.install("1.0")
    put_out(fleet, *fleet.devices)
    assert fleet.act(first, "rollback").status_code == 200
    document = fleet.run(first, ["rolled_back"], limit=3)
    assert document["reason"].endswith("Rolled back: 3 devices that had it were put out of the fleet")


@pytest.mark.parametrize("state", ["queued", "succeeded"])
def test_a_rollout_that_nobody_is_left_in_is_aborted(fleet: Fleet, state: str) -> None:
    fleet.add_release("2.0")
    rollout = fleet.create("2.0", stages="100%")
    if state != "queued":
        fleet.step(calls=0)
        fleet.step(calls=0)
    found = states(fleet.show(rollout))
    assert {name for name, _ in found.values()} == {state}
    put_out(fleet, *sorted(found)[:-1])
    fleet.step(calls=0)
    assert fleet.show(rollout)["state"] == "running", "one of them is left"
    put_out(fleet, max(found))
    document = fleet.run(rollout, ["aborted"], limit=2, calls=0)
    assert document["reason"] == "Aborted: nobody is left in it, all 3 devices were put out of the fleet"
    assert set(states(document).values()) == {("removed", "put out of the fleet")}
    explained = fleet.http.get(f"/api/v1/explain/rollout/{rollout}").json()
    assert f"aborted: {document['reason']}" in explained["history"]
    # who is let in again has what it had, and the model is free for the next rollout
    returned = fleet.devices[min(found)]
    let_in(fleet, returned.id)
    returned.connect()
    returned.follow()
    returned.heartbeat()
    assert fleet.versions()[returned.id] == ""
    fleet.create("2.0", stages="100%")


def test_a_paused_rollout_that_nobody_is_left_in_is_aborted(fleet: Fleet) -> None:
    fleet.add_release("1.0")
    rollout = fleet.create("1.0", stages="100%")
    assert fleet.act(rollout, "pause").status_code == 200
    put_out(fleet, *states(fleet.show(rollout)))
    assert fleet.run(rollout, ["aborted"], limit=2, calls=0)["ended_at_s"] is not None


def test_who_was_put_out_is_in_no_rollout_and_holds_up_no_verdict(fleet: Fleet) -> None:
    put_out(fleet, "litert-0")
    fleet.add_release("2.0")
    rollout = fleet.create("2.0", stages="100%", policy={**POLICY, "min_windows": 1})
    assert set(states(fleet.show(rollout))) == {"onnxruntime-0", "openvino-0"}
    fleet.step(calls=0)
    fleet.step(calls=0)
    put_out(fleet, "openvino-0")  # it has the version, and has not sent a window
    assert states(fleet.show(rollout))["openvino-0"] == ("removed", "put out of the fleet")
    document = fleet.run(rollout, ["completed"], limit=20)
    assert states(document)["onnxruntime-0"][0] == "succeeded"


def test_a_bad_version_is_taken_back_from_who_returns_too(fleet: Fleet) -> None:
    """It was put out while it had the version; the halt comes afterwards, its return later still."""
    fleet.install("1.0")
    fleet.add_release("3.0")
    for device in fleet.devices.values():
        device.answers["3.0"] = BROKEN
    rollout = fleet.create("3.0", stages="100%")
    fleet.step(calls=0)
    fleet.step(calls=0)
    put_out(fleet, "litert-0")
    fleet.run(rollout, ["rolled_back"])
    let_in(fleet, "litert-0")
    fleet.devices["litert-0"].connect()
    fleet.step(calls=0)
    assert set(fleet.versions().values()) == {"1.0"}


def test_lists_say_who_was_put_out(fleet: Fleet) -> None:
    from edgeship.cli import devices as command

    put_out(fleet, "litert-0")
    listed = {device["id"]: device for device in fleet.http.get("/api/v1/devices").json()["devices"]}
    assert {name for name, device in listed.items() if device["revoked"]} == {"litert-0"}
    assert fleet.http.get("/api/v1/devices/litert-0").json()["revoked"] is True
    assert command._presence(listed["litert-0"]) == "✖ revoked"
    assert command._presence(listed["openvino-0"]) == "✔ online"
    page = fleet.http.get("/devices").text
    assert page.count("revoked") == 1
    assert "1 revoked" in fleet.http.get("/").text
    let_in(fleet, "litert-0")
    assert fleet.http.get("/api/v1/devices/litert-0").json()["revoked"] is False
