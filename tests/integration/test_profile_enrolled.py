"""Profile jobs on an enrolled device: over mutual TLS, and beside an application that must not feel them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import Traffic, make_bundle, measuring, until
from tests.integration import test_enrolment as enrolment
from tests.server_process import ServerProcess, wait_for

server = enrolment.server
pytestmark = pytest.mark.slow
DEVICE = "press-9"
#: Far more than the tiny model needs, on a machine that does other things as well.
_DEADLINE_MS = 500.0


@pytest.fixture(scope="module")
def agent(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[enrolment.Agent]:
    tmp_path = tmp_path_factory.mktemp("device")
    assert enrolment.enroll(server, tmp_path, enrolment.token(server), DEVICE).returncode == 0
    agent = enrolment.Agent(tmp_path, DEVICE)
    wait_for(lambda: any(each["id"] == DEVICE for each in server.get("devices")["devices"]), "the device")
    enrolment.roll_out(server, "1.0")
    with Traffic(agent, deadline_ms=_DEADLINE_MS):  # what probation wants to see
        wait_for(lambda: enrolment.running(server, DEVICE) == {"1.0": "committed"}, "1.0 committed")
    yield agent
    assert agent.stop() == 0, agent.log.read_text()


def start_profile(server: ServerProcess, what: object, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgeship", "profile", str(what), "--device", DEVICE, "--json", *options]
    return subprocess.Popen([*command, "--server", server.info["url"]], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True)  # fmt: skip


def gives_way(pids: list[int]) -> bool:
    """Whether processes have the lowest priority."""
    try:
        return bool(pids) and all(os.getpriority(os.PRIO_PROCESS, pid) == 19 for pid in pids)
    except ProcessLookupError:
        return False


def test_a_job_over_mutual_tls_beside_an_application(
    server: ServerProcess, agent: enrolment.Agent, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path, "2", seed_scale=1.5)
    with Traffic(agent, deadline_ms=_DEADLINE_MS) as application:
        until(lambda: len(application.answers) > 50, 30.0, "traffic")
        begun = len(application.answers)
        job = start_profile(server, other, "--warm-up", "5", "--min-queries", "500", "--min-seconds", "3")
        until(lambda: gives_way(measuring(agent.state)), 60.0, "the device measuring, and giving way")
        said, told = job.communicate(timeout=120)
        during = len(application.answers) - begun
    assert job.returncode == 0, told
    [task] = json.loads(said)["tasks"]
    assert task["parity"]["passed"]
    assert task["latency"]["queries"] >= 500
    assert during > 200
    assert application.errors == []
    assert {answer.version for answer in application.answers} == {"1.0"}
    assert not [answer for answer in application.answers if answer.latency_us > _DEADLINE_MS * 1000.0]


def test_a_job_that_applications_suffer_from_is_ended(
    server: ServerProcess, agent: enrolment.Agent, tmp_path: Path
) -> None:
    job = start_profile(server, make_bundle(tmp_path, "3", seed_scale=1.5), "--min-seconds", "60")
    until(lambda: measuring(agent.state), 60.0, "the device measuring")
    with Traffic(agent, deadline_ms=0.02) as application:  # nobody can keep it
        said, told = job.communicate(timeout=60)
    assert (job.returncode, said) == (1, ""), said
    assert "serving suffers: " in told
    assert "calls since it began were late or shed" in told
    assert application.answers or application.errors
    until(lambda: not measuring(agent.state) and not (agent.state / "profiling").exists(), 20.0, "nothing left of it")
