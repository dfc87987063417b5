"""Explanations of builds and incidents, recomputed from what was stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgeship.build.schema import BuildDocument, GateReport
from edgeship.cli.explain import explain
from edgeship.server.config import DriftConfig
from edgeship.server.device_reports import on_report
from edgeship.server.monitor import Monitor
from edgeship.statistics import newcombe_paired
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.messages import UpdateReport, UpdateState
from tests.fleets import BROKEN, Fleet, open_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with open_fleet(tmp_path) as fleet:
        yield fleet


def test_an_incident_is_recomputed_from_its_windows(fleet: Fleet) -> None:
    fleet.add_devices(1)
    fleet.install("1.0")
    drift = DriftConfig(reference_windows=3, reference_samples=200, recent_windows=3, alarm_hot=1, alarm_of=1)
    fleet.context.config = msgspec.structs.replace(fleet.context.config, drift=drift)
    device = fleet.devices["litert-0"]
    for _ in range(6):
        device.send_window()
    device.answers["1.0"] = BROKEN
    for _ in range(4):
        device.send_window()
    Monitor(fleet.context).step()
    found = fleet.http.get("/api/v1/explain/incident/1")
    assert found.status_code == 200, found.text
    document = found.json()
    assert document["replay"] == "identical"
    [rule] = document["rules"]
    assert rule["id"] == "prediction_drift"
    assert rule["low"] > rule["limit"]
    assert rule["devices"] == ["litert-0"]
    with fleet.context.write() as connection:
        from sqlalchemy import delete

        from edgeship.server.store import schema

        connection.execute(delete(schema.windows))
    assert fleet.http.get("/api/v1/explain/incident/1").json()["replay"] == "evidence is gone"
    for missing in ("incident/99", "incident/x", "refusal/litert-0/1", "weather/today", "rollout/r99"):
        answer = fleet.http.get(f"/api/v1/explain/{missing}")
        assert answer.status_code == 400
        assert answer.json()["exit_code"] == 2


def test_a_goal_that_a_device_did_not_believe_is_told_and_explained(fleet: Fleet) -> None:
    fleet.add_devices(1)
    refused = UpdateReport(
        protocol_version=1,
        device_id="litert-0",
        deployment="refused-goal",
        attempt=0,
        seq=1,
        model="",
        arm="",
        version="",
        digest="",
        state=UpdateState.REJECTED,
        reason="goal_bad_signature",
        detail="the signature is not by the goal key",
        figures={"refused_goals": 1.0},
    )
    with fleet.context.write() as connection:
        on_report(fleet.context, connection, "litert-0", refused)
        on_report(fleet.context, connection, "litert-0", refused)
    told = [event for event in fleet.http.get("/api/v1/events").json()["events"] if event["kind"] == "goal_refused"]
    assert [event["sentence"] for event in told] == [
        "litert-0 refused a goal state: the signature is not by the goal key"
    ]
    document = fleet.http.get("/api/v1/explain/refusal/litert-0/refused-goal").json()
    assert document["rules"][0]["rule"] == "a goal state is signed with the goal key of the device's configuration"
    assert document["replay"] == "identical"


def gate(name: str, **changes: object) -> GateReport:
    values: dict[str, object] = {
        "id": name, "target": "t", "runtime": "litert", "precision": "int8", "rule": f"{name} ≤ 0.05", "value": 0.02,
        "limit": 0.05, "holds": True, "sentence": "s", **changes,
    }  # fmt: skip
    return GateReport(**values)  # type: ignore[arg-type]


def write_build(folder: Path, *gates: GateReport) -> None:
    document = BuildDocument(verdict="pass", bundle=None, variants=(), gates=gates)
    (folder / "build.json").write_bytes(msgspec.json.encode(document))


def run(subject: str) -> dict[str, object]:
    result = CliRunner().invoke(explain, [subject, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    document = msgspec.json.decode(result.stdout)
    assert isinstance(document, dict)
    return document


def test_a_build_gate_is_recomputed_from_its_counts(tmp_path: Path) -> None:
    cells = {"both": 880.0, "only_source": 4.0, "only_variant": 2.0, "neither": 14.0}
    found = newcombe_paired(*cells.values())
    top1 = gate(
        "top1", rule="top1 drop_high ≤ 0.01", limit=0.01, value=found.drop, low=found.low, high=found.high, n=900,
        evidence=cells, holds=True if found.high <= 0.01 else None, next="more samples",
    )  # fmt: skip
    write_build(tmp_path, top1, gate("relative_rms", evidence={"scores": 0.01}))
    document = run(f"build/top1@{tmp_path}")
    assert document["replay"] == "identical"
    assert document["advice"] == "more samples"
    assert run(f"build/relative_rms@{tmp_path}")["replay"] == "identical"
    write_build(tmp_path, msgspec.structs.replace(top1, low=0.5), gate("relative_rms", value=0.2))
    assert run(f"build/top1@{tmp_path}")["replay"] == "different"
    assert run(f"build/relative_rms@{tmp_path}")["replay"] == "different"


def test_unknown_builds_and_gates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        run(f"build/top1@{tmp_path}")
    write_build(tmp_path, gate("size_bytes"))
    with pytest.raises(ConfigError, match=r"no such gate \(expected size_bytes\)"):
        run(f"build/top1@{tmp_path}")
