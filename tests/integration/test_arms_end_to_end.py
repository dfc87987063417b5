"""Server, broker, agent and command line together: a share of the traffic, labels, the comparison, the way back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents import Traffic, until
from tests.conformance.slots import images
from tests.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.mark.slow
def test_a_share_of_the_traffic_from_the_command_line_to_the_answers_and_back(world: World) -> None:
    until(lambda: world.server.get("devices")["devices"], 60.0, "the device")
    world.release("1")
    first = world.roll_out("1")
    with Traffic(world.agent) as traffic:
        world.ends(first, "completed")
        world.release("2", seed_scale=1.5)
        second = world.roll_out("2", "--ab", "50%")
        until(lambda: traffic.versions.count("2") > 20, 60.0, "answers of version 2")
        with world.agent.client() as client:
            for index, sample in enumerate(images(80)):
                answer = client.infer(sample, split_key=f"line-{index}")
                predicted = int(answer.outputs["scores"].argmax())
                # version 2 is wrong whenever it is asked, by what the application says
                assert client.label(answer.prediction_id, predicted if answer.version == "1" else (predicted + 1) % 10)
                assert client.outcome("rework_minutes", float(answer.version), answer.prediction_id)

        def compared() -> dict[str, Any] | None:
            rows = {row["name"]: row for row in world.server.get(f"rollouts/{second}")["comparison"]}
            accuracy = rows["accuracy"]
            return rows if accuracy["n_before"] + accuracy["n_after"] == 80 else None

        rows = until(compared, 60.0, "all labels at the server")
        assert rows is not None
        assert (rows["accuracy"]["before"], rows["accuracy"]["after"]) == (1.0, 0.0)
        assert (rows["rework_minutes"]["before"], rows["rework_minutes"]["after"]) == (1.0, 2.0)
        world.ends(second, "completed")
        said = world.edgeship("rollouts", "status", second)
        assert "accuracy 100.0%→0.0% (-100.0%, 95 %" in said
        shown = world.edgeship("releases", "show", "digits", "2")
        assert "outcome     2 rework_minutes: mean 2" in shown
        assert "0.0% (" in shown
        device = world.ask("devices", "show", "bench-1")
        assert {arm["arm"]: arm["version"] for arm in device["running"]} == {"main": "1", "b": "2"}
        assert {total["version"]: total["observed"]["accuracy"] for total in device["totals"]} == {"1": 1.0, "2": 0.0}
        world.edgeship("rollouts", "rollback", second, "--reason", "it is worse")
        world.ends(second, "rolled_back")
        begun = len(traffic.versions)
        until(lambda: len(traffic.versions) > begun + 100, 30.0, "traffic")
        assert set(traffic.versions[begun + 5 :]) == {"1"}
    assert not traffic.errors


@pytest.mark.slow
def test_a_shadow_keeps_to_the_budget_of_its_rollout(world: World) -> None:
    until(lambda: world.server.get("devices")["devices"], 60.0, "the device")
    world.release("1")
    first = world.roll_out("1")
    with Traffic(world.agent) as traffic:
        world.ends(first, "completed")
        world.release("2", seed_scale=1.5)
        world.release("3", seed_scale=1.25)
        small = world.roll_out("2", "--shadow", "100%", "--shadow-memory-bytes", "1000000")
        until(lambda: world.server.get(f"rollouts/{small}")["state"] == "rolled_back", 120.0, "the budget to be missed")
        said = world.edgeship("rollouts", "status", small)
        assert "hard stop: shadow memory on bench-1" in said
        explained = world.edgeship("explain", f"rollout/{small}")
        assert "shadow memory on bench-1" in explained
        enough = world.roll_out(
            "3", "--shadow", "100%", "--shadow-cpu-ratio", "0.001", "--shadow-memory-bytes", str(4 * 10**9)
        )
        assert (
            "within 0.1% of a processor's time and 4000 MB of memory"
            in world.server.get(f"rollouts/{enough}")["reason"]
        )
        until(lambda: shadow_of(world, "3", "dropped") > 50, 60.0, "inputs beyond the processor's time")
        assert shadow_of(world, "3", "n") > 0
    assert set(traffic.versions) == {"1"}
    assert not traffic.errors


def shadow_of(world: World, version: str, figure: str) -> float:
    rows = {row["version"]: row for row in world.server.get(f"releases/digits/{version}")["versions"]}
    return float(rows[version]["shadow"][figure]) if rows[version]["shadow"] else 0.0
