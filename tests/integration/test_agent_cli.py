"""``edgeship-agent`` on the command line, with an agent whose state directory is too deep for a socket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agents import SHORT, AgentProcess, Broker, Depot, ServerSide, model_goal, until
from tests.conformance.slots import images


def command(agent: AgentProcess, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-W", "error", "-m", "edgeship_agent.cli", name, "--config", str(agent.config), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def document(agent: AgentProcess, name: str, *arguments: str) -> dict[str, Any]:
    done = command(agent, name, "--json", *arguments)
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["schema_version"] == 1
    return answer


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AgentProcess, Depot]]:
    folder = tmp_path_factory.mktemp("cli") / ("deep-" * 18)
    depot, broker = Depot(folder / "depot"), Broker(folder / "broker")
    server = ServerSide(broker.port)
    agent = AgentProcess(folder / "device", depot, broker.port)
    release = depot.publish("1")
    server.send_goal(depot.goal(1, model_goal(release, "first", probation=SHORT)))
    agent.start()
    assert server.ended("first").state.value == "committed"
    until(lambda: agent.status()["running"], 20.0, "the status")
    yield agent, depot
    agent.stop()
    server.close()
    broker.kill()
    depot.close()


def test_status(device: tuple[AgentProcess, Depot]) -> None:
    agent, _ = device
    status = document(agent, "status")
    assert status["alive"] and status["connected"]
    assert [arm["version"] for arm in status["running"]] == ["1"]
    assert status["workers"][0]["pid"] > 0
    said = command(agent, "status").stdout
    assert "digits 1" in said
    assert said.splitlines()[-1].startswith("next: edgeship-agent infer")


def test_infer(device: tuple[AgentProcess, Depot], tmp_path: Path) -> None:
    agent, _ = device
    batch = np.stack([sample["image"] for sample in images(3)])
    np.save(tmp_path / "x.npy", batch)
    np.savez(tmp_path / "x.npz", image=batch[0])
    answers = document(agent, "infer", "--input", str(tmp_path / "x.npy"))["answers"]
    assert len(answers) == 3
    assert len(answers[0]["outputs"]["scores"][0]) == 10
    assert "digits 1" in command(agent, "infer", "--input", str(tmp_path / "x.npz")).stdout


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.zeros((3, 9, 9), np.uint8), "[8, 8]"), (np.zeros((8, 8), np.float32), "uint8"), (None, "numpy")],
)
def test_infer_with_unusable_input(device: tuple[AgentProcess, Depot], tmp_path: Path, array: Any, words: str) -> None:
    agent, _ = device
    path = tmp_path / "x.npy"
    if array is None:
        path.write_bytes(b"no array")
    else:
        np.save(path, array)
    done = command(agent, "infer", "--input", str(path))
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
    assert not done.stdout


def test_doctor(device: tuple[AgentProcess, Depot]) -> None:
    agent, _ = device
    checks = {check["name"]: check for check in document(agent, "doctor")["checks"]}
    assert {name for name, check in checks.items() if check["state"] == "fail"} == set()
    assert all(check["mend"] for check in checks.values() if check["state"] != "ok")
    assert "digits 1" in checks["model"]["detail"]
    lines = command(agent, "doctor").stdout.splitlines()
    assert len([line for line in lines if not line.startswith("    ")]) == len(checks)


def test_a_second_agent_is_refused(device: tuple[AgentProcess, Depot]) -> None:
    agent, _ = device
    done = command(agent, "run")
    assert done.returncode == 2
    assert "another agent" in done.stderr


def test_configuration_mistakes(device: tuple[AgentProcess, Depot], tmp_path: Path) -> None:
    agent, _ = device
    broken = AgentProcess(tmp_path, device[1], 1)
    broken.config.write_text(agent.config.read_text() + "surprise = 1\n")
    for name in ("run", "status", "doctor"):
        done = command(broken, name)
        assert done.returncode == 2
        assert "unknown key" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
