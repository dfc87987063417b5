"""MQTT through paho: version 5, falling back to 3.1.1; reconnects with jittered, growing pauses.

A broker's receipt proves nothing (queues overflow after it): windows leave the outbox on the server's own answer, and
a report that is lost comes again with the next birth. So nothing is kept here.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edgeship_agent.contract.errors import ConfigError, ContractError
from edgeship_agent.contract.messages import PROTOCOL_VERSION, Death
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import MAX_MESSAGE_BYTES, encode
from edgeship_agent.link.address import Address, Backoff
from edgeship_agent.link.port import Connected, Disconnected, LinkEvent, Received

_KEEPALIVE_S: Final = 30
_CONNECT_TIMEOUT_S: Final = 10.0
#: A connection that lasted so long is no failure: one that breaks sooner, again and again, is tried ever less often.
STEADY_S: Final = 30.0
_QOS: Final = 1
#: Messages that may wait for the broker's receipt, so that a broker that gives none fills no memory. Windows under way
#: (ten messages for each start of the agent) and reports are fewer; what does not fit is not taken, and said again.
_MOST_WAITING: Final = 100
_SILENT: Final = "the broker hung up, or did not answer, before it let this device in"
_SUBSCRIBED: Final = (Kind.GOAL, Kind.ACK, Kind.JOB)


class PahoLink:
    """A device's connection to its broker.

    Args:
        address: of the broker.
        device_id: client id and level of the topics.
        next_session: gives a session number that was never used before.
        backoff: pauses between attempts.
        rng: jitter.
        tls: makes the context of the next connection, where the address asks for TLS; it is asked each time, so that a
            renewed certificate is used.
    """

    def __init__(
        self,
        address: Address,
        device_id: str,
        next_session: Callable[[], int],
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self._address = address
        self._device_id = device_id
        self._next_session = next_session
        self._backoff = backoff or Backoff()
        self._rng = rng or random.SystemRandom()
        self._tls = tls
        self._closed = threading.Event()
        self._down = threading.Event()
        self._client: mqtt.Client | None = None
        self._connected = False
        self._network: threading.Thread | None = None  # paho's, as soon as the broker has answered
        self._was_reached = self._was_refused = False
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._on_event: Callable[[LinkEvent], None] = lambda _: None

    def open(self, on_event: Callable[[LinkEvent], None]) -> None:
        """Connect in the background; events come from the link's threads."""
        self._on_event = on_event
        self._thread.start()

    def publish(self, topic: Topic, payload: bytes) -> bool:
        """Hand a message over with QoS 1; False where the link is down, or the broker is behind with its receipts."""
        client = self._client
        if client is None or not self._connected:
            return False
        return client.publish(topic.path(), payload, qos=_QOS).rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def close(self) -> None:
        """Disconnect without a will and stay down."""
        self._closed.set()
        client = self._client
        if client is not None:
            client.disconnect()
        self._down.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        failures, session = 0, 0
        version = MQTTProtocolVersion.MQTTv5
        while not self._closed.is_set():
            session = session or self._next_session()
            self._was_reached, began_s = False, time.monotonic()
            was_up = self._one_connection(version, session)
            if was_up:
                session = 0
                failures = failures if time.monotonic() - began_s < STEADY_S else 0
            elif self._was_reached:
                # refused, or hung up on: some brokers say nothing to a version of MQTT that they do not speak
                is_v5 = version == MQTTProtocolVersion.MQTTv5
                version = MQTTProtocolVersion.MQTTv311 if is_v5 else MQTTProtocolVersion.MQTTv5
            failures += 1
            self._closed.wait(self._backoff.pause_s(failures, self._rng))

    def _one_connection(self, version: MQTTProtocolVersion, session: int) -> bool:
        """Connect and stay until the connection ends; whether it was ever up."""
        try:
            client = self._make_client(version, session)
        except ConfigError as error:
            self._on_event(Disconnected(reason=error.sentence()))
            return False
        self._client = client
        self._was_refused = False
        self._down.clear()
        was_up = threading.Event()
        client.on_connect = lambda *arguments: self._connect_answered(arguments[0], arguments[3], session, was_up)
        client.on_disconnect = lambda *_: self._down.set()
        client.on_message = lambda _client, _data, message: self._message_came(message)
        try:
            client.connect(self._address.host, self._address.port, keepalive=_KEEPALIVE_S, **_clean(version))
        except (OSError, ValueError) as error:
            self._on_event(Disconnected(reason=str(error)))
            return False
        self._was_reached = True
        client.loop_start()
        if not self._wait_for_answer(was_up):
            client.disconnect()
        else:
            while not self._down.wait(0.5) and not self._closed.is_set() and self._is_heard():
                pass
        self._connected = False
        _end(client)
        self._client = None
        if not self._closed.is_set() and not self._was_refused:
            self._on_event(Disconnected(reason="the connection was lost" if was_up.is_set() else _SILENT))
        return was_up.is_set()

    def _is_heard(self) -> bool:
        """Whether paho's thread lives: one that dies, of bytes that paho before 2.2 cannot read, say, tells nobody."""
        return self._network is not None and self._network.is_alive()

    def _wait_for_answer(self, was_up: threading.Event) -> bool:
        """Whether the broker let this device in before it gave up or the time was over."""
        for _ in range(int(_CONNECT_TIMEOUT_S / 0.05)):
            if was_up.wait(0.05):
                return True
            if self._down.is_set() or self._closed.is_set():
                return was_up.is_set()
        return False

    def _make_client(self, version: MQTTProtocolVersion, session: int) -> mqtt.Client:
        is_v5 = version == MQTTProtocolVersion.MQTTv5
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._device_id,
            clean_session=None if is_v5 else True,
            protocol=version,
            reconnect_on_failure=False,
            transport="websockets" if self._address.path else "tcp",
        )
        if self._address.path:
            client.ws_set_options(path=self._address.path)
        if self._address.tls:
            client.tls_set_context(self._tls())
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.max_queued_messages_set(_MOST_WAITING)
        death = Death(protocol_version=PROTOCOL_VERSION, device_id=self._device_id, session=session)
        will = Topic(device_id=self._device_id, kind=Kind.DEATH)
        client.will_set(will.path(), encode(Kind.DEATH, death), qos=_QOS)
        return client

    def _connect_answered(self, client: mqtt.Client, reason: Any, session: int, was_up: threading.Event) -> None:
        if reason.is_failure:
            self._was_refused = True
            self._on_event(Disconnected(reason=f"the broker refuses: {reason}"))
            self._down.set()
            return
        topics = [(Topic(device_id=self._device_id, kind=kind).path(), _QOS) for kind in _SUBSCRIBED]
        client.subscribe(topics)
        self._network = threading.current_thread()
        self._connected = True
        was_up.set()
        self._on_event(Connected(session=session))

    def _message_came(self, message: mqtt.MQTTMessage) -> None:
        if len(message.payload) > MAX_MESSAGE_BYTES:
            return
        try:
            topic = Topic.parse(message.topic)
        except (ContractError, ValueError):
            return  # not of this contract, or not even text: a broker may say what it likes
        if topic.device_id == self._device_id and topic.kind in _SUBSCRIBED:
            self._on_event(Received(topic=topic, payload=bytes(message.payload)))


def _end(client: mqtt.Client) -> None:
    """End paho's thread and close the line, also where the thread died: without a goodbye, so that the will is told."""
    with contextlib.suppress(AttributeError):  # paho forgets a thread that ends by itself, even while it is waited for
        client.loop_stop()
    line = client.socket()
    if line is not None:
        line.close()


def _clean(version: MQTTProtocolVersion) -> dict[str, Any]:
    """Sessions live with us, not with the broker."""
    return {"clean_start": True} if version == MQTTProtocolVersion.MQTTv5 else {}
