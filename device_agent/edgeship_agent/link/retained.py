"""One look at what a broker keeps under a topic, beside whatever else this device has connected."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from edgeship_agent.contract.errors import TransferError
from edgeship_agent.contract.topics import Topic
from edgeship_agent.link.address import Address


def look_up_retained(
    address: Address, topic: Topic, tls: Callable[[], ssl.SSLContext], *, connect_s: float, wait_s: float
) -> bytes | None:
    """The message that a broker keeps under a topic, or None where none comes within ``wait_s``.

    The session has no name of its own, so an agent that is connected stays so.

    Args:
        address: of the broker.
        topic: that this device may read.
        tls: makes the context, where the address asks for TLS.
        connect_s: for connecting, and for every answer of the broker.
        wait_s: after the broker has accepted the subscription; nothing says that it keeps no message.

    Raises:
        TransferError: the broker does not let us look, or is not there.
    """
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id="",
        protocol=MQTTProtocolVersion.MQTTv5,
        reconnect_on_failure=False,
        transport="websockets" if address.path else "tcp",
    )
    if address.path:
        client.ws_set_options(path=address.path)
    if address.tls:
        client.tls_set_context(tls())
    client.connect_timeout = connect_s
    look = _Look(topic)
    client.on_connect, client.on_subscribe, client.on_message = look.connected, look.subscribed, look.came
    try:
        client.connect(address.host, address.port, clean_start=True)
    except (OSError, ValueError) as error:
        raise TransferError(f"the broker cannot be asked: {error}", retryable=True) from error
    client.loop_start()
    try:
        return look.result(connect_s, wait_s)
    finally:
        with contextlib.suppress(OSError, ValueError):
            client.disconnect()
        client.loop_stop()


class _Look:
    """What the broker has answered so far; called from the client's thread."""

    def __init__(self, topic: Topic) -> None:
        self._path = topic.path()
        self._answered, self._found = threading.Event(), threading.Event()
        self._refusal = ""
        self._payload: bytes | None = None

    def connected(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refuse(reason)
        else:
            client.subscribe(self._path, qos=1)

    def subscribed(self, _client: Any, _data: Any, _mid: Any, reasons: Any, _properties: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                self._refuse(reason)
        self._answered.set()

    def came(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.retain and message.topic == self._path:
            self._payload = bytes(message.payload)
            self._found.set()

    def result(self, connect_s: float, wait_s: float) -> bytes | None:
        """Wait for it."""
        if not self._answered.wait(connect_s):
            raise TransferError("the broker does not answer", retryable=True)
        if self._refusal:
            raise TransferError(f"the broker refuses: {self._refusal}", retryable=True)
        self._found.wait(wait_s)
        return self._payload

    def _refuse(self, reason: Any) -> None:
        self._refusal = str(reason)
        self._answered.set()
