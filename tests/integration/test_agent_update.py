"""The agent as a process: installed, updated, refused, rolled back; broker, repository and workers are real."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.topics import Kind
from tests.agents import (
    SHORT,
    AgentProcess,
    Broker,
    Depot,
    ServerSide,
    Traffic,
    forged,
    is_gone,
    model_goal,
    until,
)
from tests.conformance.slots import images


class World:
    """One device and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.depot = Depot(folder / "depot")
        self.broker = Broker(folder / "broker")
        self.server = ServerSide(self.broker.port)
        self.agent = AgentProcess(folder / "device", self.depot, self.broker.port)

    def install(self, version: str = "1"):
        """A device that has committed its first model."""
        release = self.depot.publish(version)
        self.server.send_goal(self.depot.goal(1, model_goal(release, "first", probation=SHORT)))
        self.agent.start()
        assert self.server.ended("first").state is UpdateState.COMMITTED
        return release

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


def test_first_install_then_update_under_traffic_without_a_missed_request(world: World) -> None:
    first = world.install()
    end = world.server.ended("first")
    assert end.without_field_traffic and end.loaded_digest == first.digest
    second = world.depot.publish("2", seed_scale=1.5)
    with Traffic(world.agent) as traffic:
        until(lambda: len(traffic.versions) > 20, 30.0, "traffic")
        world.server.send_goal(world.depot.goal(2, model_goal(second, "second")))
        end = world.server.ended("second")
        until(lambda: traffic.versions.count("2") > 20, 30.0, "answers of version 2")
    assert end.state is UpdateState.COMMITTED, end
    assert not end.without_field_traffic and end.loaded_digest == second.digest
    assert end.figures["inferences"] >= 20 and end.figures["latency_p99_ms"] > 0
    assert not traffic.errors
    assert traffic.versions == sorted(traffic.versions)
    assert world.server.states("second") == [
        *("accepted", "precheck", "downloading", "verifying", "staged", "activating", "probation", "committed")
    ]
    status = until(lambda: (s := world.agent.status())["running"][0]["version"] == "2" and s, 10.0, "status")
    assert status["running"][0]["retained_version"] == "1"
    until(lambda: world.server.windows, 20.0, "windows")


def test_golden_mismatch_is_rejected_and_remembered(world: World) -> None:
    world.install()
    bad = world.depot.publish("2", seed_scale=1.0, golden_scale=3.0)
    world.server.send_goal(world.depot.goal(2, model_goal(bad, "bad")))
    end = world.server.ended("bad")
    assert (end.state, end.reason) == (UpdateState.REJECTED, "golden_mismatch")
    assert end.figures["relative_rms"] > end.figures["relative_rms_limit"]
    world.server.send_goal(world.depot.goal(3, model_goal(bad, "bad", attempt=2)))
    again = world.server.ended("bad", attempt=2)
    assert (again.state, again.reason) == (UpdateState.REJECTED, "known_bad")
    with world.agent.client() as client:
        assert client.infer(images(1)[0]).version == "1"


def test_one_flipped_byte_is_refused(world: World) -> None:
    world.install()
    second = world.depot.publish("2", seed_scale=1.5)
    name = world.depot.model_blob(second)
    data = bytearray(world.depot.blobs[name])
    data[len(data) // 2] ^= 1
    world.depot.blobs[name] = bytes(data)
    world.server.send_goal(world.depot.goal(2, model_goal(second, "flipped")))
    end = world.server.ended("flipped")
    assert (end.state, end.reason) == (UpdateState.FAILED_CLEAN, "digest_mismatch")
    assert end.loaded_digest != second.digest
    assert not (world.agent.state / "store" / "blobs" / "sha256" / name).exists()


def test_broken_transfers_are_resumed(world: World) -> None:
    release = world.depot.publish("1")
    world.depot.cut_after_bytes = 1500
    world.server.send_goal(world.depot.goal(1, model_goal(release, "first", probation=SHORT)))
    world.agent.start()
    assert world.server.ended("first").state is UpdateState.COMMITTED
    assert any(wanted for path, wanted in world.depot.requests if world.depot.model_blob(release) in path)


def test_goals_that_must_not_be_followed(world: World) -> None:
    first = world.install()
    second = world.depot.publish("2", seed_scale=1.5)
    stranger = Depot(world.folder / "stranger")
    other_key = stranger.goal(5, model_goal(second, "other-key"))
    stranger.close()
    now_s = time.time()
    cases = {
        "bad_signature": [other_key, forged(world.depot.goal(5, model_goal(second, "forged")))],
        "wrong_device": [world.depot.goal(5, model_goal(second, "wrong-device"), device_id="bench-2")],
        "expired": [world.depot.goal(5, model_goal(second, "expired"), expires_at_s=now_s - 1)],
        "lower_generation": [world.depot.goal(0, model_goal(second, "lower"))],
        "conflicting_generation": [world.depot.goal(1, model_goal(second, "conflict"))],
        "unreadable": [b"nonsense"],
    }
    for payloads in cases.values():
        for payload in payloads:
            world.server.send_goal(payload)
    wanted = {reason: len(payloads) for reason, payloads in cases.items()}
    status = until(lambda: (s := world.agent.status())["refused_goals"] == wanted and s, 20.0, "the counters")
    assert status["goal_generation"] == 1
    assert [arm["digest"] for arm in status["running"]] == [first.digest]
    refusals = until(lambda: world.server.reports("refused-goal"), 10.0, "a report about refused goals")
    assert refusals[0].reason.startswith("goal_")
    world.server.send_goal(world.depot.goal(2, model_goal(first, "again")))
    assert world.server.ended("again").reason == "already_running"


def test_probation_that_fails_rolls_back_without_network(world: World) -> None:
    first = world.install()
    second = world.depot.publish("2", seed_scale=1.5)
    slow = msgspec.structs.replace(SHORT, inferences=1_000_000, deadline_s=600.0)
    world.server.send_goal(world.depot.goal(2, model_goal(second, "crashing", probation=slow)))
    until(lambda: "probation" in world.server.states("crashing"), 60.0, "probation")
    world.depot.close()
    killed = set()
    for _ in range(3):
        pid = until(lambda: (p := world.agent.worker_pid()) not in killed and p, 30.0, "a new worker")
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    end = world.server.ended("crashing")
    assert (end.state, end.reason) == (UpdateState.ROLLED_BACK, "crash_loop")
    assert end.loaded_digest == first.digest
    with world.agent.client() as client:
        assert client.infer(images(1)[0]).version == "1"


def test_first_install_that_fails_leaves_no_model(world: World) -> None:
    release = world.depot.publish("1")
    slow = msgspec.structs.replace(SHORT, inferences=1_000_000, deadline_s=600.0)
    world.server.send_goal(world.depot.goal(1, model_goal(release, "first", probation=slow)))
    world.agent.start()
    until(lambda: "probation" in world.server.states("first"), 60.0, "probation")
    world.server.send_goal(world.depot.goal(2))
    end = world.server.ended("first")
    assert (end.state, end.reason, end.loaded_digest) == (UpdateState.ROLLED_BACK, "rollback_requested", "")
    assert "no model was here before" in end.detail
    until(lambda: not world.agent.status()["running"], 10.0, "no model")


def test_fleet_wide_rollback_needs_no_download(world: World) -> None:
    first = world.install()
    second = world.depot.publish("2", seed_scale=1.5)
    world.server.send_goal(world.depot.goal(2, model_goal(second, "second", probation=SHORT)))
    assert world.server.ended("second").state is UpdateState.COMMITTED
    world.depot.close()
    back = model_goal(first, "back", is_rollback=True)
    world.server.send_goal(world.depot.goal(3, back))
    end = world.server.ended("back")
    assert (end.state, end.loaded_digest) == (UpdateState.COMMITTED, first.digest)


def test_two_arms_are_refused_in_words(world: World) -> None:
    first = world.install()
    second = world.depot.publish("2", seed_scale=1.5)
    arms = (*model_goal(first).arms, *model_goal(second).arms)
    world.server.send_goal(world.depot.goal(2, model_goal(first, "both", arms=arms)))
    end = world.server.ended("both")
    assert (end.state, end.reason) == (UpdateState.REJECTED, "arms_unsupported")


def test_children_die_with_the_agent_and_serving_comes_back(world: World) -> None:
    world.install()
    worker = world.agent.worker_pid()
    world.agent.kill()
    until(lambda: is_gone(worker), 10.0, "the worker's end")
    world.broker.kill()
    world.depot.close()
    world.agent.start()
    with world.agent.client() as client:
        assert client.infer(images(1)[0]).version == "1"


def test_windows_wait_for_the_acknowledgement(world: World) -> None:
    world.install()
    world.server.acknowledges = False
    with Traffic(world.agent):
        until(lambda: world.agent.status()["outbox"]["waiting"] >= 3, 30.0, "waiting windows")
        world.broker.kill()
        time.sleep(1.0)
        broker = Broker(world.folder / "broker2", world.broker.port)
    world.broker = broker
    world.server.close()
    world.server = ServerSide(broker.port)
    until(lambda: world.agent.status()["outbox"]["waiting"] == 0 and world.server.windows, 30.0, "an empty outbox")
    assert world.agent.stop() == 0
    outbox = world.agent.status()["outbox"]
    until(lambda: len(world.server.windows) >= outbox["acknowledged"], 10.0, "all windows")
    assert outbox["created"] == outbox["acknowledged"] + outbox["evicted"] + outbox["waiting"]
    assert outbox["evicted"] == 0
    assert world.server.heard(Kind.DEATH)
