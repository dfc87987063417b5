"""``edgeship rollouts abort`` end to end: a download under way ends on the device, and nothing of it stays."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents import Traffic, until
from tests.world import World

#: Bytes of a model that takes half a minute at the speed that the device allows itself.
_MODEL_BYTES, _SPEED_BYTES_PER_S = 9_000_000, 300_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, update=f"max_bytes_per_s = {_SPEED_BYTES_PER_S}\n")
    until(lambda: world.server.get("devices")["devices"], 60.0, "the device")
    yield world
    world.close()


def kept(world: World) -> set[str]:
    """All that the device keeps of bundles: blobs and parts of blobs, slots, signed targets."""
    state = world.agent.state
    own = {"journal", "run", "state.json", "telemetry", "tuf"}
    found = (path.relative_to(state) for path in state.rglob("*") if path.is_file() or path.is_symlink())
    return {str(path) for path in found if path.parts[0].split(".")[0] not in own and "outbox" not in path.name}


def is_loading(world: World) -> bool:
    return any(path.stat().st_size > _SPEED_BYTES_PER_S for path in (world.agent.state / "store" / "partial").glob("*"))


def abort_while_it_loads(world: World, version: str) -> None:
    """Roll out a version that loads slowly, take it back meanwhile, and hold what everybody says against it."""
    world.release(version, model_bytes=os.urandom(_MODEL_BYTES))
    rollout = world.roll_out(version)
    until(lambda: is_loading(world), 60.0, "the download")
    begun_s = time.monotonic()
    said = world.edgeship("rollouts", "abort", rollout, "--reason", "wrong file")
    assert "aborted" in said.lower()

    def told() -> dict[str, Any] | None:
        document = world.server.get(f"rollouts/{rollout}")
        [device] = document["devices"]
        return document if device["substate"] == "canceled" else None

    document = until(told, 20.0, "the device's own word")
    assert time.monotonic() - begun_s < _MODEL_BYTES / _SPEED_BYTES_PER_S, "it was not loaded to its end first"
    assert document is not None
    assert document["state"] == "aborted"
    assert document["devices"][0]["state"] == "canceled"
    shown = world.edgeship("rollouts", "status", rollout)
    assert "wrong file" in shown
    assert not list((world.agent.state / "store" / "partial").iterdir())


@pytest.mark.slow
def test_a_download_under_way_is_canceled_and_the_running_model_serves_on(world: World) -> None:
    empty = kept(world)
    abort_while_it_loads(world, "0")
    assert not world.agent.status().get("workers")
    assert kept(world) == empty, "nothing of a first model that was taken back"
    world.release("1")
    first = world.roll_out("1")
    with Traffic(world.agent) as traffic:
        world.ends(first, "completed")
        before, worker = kept(world), world.agent.worker_pid()
        abort_while_it_loads(world, "2")
        until(lambda: kept(world) == before, 10.0, f"a clean disk: {kept(world) ^ before}")
        asked = len(traffic.versions)
        until(lambda: len(traffic.versions) > asked + 100, 30.0, "traffic")
        [running] = world.ask("devices", "show", "bench-1")["running"]
        assert (running["version"], running["state"]) == ("1", "committed")
    assert set(traffic.versions) == {"1"}
    assert not traffic.errors
    assert world.agent.worker_pid() == worker
