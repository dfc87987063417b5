"""A broker that somebody else runs."""

from __future__ import annotations

from edgeship.server.brokers.port import BrokerAddress, parse_broker_url


class ExternalBroker:
    """Any MQTT 5 broker by URL; the server only connects to it.

    Args:
        url: ``mqtt://host[:port]``.

    Raises:
        ConfigError: not such a URL.
    """

    def __init__(self, url: str) -> None:
        self._address = parse_broker_url(url)

    @property
    def address(self) -> BrokerAddress:
        """As given."""
        return self._address

    def start(self) -> None:
        """Nothing to start; the link keeps trying until the broker answers."""

    def stop(self) -> None:
        """Not ours to end."""
