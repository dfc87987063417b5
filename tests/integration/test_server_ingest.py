"""Messages of devices through a real broker into a real server process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from msgspec import structs

from edgeship_agent.contract.messages import OutcomeTally
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import MAX_MESSAGE_BYTES, encode
from tests.device_link import DeviceLink, batch, birth, heartbeat, running_arm, window
from tests.server_process import ServerProcess, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    config = folder / "server.toml"
    config.write_text("tick_s = 0.2\nsilence_s = 2.0\n")
    running = ServerProcess(folder / "data", "--config", str(config))
    running.start()
    yield running
    assert running.stop() == 0


def test_a_device_appears_is_online_and_is_gone_with_its_will(server: ServerProcess) -> None:
    device = DeviceLink("press-1", server.broker_port)
    device.say(Kind.BIRTH, birth("press-1"))
    wait_for(lambda: _online(server, "press-1") is True, "the device to be online")
    shown = server.get("devices/press-1")
    assert (shown["target"], shown["tags"], shown["runtimes"]) == (
        "x86-64-litert",
        {"site": "lab"},
        {"litert": "2.3.0"},
    )
    device.vanish()
    wait_for(lambda: _online(server, "press-1") is False, "the will")
    kinds = [event["kind"] for event in server.get("events?subject=device/press-1")["events"]]
    assert kinds == ["device_offline", "device_registered"]


def test_the_will_of_an_older_session_is_ignored(server: ServerProcess) -> None:
    device = DeviceLink("press-2", server.broker_port, session=1)
    device.say(Kind.BIRTH, birth("press-2", session=2))
    wait_for(lambda: _online(server, "press-2") is True, "the device to be online")
    before = _count(server, "stale_wills")
    device.vanish()
    wait_for(lambda: _count(server, "stale_wills") > before, "the will to be counted")
    assert _online(server, "press-2") is True


def test_a_silent_device_is_offline_and_a_heartbeat_brings_it_back(server: ServerProcess) -> None:
    device = DeviceLink("press-3", server.broker_port)
    device.say(Kind.BIRTH, birth("press-3"))
    wait_for(lambda: _online(server, "press-3") is False, "silence to be noticed")
    device.say(Kind.HEARTBEAT, heartbeat("press-3"))
    wait_for(lambda: _online(server, "press-3") is True, "the heartbeat")
    events = server.get("events?subject=device/press-3")["events"]
    kinds = [event["kind"] for event in events]  # the latest first
    assert kinds[-3:] == ["device_online", "device_offline", "device_registered"]
    assert events[-2]["sentence"].endswith("(limit 2 s)")
    device.close()


def test_a_device_that_serves_full_precision_as_its_last_resort_is_shown(server: ServerProcess) -> None:
    import httpx

    device = DeviceLink("spare-1", server.broker_port)
    chosen = running_arm()
    spare = structs.replace(chosen, variant="x86-64-litert/litert/fp32", fallback="golden_mismatch")
    device.say(Kind.BIRTH, birth("spare-1", running=(chosen,)))
    for running in (spare, spare, chosen, spare):
        device.say(Kind.HEARTBEAT, heartbeat("spare-1", running=(running,)))

    def events() -> list[dict[str, object]]:
        found = server.get("events?subject=device/spare-1")["events"]
        return [event for event in found if event["kind"] == "fallback_served"]

    wait_for(lambda: len(events()) == 2, "each change to be told once")
    told = (
        "spare-1 serves digits v1 as x86-64-litert/litert/fp32: the variant of the build failed there (golden mismatch)"
    )
    assert {event["sentence"] for event in events()} == {told}
    assert server.get("devices/spare-1")["running"][0]["fallback"] == "golden_mismatch"
    page = httpx.get(f"{server.info['url']}/devices/spare-1", timeout=20.0).text
    assert "stands in: golden mismatch" in page
    assert "serves digits in full precision" in page
    command = (sys.executable, "-m", "edgeship", "devices", "show", "spare-1", "--server", server.info["url"])
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "stands in for the variant of the build: golden_mismatch" in shown
    device.close()


def test_windows_are_acknowledged_and_repeats_are_dropped(server: ServerProcess) -> None:
    device = DeviceLink("press-4", server.broker_port)
    device.say(Kind.BIRTH, birth("press-4"))
    first = batch("press-4", window(1), window(2), window(3))
    device.say(Kind.WINDOWS, first)
    assert device.ack().seq == 3
    device.say(Kind.WINDOWS, first)
    assert device.ack().seq == 3
    device.say(Kind.WINDOWS, batch("press-4", window(5)))
    assert device.ack().seq == 3, "4 is missing, and the device has not given it up"
    device.say(Kind.WINDOWS, batch("press-4", window(5), floor_seq=5))
    assert device.ack().seq == 5
    shown = server.get("devices/press-4")
    assert (shown["windows_stored"], shown["windows_duplicate"], shown["windows_evicted"]) == (4, 4, 1)
    assert shown["totals"][0]["inferences"] == 400
    device.close()


def test_a_client_of_mqtt_3_is_served_on_its_own_port(server: ServerProcess) -> None:
    port = int(server.info["broker_url_v311"].rpartition(":")[2])
    device = DeviceLink("old-1", port, protocol=mqtt.MQTTv311)
    device.say(Kind.BIRTH, birth("old-1"))
    device.say(Kind.WINDOWS, batch("old-1", window(1)))
    assert device.ack().seq == 1
    device.close()


def test_malformed_messages_are_counted_and_told_and_stop_nothing(server: ServerProcess) -> None:
    device = DeviceLink("rogue", server.broker_port)
    before = _count(server, "malformed")
    sent = 0
    good = encode(Kind.WINDOWS, batch("rogue", window(1)))
    for kind in (kind for kind in Kind if kind.from_device):
        path = Topic(device_id="rogue", kind=kind).path()
        for payload in (b"", b"\x00", os.urandom(300), b"\x93" * 2000, b"\x91" * 100_000, good[:-7], good + b"x" * 9):
            if kind is Kind.WINDOWS and payload == good + b"x" * 9:
                continue  # what follows the end of the compressed data is not read
            device.say_bytes(path, payload)
            sent += 1
    lies = [
        encode(Kind.WINDOWS, batch("press-4", window(9))),  # speaks for another device
        encode(Kind.WINDOWS, batch("rogue", window(2**60))),
        encode(Kind.WINDOWS, batch("rogue", window(0))),
        encode(Kind.WINDOWS, batch("rogue", window(1), boot_id="another")),
    ]
    for payload in lies:
        device.say_bytes(Topic(device_id="rogue", kind=Kind.WINDOWS).path(), payload)
    device.say_bytes("edgeship/v1/not an id/windows", good)
    wait_for(lambda: _count(server, "malformed") >= before + sent + len(lies) + 1, "every message to be counted")
    assert any(
        "speaks for another device" in event["sentence"] or "unreadable" in event["sentence"]
        for event in server.get("events?subject=server")["events"]
    )
    device.say(Kind.WINDOWS, batch("rogue", window(1)))
    assert device.ack().seq == 1
    device.close()


def test_a_window_that_can_never_be_stored_holds_up_no_other(server: ServerProcess) -> None:
    device = DeviceLink("spoilt-1", server.broker_port)
    device.say(Kind.BIRTH, birth("spoilt-1"))
    before, malformed = _count(server, "refused_windows"), _count(server, "malformed")
    outcome = OutcomeTally(
        version="v1", arm="main", digest="", name="distance_m", count=1, total=1e300, square_total=float("inf")
    )
    sent = batch(
        "spoilt-1",
        window(1),
        window(2, outcomes=(outcome,)),
        window(3, inferences=-1),
        window(4, ended_at_s=float("nan")),
        window(5, model="m" * 100_000),
        window(6),
    )
    for _ in range(2):
        device.say(Kind.WINDOWS, sent)
        assert device.ack().seq == 6
    device.say(Kind.WINDOWS, batch("spoilt-1", window(7), floor_seq=7))
    assert device.ack().seq == 7
    shown = server.get("devices/spoilt-1")
    assert (shown["windows_stored"], shown["windows_evicted"]) == (3, 0)
    assert (_count(server, "refused_windows") - before, _count(server, "malformed") - malformed) == (4, 0)
    events = server.get("events?subject=device/spoilt-1")["events"]
    (told,) = [event["sentence"] for event in events if event["kind"] == "windows_refused"]
    assert told == (
        "spoilt-1: 4 window(s) refused for good, the first for: outcomes.square_total: not a finite number (got inf)"
    )
    device.close()


def test_the_longest_message_passes_the_broker(server: ServerProcess) -> None:
    device = DeviceLink("loud", server.broker_port)
    before = _count(server, "malformed")
    device.say_bytes(Topic(device_id="loud", kind=Kind.WINDOWS).path(), os.urandom(MAX_MESSAGE_BYTES))
    wait_for(lambda: _count(server, "malformed") == before + 1, "the message to be refused by the server itself")
    device.say(Kind.WINDOWS, batch("loud", window(1)))
    assert device.ack().seq == 1
    device.close()


def test_a_thousand_messages_in_one_go_all_arrive(server: ServerProcess) -> None:
    device = DeviceLink("busy", server.broker_port)
    for seq in range(1, 1001):
        device._client.publish(
            Topic(device_id="busy", kind=Kind.WINDOWS).path(),
            encode(Kind.WINDOWS, batch("busy", window(seq))),
            qos=1,
        )
    last = 0
    while last < 1000:
        last = max(last, device.ack().seq)
    books = server.get("devices")
    assert all(device["id"] != "busy" for device in books["devices"]), "windows alone do not make a device"
    device.close()


def _online(server: ServerProcess, device_id: str) -> bool | None:
    found = [device["online"] for device in server.get("devices")["devices"] if device["id"] == device_id]
    return found[0] if found else None


def _count(server: ServerProcess, name: str) -> int:
    return int(server.get("health")["books"].get(name, 0))


def test_events_follow_live(server: ServerProcess, tmp_path: Path) -> None:
    import httpx

    with httpx.stream("GET", f"{server.info['url']}/api/v1/events/stream", timeout=20.0) as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": connected"
        device = DeviceLink("live-1", server.broker_port)
        device.say(Kind.BIRTH, birth("live-1"))
        named = next(line for line in lines if line.startswith("event:") and "registered" in line)
        assert named == "event: device_registered"
        device.close()
