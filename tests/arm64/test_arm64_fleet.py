"""A second host of another architecture, over TLS: it enrols, serves, updates, rolls back, and is put out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship.server.brokers import free_port
from edgeship_agent.serving.client import Client
from edgeship_agent.supervisor.places import find_socket
from tests.agents import TARGET, Traffic, make_bundle
from tests.arm64_root import Arm64Root, arm64_root
from tests.integration.test_enrolment import HOST, POLICY, edgeship, ends, running, token
from tests.programs import require_program
from tests.server_process import ServerProcess, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

DEVICE = "arm-1"
_PATIENCE_S = 400.0
_QUICK = (
    "[telemetry]\nwindow_s = 1.0\nwindow_inferences = 40\nheartbeat_s = 1.0\n"
    "[update]\ndisk_reserve_bytes = 0\nretry_s = 0.2\n[link]\nreconnect_start_s = 0.2\nreconnect_max_s = 1.0\n"
)


class SecondHost:
    """The agent in the emulated root, with what enrolment gave it."""

    def __init__(self, arm: Arm64Root, folder: Path) -> None:
        self.arm, self.state, self.config = arm, folder / "state", folder / "agent.toml"
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.arm.run("-m", "edgeship_agent.cli", *arguments)

    def run(self) -> None:
        launcher = ", ".join(f'"{word}"' for word in self.arm.prefix())
        head = f"allow_volatile_state = true\nlauncher = [{launcher}]\n"
        self.config.write_text(f"{head}{self.config.read_text()}{_QUICK}")
        command = [*self.arm.prefix(), self.arm.python, "-m", "edgeship_agent.cli", "run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)

    @property
    def socket(self) -> Path:
        return find_socket(self.state)

    def client(self, timeout_s: float = 300.0) -> Client:
        wait_for((self.state / "run" / "socket-path").exists, "the socket's path", _PATIENCE_S)
        return Client(self.socket, timeout_s)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(120)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    require_program("mosquitto")
    ports = [free_port(HOST) for _ in range(3)]
    options = ("--devices-host", HOST, "--devices-port", str(ports[0]), "--enrol-port", str(ports[1]))
    started = ServerProcess(tmp_path / "data", *options, "--broker-port", str(ports[2]))
    started.start()
    yield started
    assert started.stop() == 0, started.log.read_text()


def test_it_enrols_serves_updates_rolls_back_and_is_put_out(server: ServerProcess, tmp_path: Path) -> None:
    host = SecondHost(arm64_root(), tmp_path / "host")
    host.state.parent.mkdir()
    named = ("--device-id", DEVICE, "--target", TARGET, "--state-dir", str(host.state), "--config", str(host.config))
    done = host.command("enroll", server.info["enrol_url"], "--token", token(server, "--group", "lab"), *named)
    assert done.returncode == 0, done.stderr
    host.run()
    try:
        device = wait_for(lambda: next(iter(server.get("devices")["devices"]), None), "the device", _PATIENCE_S)
        assert (device["id"], device["arch"], device["tags"]) == (DEVICE, "aarch64", {"group": "lab"})
        _roll_out(server, tmp_path, "1.0")
        with Traffic(host, pause_s=0.02) as traffic:
            _await(server, "1.0", "completed", host)
            _roll_out(server, tmp_path, "2.0")
            _await(server, "2.0", "completed", host)
            newest = server.get("rollouts")["rollouts"][0]["id"]
            assert edgeship(server, "rollouts", "rollback", newest).returncode == 0
            _await(server, "1.0", "rolled_back", host)
        assert not traffic.errors
        assert {"1.0", "2.0"} <= set(traffic.versions)
        assert edgeship(server, "devices", "revoke", DEVICE).returncode == 0
        wait_for(lambda: not server.get(f"devices/{DEVICE}")["online"], "its end", _PATIENCE_S)
        said = host.command("doctor", "--config", str(host.config)).stdout
        assert "does not take this device's certificate" in said
        with host.client() as client:
            assert client.status().version == "1.0", "its model works on"
    finally:
        host.stop()


def _roll_out(server: ServerProcess, folder: Path, version: str) -> None:
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    bundle = make_bundle(folder, version, arch="aarch64", seed_scale=float(version))
    assert edgeship(server, "releases", "add", str(bundle)).returncode == 0
    options = ("--stages", "100%", "--policy", str(policy), "--filter", "group=lab")
    made = edgeship(server, "rollouts", "create", "digits", version, *options)
    assert made.returncode == 0, made.stderr


def _await(server: ServerProcess, version: str, state: str, host: SecondHost) -> None:
    def come() -> bool:
        assert host.process is not None and host.process.poll() is None, host.log.read_text()
        return running(server, DEVICE) == {version: "committed"} and ends(server)[0] == state

    wait_for(come, f"{version} {state}", _PATIENCE_S)
