"""The agent on aarch64, emulated: its wheel, its engines, its arithmetic, and one update over MQTT."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.processing import prepare
from tests.agents import SHORT, AgentProcess, Broker, Depot, ServerSide, Traffic, model_goal, until
from tests.arm64_root import Arm64Root, arm64_root
from tests.conformance.slots import INPUTS, images
from tests.console_blocks import ROOT
from tests.preparing import PREPARE as PREPARE_ALL
from tests.preparing import check_elsewhere

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def arm() -> Arm64Root:
    return arm64_root()


def test_the_wheel_is_there_and_knows_the_machine(arm: Arm64Root) -> None:
    done = arm.run("-c", "import platform, edgeship_agent, edgeship_agent.runtime.isa as isa; "
                   "print(platform.machine(), isa.isa_class(), edgeship_agent.__file__)")  # fmt: skip
    machine, isa_class, file = done.stdout.split()
    assert (machine, isa_class) == ("aarch64", "aarch64"), done.stderr
    assert Path(file).is_relative_to(arm.folder / "site")


def test_engines_conform(arm: Arm64Root) -> None:
    done = arm.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-W", "ignore",
                   "tests/conformance/test_engines.py", "-k", "OnnxRuntime or LiteRt",
                   paths=(ROOT,), timeout_s=1200.0)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


PREPARE = """
import sys, numpy as np
from edgeship_agent.processing import prepare
from edgeship_agent.contract.manifest import InputContract
import msgspec
contracts = msgspec.json.decode(open(sys.argv[1], "rb").read(), type=tuple[InputContract, ...])
with np.load(sys.argv[2]) as raw:
    made = [prepare(contracts, {"image": image}) for image in raw["image"]]
np.savez(sys.argv[3], image=np.stack([each["image"] for each in made]))
"""


def test_preprocessing_is_the_same_to_the_bit(arm: Arm64Root, tmp_path: Path) -> None:
    import msgspec

    samples = images(32)
    (tmp_path / "contracts.json").write_bytes(msgspec.json.encode(INPUTS))
    np.savez(tmp_path / "raw.npz", image=np.stack([each["image"] for each in samples]))
    done = arm.run("-c", PREPARE, *(str(tmp_path / name) for name in ("contracts.json", "raw.npz", "made.npz")))
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "made.npz") as made:
        here = np.stack([prepare(INPUTS, sample)["image"] for sample in samples])
        assert np.array_equal(made["image"], here)


def test_sound_tables_and_images_are_the_same(arm: Arm64Root, tmp_path: Path) -> None:
    def run(*paths: str) -> None:
        done = arm.run("-c", PREPARE_ALL, *paths)
        assert done.returncode == 0, done.stderr

    check_elsewhere(run, tmp_path)


class ArmAgent(AgentProcess):
    """The agent in the emulated root; its children go through the launcher prefix."""

    def __init__(self, folder: Path, depot: Depot, broker_port: int, arm: Arm64Root) -> None:
        super().__init__(folder, depot, broker_port)
        self._arm = arm
        launcher = json.dumps(arm.prefix())
        self.config.write_text(f"launcher = {launcher}\n" + self.config.read_text())

    def start(self, *arguments: str, **environment: str) -> None:
        command = [
            *self._arm.prefix(),
            self._arm.python,
            "-m",
            "edgeship_agent.cli",
            "run",
            "--config",
            str(self.config),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments], stderr=log, stdout=log, env={**os.environ, **environment}
            )


@pytest.fixture
def device(tmp_path: Path, arm: Arm64Root) -> Iterator[tuple[ArmAgent, Depot, ServerSide]]:
    depot, broker = Depot(tmp_path / "depot"), Broker(tmp_path / "broker")
    server = ServerSide(broker.port)
    agent = ArmAgent(tmp_path / "device", depot, broker.port, arm)
    yield agent, depot, server
    agent.stop()
    server.close()
    broker.kill()
    depot.close()


def test_an_update_over_mqtt(device: tuple[ArmAgent, Depot, ServerSide]) -> None:
    agent, depot, server = device
    first = depot.publish("1", arch="aarch64")
    server.send_goal(depot.goal(1, model_goal(first, "first", probation=SHORT)))
    agent.start()
    end = server.ended("first", timeout_s=400.0)
    assert end.state is UpdateState.COMMITTED, (end, agent.log.read_text())
    second = depot.publish("2", seed_scale=1.5, arch="aarch64")
    with Traffic(agent, pause_s=0.01) as traffic:
        server.send_goal(depot.goal(2, model_goal(second, "second")))
        end = server.ended("second", timeout_s=400.0)
        until(lambda: traffic.versions.count("2") > 5, 120.0, "answers of version 2")
    assert end.state is UpdateState.COMMITTED, (end, agent.log.read_text())
    assert not traffic.errors
    # another architecture's variant is refused before anything is downloaded
    third = depot.publish("3", arch="x86_64")
    server.send_goal(depot.goal(3, model_goal(third, "third")))
    end = server.ended("third", timeout_s=400.0)
    assert (end.state, end.reason) == (UpdateState.REJECTED, "arch")
