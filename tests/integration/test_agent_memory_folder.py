"""What an agent keeps in memory, so that it wears no disk, is gone with it: at its end, or once its state is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship_agent.supervisor.places import Places
from tests.agents import AgentProcess, Depot, free_port, until


@pytest.fixture
def depot(tmp_path: Path) -> Iterator[Depot]:
    depot = Depot(tmp_path / "depot")
    yield depot
    depot.close()


def running(agent: AgentProcess) -> Path:
    """Start an agent; its folder in memory."""
    agent.start()
    process = agent.process
    assert process is not None
    until(lambda: agent.status().get("pid") == process.pid, 30.0, "the status")
    folder = Places(agent.state).volatile
    if folder.parent == agent.state:
        pytest.skip("not tried: this system has no folder in memory")
    assert (folder / "status.json").is_file()
    return folder


def test_a_stopped_agent_leaves_nothing_in_memory(depot: Depot, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "one", depot, free_port())
    for _ in range(2):  # and the next start finds its way again
        folder = running(agent)
        pid = agent.status()["pid"]
        assert agent.stop() == 0
        assert not folder.exists()
        status = agent.state / "run" / "status.json"
        assert status.is_file() and not status.is_symlink()
        assert json.loads(status.read_bytes())["pid"] == pid


def test_what_a_killed_agent_left_goes_with_its_state_directory(depot: Depot, tmp_path: Path) -> None:
    killed, alive = (AgentProcess(tmp_path / name, depot, free_port()) for name in ("killed", "alive"))
    left = running(killed)
    killed.kill()
    kept = running(alive)
    assert left.exists()
    assert alive.stop() == 0

    killed.state.rename(tmp_path / "moved")
    held = running(alive)
    assert not left.exists()
    alive.state.rename(tmp_path / "hidden")  # as in another container, where its path means something else
    other = AgentProcess(tmp_path / "other", depot, free_port())
    running(other)
    assert other.stop() == 0
    assert held == kept and held.exists()
    (tmp_path / "hidden").rename(alive.state)
    assert alive.stop() == 0
    assert not held.exists()
