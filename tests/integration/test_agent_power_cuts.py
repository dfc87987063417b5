"""The agent dies of SIGKILL before and after every journal write of an update, and still ends where it must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.slots import Slots, verify_slot
from tests.agents import SHORT, AgentProcess, Broker, Depot, ServerSide, model_goal, until
from tests.conformance.slots import images

ROOT = Path(__file__).resolve().parents[2]


def die_until_finished(agent: AgentProcess, deployment: str) -> list[str]:
    """Let the agent die in one life before, in the next after its second write; the states it died in."""
    agent.module = "tests.killing_agent"
    states = []
    for life in range(30):
        when = "after" if life % 2 else "before"
        agent.start(KILL_AT="2", KILL_WHEN=when, PYTHONPATH=str(ROOT))
        assert agent.process is not None
        assert agent.process.wait(60) == -9
        attempt = newest(agent, deployment)
        states.append("none" if attempt is None else attempt.state.value)
        active = Slots(agent.state / "slots").active("digits", "main")
        assert active is not None
        verify_slot(active)
        if attempt is not None and attempt.state.is_terminal:
            break
    agent.module = "edgeship_agent.cli"
    return states


def newest(agent: AgentProcess, deployment: str):
    journal = Journal(agent.state / "journal.log")
    journal.close()
    found = [attempt for attempt in journal.attempts() if attempt.deployment == deployment]
    return found[-1] if found else None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Depot, ServerSide, AgentProcess]]:
    depot, broker = Depot(tmp_path / "depot"), Broker(tmp_path / "broker")
    server = ServerSide(broker.port)
    agent = AgentProcess(tmp_path / "device", depot, broker.port)
    yield depot, server, agent
    agent.stop()
    server.close()
    broker.kill()
    depot.close()


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("golden_scale", "state", "version"),
    [(None, UpdateState.COMMITTED, "2"), (3.0, UpdateState.REJECTED, "1")],
    ids=["good", "bad"],
)
def test_power_cuts_at_every_step(world, golden_scale, state: UpdateState, version: str) -> None:
    depot, server, agent = world
    first = depot.publish("1")
    server.send_goal(depot.goal(1, model_goal(first, "first", probation=SHORT)))
    agent.start()
    assert server.ended("first").state is UpdateState.COMMITTED
    assert agent.stop() == 0

    second = depot.publish("2", seed_scale=1.5, golden_scale=golden_scale)
    server.send_goal(depot.goal(2, model_goal(second, "second", probation=SHORT)))
    states = die_until_finished(agent, "second")
    assert states[-1] == state.value, states
    agent.start()
    until(lambda: server.ended("second").state is state, 30.0, "the report")
    with agent.client() as client:
        assert client.infer(images(1)[0]).version == version
    assert agent.stop() == 0
    attempt = newest(agent, "second")
    assert attempt.transitions <= 32
