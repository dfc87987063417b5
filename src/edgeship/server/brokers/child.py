"""A broker in a child process: started, waited for, watched, and started again when it dies."""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeship.server.brokers.port import BrokerAddress
from edgeship_agent.contract.errors import ConfigError, EdgeshipError

_POLL_S: Final = 0.02
_PORT_WAIT_S: Final = 5.0  # a predecessor's broker may need a moment to notice that its server is gone
_START_WAIT_S: Final = 20.0
_STOP_WAIT_S: Final = 3.0
_log = logging.getLogger("edgeship.server.broker")


class ChildBroker(ABC):
    """Runs a broker and keeps it running.

    Args:
        name: for messages.
        config_file: written before every start.
        address: where it listens.
        on_restart: called (from the watching thread) when it was started again.
    """

    def __init__(self, name: str, config_file: Path, address: BrokerAddress, on_restart: Callable[[], None]) -> None:
        self._name = name
        self._config_file = config_file
        self._address = address
        self._on_restart = on_restart
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    @abstractmethod
    def config(self) -> str:
        """The broker's configuration file."""

    @abstractmethod
    def command(self) -> list[str]:
        """The child's command line; it must end when its parent does."""

    @property
    def address(self) -> BrokerAddress:
        """Where it listens, the same over restarts."""
        return self._address

    @property
    def pid(self) -> int:
        """Process id of the child; 0 while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def start(self) -> None:
        """Start the child, wait until it accepts connections, and watch it from then on.

        Raises:
            ConfigError: another program has one of the ports.
            EdgeshipError: the broker did not come up.
        """
        self._config_file.write_text(self.config(), encoding="utf-8")
        self._launch()
        self._watcher = threading.Thread(target=self._watch, name="broker-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """End the child; its ports are free afterwards."""
        self._stopping.set()
        process = self._process
        if process is not None:
            _end(process)
        if self._watcher is not None:
            self._watcher.join(_STOP_WAIT_S)

    @property
    def _ports(self) -> set[int]:
        return {self._address.port, self._address.port_v311}

    def _launch(self) -> None:
        host = self._address.local_host
        for port in self._ports:
            _wait_until_free(host, port)
        process = subprocess.Popen(
            self.command(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._process = process
        deadline_s = time.monotonic() + _START_WAIT_S
        while not all(_accepts(host, port) for port in self._ports):
            if process.poll() is not None or time.monotonic() > deadline_s:
                _end(process)
                raise EdgeshipError(f"{self._name} did not start", file=self._config_file)
            time.sleep(_POLL_S)

    def _watch(self) -> None:
        while not self._stopping.is_set():
            process = self._process
            assert process is not None
            code = process.wait()
            if self._stopping.is_set():
                return
            _log.warning("broker died code=%s: starting it again on port %d", code, self._address.port)
            _end(process)
            self._restart()

    def _restart(self) -> None:
        while not self._stopping.is_set():
            try:
                self._launch()
            except EdgeshipError as error:
                _log.error("broker not started: %s", error)
                self._stopping.wait(1.0)
                continue
            if self._stopping.is_set():  # stop() came while it started
                assert self._process is not None
                _end(self._process)
                return
            self._on_restart()
            return


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on a port of this machine now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _wait_until_free(host: str, port: int) -> None:
    deadline_s = time.monotonic() + _PORT_WAIT_S
    while not port_is_free(port, host):
        if time.monotonic() > deadline_s:
            raise ConfigError(
                "the port is in use by another program",
                key="--broker-port",
                got=port,
                next_step="--broker-port 0 takes a free one",
            )
        time.sleep(_POLL_S)


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(_STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
