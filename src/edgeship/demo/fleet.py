"""The demo's fleet: one server with its broker, some devices with their agents, and the questions asked of them."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import msgspec
from msgspec import Struct

from edgeship.demo.building import MODEL, TARGETS
from edgeship.demo.processes import Processes, Role
from edgeship.demo.timeline import Timeline
from edgeship_agent.contract.errors import EdgeshipError

POLL_S: Final = 0.25
REQUEST_TIMEOUT_S: Final = 5.0
COMMAND_ATTEMPTS: Final = 3

_SERVER_CONFIG: Final = """\
# Quick judgements for a demonstration; a real fleet keeps the defaults, which wait for hours of traffic.
schema_version = 1
tick_s = 0.5
silence_s = 15.0
accept_baseline = true

[drift]
recent_windows = 5
reference_windows = 5
reference_samples = 300
min_samples = 300
alarm_hot = 3
alarm_of = 4
"""

T = TypeVar("T")


class Device(Struct, frozen=True, kw_only=True):
    """One simulated machine: a folder, an agent, a socket."""

    id: str
    target: str
    folder: Path

    @property
    def runtime(self) -> str:
        """The runtime that its target prefers."""
        return TARGETS[self.target]

    @property
    def socket(self) -> Path:
        """Where its application reaches the agent."""
        return self.folder / "state" / "run" / "infer.sock"


def free_port() -> int:
    """A TCP port on loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def name_devices(folder: Path, count: int) -> list[Device]:
    """``count`` devices, spread evenly over the targets."""
    targets = list(TARGETS)
    return [
        Device(
            id=f"{TARGETS[targets[index % len(targets)]]}-{index // len(targets) + 1}",
            target=targets[index % len(targets)],
            folder=folder / f"device-{index + 1}",
        )
        for index in range(count)
    ]


class Fleet:
    """Starts the processes and asks the server about them.

    Args:
        folder: everything that the processes write.
        devices: see :func:`name_devices`.
        broker_url: an external broker, or empty for the server's own.
        timeline: where the fleet tells of processes that come and go.
    """

    def __init__(self, folder: Path, devices: Sequence[Device], broker_url: str, timeline: Timeline) -> None:
        self.folder = folder
        self.devices = list(devices)
        self._timeline = timeline
        self._external_broker = broker_url
        self._port = free_port()
        self._broker_port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        environment = {"EDGESHIP_SERVER": self.url, "NO_COLOR": "1"}
        self._processes = Processes(environment, lambda role: timeline.line(f"{role} died and is started again"))
        self._http = httpx.Client(base_url=self.url, timeout=REQUEST_TIMEOUT_S)

    @property
    def broker_url(self) -> str:
        """Where the agents find the broker."""
        return self._external_broker or f"mqtt://127.0.0.1:{self._broker_port}"

    def start_server(self) -> None:
        """Start the server and wait until it answers."""
        config = self.folder / "server.toml"
        config.write_text(_SERVER_CONFIG, encoding="utf-8")
        command = [
            *(sys.executable, "-m", "edgeship", "server", "run", "--data", str(self.folder / "server")),
            *("--port", str(self._port), "--config", str(config)),
        ]
        command += (
            ["--broker", self._external_broker] if self._external_broker else ["--broker-port", str(self._broker_port)]
        )
        self._processes.start("server", command, self.folder / "server.log")
        self.wait(self._server_answers, 60.0, "the server to answer")

    def start_agents(self) -> None:
        """Start every device's agent and wait until the server sees it online."""
        for device in self.devices:
            device.folder.mkdir(parents=True, exist_ok=True)
            config = device.folder / "agent.toml"
            config.write_text(self._agent_config(device), encoding="utf-8")
            command = [sys.executable, "-m", "edgeship_agent.cli", "run", "--config", str(config)]
            self._processes.start(f"agent:{device.id}", command, device.folder / "agent.log")
        self.wait(lambda: self._online() == len(self.devices), 60.0, "every agent to be online")

    def _agent_config(self, device: Device) -> str:
        trust = self.folder / "server" / "trust"
        return f"""\
schema_version = 1
device_id = "{device.id}"
target = "{device.target}"
state_dir = "{device.folder / "state"}"
allow_volatile_state = true
server_url = "{self.url}"
broker_url = "{self.broker_url}"
root = "{trust / "root.json"}"
goal_key = "{trust / "goal.pub"}"

[tags]
runtime = "{device.runtime}"

[telemetry]
window_s = 1.0
flush_s = 0
window_inferences = 100
heartbeat_s = 1.0
resend_s = 2.0

[link]
reconnect_max_s = 2.0
"""

    def wait(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        """Wait for a condition while the processes are kept alive.

        Raises:
            EdgeshipError: it did not become true in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._processes.keep_alive()
            self._timeline.processes(self.roles())
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline_s:
                raise EdgeshipError(
                    f"waited {timeout_s:.0f} s for {what}",
                    file=self.folder,
                    next_step=f"read the logs in {self.folder}",
                )
            time.sleep(POLL_S)

    def get(self, path: str) -> Any:
        """A document of the server's API, or None while the server is away."""
        try:
            answer = self._http.get(f"/api/v1/{path}")
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPError:
            return None

    def command(self, *arguments: str) -> Any:
        """Run ``edgeship ... --json`` as an operator would; tried again while the server is being restarted.

        Raises:
            EdgeshipError: the command failed, with what it said.
        """
        line = [sys.executable, "-m", "edgeship", *arguments, "--server", self.url, "--json"]

        failures: list[str] = []

        def attempt() -> Any:
            outcome = subprocess.run(line, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
            if outcome.returncode == 0:
                return msgspec.json.decode(outcome.stdout)
            if self.get("health") is None:
                return None
            # it may have been away when the command asked and be back now; what fails thrice fails
            failures.append(outcome.stderr.decode().strip())
            if len(failures) < COMMAND_ATTEMPTS:
                return None
            raise EdgeshipError(f"edgeship {' '.join(arguments)}: {failures[-1]}")

        return self.wait(attempt, 120.0, f"edgeship {arguments[0]}")

    def running(self) -> dict[str, str]:
        """Device → committed version that is loaded, by the server's books; empty text for none."""
        document = self.get("devices")
        if document is None:
            return {}
        return {
            device["id"]: next(
                (
                    arm["version"]
                    for arm in device["running"]
                    if arm["model"] == MODEL and arm["state"] == "committed" and device["online"]
                ),
                "",
            )
            for device in document["devices"]
        }

    def status(self, device: Device) -> dict[str, Any]:
        """What the agent itself says: its status file."""
        path = device.folder / "state" / "run" / "status.json"
        try:
            document = msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError):
            return {}
        assert isinstance(document, dict)
        return document

    def roles(self) -> list[Role]:
        """Every process of the demo: its own children, the server's broker and the agents' workers."""
        roles = self._processes.roles()
        server_file = self.folder / "server" / "server.json"
        try:
            server = msgspec.json.decode(server_file.read_bytes())
        except (OSError, msgspec.DecodeError):
            server = {}
        if server.get("broker_pid"):
            roles.append(Role(role="broker", pid=server["broker_pid"]))
        for device in self.devices:
            workers = self.status(device).get("workers", [])
            roles += [Role(role=f"worker:{device.id}", pid=worker["pid"]) for worker in workers if worker["pid"]]
        return [role for role in roles if _alive(role.pid)]

    def _server_answers(self) -> bool:
        return self.get("health") is not None

    def _online(self) -> int:
        document = self.get("devices")
        return 0 if document is None else sum(device["online"] for device in document["devices"])

    def stop(self) -> None:
        """End every process."""
        self._http.close()
        self._processes.stop_all()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIG_DFL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def demo_folder(parent: Path | None) -> Path:
    """A new folder of this demo's own.

    Unix socket paths are short (107 bytes), so it lies directly under the system's temporary folder by default.
    """
    import tempfile

    if parent is None:
        return Path(tempfile.mkdtemp(prefix="edgeship-"))
    folder = parent / f"edgeship-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    return folder
