"""The agent as a service: what it tells systemd, and the unit file that starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.runtime.memory import SERVICE_ENVIRONMENT
from edgeship_agent.service_unit import unit_file
from edgeship_agent.supervisor.notify import Notifier, notifier_of_process
from edgeship_agent.update.launcher import Launcher
from tests.programs import require_program


class Manager:
    """What systemd does: listen on a datagram socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_alive_stopping(tmp_path: Path, abstract: bool) -> None:
    manager = Manager(f"@edgeship-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    now = [100.0]
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}
    told = Notifier(environment, lambda: now[0], 7)
    told.ready("device press-1")
    for _ in range(4):
        told.alive()
    now[0] += 9.9
    told.alive()
    now[0] += 0.2
    told.alive()
    told.stopping()
    assert manager.heard() == ["READY=1\nSTATUS=device press-1", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]
    manager.close()
    told.stopping()  # a manager that is gone stops nobody


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, {"WATCHDOG_USEC": "0"}],
)
def test_signs_of_life_are_for_who_asks(tmp_path: Path, environment: dict[str, str]) -> None:
    manager = Manager(str(tmp_path / "notify"))
    told = Notifier({**environment, "NOTIFY_SOCKET": manager.address}, lambda: 1.0, 7)
    told.alive()
    assert manager.heard() == []
    manager.close()


def test_children_do_not_speak_for_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    notifier_of_process(lambda: 1.0)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(os.environ)


PROGRAM, CONFIG = Path("/opt/edgeship-agent/bin/edgeship-agent"), Path("/etc/edgeship/agent.toml")


def test_the_unit_names_what_the_device_has() -> None:
    usual = unit_file(PROGRAM, CONFIG, Path("/var/lib/edgeship"), "edgeship")
    assert f"ExecStart={PROGRAM} run --config {CONFIG}\n" in usual
    assert "StateDirectory=edgeship\nStateDirectoryMode=0700\n" in usual
    assert "ProtectHome=true" in usual
    other = unit_file(PROGRAM, Path("/home", "ed", "agent.toml"), Path("/data/agent"), "ed")
    assert "ReadWritePaths=/data/agent\n" in other
    assert "ProtectHome=false" in other


@pytest.mark.parametrize(
    ("config", "user"),
    [("/etc/a b.toml", "edgeship"), ("/etc/%h.toml", "edgeship"), ("/etc/a.toml", "root"), ("/etc/a.toml", "")],
)
def test_what_a_unit_cannot_hold_is_refused(config: str, user: str) -> None:
    with pytest.raises(ConfigError):
        unit_file(PROGRAM, Path(config), Path("/var/lib/edgeship"), user)


def test_unit_and_image_start_the_agent_alike() -> None:
    ((name, value),) = SERVICE_ENVIRONMENT.items()
    unit = unit_file(PROGRAM, CONFIG, Path("/var/lib/edgeship"), "edgeship")
    image = (Path(__file__).resolve().parents[2] / "device_agent" / "Containerfile").read_text()
    assert f"\nEnvironment={name}={value}\n" in unit
    assert f"\nENV {name}={value}\n" in image


def test_children_do_not_get_what_is_set_for_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    ((name, value),) = SERVICE_ENVIRONMENT.items()
    ask = ["-c", f"import os; print(os.environ.get({name!r}), os.environ['KEPT'])"]
    monkeypatch.setenv("KEPT", "yes")
    launcher = Launcher([sys.executable, *ask])
    for value_here, value_there in ((value, None), ("glibc.malloc.check=1", "glibc.malloc.check=1")):
        monkeypatch.setenv(name, value_here)
        assert launcher.run("no.module", (), timeout_s=30).output.decode() == f"{value_there} yes\n"


def test_systemd_reads_the_unit_and_finds_it_closed(tmp_path: Path) -> None:
    analyze = require_program("systemd-analyze")
    program = tmp_path / "edgeship-agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "edgeship-agent.service"
    unit.write_text(unit_file(program, CONFIG, Path("/var/lib/edgeship"), "daemon"))
    read = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in read.stderr.splitlines() if str(unit) in line or "edgeship" in line]
    assert ours == []
    # 0 is closed, 10 is open; an ordinary service has 9.6
    judged = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=30", "--no-pager", str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stdout[-400:]
