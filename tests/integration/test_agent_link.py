"""The link over a real broker: births, wills, versions of MQTT, and coming back."""

from __future__ import annotations

import contextlib
import itertools
import queue
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from edgeship_agent.contract.messages import WindowBatch
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import decode
from edgeship_agent.link import paho
from edgeship_agent.link.address import Address, Backoff
from edgeship_agent.link.paho import PahoLink
from edgeship_agent.link.port import Connected, Disconnected, LinkEvent, Received
from edgeship_agent.supervisor.sending import Pace, WindowSender
from edgeship_agent.telemetry.outbox import Outbox
from edgeship_agent.telemetry.waiting import WaitingWindows
from tests.agents import DEVICE, Broker, ServerSide, free_port, until
from tests.device_link import window

QUICK = Backoff(start_s=0.05, max_s=0.2)


def open_link(port: int) -> tuple[PahoLink, queue.Queue[LinkEvent]]:
    events: queue.Queue[LinkEvent] = queue.Queue()
    numbers = itertools.count(1)
    link = PahoLink(Address(host="127.0.0.1", port=port), DEVICE, lambda: next(numbers), QUICK)
    link.open(events.put)
    return link, events


def wait_for(events: queue.Queue[LinkEvent], kind: type) -> LinkEvent:
    while True:
        event = events.get(timeout=30)
        if isinstance(event, kind):
            return event


class RawBroker:
    """Lets devices in by MQTT 5, says what a test wants, and gives receipts only while it is told to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.gives_receipts = False
        self.taken: list[bytes] = []
        self.ended = 0
        self._unanswered: list[bytes] = []
        self._line: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def say(self, packet: bytes) -> None:
        assert self._line is not None
        self._line.sendall(packet)

    def give_receipts(self) -> None:
        self.gives_receipts = True
        for number in self._unanswered:
            self.say(b"\x40\x02" + number)

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._line, _ = self._listener.accept()
                threading.Thread(target=self._read, args=(self._line,), daemon=True).start()

    def _read(self, line: socket.socket) -> None:
        with line, contextlib.suppress(OSError), line.makefile("rb") as file:
            while head := file.read(1):
                length = shift = 0
                while (byte := file.read(1)[0]) & 0x80:
                    length, shift = length | (byte & 0x7F) << shift, shift + 7
                self._answer(line, head[0] >> 4, file.read(length | byte << shift))
        self.ended += 1

    def _answer(self, line: socket.socket, kind: int, body: bytes) -> None:
        if kind == 1:
            line.sendall(b"\x20\x03\x00\x00\x00")  # CONNACK: accepted
        elif kind == 8:
            line.sendall(b"\x90\x06" + body[:2] + b"\x00\x01\x01\x01")  # SUBACK
        elif kind == 3:
            end = 2 + int.from_bytes(body[:2], "big")
            self.taken.append(body[end:])
            if self.gives_receipts:
                line.sendall(b"\x40\x02" + body[end : end + 2])
            else:
                self._unanswered.append(body[end : end + 2])


@pytest.fixture
def raw_broker() -> Iterator[RawBroker]:
    broker = RawBroker()
    yield broker
    broker.close()


GOAL = Topic(device_id=DEVICE, kind=Kind.GOAL)


def message(topic: bytes, payload: bytes) -> bytes:
    """PUBLISH with QoS 0, as MQTT 5 spells a short one."""
    body = len(topic).to_bytes(2, "big") + topic + b"\x00" + payload
    return bytes([0x30, len(body)]) + body


def test_a_topic_that_is_no_text_is_passed_over(raw_broker: RawBroker) -> None:
    link, events = open_link(raw_broker.port)
    assert wait_for(events, Connected) == Connected(session=1)
    raw_broker.say(message(b"\xff\xfe", b"x"))
    raw_broker.say(message(GOAL.path().encode(), b"goal"))
    assert events.get(timeout=20) == Received(topic=GOAL, payload=b"goal")
    link.close()


#: Paho's thread dies, or died before version 2.2, and tells nobody.
dies = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@dies
@pytest.mark.parametrize("packet", [b"\x30\x01\x00", b"\x30\x03\x00\x09x"], ids=["too short", "a topic beyond its end"])
def test_after_bytes_that_are_no_mqtt_it_comes_back(raw_broker: RawBroker, packet: bytes) -> None:
    link, events = open_link(raw_broker.port)
    assert wait_for(events, Connected) == Connected(session=1)
    raw_broker.say(packet)
    comes_back(raw_broker, events)
    link.close()


@dies
def test_after_the_death_of_pahos_thread_it_comes_back(raw_broker: RawBroker) -> None:
    """In any version of paho, and whatever it dies of."""
    events: queue.Queue[LinkEvent] = queue.Queue()
    numbers = itertools.count(1)
    link = PahoLink(Address(host="127.0.0.1", port=raw_broker.port), DEVICE, lambda: next(numbers), QUICK)

    def take(event: LinkEvent) -> None:
        if isinstance(event, Received) and event.payload == b"deadly":
            raise RuntimeError(event.payload)
        events.put(event)

    link.open(take)
    assert wait_for(events, Connected) == Connected(session=1)
    raw_broker.say(message(GOAL.path().encode(), b"deadly"))
    comes_back(raw_broker, events)
    link.close()


def comes_back(broker: RawBroker, events: queue.Queue[LinkEvent]) -> None:
    assert wait_for(events, Disconnected) == Disconnected(reason="the connection was lost")
    assert wait_for(events, Connected) == Connected(session=2)
    until(lambda: broker.ended == 1, 20.0, "the end of the first connection")
    broker.say(message(GOAL.path().encode(), b"goal"))
    assert wait_for(events, Received) == Received(topic=GOAL, payload=b"goal")


class Noted:
    """Pauses that are not made, and after how many failures they would have been."""

    def __init__(self) -> None:
        self.failures: queue.Queue[int] = queue.Queue()

    def pause_s(self, failures: int, rng: random.Random) -> float:
        self.failures.put(failures)
        return 0.01


@pytest.mark.parametrize(("steady_s", "failures"), [(30.0, [1, 2, 3, 4]), (0.0, [1, 1, 1, 1])])
def test_a_line_that_breaks_soon_after_every_welcome_is_tried_ever_less_often(
    raw_broker: RawBroker, monkeypatch: pytest.MonkeyPatch, steady_s: float, failures: list[int]
) -> None:
    monkeypatch.setattr(paho, "STEADY_S", steady_s)
    noted, numbers, events = Noted(), itertools.count(1), queue.Queue[LinkEvent]()
    address = Address(host="127.0.0.1", port=raw_broker.port)
    link = PahoLink(address, DEVICE, lambda: next(numbers), cast("Backoff", noted))
    link.open(events.put)
    for _ in failures:
        wait_for(events, Connected)
        raw_broker.say(b"\xe0\x00")  # DISCONNECT
    assert [noted.failures.get(timeout=20) for _ in failures] == failures
    link.close()


def test_a_broker_that_gives_no_receipt_fills_no_memory(raw_broker: RawBroker, tmp_path: Path) -> None:
    """Windows that the link does not take stay in the outbox, and are sent again without a new window or connection."""
    link, events = open_link(raw_broker.port)
    wait_for(events, Connected)
    heartbeat = Topic(device_id=DEVICE, kind=Kind.HEARTBEAT)
    assert sum(link.publish(heartbeat, b"x") for _ in range(500)) == 100
    waiting = WaitingWindows(Outbox(tmp_path / "outbox.sqlite", 1 << 20))
    sender = WindowSender(waiting, DEVICE, "boot", link.publish, Pace(resend_s=10.0, flush_s=900.0))
    sender.add(window(1), 0.0)
    sender.tick(10.0)
    assert waiting.counters().waiting == 1

    raw_broker.give_receipts()
    until(lambda: link.publish(heartbeat, b"y"), 20.0, "room for a message")
    until(lambda: raw_broker.taken[-1].endswith(b"y"), 20.0, "all that waited")
    taken = len(raw_broker.taken)
    sender.tick(19.0)
    sender.tick(20.0)
    until(lambda: len(raw_broker.taken) > taken, 20.0, "the window")
    batch: WindowBatch = decode(Kind.WINDOWS, raw_broker.taken[-1][3:])  # after a number and no properties
    assert [each.seq for each in batch.windows] == [1]
    waiting.close()
    link.close()


def test_it_comes_back_with_a_new_session_and_hears_what_was_retained(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker")
    link, events = open_link(broker.port)
    assert wait_for(events, Connected) == Connected(session=1)
    broker.kill()
    wait_for(events, Disconnected)
    assert not link.publish(Topic(device_id=DEVICE, kind=Kind.REPORT), b"x")
    broker = Broker(tmp_path / "again", broker.port)
    server = ServerSide(broker.port)
    server.send_goal(b"goal")
    assert wait_for(events, Connected) == Connected(session=2)
    assert wait_for(events, Received) == Received(topic=Topic(device_id=DEVICE, kind=Kind.GOAL), payload=b"goal")
    link.close()
    assert not server.heard(Kind.DEATH)
    server.close()
    broker.kill()


def test_the_will_carries_the_session(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "broker")
    server = ServerSide(broker.port)
    first, events = open_link(broker.port)
    wait_for(events, Connected)
    second, _ = open_link(broker.port)  # the same client id: the broker ends the first connection
    death = until(lambda: server.heard(Kind.DEATH), 20.0, "the will")[0]
    assert death.session == 1
    first.close()
    second.close()
    server.close()
    broker.kill()


def test_a_broker_that_hangs_up_on_mqtt_5_is_spoken_to_in_3_1_1() -> None:
    levels: list[int] = []
    listener = socket.create_server(("127.0.0.1", free_port()))

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            level = connection.recv(4096)[8]
            levels.append(level)
            if level == 4:
                connection.sendall(b"\x20\x02\x00\x00")  # CONNACK: accepted
                done.wait(20)
            connection.close()

    done = threading.Event()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    link, events = open_link(listener.getsockname()[1])
    assert wait_for(events, Connected) == Connected(session=1)
    done.set()
    link.close()
    thread.join(10)
    listener.close()
    assert levels == [5, 4]
