"""The demo's real processes: started, named, started again when they die, and all ended at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

#: A process that dies more often than this is broken, not killed.
MAX_RESTARTS: Final = 20
STOP_TIMEOUT_S: Final = 10.0


class Role(Struct, frozen=True, kw_only=True):
    """A process and what it is for: ``server``, ``broker``, ``agent:<id>`` or ``worker:<id>``."""

    role: str
    pid: int


class _Child(Struct, kw_only=True):
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes]
    restarts: int = 0


class Processes:
    """Children of the demo. Use from the main thread only: the tether is to the thread that starts a child.

    Args:
        environment: variables on top of the demo's own.
        on_restart: told the role of a child that died and was started again.
    """

    def __init__(self, environment: dict[str, str], on_restart: Callable[[str], None]) -> None:
        self._environment = {**os.environ, **environment}
        self._on_restart = on_restart
        self._children: dict[str, _Child] = {}

    def start(self, role: str, command: Sequence[str], log: Path) -> None:
        """Start a child under a role; its output goes to ``log``."""
        self._children[role] = _Child(command=list(command), log=log, process=self._spawn(command, log))

    def _spawn(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        tether = [sys.executable, "-m", "edgeship.server.brokers.tethered", str(os.getpid())]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*tether, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends its children in order
            )

    def roles(self) -> list[Role]:
        """Every child that lives."""
        return [Role(role=role, pid=c.process.pid) for role, c in self._children.items() if c.process.poll() is None]

    def keep_alive(self) -> None:
        """Start again what died."""
        for role, child in self._children.items():
            if child.process.poll() is not None and child.restarts < MAX_RESTARTS:
                child.restarts += 1
                child.process = self._spawn(child.command, child.log)
                self._on_restart(role)

    def stop_all(self) -> None:
        """End every child: asked first, forced after ten seconds."""
        children = list(self._children.values())
        self._children.clear()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        for child in children:
            try:
                child.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
