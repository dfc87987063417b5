"""Two versions on one device, over a real broker: both live, labels to each, one dies, one is taken back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgeship_agent.contract.goal import ArmGoal
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.topics import Kind
from tests.agents import SHORT, AgentProcess, Broker, Depot, Release, ServerSide, Traffic, model_goal, until
from tests.conformance.slots import images


class World:
    """One device that runs version 1, and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.depot = Depot(folder / "depot")
        self.broker = Broker(folder / "broker")
        self.server = ServerSide(self.broker.port)
        self.agent = AgentProcess(folder / "device", self.depot, self.broker.port)
        self.first = self.depot.publish("1")
        self.server.send_goal(self.depot.goal(1, model_goal(self.first, "first", probation=SHORT)))
        self.agent.start()
        assert self.server.ended("first").state is UpdateState.COMMITTED

    def split(self, generation: int, release: Release, deployment: str, share: float, **changes: object) -> None:
        base = ArmGoal(
            version=self.first.version,
            digest=self.first.digest,
            size_bytes=self.first.size_bytes,
            share=1.0 - share,
        )
        arm = ArmGoal(version=release.version, digest=release.digest, size_bytes=release.size_bytes, share=share)
        goal = model_goal(release, deployment, arms=(base, arm), **changes)
        self.server.send_goal(self.depot.goal(generation, goal))

    def worker(self, arm: str) -> int:
        """Process id of the worker of an arm; 0 while there is none."""
        workers = [each for each in self.agent.status().get("workers", []) if each["ready"] and each["arm"] == arm]
        return int(workers[0]["pid"]) if workers else 0

    def windows(self, version: str) -> list:
        return [window for window in list(self.server.windows.values()) if window.version == version]

    def close(self) -> None:
        self.agent.stop()
        self.server.close()
        self.broker.kill()
        self.depot.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_two_arms_live_labelled_killed_and_taken_back(world: World) -> None:
    second = world.depot.publish("2", seed_scale=1.5)
    with Traffic(world.agent) as traffic:
        world.split(2, second, "ab", 0.5)
        end = world.server.ended("ab")
        assert (end.state, end.arm, end.loaded_digest) == (UpdateState.COMMITTED, "b", second.digest), end
        assert not end.without_field_traffic, "the challenger proved itself on its share of the traffic"
        begun = len(traffic.versions)
        until(lambda: traffic.versions[begun:].count("2") > 40 and traffic.versions[begun:].count("1") > 40, 30.0)

        running = until(lambda: _running(world, {"1", "2"}), 20.0, "both versions in a heartbeat")
        assert {arm.arm: arm.version for arm in running} == {"main": "1", "b": "2"}

        # labels find the version that predicted, whichever worker takes them
        with world.agent.client() as client:
            predictions = [client.infer(sample, split_key=f"user-{index}") for index, sample in enumerate(images(60))]
            again = [client.infer(images(1)[0], split_key=f"user-{index}").version for index in range(60)]
            assert again == [prediction.version for prediction in predictions]
            for prediction in predictions:
                assert client.label(prediction.prediction_id, int(prediction.outputs["scores"].argmax()))
                assert client.outcome("rework_minutes", 2.0, prediction.prediction_id)
        for version in ("1", "2"):
            mine = sum(prediction.version == version for prediction in predictions)
            until(lambda v=version, n=mine: _labelled(world, v) == n > 0, 20.0, f"{mine} labels of version {version}")

        # one arm dies: the other answers everything meanwhile, and the death is told
        killed = world.worker("b")
        os.kill(killed, signal.SIGKILL)
        until(lambda: world.worker("b") not in (0, killed), 30.0, "the challenger again")
        until(lambda: sum(window.crashes for window in world.windows("2")) == 1, 20.0, "the crash in a window")
        main = world.worker("main")
        os.kill(main, signal.SIGKILL)
        until(lambda: world.worker("main") not in (0, main), 30.0, "the main arm again")
        begun = len(traffic.versions)
        until(lambda: {"1", "2"} <= set(traffic.versions[begun:]), 30.0, "both again")

        # the server takes the challenger back: the device is as it was
        rollback = model_goal(world.first, "ab-rollback", is_rollback=True)
        world.server.send_goal(world.depot.goal(3, rollback))
        assert world.server.ended("ab-rollback").loaded_digest == world.first.digest
        until(lambda: world.worker("b") == 0, 20.0, "no challenger")
        begun = len(traffic.versions)
        until(lambda: len(traffic.versions) > begun + 50, 30.0, "traffic")
        assert set(traffic.versions[begun + 5 :]) == {"1"}
    assert not traffic.errors


@pytest.mark.slow
def test_the_split_outlives_a_restart_and_a_bad_challenger_changes_nothing(world: World) -> None:
    bad = world.depot.publish("2", golden_scale=3.0)
    world.split(2, bad, "bad", 0.5)
    end = world.server.ended("bad")
    assert (end.state, end.reason) == (UpdateState.REJECTED, "golden_mismatch"), end
    third = world.depot.publish("3", seed_scale=1.5)
    world.split(3, third, "good", 0.5, probation=SHORT)
    assert world.server.ended("good").state is UpdateState.COMMITTED
    with world.agent.client() as client:
        before = {f"k{index}": client.infer(images(1)[0], split_key=f"k{index}").version for index in range(30)}
    assert set(before.values()) == {"1", "3"}
    world.agent.kill()
    world.broker.kill()  # the device comes back alone, from its disk
    world.agent.start()
    until(lambda: world.worker("b") and world.worker("main"), 60.0, "both workers")
    with world.agent.client() as client:
        until(lambda: {key: client.infer(images(1)[0], split_key=key).version for key in before} == before, 30.0)


def _running(world: World, versions: set[str]) -> tuple:
    beats = world.server.heard(Kind.HEARTBEAT)
    return beats[-1].running if beats and {arm.version for arm in beats[-1].running} == versions else ()


def _labelled(world: World, version: str) -> int:
    tallies = [tally for window in list(world.server.windows.values()) for tally in window.labels]
    mine = [tally for tally in tallies if tally.version == version]
    assert all(tally.correct == tally.labelled for tally in mine)
    return sum(tally.labelled for tally in mine)


@pytest.mark.slow
def test_a_shadow_is_heard_by_nobody_and_keeps_to_its_memory(world: World) -> None:
    second = world.depot.publish("2", seed_scale=-1.0)
    with Traffic(world.agent) as traffic:
        _shadow(world, 2, second, "shadow", memory_bytes=0)
        end = world.server.ended("shadow")
        assert (end.state, end.arm, end.loaded_digest) == (UpdateState.COMMITTED, "shadow", second.digest), end
        until(lambda: _compared(world) > 100, 30.0, "a hundred inputs that both answered")
        # the same goal with less memory than a process takes: it is ended once, told, and not started again
        _shadow(world, 3, second, "smaller", memory_bytes=1)
        until(lambda: _hard_stops(world) == ["shadow_memory"], 30.0, "a shadow that grew too large")
        until(lambda: world.worker("shadow") == 0, 20.0, "no shadow")
        begun = len(traffic.versions)
        until(lambda: len(traffic.versions) > begun + 500, 30.0, "traffic")
        assert _hard_stops(world) == ["shadow_memory"]
        assert world.worker("shadow") == 0
        # more memory: it is wanted again
        _shadow(world, 4, second, "larger", memory_bytes=10**10)
        until(lambda: world.worker("shadow"), 30.0, "the shadow again")
        compared = _compared(world)
        until(lambda: _compared(world) > compared + 50, 30.0, "inputs that both answered, again")
    assert set(traffic.versions) == {"1"}
    assert not traffic.errors
    assert sum(window.crashes for window in world.windows("2")) == 0
    tallies = [tally for window in world.windows("1") for tally in window.shadow]
    assert {tally.version for tally in tallies} == {"2"}
    # its scores are the champion's with the sign turned
    assert sum(tally.disagreed for tally in tallies) == sum(tally.compared for tally in tallies)
    assert all(window.arm == "shadow" for window in world.windows("2"))


def _hard_stops(world: World) -> list[str]:
    return [stop for window in world.windows("2") for stop in window.hard_stops]


def _shadow(world: World, generation: int, release: Release, deployment: str, memory_bytes: int) -> None:
    base, shadow = (
        ArmGoal(version=each.version, digest=each.digest, size_bytes=each.size_bytes) for each in (world.first, release)
    )
    shadow = msgspec.structs.replace(shadow, share=0.0, mirror=1.0, cpu_ratio=1.0, memory_bytes=memory_bytes)
    goal = model_goal(release, deployment, arms=(base, shadow))
    world.server.send_goal(world.depot.goal(generation, goal))


def _compared(world: World) -> int:
    return sum(tally.compared for window in world.windows("1") for tally in window.shadow)


def test_labels_are_known_right_after_a_switch_of_models(world: World) -> None:
    second = world.depot.publish("2", seed_scale=1.5)
    with world.agent.client() as client:
        predictions = [client.infer(sample) for sample in images(50)]
        world.server.send_goal(world.depot.goal(2, model_goal(second, "second", probation=SHORT)))
        known = []

        def switched() -> bool:
            """One label after every call, so that one comes with the first call to the new model."""
            version = client.infer(images(1)[0]).version
            known.append(client.label(predictions[len(known) % 50].prediction_id, 3))
            return version == "2"

        until(switched, 60.0, "version 2")
        known += [client.label(prediction.prediction_id, 3) for prediction in predictions]
    assert all(known), f"{known.count(False)} of {len(known)} were unknown"


def test_labels_for_predictions_that_died_with_their_worker_are_counted_as_lost(world: World) -> None:
    with world.agent.client() as client:
        predictions = [client.infer(sample) for sample in images(30)]
        assert client.label(predictions[0].prediction_id, 3)
    for known in range(2):  # the second worker passes on what it was told of the first
        killed = world.worker("main")
        os.kill(killed, signal.SIGKILL)
        until(lambda k=killed: world.worker("main") not in (0, k), 30.0, f"the worker again, for the {known + 1}. time")
    with world.agent.client() as client:
        answers = [client.label(prediction.prediction_id, 3) for prediction in predictions]
        answers.append(client.outcome("minutes", 1.0, predictions[0].prediction_id))
        assert not any(answers)
        assert not client.label("nobody-1-1-1", 3)
        assert client.label(client.infer(images(1)[0]).prediction_id, 3)
    until(lambda: sum(window.label_lost for window in world.windows("1")) == 31, 20.0, "31 lost")
    until(lambda: sum(window.label_unknown for window in world.windows("1")) == 1, 20.0, "1 unknown")
