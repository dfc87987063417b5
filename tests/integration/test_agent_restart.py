"""What a restarted agent finds and does: a rollback under way, a third crash in probation, a runtime that changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.slots import Slots
from tests.agents import SHORT, AgentProcess, Broker, Depot, Release, ServerSide, model_goal, until
from tests.conformance.slots import images


class Device:
    """A device that has committed version 1, then version 2, and is off; its server is away."""

    def __init__(self, folder: Path) -> None:
        depot = Depot(folder / "depot")
        self.broker = Broker(folder / "broker")
        self.server = ServerSide(self.broker.port)
        self.agent = AgentProcess(folder / "device", depot, self.broker.port)
        self.first, self.second = depot.publish("1"), depot.publish("2", seed_scale=1.5)
        self.server.send_goal(depot.goal(1, model_goal(self.first, "first", probation=SHORT)))
        self.agent.start()
        assert self.server.ended("first").state is UpdateState.COMMITTED
        self.server.send_goal(depot.goal(2, model_goal(self.second, "second", probation=SHORT)))
        assert self.server.ended("second").state is UpdateState.COMMITTED
        assert self.agent.stop() == 0
        depot.close()
        self.server.messages.clear()

    def turn_back(self, **changes: object) -> None:
        """Let the journal end in the middle of the second update."""
        journal = Journal(self.agent.state / "journal.log")
        attempt = journal.attempts()[-1]
        journal.append(structs.replace(attempt, seq=attempt.seq + 1, **changes))
        journal.close()

    def serves(self, release: Release) -> None:
        until(lambda: [arm["digest"] for arm in self.agent.status()["running"]] == [release.digest], 30.0, "the status")
        with self.agent.client() as client:
            assert client.infer(images(1)[0]).version == release.version


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path)
    yield device
    device.agent.stop()
    device.server.close()
    device.broker.kill()


def test_a_rollback_is_repeated(device: Device) -> None:
    device.turn_back(state=UpdateState.ROLLING_BACK, reason="latency")
    device.agent.start()
    until(lambda: device.server.states("second")[-1:] == ["rolled_back"], 60.0, "the rollback")
    end = device.server.reports("second")[-1]
    assert (end.reason, end.loaded_digest) == ("latency", device.first.digest)
    device.serves(device.first)


def test_the_third_death_in_probation_rolls_back(device: Device) -> None:
    device.turn_back(state=UpdateState.PROBATION, crashes=2)
    device.agent.start()
    until(lambda: device.server.states("second")[-1:] == ["rolled_back"], 60.0, "the rollback")
    assert device.server.reports("second")[-1].reason == "crash_loop"
    device.serves(device.first)


def test_a_changed_runtime_means_golden_inputs_first_then_the_previous_bundle(device: Device) -> None:
    active = Slots(device.agent.state / "slots").active("digits", "main")
    assert active is not None and active.info.version == "2"
    checked = json.loads((active.directory / "checked.json").read_bytes())
    checked["fingerprint"]["runtime_version"] = "0.0.1"
    (active.directory / "checked.json").write_text(json.dumps(checked))
    device.agent.start()
    device.serves(device.second)
    assert "fingerprint_changed" in device.agent.log.read_text()
    assert device.agent.stop() == 0

    (active.directory / "checked.json").write_text(json.dumps(checked))
    golden = active.directory / "files" / "golden_outputs.msgpack"
    data = golden.read_bytes()
    golden.unlink()
    golden.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    device.agent.start()
    device.serves(device.first)
    assert "fallback" in device.agent.log.read_text()
