"""What a device says and hears, over a real broker connection: for tests of the server."""

from __future__ import annotations

import queue
import threading
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgeship_agent.contract.messages import (
    PROTOCOL_VERSION,
    Ack,
    Birth,
    Death,
    Heartbeat,
    OutboxCounters,
    RunningArm,
    Window,
    WindowBatch,
)
from edgeship_agent.contract.sketch import BinnedSketch, exponential_of
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import decode, encode


def window(seq: int, boot_id: str = "boot-1", **changes: Any) -> Window:
    """A plausible window of ``digits v1``."""
    values: dict[str, Any] = {
        "boot_id": boot_id,
        "seq": seq,
        "model": "digits",
        "version": "v1",
        "arm": "main",
        "digest": "sha256:" + "0" * 64,
        "variant": "x86-64-litert/litert/int8",
        "profile_hash": "0" * 64,
        "started_at_s": 1.0,
        "ended_at_s": 2.0,
        "clock_quality": "ok",
        "inferences": 100,
        "failures": 0,
        "deadline_misses": 0,
        "shed": 0,
        "crashes": 0,
        "latency_us": exponential_of([500.0] * 100),
        "signals": {"input/x/brightness": BinnedSketch(counts=(50, 50))},
    }
    return Window(**{**values, **changes})


def batch(device_id: str, *windows: Window, floor_seq: int = 1, boot_id: str = "boot-1") -> WindowBatch:
    """Windows of one start of the agent."""
    return WindowBatch(
        protocol_version=PROTOCOL_VERSION,
        device_id=device_id,
        boot_id=boot_id,
        floor_seq=floor_seq,
        windows=windows,
        outbox=OutboxCounters(created=len(windows), waiting=len(windows)),
    )


def birth(device_id: str, session: int = 1, **changes: Any) -> Birth:
    """A device of target ``x86-64-litert`` that runs nothing yet."""
    values: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "device_id": device_id,
        "session": session,
        "sent_at_s": 1.0,
        "clock_quality": "ok",
        "agent_version": "0.1.0",
        "target": "x86-64-litert",
        "arch": "x86_64",
        "isa": ("avx2",),
        "runtimes": {"litert": "2.3.0"},
        "tags": {"site": "lab"},
        "running": (),
        "last_reports": (),
        "outbox": OutboxCounters(),
        "goal_generation": 0,
    }
    return Birth(**{**values, **changes})


def heartbeat(device_id: str, session: int = 1, running: tuple[RunningArm, ...] = ()) -> Heartbeat:
    """A device that is alive."""
    return Heartbeat(
        protocol_version=PROTOCOL_VERSION,
        device_id=device_id,
        session=session,
        uptime_s=1.0,
        running=running,
        outbox=OutboxCounters(),
        goal_generation=0,
    )


def running_arm(version: str = "v1", state: str = "committed") -> RunningArm:
    """``digits`` on the main arm."""
    return RunningArm(
        model="digits",
        arm="main",
        version=version,
        digest="sha256:" + "0" * 64,
        variant="x86-64-litert/litert/int8",
        state=state,
    )


class DeviceLink:
    """A device's connection: MQTT 5 (or 3.1.1), a will, acknowledgements and goals on a queue."""

    def __init__(self, device_id: str, port: int, session: int = 1, protocol: int = mqtt.MQTTv5) -> None:
        self.device_id = device_id
        self.acks: queue.Queue[Ack] = queue.Queue()
        self.goals: queue.Queue[bytes] = queue.Queue()
        self.connections = 0
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=device_id, protocol=protocol)  # type: ignore[arg-type]
        death = Death(protocol_version=PROTOCOL_VERSION, device_id=device_id, session=session)
        self._client.will_set(self._path(Kind.DEATH), encode(Kind.DEATH, death), qos=1)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port, keepalive=5)
        self._client.loop_start()
        assert self._subscribed.wait(10)

    def say(self, kind: Kind, message: object) -> None:
        self.say_bytes(self._path(kind), encode(kind, message))

    def say_bytes(self, path: str, payload: bytes) -> None:
        self._client.publish(path, payload, qos=1).wait_for_publish(10)

    def ack(self) -> Ack:
        """The next acknowledgement."""
        return self.acks.get(timeout=20)

    def await_subscription(self) -> None:
        assert self._subscribed.wait(30)

    def forget_subscription(self) -> None:
        self._subscribed.clear()

    def close(self) -> None:
        """Leave without a will."""
        self._client.disconnect()
        self._client.loop_stop()

    def vanish(self) -> None:
        """Cut the connection so that the broker sends the will."""
        self._client.loop_stop()
        socket = self._client.socket()
        assert socket is not None
        socket.close()

    def _path(self, kind: Kind) -> str:
        return Topic(device_id=self.device_id, kind=kind).path()

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        self.connections += 1
        client.subscribe([(self._path(Kind.ACK), 1), (self._path(Kind.GOAL), 1)])

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic == self._path(Kind.ACK):
            self.acks.put(decode(Kind.ACK, message.payload))
        else:
            self.goals.put(message.payload)
