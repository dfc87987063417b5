"""The embedded broker: iotcore (rumqttd) in a child process on loopback, started again when it dies.

It keeps sessions and retained messages in memory only. Nothing of the protocol rests on them: goals are published
again on every connect, windows are sent until they are acknowledged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgeship.server.brokers.child import ChildBroker, free_port
from edgeship.server.brokers.port import BrokerAddress
from edgeship_agent.contract.wire import MAX_MESSAGE_BYTES

_HOST: Final = "127.0.0.1"
#: Publications on their way to one client; also what one device may have unacknowledged.
_MAX_INFLIGHT: Final = 200
#: Room for the topic and the properties around the longest message.
_ENVELOPE_BYTES: Final = 4096

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


class EmbeddedBroker(ChildBroker):
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
        address = BrokerAddress(host=_HOST, port=port or free_port(), port_v311=port_v311 or free_port())
        super().__init__("the embedded broker", directory / "broker.toml", address, on_restart)

    def config(self) -> str:
        """See :func:`broker_config`."""
        return broker_config(self._address)

    def command(self) -> list[str]:
        """A child of this interpreter."""
        return [sys.executable, "-m", "edgeship.server.brokers.iotcore_child", "--config", str(self._config_file)]
