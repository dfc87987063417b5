"""A broker that repeats, reorders and forgets, a clock ten years off, a read-only disk: the agent serves on."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship_agent.contract.messages import UpdateState
from tests.agents import SHORT, AgentProcess, Broker, Depot, ServerSide, Traffic, model_goal, until
from tests.conformance.slots import images
from tests.relay import Mischief, Relay

ROOT = Path(__file__).resolve().parents[2]
TEN_YEARS_S = 10 * 365.25 * 86_400


class World:
    """A depot, a broker, the server's side and an agent, which meets the broker through a relay."""

    def __init__(self, folder: Path, mischief: Mischief | None = None) -> None:
        self.folder = folder
        self.depot = Depot(folder / "depot")
        self.broker = Broker(folder / "broker")
        self.server = ServerSide(self.broker.port)
        self.relay = Relay(self.broker.port, mischief)
        self.agent = AgentProcess(folder / "device", self.depot, self.relay.port)

    def install(self) -> None:
        self.first = self.depot.publish("1")
        self.server.send_goal(self.depot.goal(1, model_goal(self.first, "first", probation=SHORT)))
        self.agent.start()
        assert self.server.ended("first").state is UpdateState.COMMITTED

    def serves(self, version: str) -> None:
        with self.agent.client() as client:
            until(lambda: client.infer(images(1)[0]).version == version, 30.0, f"version {version}")
        assert self.agent.process is not None
        assert self.agent.process.poll() is None

    def close(self) -> None:
        self.agent.stop()
        self.relay.close()
        self.server.close()
        self.broker.kill()
        self.depot.close()


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[object]:
    made: list[World] = []

    def make(folder: Path = tmp_path, mischief: Mischief | None = None) -> World:
        made.append(World(folder, mischief))
        return made[-1]

    yield make
    for world in made:
        world.close()


def insist(world: World, generation: int, payload: bytes) -> None:
    """Send a goal until the device has it, as the server does with a device whose birth names an older one."""

    def has_it() -> bool:
        world.server.send_goal(payload)
        time.sleep(0.3)
        return world.agent.status().get("goal_generation") == generation

    until(has_it, 60.0, f"generation {generation}")


def test_a_broker_that_repeats_reorders_and_forgets(make_world) -> None:
    mischief = Mischief(11)
    world = make_world(mischief=mischief)
    depot = world.depot
    releases = [depot.publish(str(number), seed_scale=1.0 + number / 10) for number in range(1, 4)]
    world.agent.start()
    for number, release in enumerate(releases, start=1):
        insist(world, number, depot.goal(number, model_goal(release, f"d{number}", probation=SHORT)))
        until(lambda: world.agent.status()["attempts"][-1]["state"] == "committed", 60.0, f"update {number}")
        with Traffic(world.agent):
            time.sleep(1.5)
        world.relay.cut()  # the births that follow carry what was forgotten
    world.serves("3")
    world.broker.kill()  # with it go retained goals and sessions
    world.broker = Broker(world.folder / "again", world.broker.port)
    # the device goes on with what it knows, and older goals that come late are refused
    world.server.close()
    messages, windows = world.server.messages, world.server.windows
    world.server = ServerSide(world.broker.port)
    world.server.windows = windows
    world.server.messages += messages
    world.server.send_goal(depot.goal(1, model_goal(releases[0], "d1", probation=SHORT)))
    until(lambda: world.agent.status()["outbox"]["waiting"] == 0, 60.0, "an empty outbox")
    world.serves("3")
    assert all(mischief.counts.values()), mischief.counts
    outbox = world.agent.status()["outbox"]
    assert (outbox["created"], outbox["evicted"]) == (outbox["acknowledged"], 0)
    assert len(windows) >= outbox["acknowledged"]
    attempts = {attempt["deployment"]: attempt["state"] for attempt in world.agent.status()["attempts"]}
    assert attempts == {"d1": "committed", "d2": "committed", "d3": "committed"}


@pytest.mark.parametrize("offset_s", [-TEN_YEARS_S, TEN_YEARS_S], ids=["ten years behind", "ten years ahead"])
def test_a_clock_that_is_ten_years_off(make_world, offset_s: float) -> None:
    world = make_world()
    world.install()
    assert world.agent.stop() == 0
    wrong = {"PYTHONPATH": str(ROOT / "tests" / "clocks"), "CLOCK_OFFSET_S": str(offset_s)}
    world.agent.start(**wrong)
    world.serves("1")
    second = world.depot.publish("2", seed_scale=1.5)
    world.server.send_goal(world.depot.goal(2, model_goal(second, "second", probation=SHORT)))
    if offset_s < 0:  # floored by what was signed before: nothing is lost
        assert world.server.ended("second").state is UpdateState.COMMITTED
        world.serves("2")
    else:  # everything that was signed has expired: refused, said, and served on
        until(lambda: world.agent.status()["refused_goals"].get("expired"), 30.0, "the refusal")
        world.serves("1")
    assert world.agent.stop() == 0
    world.agent.start()
    assert world.server.ended("second").state is UpdateState.COMMITTED
    world.serves("2")
    assert "Traceback" not in world.agent.log.read_text()


class Mounted:
    """A file system of its own, in memory, that can be made read-only."""

    def __init__(self, point: Path) -> None:
        self.point = point
        point.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=64m", "edgeship-test")

    def _mount(self, *arguments: str) -> None:
        command = ["mount", *arguments, str(self.point)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"not tried: this process may not mount ({done.stderr.strip()})")

    def read_only(self, is_so: bool) -> None:
        self._mount("-o", f"remount,{'ro' if is_so else 'rw'}")

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.point)], check=True)
        self.point.rmdir()
        self.point.parent.rmdir()


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    mounted = Mounted(Path(tempfile.mkdtemp(prefix="ro-")) / "disk")  # a short path, so that sockets lie on it
    yield mounted
    mounted.close()


def test_a_read_only_disk_serves_the_last_model_and_takes_no_update(
    mounted: Mounted, tmp_path: Path, make_world
) -> None:
    world = make_world(tmp_path)
    world.agent = AgentProcess(mounted.point / "device", world.depot, world.broker.port)
    world.agent.log = tmp_path / "agent.log"
    world.install()
    world.agent.kill()  # nothing was tidied up
    mounted.read_only(True)
    world.agent.start()
    until(lambda: "read_only_disk" in world.agent.log.read_text(), 30.0, "word of the disk")
    world.serves("1")
    second = world.depot.publish("2", seed_scale=1.5)
    world.server.send_goal(world.depot.goal(2, model_goal(second, "second", probation=SHORT)))
    refusals = until(lambda: world.server.reports("refused-goal"), 30.0, "a report about the disk")
    assert refusals[0].reason == "goal_disk"
    assert "Read-only" in refusals[0].detail
    with Traffic(world.agent):
        until(lambda: len(world.server.windows) >= 2, 30.0, "windows, from memory")
    world.serves("1")
    assert world.agent.status()["running"][0]["digest"] == world.first.digest
    assert world.agent.stop() == 0
    mounted.read_only(False)
    world.agent.start()
    assert world.server.ended("second").state is UpdateState.COMMITTED
    world.serves("2")
    assert world.agent.stop() == 0
    assert "Traceback" not in world.agent.log.read_text()
