"""MQTT brokers that the server can bring along, behind one port (:class:`~edgeship.server.brokers.port.Broker`)."""

from edgeship.server.brokers.child import free_port
from edgeship.server.brokers.embedded import EmbeddedBroker
from edgeship.server.brokers.external import ExternalBroker
from edgeship.server.brokers.mosquitto import MosquittoBroker

__all__ = ["EmbeddedBroker", "ExternalBroker", "MosquittoBroker", "free_port"]
