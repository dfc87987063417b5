"""The embedded broker: iotcore (rumqttd) in a child process on loopback, started again when it dies.

It keeps sessions and retained messages in memory only. Nothing of the protocol rests on them: goals are published
again on every connect, windows are sent until they are acknowledged.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeship.server.brokers.port import BrokerAddress
from edgeship_agent.contract.errors import ConfigError, EdgeshipError
from edgeship_agent.contract.wire import MAX_MESSAGE_BYTES

_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.02
_PORT_WAIT_S: Final = 5.0  # a predecessor's broker may need a moment to notice that its server is gone
_START_WAIT_S: Final = 20.0
_STOP_WAIT_S: Final = 3.0
#: Publications on their way to one client; also what one device may have unacknowledged.
_MAX_INFLIGHT: Final = 200
#: Room for the topic and the properties around the longest message.
_ENVELOPE_BYTES: Final = 4096
_log = logging.getLogger("edgeship.server.broker")

_TEMPLATE: Final = """\
# Written by the server at every start; changes are lost.
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
"""
_LISTENER: Final = """
[{protocol}.1]
name = "{protocol}-1"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[{protocol}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_payload_bytes}
max_inflight_count = {max_inflight}
dynamic_filters = true
"""


def broker_config(address: BrokerAddress) -> str:
    """The broker's configuration file: MQTT 5 and 3.1.1 on a port each (it refuses a 3.1.1 client on the v5 port)."""
    listeners = [
        _LISTENER.format(
            protocol=protocol,
            host=address.host,
            port=port,
            max_payload_bytes=MAX_MESSAGE_BYTES + _ENVELOPE_BYTES,
            max_inflight=_MAX_INFLIGHT,
        )
        for protocol, port in (("v5", address.port), ("v4", address.port_v311))
    ]
    return _TEMPLATE + "".join(listeners)


class EmbeddedBroker:
    """Runs the broker and keeps it running.

    Args:
        directory: where its configuration file is written.
        port: for MQTT 5; 0 takes a free one.
        port_v311: for MQTT 3.1.1; 0 takes a free one.
        on_restart: called (from the watching thread) when it was started again.
    """

    def __init__(
        self, directory: Path, port: int, port_v311: int = 0, on_restart: Callable[[], None] = lambda: None
    ) -> None:
        self._config_file = directory / "broker.toml"
        port = port or free_port()
        self._address = BrokerAddress(host=_HOST, port=port, port_v311=port_v311 or free_port())
        self._on_restart = on_restart
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

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
        self._config_file.write_text(broker_config(self._address), encoding="utf-8")
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

    def _launch(self) -> None:
        for port in (self._address.port, self._address.port_v311):
            _wait_until_free(port)
        command = [sys.executable, "-m", "edgeship.server.brokers.iotcore_child", "--config", str(self._config_file)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
        self._process = process
        deadline_s = time.monotonic() + _START_WAIT_S
        while not all(_accepts(port) for port in (self._address.port, self._address.port_v311)):
            if process.poll() is not None or time.monotonic() > deadline_s:
                _end(process)
                raise EdgeshipError("the embedded broker did not start", file=self._config_file)
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


def free_port() -> int:
    """A TCP port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _wait_until_free(port: int) -> None:
    deadline_s = time.monotonic() + _PORT_WAIT_S
    while not port_is_free(port):
        if time.monotonic() > deadline_s:
            raise ConfigError(
                "the port is in use by another program",
                key="--broker-port",
                got=port,
                next_step="--broker-port 0 takes a free one",
            )
        time.sleep(_POLL_S)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_STOP_WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
