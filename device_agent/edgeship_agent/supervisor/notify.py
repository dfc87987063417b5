"""Telling the service manager how we are: ready, alive, stopping. Source: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Final

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
#: A sign of life comes this often within the time that the manager waits for one.
_SIGNS_A_TURN: Final = 3.0


class Notifier:
    """Speaks to systemd, or to nobody where the agent runs without it.

    Args:
        environment: ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are read.
        clock: seconds that never go back.
        pid: of this process.
    """

    def __init__(self, environment: Mapping[str, str], clock: Callable[[], float], pid: int) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # a leading @ stands for a zero byte: Linux's abstract names
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._clock = clock
        self._pause_s = _watchdog_s(environment, pid) / _SIGNS_A_TURN
        self._due_s = clock()

    def ready(self, status: str) -> None:
        """The agent serves, or would if it had a model."""
        self._say(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """The main loop turns; told no more often than the manager needs to hear it."""
        if self._pause_s > 0 and self._clock() >= self._due_s:
            self._due_s = self._clock() + self._pause_s
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The end was asked for."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.sendto(text.encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:
            return  # a manager that does not listen is no reason to stop serving


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float:
    """How long the manager waits for a sign of life; 0 where it does not wait, or waits for another process."""
    wanted = environment.get("WATCHDOG_PID", "")
    usec = environment.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or (wanted and wanted != str(pid)):
        return 0.0
    return int(usec) / 1e6


def notifier_of_process(clock: Callable[[], float]) -> Notifier:
    """The notifier of this process; its children do not inherit the manager's variables."""
    made = Notifier(dict(os.environ), clock, os.getpid())
    for name in _VARIABLES:
        os.environ.pop(name, None)
    return made
