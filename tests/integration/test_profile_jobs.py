"""Profile jobs: a real server, a real agent, the command line; measured there, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgeship_agent.runtime.isa import isa_class
from tests import models
from tests.agents import DEVICE, AgentProcess, make_bundle, measuring, until
from tests.server_process import ServerProcess

COMMAND = (sys.executable, "-m", "edgeship")


@dataclass
class Ground:
    """What an agent's configuration names."""

    url: str
    root: Path
    goal_key: Path


@dataclass
class Fleet:
    server: ServerProcess
    agent: AgentProcess
    bundle: Path
    url: str

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *arguments, "--server", self.url]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def profile(self, what: object, *options: str) -> subprocess.CompletedProcess[str]:
        quick = ("--warm-up", "5", "--min-queries", "60", "--min-seconds", "0")
        return self.run("profile", str(what), "--device", DEVICE, *quick, *options)

    def is_online(self) -> bool:
        return any(each["id"] == DEVICE and each["online"] for each in self.server.get("devices")["devices"])

    def is_clean(self) -> bool:
        return not measuring(self.agent.state) and not (self.agent.state / "profiling").exists()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("profile")
    server = ServerProcess(folder / "data")
    server.start()
    trust = folder / "data" / "trust"
    ground = Ground(url=server.info["url"], root=trust / "root.json", goal_key=trust / "goal.pub")
    agent = AgentProcess(folder / "device", ground, server.broker_port)  # type: ignore[arg-type]
    agent.start()
    fleet = Fleet(server, agent, make_bundle(folder, "1"), ground.url)
    try:
        until(fleet.is_online, 60.0, "the device online")
        yield fleet
    finally:
        agent.stop()
        server.stop()


def blobs(fleet: Fleet) -> set[str]:
    return {path.name for path in (fleet.server.data / "blobs" / "sha256").iterdir()}


def test_a_bundle_is_measured_on_the_device(fleet: Fleet) -> None:
    before = blobs(fleet)
    done = fleet.profile(fleet.bundle, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["device"], document["measured_on"]["isa"]) == (DEVICE, isa_class())
    assert document["measured_on"]["runtimes"]["onnxruntime"]
    [task] = document["tasks"]
    assert task["latency"]["queries"] >= 60
    order = [task["latency"][name] for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms")]
    assert order[0] > 0 and order == sorted(order)
    assert task["parity"]["passed"] and task["parity"]["samples"] == 8
    assert task["peak_memory_bytes"] > 10_000_000
    assert isinstance(document["throttling"], list)
    assert until(fleet.is_clean, 20.0, "everything removed on the device")
    assert until(lambda: blobs(fleet) == before, 20.0, "the uploaded files removed on the server")


def test_a_release_is_measured_and_stays(fleet: Fleet) -> None:
    added = fleet.run("releases", "add", str(fleet.bundle))
    assert added.returncode == 0, added.stderr
    before = blobs(fleet)
    done = fleet.profile("digits@1", "--latency-p99-ms", "10000")
    assert done.returncode == 0, done.stderr
    assert "p99.9" in done.stdout
    assert "parity" in done.stderr
    assert until(lambda: blobs(fleet) == before, 20.0, "the uploaded files removed on the server")
    late = fleet.profile("digits@1", "--latency-p99-ms", "0.000001")
    assert late.returncode == 3


def test_a_model_file_is_held_against_this_machine(fleet: Fleet, tmp_path: Path) -> None:
    done = fleet.profile(models.classifier(tmp_path / "m.onnx"), "--json")
    assert done.returncode == 0, done.stderr
    [task] = json.loads(done.stdout)["tasks"]
    assert task["parity"] == {"passed": True, "relative_rms": 0.0, "tolerance": 0.001, "samples": 8}


def test_outputs_of_another_model_miss_parity(fleet: Fleet, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "2", seed_scale=1.0, golden_scale=1.5)
    done = fleet.profile(bundle)
    assert done.returncode == 3, done.stderr
    assert "✖ parity" in done.stderr


def test_memory_limit_holds_and_the_agent_lives_on(fleet: Fleet) -> None:
    done = fleet.profile(fleet.bundle, "--memory-bytes", "3000000")
    assert done.returncode == 1
    assert "✖ measured" in done.stderr
    assert fleet.profile(fleet.bundle).returncode == 0


def test_a_job_that_takes_too_long_is_ended(fleet: Fleet) -> None:
    done = fleet.run("profile", str(fleet.bundle), "--device", DEVICE, "--min-seconds", "60", "--timeout-s", "3")
    assert done.returncode == 1
    assert "longer than the job allows" in done.stderr
    assert until(fleet.is_clean, 20.0, "everything removed on the device")


def test_an_interrupt_ends_the_job_on_the_device(fleet: Fleet) -> None:
    command = [*COMMAND, "profile", str(fleet.bundle), "--device", DEVICE, "--min-seconds", "60"]
    process = subprocess.Popen([*command, "--server", fleet.url], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    pids = until(lambda: measuring(fleet.agent.state), 60.0, "the device measuring")
    nice = os.getpriority(os.PRIO_PROCESS, pids[0])
    busy = fleet.profile(fleet.bundle)
    assert (busy.returncode, "busy with another profile job" in busy.stderr) == (1, True)
    until(
        lambda: [os.getpriority(os.PRIO_PROCESS, pid) for pid in measuring(fleet.agent.state)] == [19],
        20.0,
        f"{nice} → 19",
    )
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in {130, -signal.SIGINT}, said
    assert until(fleet.is_clean, 20.0, "everything removed on the device")


def test_unusable_arguments_are_told(fleet: Fleet, tmp_path: Path) -> None:
    assert fleet.run("profile", str(fleet.bundle), "--device", "nobody").returncode == 2
    nothing = fleet.profile("no-such-thing")
    assert (nothing.returncode, "Traceback" in nothing.stderr) == (2, False)
    other = fleet.profile(fleet.bundle, "--variant", "a/b/c")
    assert other.returncode == 2
    (tmp_path / "m.onnx").write_bytes(b"damaged")
    assert fleet.profile(tmp_path / "m.onnx").returncode in {1, 2}


def test_an_offline_device_is_told(fleet: Fleet) -> None:
    fleet.agent.stop()
    try:
        until(lambda: not fleet.is_online(), 60.0, "the device offline")
        done = fleet.profile(fleet.bundle)
        assert (done.returncode, "offline" in done.stderr) == (2, True)
    finally:
        fleet.agent.start()
        end_s = time.monotonic() + 60.0
        while not fleet.is_online() and time.monotonic() < end_s:
            time.sleep(0.05)


@pytest.mark.slow
def test_a_build_measures_on_the_device_that_its_target_names(fleet: Fleet, tmp_path: Path) -> None:
    target = tmp_path / "bench.toml"
    target.write_text(
        'schema_version = 1\nid = "bench"\nextends = "x86-64-server"\ntitle = "The bench device"\n'
        f'[measure]\nrunner = "device"\ndevice = "{DEVICE}"\nserver = "{fleet.url}"\nmin_queries = 100\n'
        "min_seconds = 0.0\n"
    )
    before = blobs(fleet)
    model = models.classifier(tmp_path / "model.onnx")
    calibration, evaluation = tmp_path / "calibration.npz", tmp_path / "evaluation.npz"
    np.savez(calibration, x=models.inputs(60, seed=1))
    np.savez(evaluation, x=models.inputs(80, seed=2))
    command = [
        *COMMAND, "build", str(model), "-t", str(target), "--calibration", str(calibration), "--json",
        "--evaluation", str(evaluation), "-o", str(tmp_path / "build"), "--key", str(tmp_path / "key"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 3, 4}, done.stderr
    document = json.loads(done.stdout)
    assert document["variants"]
    for variant in document["variants"]:
        assert (variant["measured_on"]["device"], variant["measured_on"]["isa"]) == (DEVICE, isa_class())
        assert variant["measured_on"]["cpu"]
        assert variant["latency_queries"] >= 100
        assert any(f"run on {DEVICE}: relative RMS" in note for note in variant["notes"])
    assert f"device    {DEVICE} of {fleet.url}" in done.stderr
    assert until(lambda: blobs(fleet) == before, 20.0, "the uploaded files removed on the server")
    target.write_text(target.read_text().replace(f'device = "{DEVICE}"\n', 'device = "nobody"\n'))
    unknown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (unknown.returncode, "nobody" in unknown.stderr) == (2, True), unknown.stderr
