"""Two versions side by side over a fleet: shares, labels by version, comparison, shadows, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from edgeship.server.arm_comparison import accuracy_of
from edgeship.server.explanation import replayed
from edgeship.server.monitor import Monitor
from edgeship.server.store import incidents, schema
from edgeship.server.store.labels import Labelled
from edgeship_agent.contract.messages import LabelTally, OutcomeTally, ShadowTally
from tests.fleets import MODEL, Fleet, open_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with open_fleet(tmp_path) as fleet:
        fleet.add_devices(per_target=1)
        fleet.install("1.0")
        yield fleet


def labels(fleet: Fleet, version: str, labelled: int, correct: int, **changes: Any) -> tuple[LabelTally, ...]:
    now_s = fleet.clock() + 1.0
    wrong = labelled - correct
    values = {
        "version": version,
        "arm": "main",
        "digest": "sha256:0",
        "labelled": labelled,
        "correct": correct,
        "confusion": ((3, 3, correct), (3, 5, wrong)),
        "confidence_sum_millionths": labelled * 950_000,
        "predicted_from_s": now_s,
        "predicted_until_s": now_s,
    }
    return (LabelTally(**{**values, **changes}),)


def outcome(version: str, arm: str, count: int, total: float, square_total: float) -> tuple[OutcomeTally, ...]:
    tally = OutcomeTally(
        version=version,
        arm=arm,
        digest="sha256:0",
        name="rework_minutes",
        count=count,
        total=total,
        square_total=square_total,
    )
    return (tally,)


def versions(fleet: Fleet, version: str) -> dict[str, dict[str, Any]]:
    rows = fleet.http.get(f"/api/v1/releases/{MODEL}/{version}").json()["versions"]
    return {row["version"]: row for row in rows}


def test_a_share_of_the_traffic_beside_the_version_that_runs(fleet: Fleet) -> None:
    fleet.add_release("1.1")
    rollout = fleet.create("1.1", stages="100%", ab_share=0.2)
    assert "on 20% of the traffic of each" in fleet.show(rollout)["reason"]
    fleet.step()
    goal = fleet.goals[-1].models[0]
    assert [(arm.version, arm.share) for arm in goal.arms] == [("1.0", 0.8), ("1.1", 0.2)]
    for device in fleet.devices.values():
        device.notes["1.0"] = {
            "labels": labels(fleet, "1.0", 30, 27),
            "outcomes": outcome("1.0", "main", 30, 60.0, 150.0),
        }
        device.notes["1.1"] = {
            "labels": labels(fleet, "1.1", 30, 15),
            "outcomes": outcome("1.1", "b", 30, 150.0, 900.0),
        }
    shown = fleet.run(rollout, ["completed"])
    assert set(fleet.versions().values()) == {"1.0"}, "the base goes on"
    compared = {row["name"]: row for row in shown["comparison"]}
    accuracy = compared["accuracy"]
    assert (accuracy["before"], accuracy["after"]) == (0.9, 0.5)
    assert accuracy["high"] < 0
    n = accuracy["n_before"]
    again = accuracy_of([Labelled(labelled=n, correct=n * 9 // 10)], Labelled(labelled=n, correct=n // 2))
    assert (accuracy["low"], accuracy["high"]) == (again.low, again.high)
    assert compared["rework_minutes"]["change"] == pytest.approx(3.0)
    assert compared["rework_minutes"]["low"] > 0
    assert compared["failed_ratio"]["change"] == 0.0
    assert compared["latency_p99_ms"]["after"] > 0
    table = versions(fleet, "1.1")
    assert table["1.0"]["observed"]["accuracy"] == 0.9
    assert table["1.1"]["observed"]["accuracy"] == 0.5
    assert table["1.1"]["observed"]["low"] < 0.5 < table["1.1"]["observed"]["high"]
    assert table["1.1"]["observed"]["coverage"] == pytest.approx(0.3)
    assert table["1.1"]["observed"]["confidence"] == pytest.approx(0.95)
    assert table["1.0"]["outcomes"][0]["mean"] == 2.0
    page = fleet.http.get(f"/releases/{MODEL}/1.1").text
    assert "in the field" in page
    assert "rework minutes: mean 5" in page
    page = fleet.http.get(f"/rollouts/{rollout}").text
    assert "Side by side" in page
    assert "rework minutes" in page


def test_taking_it_back_leaves_the_base_and_promoting_it_leaves_the_challenger(fleet: Fleet) -> None:
    fleet.add_release("1.1")
    first = fleet.create("1.1", stages="100%", ab_share=0.5)
    fleet.run(first, ["completed"])
    assert all(device.beside for device in fleet.devices.values())
    fleet.act(first, "rollback")
    shown = fleet.run(first, ["rolled_back"])
    assert not any(device.beside for device in fleet.devices.values())
    assert set(fleet.versions().values()) == {"1.0"}
    assert "run 1.0 again" in shown["reason"]
    fleet.add_release("1.2")
    fleet.run(fleet.create("1.2", stages="100%", ab_share=0.5), ["completed"])
    promoted = fleet.create("1.2", stages="100%")
    shown = fleet.run(promoted, ["completed"])
    assert set(fleet.versions().values()) == {"1.2"}
    assert not any(device.beside for device in fleet.devices.values())
    assert shown["previous_versions"] == ["1.0"], "a rollback would go to the base"


def test_a_shadow_gets_no_traffic_and_is_told_by_what_it_would_have_said(fleet: Fleet) -> None:
    fleet.add_release("1.1")
    rollout = fleet.create("1.1", stages="100%", shadow_share=0.1)
    fleet.step()
    arms = fleet.goals[-1].models[0].arms
    assert [(arm.version, arm.share, arm.mirror) for arm in arms] == [("1.0", 1.0, 0.0), ("1.1", 0.0, 0.1)]
    seen = ShadowTally(
        version="1.1",
        digest="",
        compared=10,
        disagreed=1,
        failed=0,
        dropped=2,
        error_square_sum=1.0,
        champion_square_sum=100.0,
    )
    for device in fleet.devices.values():
        device.notes["1.0"] = {"shadow": (seen,)}
    shown = fleet.run(rollout, ["completed"])
    compared = {row["name"]: row for row in shown["comparison"]}
    assert compared["disagreement"]["after"] == pytest.approx(0.1)
    assert compared["disagreement"]["low"] < 0.1 < compared["disagreement"]["high"]
    assert compared["relative_rms"]["after"] == pytest.approx(0.1)
    table = versions(fleet, "1.1")
    assert table["1.1"]["shadow"]["dropped"] * 5 == table["1.1"]["shadow"]["n"]
    assert (table["1.1"]["traffic_share"], table["1.0"]["traffic_share"]) == (0.0, 1.0)


def test_a_device_without_a_version_has_nothing_to_share(tmp_path: Path) -> None:
    with open_fleet(tmp_path) as fleet:
        fleet.add_devices(per_target=1)
        fleet.add_release("1.0")
        answer = fleet.http.post("/api/v1/rollouts", json={"model": MODEL, "version": "1.0", "ab_share": 0.5})
        assert answer.status_code in {400, 422}
        assert "runs no version of the model" in answer.text
        wrong = ({"ab_share": 0.0}, {"ab_share": 1.5}, {"shadow_share": -0.1}, {"ab_share": 0.5, "shadow_share": 1.0})
        for body in wrong:
            answer = fleet.http.post("/api/v1/rollouts", json={"model": MODEL, "version": "1.0", **body})
            assert answer.status_code in (400, 422), body


def test_accuracy_that_falls_by_labels_opens_an_incident_with_what_to_retrain_on(fleet: Fleet) -> None:
    monitor = Monitor(fleet.context)
    device = next(iter(fleet.devices.values()))

    def step() -> None:
        fleet.step()
        monitor.touch((device.id, MODEL, "1.0"))
        monitor.step()

    def opened() -> list[Any]:
        with fleet.context.read() as connection:
            return [row for row in incidents.list_incidents(connection) if row.kind == "concept_drift"]

    manifest = fleet.http.get(f"/api/v1/releases/{MODEL}/1.0/edgeship.json").json()
    assert manifest["variants"][0]["metric"]["name"] == "top1"
    good = manifest["variants"][0]["metric"]["value"]
    device.notes["1.0"] = {"labels": labels(fleet, "1.0", 100, round(100 * good))}
    for _ in range(6):
        step()
    assert opened() == []
    device.notes["1.0"] = {"labels": labels(fleet, "1.0", 100, 55)}
    for _ in range(10):
        step()
    [row] = opened()
    assert (row.state, row.device_id) == ("open", device.id)
    assert "a drop of" in row.sentence
    assert row.evidence["retrain"]["windows"]
    worst = row.evidence["retrain"]["classes"][0]
    assert (worst["class"], worst["recall"]) == (5, 0.0), "what was labelled 5 was never predicted as 5"
    assert row.evidence["low"] > row.evidence["limit"]
    explained = fleet.http.get(f"/api/v1/explain/incident/{row.id}").json()
    assert explained["replay"] == replayed(True)
    assert explained["rules"][0]["n"] == row.evidence["labelled"]
    shown = fleet.http.get("/api/v1/drift", params={"device": device.id}).json()["devices"][0]
    assert shown["observed"]["n"] >= 1000
    totals = fleet.http.get(f"/api/v1/devices/{device.id}").json()["totals"]
    assert totals[0]["observed"]["n"] >= 1000
    device.notes["1.0"] = {"labels": labels(fleet, "1.0", 100, round(100 * good))}
    for _ in range(12):
        step()
    assert opened()[0].state == "closed"


def test_labels_are_stored_once_however_often_a_window_comes(fleet: Fleet) -> None:
    device = next(iter(fleet.devices.values()))
    device.notes["1.0"] = {"labels": labels(fleet, "1.0", 10, 9), "label_unknown": 3}
    device.send_window()
    device.window_seq -= 1
    device.send_window()
    with fleet.context.read() as connection:
        rows = connection.execute(select(schema.labels)).all()
    assert [(row.labelled, row.unknown) for row in rows] == [(10, 0), (0, 3)]
    observed = versions(fleet, "1.0")["1.0"]["observed"]
    assert (observed["n"], observed["unknown"]) == (10, 3)
