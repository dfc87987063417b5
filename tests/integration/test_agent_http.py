"""The agent's HTTP door: status, predictions, and what it does not let in."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.frames import MAX_FRAME_BYTES
from edgeship_agent.supervisor import http_door
from edgeship_agent.supervisor.http_door import HttpDoor, parse_listen
from edgeship_agent.supervisor.places import Places
from tests.agents import SHORT, AgentProcess, Broker, Depot, ServerSide, free_port, model_goal, until
from tests.conformance.slots import images

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AgentProcess, int]]:
    folder = tmp_path_factory.mktemp("http")
    depot, broker, port = Depot(folder / "depot"), Broker(folder / "broker"), free_port()
    server = ServerSide(broker.port)
    agent = AgentProcess(folder / "device", depot, broker.port, extra=f'[serving]\nhttp = "127.0.0.1:{port}"\n')
    server.send_goal(depot.goal(1, model_goal(depot.publish("1"), "first", probation=SHORT)))
    agent.start()
    assert server.ended("first").state.value == "committed"
    until(lambda: agent.status()["running"], 20.0, "the status")
    yield agent, port
    assert agent.stop() == 0
    server.close()
    broker.kill()
    depot.close()


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body or None, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_every_kind_of_body_gets_the_same_answer(device: tuple[AgentProcess, int]) -> None:
    agent, port = device
    image = images(1)[0]["image"]
    with agent.client() as client:
        wanted = client.infer({"image": image})
    bodies = {RAW: image.tobytes(), NPY: npy(image), JSON: json.dumps({"inputs": {"x": image.tolist()}}).encode()}
    for kind, body in bodies.items():
        status, answer = ask(port, "POST", "/v1/infer?model=digits", body, Content_Type=kind)
        assert status == 200, answer
        assert (answer["model"], answer["version"]) == ("digits", "1")
        np.testing.assert_allclose(answer["outputs"]["scores"], wanted.outputs["scores"], rtol=1e-6)


def test_status(device: tuple[AgentProcess, int]) -> None:
    agent, port = device
    status, document = ask(port, "GET", "/v1/status")
    assert (status, document["device_id"]) == (200, agent.status()["device_id"])


IMAGE = np.zeros((8, 8), np.uint8)
REFUSED = {
    "another address": (404, ("GET", "/v2", b"", {})),
    "another method": (405, ("GET", "/v1/infer", b"", {})),
    "another kind": (415, ("POST", "/v1/infer", b"x", {"Content_Type": "text/plain"})),
    "too large": (413, ("POST", "/v1/infer", b"", {"Content_Length": str(MAX_FRAME_BYTES + 1)})),
    "no length": (411, ("POST", "/v1/infer", b"", {"Content_Length": "many"})),
    "another host": (403, ("GET", "/v1/status", b"", {"Host": "rebound.example"})),
    "too few bytes": (400, ("POST", "/v1/infer", b"abc", {"Content_Type": RAW})),
    "no array": (400, ("POST", "/v1/infer", b"abc", {"Content_Type": NPY})),
    "deep json": (400, ("POST", "/v1/infer", b'{"inputs": ' + b"[" * 100_000, {"Content_Type": JSON})),
    "no inputs": (400, ("POST", "/v1/infer", b"[1]", {"Content_Type": JSON})),
    "no json": (400, ("POST", "/v1/infer", b"{", {"Content_Type": JSON})),
    "another name": (400, ("POST", "/v1/infer", b'{"inputs": {"b": [], "c": []}}', {"Content_Type": JSON})),
    "words": (400, ("POST", "/v1/infer", b'{"inputs": {"x": [["a"]]}}', {"Content_Type": JSON})),
    "torn rows": (400, ("POST", "/v1/infer", b'{"inputs": {"x": [[1, 2], [3]]}}', {"Content_Type": JSON})),
    "another shape": (400, ("POST", "/v1/infer", npy(IMAGE[:7]), {"Content_Type": NPY})),
    "another model": (400, ("POST", "/v1/infer?model=cats", npy(IMAGE), {"Content_Type": NPY})),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_with_its_reason(device: tuple[AgentProcess, int], name: str) -> None:
    agent, port = device
    worker = agent.worker_pid()
    wanted, (method, path, body, headers) = REFUSED[name]
    status, answer = ask(port, method, path, body, **headers)
    assert status == wanted, answer
    assert answer["error"]["message"]
    assert agent.worker_pid() == worker
    assert ask(port, "GET", "/v1/status")[0] == 200


def test_a_number_that_does_not_fit_is_not_wrapped_round(device: tuple[AgentProcess, int]) -> None:
    _, port = device
    for wrong in (256, -1, 0.5):
        image = IMAGE.astype(float)
        image[0, 0] = wrong
        body = json.dumps({"inputs": {"image": image.tolist()}}).encode()
        status, answer = ask(port, "POST", "/v1/infer", body, Content_Type=JSON)
        assert (status, answer["error"]["key"]) == (400, "image")


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "8080", "localhost:80", "127.0.0.1:x", "127.0.0.1:70000", ":80"])
def test_only_loopback_is_listened_on(listen: str) -> None:
    with pytest.raises(ConfigError, match="loopback"):
        parse_listen(listen)


def test_an_address_that_is_taken_ends_the_start(device: tuple[AgentProcess, int], tmp_path: Path) -> None:
    agent, _ = device
    second = tmp_path / "agent.toml"
    second.write_text(agent.config.read_text().replace('state_dir = "state"', f'state_dir = "{tmp_path / "state"}"'))
    line = [sys.executable, "-m", "edgeship_agent.cli", "run", "--config", str(second)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "serving.http" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def door(tmp_path: Path) -> Iterator[int]:
    """The port of a door whose agent has said nothing yet."""
    door = HttpDoor("127.0.0.1:0", Places(tmp_path), lambda *_, **__: None)
    yield int(door.address.rpartition(":")[2])
    door.close()


def answering() -> int:
    """Threads of connections."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def read_all(line: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := line.recv(4096):
            found += data
    return found


def test_connections_are_bounded_and_the_surplus_costs_no_thread(door: int) -> None:
    with contextlib.ExitStack() as open_lines:
        kept = open_lines.enter_context(contextlib.ExitStack())
        for _ in range(http_door._MOST_CONNECTIONS):
            kept.enter_context(socket.create_connection(("127.0.0.1", door), timeout=20)).sendall(b"G")
        until(lambda: answering() == http_door._MOST_CONNECTIONS, 20.0, "their threads")
        for _ in range(50):
            line = open_lines.enter_context(socket.create_connection(("127.0.0.1", door), timeout=5))
            head, _, body = read_all(line).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert "connections at once" in json.loads(body)["error"]["message"]
        assert answering() == http_door._MOST_CONNECTIONS
        kept.close()
        until(lambda: not answering(), 20.0, "the end of their threads")
        assert "said nothing" in ask(door, "GET", "/v1/status")[1]["error"]["message"]


UNFINISHED = {
    "first line": b"",
    "header": b"GET /v1/status HTTP/1.1\r\nX-Long: ",
    "body": b"POST /v1/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: x/y\r\nContent-Length: 1000\r\n\r\n",
}


@pytest.mark.parametrize("where", UNFINISHED)
def test_a_request_must_be_whole_in_its_time(door: int, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Each byte comes in time for a read."""
    monkeypatch.setattr(http_door, "_REQUEST_S", 1.0)
    with socket.create_connection(("127.0.0.1", door), timeout=0.05) as line:
        line.sendall(UNFINISHED[where])
        start_s, is_open = time.monotonic(), True
        while is_open and time.monotonic() - start_s < 8.0:
            try:
                line.sendall(b"x")
                is_open = bool(line.recv(4096))
            except TimeoutError:
                continue
            except OSError:
                is_open = False
        assert not is_open
    until(lambda: not answering(), 20.0, "the end of its thread")


def test_a_connection_may_be_kept_and_each_request_has_its_own_time(
    device: tuple[AgentProcess, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_door, "_REQUEST_S", 1.5)
    state_dir = device[0].config.parent / "state"
    door = HttpDoor("127.0.0.1:0", Places(state_dir), lambda *_, **__: None)
    connection = http.client.HTTPConnection("127.0.0.1", int(door.address.rpartition(":")[2]), timeout=20)
    for _ in range(3):
        connection.request("GET", "/v1/status")
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
        assert not answer.will_close
        time.sleep(0.8)
    connection.close()
    door.close()
