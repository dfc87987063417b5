"""The link over a real broker: births, wills, versions of MQTT, and coming back."""

from __future__ import annotations

import itertools
import queue
import socket
import threading
from pathlib import Path

from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.link.address import Address, Backoff
from edgeship_agent.link.paho import PahoLink
from edgeship_agent.link.port import Connected, Disconnected, LinkEvent, Received
from tests.agents import DEVICE, Broker, ServerSide, free_port, until

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
