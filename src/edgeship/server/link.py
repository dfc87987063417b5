"""The server's MQTT client: everything that devices say, in order, onto one queue; acknowledged after the commit.

The broker holds back further messages while too many are unacknowledged, so a slow database slows the broker and
never fills this process's memory.
"""

from __future__ import annotations

import logging
import queue
import ssl
import threading
from typing import Any, Final

import paho.mqtt.client as mqtt
from msgspec import Struct
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edgeship.server.brokers.port import BrokerAddress
from edgeship_agent.contract.topics import Kind, Topic, fleet_filter

_QUEUE_LENGTH: Final = 10_000
_KEEPALIVE_S: Final = 15
_QOS: Final = 1
_log = logging.getLogger("edgeship.server.link")


class Connected(Struct, frozen=True, kw_only=True):
    """A connection to the broker was made: goals must be published again."""

    epoch: int


class Incoming(Struct, frozen=True, kw_only=True):
    """A message as it arrived.

    Attributes:
        epoch: the connection that it came over; its receipt is worth nothing to the next one.
        retained: kept by the broker, so perhaps from long ago.
    """

    epoch: int
    topic: str
    payload: bytes
    message_id: int
    qos: int
    retained: bool


class BrokerLink:
    """A connection that heals itself.

    Args:
        address: of the broker.
        client_id: unique at the broker; a second server with the same would throw the first one out.
    """

    def __init__(self, address: BrokerAddress, client_id: str) -> None:
        self.inbox: queue.Queue[Incoming | Connected] = queue.Queue(_QUEUE_LENGTH)
        self.dropped = 0
        self._address = address
        self._epoch = 0
        self._lock = threading.Lock()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, manual_ack=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.reconnect_delay_set(min_delay=1, max_delay=1)
        if address.tls is not None:
            tls = address.tls
            client.tls_set(str(tls.authority), str(tls.certificate), str(tls.key), tls_version=ssl.PROTOCOL_TLS_CLIENT)
        self._client = client

    @property
    def is_connected(self) -> bool:
        """Whether messages can flow now."""
        return self._client.is_connected()

    def start(self) -> None:
        """Connect and keep connected, from a thread of its own."""
        # a clean start each time: the server's memory is its database, never a session of the broker
        self._client.connect_async(
            self._address.local_host, self._address.port, keepalive=_KEEPALIVE_S, clean_start=True
        )
        self._client.loop_start()

    def stop(self) -> None:
        """Say goodbye and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: Topic, payload: bytes, retain: bool) -> None:
        """Send to a device; without a connection the message is dropped (see :meth:`ServerContext.publish`)."""
        if self._client.is_connected():
            self._client.publish(topic.path(), payload, qos=_QOS, retain=retain)

    def receipt(self, message: Incoming) -> None:
        """Tell the broker that a message is dealt with; one of an earlier connection is not its business any more."""
        with self._lock:
            if message.qos > 0 and message.epoch == self._epoch and self._client.is_connected():
                self._client.ack(message.message_id, message.qos)

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: mqtt.ConnectFlags, reason: ReasonCode, _props: Properties | None
    ) -> None:
        if reason.is_failure:
            _log.warning("broker refused the connection: %s", reason)
            return
        with self._lock:
            self._epoch += 1
        client.subscribe([(fleet_filter(kind), _QOS) for kind in Kind if kind.from_device])
        self.inbox.put(Connected(epoch=self._epoch))
        _log.info("broker connected at %s", self._address.url)

    def _on_connect_fail(self, _client: mqtt.Client, _data: Any) -> None:
        _log.warning("broker not reached at %s: trying again", self._address.url)

    def _on_disconnect(
        self, _client: mqtt.Client, _data: Any, _flags: mqtt.DisconnectFlags, reason: ReasonCode, _p: Properties | None
    ) -> None:
        _log.info("broker connection ended: %s", reason)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        incoming = Incoming(
            epoch=self._epoch,
            topic=message.topic,
            payload=bytes(message.payload),
            message_id=message.mid,
            qos=message.qos,
            retained=message.retain,
        )
        try:
            self.inbox.put_nowait(incoming)
        except queue.Full:  # only a flood of QoS 0 gets here: QoS 1 stops at the broker's limit of unacknowledged ones
            self.dropped += 1
            self.receipt(incoming)
