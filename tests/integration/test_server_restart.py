"""Servers and brokers that are killed: nothing is lost, nothing is counted twice, nobody is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship.server import goals
from edgeship.server.config import ServerConfig
from edgeship.server.context import open_context
from edgeship.server.store import devices
from edgeship_agent.contract.topics import Kind
from tests.device_link import DeviceLink, batch, birth, window
from tests.programs import require_program
from tests.server_process import ServerProcess, is_alive, run_server_command, wait_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    running = ServerProcess(tmp_path / "data")
    running.start()
    yield running
    assert running.stop() == 0


def test_a_killed_server_takes_its_broker_along_and_comes_back_on_the_same_ports(server: ServerProcess) -> None:
    device = DeviceLink("d1", server.broker_port)
    device.say(Kind.BIRTH, birth("d1"))
    device.say(Kind.WINDOWS, batch("d1", window(1), window(2)))
    assert device.ack().seq == 2
    before = server.info
    device.forget_subscription()
    server.kill()
    wait_for(lambda: not is_alive(before["broker_pid"]), "the broker to follow its server")
    server.start()
    after = server.info
    assert [after[key] for key in ("url", "broker_url", "broker_url_v311")] == [
        before[key] for key in ("url", "broker_url", "broker_url_v311")
    ]
    device.await_subscription()
    device.say(Kind.WINDOWS, batch("d1", window(1), window(2), window(3)))  # the device never saw its acknowledgement
    assert device.ack().seq == 3
    shown = server.get("devices/d1")
    assert (shown["windows_stored"], shown["windows_duplicate"], shown["windows_evicted"]) == (3, 2, 0)
    device.close()


def test_a_killed_broker_is_started_again_and_goals_are_published_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with open_context(ServerConfig(data=data)) as context, context.write() as connection:
        devices.save_birth(connection, birth("d1"), context.clock())
        goals.issue(context, connection, "d1")
    server = ServerProcess(data)
    server.start()
    try:
        device = DeviceLink("d1", server.broker_port)
        first = device.goals.get(timeout=20)
        old = server.info
        device.forget_subscription()
        os.kill(old["broker_pid"], signal.SIGKILL)
        new = wait_for(lambda: server.info if server.info["broker_pid"] != old["broker_pid"] else None, "a new broker")
        assert new["broker_url"] == old["broker_url"]
        device.await_subscription()
        assert device.goals.get(timeout=20) == first
        device.say(Kind.BIRTH, birth("d1", session=2))
        device.say(Kind.WINDOWS, batch("d1", window(1)))
        assert device.ack().seq == 1
        device.close()
    finally:
        assert server.stop() == 0
    assert not is_alive(new["broker_pid"])


def test_an_external_broker_serves_as_well(tmp_path: Path) -> None:
    mosquitto = require_program("mosquitto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    broker = subprocess.Popen([mosquitto, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = ServerProcess(tmp_path / "data", "--broker", f"mqtt://127.0.0.1:{port}")
    try:
        server.start()
        assert server.info["broker_pid"] == 0
        wait_for(lambda: server.get("health")["broker_connected"], "the connection to mosquitto")
        device = DeviceLink("d1", port)
        device.say(Kind.BIRTH, birth("d1"))
        device.say(Kind.WINDOWS, batch("d1", window(1)))
        assert device.ack().seq == 1
        device.close()
    finally:
        assert server.stop() == 0
        broker.terminate()
        broker.wait(10)


def test_two_servers_never_share_a_folder(server: ServerProcess) -> None:
    refused = run_server_command("--data", str(server.data), "--port", "0", "--broker-port", "0")
    assert refused.returncode == 2
    assert "another server is running over this folder" in refused.stderr


def test_usage_that_cannot_work_ends_with_2_and_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("tick_s = 0.5\ncolour = 3\n")
    unknown_key = run_server_command("--data", str(tmp_path / "data"), "--config", str(path))
    foreign_host = run_server_command("--data", str(tmp_path / "data"), "--host", "0.0.0.0")
    assert (unknown_key.returncode, foreign_host.returncode) == (2, 2)
    assert "colour" in unknown_key.stderr
    assert "the dashboard has no login yet" in foreign_host.stderr
    assert "next:" in foreign_host.stderr
    assert "Traceback" not in unknown_key.stderr + foreign_host.stderr
    assert not (tmp_path / "data").exists(), "nothing half-made"


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        web = run_server_command("--data", str(tmp_path / "a"), "--port", port, "--broker-port", "0")
        broker = run_server_command("--data", str(tmp_path / "b"), "--port", "0", "--broker-port", port)
    assert (web.returncode, broker.returncode) == (2, 2)
    assert "--port" in web.stderr
    assert "--broker-port" in broker.stderr


def test_a_damaged_database_is_refused_in_words(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "edgeship.sqlite").write_bytes(b"not a database" * 100)
    refused = run_server_command("--data", str(data), "--port", "0", "--broker-port", "0")
    assert refused.returncode == 2
    assert "cannot open the database" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_windows_survive_a_server_that_is_killed_again_and_again(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data")
    server.start()
    device = DeviceLink("d1", server.broker_port)
    device.say(Kind.BIRTH, birth("d1"))
    for round_number in range(2):
        for seq in range(round_number * 100 + 1, round_number * 100 + 101):
            device._client.publish(device._path(Kind.WINDOWS), _encoded(seq), qos=0)
        time.sleep(0.02 * round_number)  # in the middle of it, somewhere else each time
        device.forget_subscription()
        server.kill()
        server.start()
        device.await_subscription()
        device.say(Kind.BIRTH, birth("d1", session=round_number + 2))  # as an agent does on every connect
    try:
        everything = [window(seq) for seq in range(1, 201)]
        device.say(Kind.WINDOWS, batch("d1", *everything))
        assert wait_for(lambda: device.ack().seq == 200, "everything to be acknowledged")
        shown = server.get("devices/d1")
        assert (shown["windows_stored"], shown["windows_evicted"]) == (200, 0)
        assert shown["totals"][0]["windows"] == 200
    finally:
        device.close()
        assert server.stop() == 0


def _encoded(seq: int) -> bytes:
    from edgeship_agent.contract.wire import encode

    return encode(Kind.WINDOWS, batch("d1", window(seq)))
