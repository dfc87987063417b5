"""The agent's loop in this process: an event that fails is told, and costs nothing but itself."""

from __future__ import annotations

import io
import secrets
import time

import pytest

from edgeship_agent.config import read_config
from edgeship_agent.supervisor.agent import Inbox, StopRequest
from edgeship_agent.supervisor.log import Log
from edgeship_agent.supervisor.notify import Notifier
from edgeship_agent.supervisor.places import Places
from edgeship_agent.supervisor.run import _assemble
from tests.agents import AgentProcess, Depot
from tests.device_link import window


@pytest.fixture
def depot(tmp_path):
    depot = Depot(tmp_path / "depot")
    yield depot
    depot.close()


def test_an_event_that_nobody_foresaw_is_told_and_the_next_is_handled(tmp_path, depot):
    config = read_config(AgentProcess(tmp_path / "device", depot, 1).config)
    places, inbox, said = Places(config.state_dir), Inbox(), io.StringIO()
    places.make()
    agent, _ = _assemble(config, places, inbox, Log(said), Notifier({}, time.monotonic, 1))
    for event in (secrets, window(1), StopRequest(7)):  # the first is no event at all
        inbox.put(event)
    assert agent.run() == 7
    assert agent._parts.outbox.counters().waiting == 1
    inbox.put(window(1))
    agent.close()
    agent._parts.journal.close()
    places.withdraw()
    (line,) = [line for line in said.getvalue().splitlines() if "event_failed" in line]
    assert "kind=module" in line
    assert "AttributeError" in line
    assert "agent.py:" in line
