"""MQTT brokers that the server can bring along, behind one port (:class:`~edgeship.server.brokers.port.Broker`)."""

from edgeship.server.brokers.embedded import EmbeddedBroker, free_port
from edgeship.server.brokers.external import ExternalBroker

__all__ = ["EmbeddedBroker", "ExternalBroker", "free_port"]
