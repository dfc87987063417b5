"""Server, broker, agent and command line together: two models joined, rolled out, refused, and taken back as one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from edgeship_agent.contract.errors import EdgeshipError
from tests.agents import until
from tests.conformance.slots import images
from tests.world import World

MODELS = ("ear", "eye")


class Application:
    """Asks both models in turn until the block ends; what they answer with, and every error, is kept."""

    def __init__(self, world: World) -> None:
        self.pairs: list[tuple[str, ...]] = []
        self.errors: list[EdgeshipError] = []
        self._world = world
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Application:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(60)

    def _run(self) -> None:
        samples = cycle(images(50, seed=3))  # one alone would be a constant class
        with self._world.agent.client() as client:
            while not self._stopped.wait(0.002):
                sample = next(samples)
                try:
                    self.pairs.append(tuple(client.infer(sample, model=model).version for model in MODELS))
                except EdgeshipError as error:
                    self.errors.append(error)

    def answers(self, *versions: str) -> bool:
        """Whether the newest answers are of these versions, in the order of the models."""
        begun = len(self.pairs)
        until(lambda: len(self.pairs) > begun + 20, 60.0, "answers")
        return set(self.pairs[begun + 5 :]) == {versions}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def join(world: World, version: str, ear: str, eye: str) -> None:
    world.edgeship("releases", "join", "pair", version, f"ear@{ear}", f"eye@{eye}")


def roll_out(world: World, version: str, state: str) -> dict[str, Any]:
    policy = ("--policy", str(world.folder / "policy.toml"), "--stages", "100%")
    rollout = world.ask("rollouts", "create", "pair", version, *policy)["id"]
    return world.ends(rollout, state)


def loaded(world: World) -> dict[str, str]:
    return {arm["model"]: arm["version"] for arm in world.ask("devices", "show", "bench-1")["running"]}


@pytest.mark.slow
def test_two_models_from_the_command_line_to_the_device_and_back(world: World) -> None:
    until(lambda: world.server.get("devices")["devices"], 60.0, "the device")
    for model, scale in (("ear", 1.0), ("eye", -1.0)):
        world.release("1", model=model, seed_scale=scale)
    join(world, "1", "1", "1")
    policy = ("--policy", str(world.folder / "policy.toml"), "--stages", "100%")
    first = world.ask("rollouts", "create", "pair", "1", *policy)["id"]
    # nobody can ask before something is served, and nothing is committed without calls
    until(lambda: len(world.agent.status()["running"]) == 2, 120.0, "both models")
    with Application(world) as application:
        world.ends(first, "completed")
        assert application.answers("1", "1")

        world.release("2", model="eye", seed_scale=-1.5)
        join(world, "2", "1", "2")
        done = roll_out(world, "2", "completed")
        assert "1 device for each of 2 models" in done["reason"]
        assert application.answers("1", "2")
        assert loaded(world) == {"ear": "1", "eye": "2"}

        world.release("3", model="ear", seed_scale=3.0)
        world.release("3", model="eye", seed_scale=-3.0, golden_scale=5.0)
        join(world, "3", "3", "3")
        halted = roll_out(world, "3", "rolled_back")
        assert "hard stop: eye: golden mismatch on bench-1" in halted["reason"]
        assert application.answers("1", "2")
        explained = world.ask("explain", f"refusal/bench-1/{halted['id']}")
        assert explained["rules"][0]["id"] == "golden_mismatch"
        assert world.ask("releases", "show", "pair", "3")["state"] == "blocked"

        world.edgeship("rollouts", "rollback", done["id"], "--reason", "the old eye saw more")
        back = world.ends(done["id"], "rolled_back")
        assert "runs 1 again" in back["reason"]
        assert application.answers("1", "1")
        assert loaded(world) == {"ear": "1", "eye": "1"}
    assert not application.errors
    assert set(application.pairs) <= {("1", "1"), ("1", "2")}, "3 was never served"
