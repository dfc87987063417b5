"""The operator's commands against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edgeship_agent.contract.topics import Kind
from tests.device_link import DeviceLink, batch, birth, running_arm, window
from tests.server_process import ServerProcess, wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = ServerProcess(tmp_path_factory.mktemp("server") / "data")
    running.start()
    device = DeviceLink("press-1", running.broker_port)
    device.say(Kind.BIRTH, birth("press-1", running=(running_arm(),)))
    device.say(Kind.WINDOWS, batch("press-1", *(window(seq, crashes=1) for seq in range(1, 6))))
    device.ack()
    wait_for(lambda: running.get("incidents")["incidents"], "the incident about the dying worker")
    yield running
    device.close()
    assert running.stop() == 0


def edgeship(server: ServerProcess | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    address = server.info["url"] if server else "http://127.0.0.1:1"
    command = [sys.executable, "-m", "edgeship", *arguments, "--server", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_devices_are_listed_shown_and_tagged(server: ServerProcess) -> None:
    listed = edgeship(server, "devices", "list")
    assert listed.returncode == 0
    assert "press-1" in listed.stdout
    assert "✔ online" in listed.stdout
    assert "digits v1" in listed.stdout
    assert listed.stderr.splitlines()[-1].startswith("next: edgeship devices show press-1")
    shown = edgeship(server, "devices", "show", "press-1")
    assert "5 stored, 0 repeats dropped, 0 given up by the device" in shown.stdout
    tagged = edgeship(server, "devices", "tag", "press-1", "ring=0", "--json")
    assert json.loads(tagged.stdout)["tags"] == {"site": "lab", "ring": "0"}
    filtered = edgeship(server, "devices", "list", "--tag", "ring=1", "--json")
    assert json.loads(filtered.stdout) == {"schema_version": 1, "devices": []}


def test_drift_and_incidents_are_shown(server: ServerProcess) -> None:
    drift = edgeship(server, "drift", "show")
    assert drift.returncode == 0
    assert "· no data" in drift.stdout
    listed = edgeship(server, "incidents", "list", "--state", "open")
    assert "infrastructure" in listed.stdout
    number = json.loads(edgeship(server, "incidents", "list", "--json").stdout)["incidents"][0]["id"]
    shown = edgeship(server, "incidents", "show", str(number))
    assert shown.returncode == 0
    assert "the worker died 5 times in the newest 5 windows (limit 2)" in shown.stdout
    assert f"edgeship explain incident/{number}" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (("devices", "show", "nobody"), 1, "no device nobody"),
        (("incidents", "show", "999"), 1, "no incident 999"),
        (("releases", "join", "gate", "1.0", "eye@1", "ear@2"), 2, "no such release: ear@2, eye@1"),
        (("releases", "join", "gate", "1.0", "eye@1"), 2, "nothing to join"),
        (("devices", "tag", "press-1"), 2, "nothing to change"),
        (("devices", "tag", "press-1", "ring"), 2, "not a tag"),
        (("devices", "tag", "press-1", "ring=" + "0" * 300), 2, "not a tag"),
    ],
)
def test_mistakes_are_told_in_words(
    server: ServerProcess, arguments: tuple[str, ...], exit_code: int, sentence: str
) -> None:
    answer = edgeship(server, *arguments)
    assert answer.returncode == exit_code
    assert sentence in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_server_that_is_not_there_is_told_with_the_next_step() -> None:
    answer = edgeship(None, "devices", "list")
    assert answer.returncode == 1
    assert "http://127.0.0.1:1: the server cannot be reached" in answer.stderr
    assert "next: edgeship server run" in answer.stderr


def test_the_servers_address_is_read_from_its_folder(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "edgeship", "server", "info", "--data", str(server.data), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout)["pid"] == server.info["pid"]
