"""A disk that is full: the model that was committed serves, before and after a restart."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship_agent.contract.messages import UpdateState
from tests.agents import SHORT, AgentProcess, Broker, Depot, ServerSide, model_goal, until
from tests.conformance.slots import images

SIZE_BYTES = 16 << 20


class SmallDisk:
    """A file system of its own, in memory, that can be filled."""

    def __init__(self, point: Path) -> None:
        self.point = point
        point.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "edgeship-test", str(point)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"not tried: this process may not mount ({done.stderr.strip()})")

    def fill(self) -> None:
        with (self.point / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue
        assert os.statvfs(self.point).f_bavail == 0

    def free(self) -> None:
        (self.point / "filler").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.point)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk")
    yield disk
    disk.close()


def serves(agent: AgentProcess, version: str) -> None:
    with agent.client() as client:
        until(lambda: client.infer(images(1)[0]).version == version, 30.0, f"version {version}")
    assert agent.process is not None
    assert agent.process.poll() is None


@pytest.mark.timeout(200)
def test_a_full_disk_costs_the_update_and_nothing_else(disk: SmallDisk, tmp_path: Path) -> None:
    depot, broker = Depot(tmp_path / "depot"), Broker(tmp_path / "broker")
    server = ServerSide(broker.port)
    agent = AgentProcess(disk.point / "device", depot, broker.port)
    agent.log = tmp_path / "agent.log"
    try:
        first, second = depot.publish("1"), depot.publish("2", seed_scale=1.5)
        server.send_goal(depot.goal(1, model_goal(first, "first", probation=SHORT)))
        agent.start()
        assert server.ended("first").state is UpdateState.COMMITTED
        serves(agent, "1")
        disk.fill()
        server.send_goal(depot.goal(2, model_goal(second, "second", probation=SHORT)))
        until(lambda: "No space left" in agent.log.read_text(), 30.0, "word of the disk")
        serves(agent, "1")

        agent.kill()
        agent.start()
        serves(agent, "1")
        disk.free()
        assert agent.stop() == 0
        agent.start()  # the goal that the disk did not take comes again
        assert server.ended("second").state is UpdateState.COMMITTED
        serves(agent, "2")
        assert "Traceback" not in agent.log.read_text()
    finally:
        agent.stop()
        server.close()
        broker.kill()
        depot.close()
