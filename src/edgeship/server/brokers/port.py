"""What the server needs of a broker, whoever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError


class BrokerTls(Struct, frozen=True, kw_only=True):
    """How the server shows a broker who it is, and knows the broker: PEM files."""

    authority: Path
    certificate: Path
    key: Path


class BrokerAddress(Struct, frozen=True, kw_only=True):
    """Where MQTT clients connect.

    Attributes:
        port: speaks MQTT 5.
        port_v311: speaks MQTT 3.1.1; the same port for brokers that speak both on one.
        tls: None where it speaks plain TCP.
    """

    host: str
    port: int
    port_v311: int
    tls: BrokerTls | None = None

    @property
    def local_host(self) -> str:
        """By which this machine itself reaches what listens on the host.

        >>> BrokerAddress(host="0.0.0.0", port=8883, port_v311=8883).local_host
        '127.0.0.1'
        """
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 (read, not bound)

    @property
    def url(self) -> str:
        """As devices' configurations spell it.

        >>> BrokerAddress(host="127.0.0.1", port=1883, port_v311=1884).url
        'mqtt://127.0.0.1:1883'
        """
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


class Broker(Protocol):
    """A broker for the time of the server."""

    @property
    def address(self) -> BrokerAddress:
        """Where it listens; fixed once it is started, also over its restarts."""
        ...

    def start(self) -> None:
        """Return once it accepts connections."""
        ...

    def stop(self) -> None:
        """End it, where it is ours."""
        ...


def parse_broker_url(url: str) -> BrokerAddress:
    """Read ``mqtt://host[:port]``.

    Raises:
        ConfigError: another scheme, no host, or a port out of range.

    >>> parse_broker_url("mqtt://broker.local").port
    1883
    """
    scheme, separator, rest = url.partition("://")
    host, colon, port_text = rest.rstrip("/").rpartition(":")
    if not colon:
        host, port_text = port_text, "1883"
    if scheme != "mqtt" or not separator or not host or not port_text.isdecimal() or not 0 < int(port_text) < 65536:
        raise ConfigError("not a broker address", key="--broker", expected="mqtt://HOST[:PORT]", got=url)
    return BrokerAddress(host=host, port=int(port_text), port_v311=int(port_text))
