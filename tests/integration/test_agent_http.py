"""The agent's HTTP door: status, predictions, and what it does not let in."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.frames import MAX_FRAME_BYTES
from edgeship_agent.supervisor.http_door import parse_listen
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
