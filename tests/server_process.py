"""A real server process over a folder, for integration tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

T = TypeVar("T")
WAIT_S = 60.0


def wait_for(condition: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
    """The first true value of a condition; the limit only ends a test that hangs."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


class ServerProcess:
    """``edgeship server run`` over one folder; can be killed and started again."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data = data
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.log = data.parent / "server.log"

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [sys.executable, "-m", "edgeship", "server", "run", "--data", str(self.data)]
        command += ["--port", "0", *(() if "--broker" in self.options else ("--broker-port", "0")), *self.options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_for(self._is_ready, "the server to be ready")

    @property
    def info(self) -> dict[str, Any]:
        return msgspec.json.decode((self.data / "server.json").read_bytes())  # type: ignore[no-any-return]

    @property
    def broker_port(self) -> int:
        return int(self.info["broker_url"].rpartition(":")[2])

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.info['url']}/api/v1/{path}", timeout=10.0)
        answer.raise_for_status()
        return answer.json()

    def kill(self) -> None:
        """kill -9, then wait for the corpse."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process is None:
            return 0
        self.process.terminate()
        return self.process.wait(30)

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(self.info["pid"] == self.process.pid)
        except (OSError, msgspec.MsgspecError):
            return False


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no corpse."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def run_server_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A call that is expected to end by itself."""
    command: Sequence[str] = [sys.executable, "-m", "edgeship", "server", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
