"""``edgeship-agent stream``: pipes, folders and topics; windows, dropped messages, a broker that goes and comes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract, StreamWindow
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.sketch import quantile
from edgeship_agent.patterns.model import open_model
from edgeship_agent.patterns.stream import Delays, Message, Queue, Windower
from edgeship_agent.patterns.telling import DelayTeller
from tests.agents import SHORT, AgentProcess, Broker, Depot, ServerSide, model_goal, until
from tests.conformance.slots import INPUTS, classifier_onnx, images, make_slot

PROGRAM = [sys.executable, "-W", "error", "-m", "edgeship_agent.cli", "stream"]


@pytest.fixture(scope="module")
def slot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slot")
    return make_slot(folder / "slot", classifier_onnx(folder / "model.onnx"))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model over eight rows of a stream of rows, every four."""
    folder = tmp_path_factory.mktemp("windowed")
    contract = msgspec.structs.replace(INPUTS[0], window=StreamWindow(length=8, hop=4))
    return make_slot(folder / "slot", classifier_onnx(folder / "model.onnx"), input_contracts=(contract,))


def run(*arguments: object, given: bytes = b"") -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run([*PROGRAM, *map(str, arguments)], input=given, capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_lines(slot: Path) -> None:
    samples = [sample["image"] for sample in images(5)]
    texts = [
        json.dumps({"inputs": sample.tolist(), "key": f"k{i}", "time_s": time.time()})
        for i, sample in enumerate(samples)
    ]
    texts.insert(2, "no json")
    code, answers, said = run(slot, "-", "--json", given="\n".join(texts).encode())
    summary = answers.pop()
    assert code == 2
    assert [answer["key"] for answer in answers] == ["k0", "k1", "2", "k2", "k3", "k4"]
    assert "not JSON" in answers[2]["error"]["message"]
    assert (summary["predictions"], summary["bad"], summary["dropped"], summary["published"]) == (5, 1, 0, 6)
    assert 0 < summary["delay_p50_ms"] <= summary["delay_p99_ms"]
    assert "5 predictions of 6 messages" in said


def test_frames_and_lines_give_the_same_answers(slot: Path) -> None:
    samples = [sample["image"] for sample in images(4)]
    framed = b"".join(len(data).to_bytes(4, "little") + data for data in (sample.tobytes() for sample in samples))
    code, by_frame, _ = run(slot, "-", "--bytes", given=framed)
    assert code == 0
    _, by_line, _ = run(slot, "-", given="\n".join(json.dumps(sample.tolist()) for sample in samples).encode())
    assert [answer["outputs"] for answer in by_frame] == [answer["outputs"] for answer in by_line]
    code, _, said = run(slot, "-", "--bytes", given=framed[:-1])
    assert code == 2
    assert "ended early" in said


def test_windows_of_a_stream(slot: Path, windowed: Path) -> None:
    rows = np.random.default_rng(4).integers(0, 17, (24, 8), np.uint8)
    pieces = [rows[:3], rows[3:15], rows[15:]]
    code, answers, _ = run(windowed, "-", given="\n".join(json.dumps(piece.tolist()) for piece in pieces).encode())
    assert code == 0
    wanted = [rows[begin : begin + 8] for begin in range(0, 17, 4)]
    _, expected, _ = run(slot, "-", given="\n".join(json.dumps(window.tolist()) for window in wanted).encode())
    assert [answer["outputs"] for answer in answers] == [answer["outputs"] for answer in expected]
    assert [answer["key"] for answer in answers] == ["1", "1", "2", "2", "2"]


def test_windows_with_a_hop_beyond_their_length() -> None:
    cut = Windower(InputContract(tensor="x", dtype="int16", shape=(2,)), StreamWindow(length=2, hop=5))
    made = [
        window.tolist() for begin in range(0, 12, 3) for window in cut.push(np.arange(begin, begin + 3, dtype=np.int16))
    ]
    assert made == [[0, 1], [5, 6], [10, 11]]
    with pytest.raises(InputError):
        cut.push(np.zeros((2, 2), np.int16))


def test_a_full_queue_drops_the_oldest_and_marks_the_gap() -> None:
    queue = Queue(2, drops=True)
    for key in "abcd":
        queue.put(Message(key=key, time_s=0.0))
    queue.end()
    assert [(message.key, message.gap) for message in queue] == [("c", True), ("d", False)]
    assert queue.dropped == 2


def test_a_full_queue_of_a_pipe_waits() -> None:
    queue = Queue(1, drops=False)
    thread = threading.Thread(target=lambda: [queue.put(Message(key=key, time_s=0.0)) for key in "abc"] and queue.end())
    thread.start()
    assert [message.key for message in queue] == ["a", "b", "c"]
    thread.join(10)
    assert queue.dropped == 0


def test_a_watched_folder(slot: Path, tmp_path: Path) -> None:
    samples = [sample["image"] for sample in images(3)]
    np.save(tmp_path / "a.npy", samples[0])
    with subprocess.Popen(
        [*PROGRAM, str(slot), str(tmp_path), "--count", "3"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["key"] == "a.npy"
        np.save(tmp_path / "b.npy", samples[1])
        (tmp_path / "bad.npy").write_bytes(b"x")
        heard = {json.loads(process.stdout.readline())["key"] for _ in range(2)}
        assert heard == {"b.npy", "bad.npy"}
        np.save(tmp_path / "c.npy", samples[2])
        assert json.loads(process.stdout.readline())["key"] == "c.npy"
        assert process.wait(20) == 2


class Ear:
    """Hears a topic, and speaks on another."""

    def __init__(self, port: int, topic: str) -> None:
        self.heard: list[dict[str, Any]] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self.client.on_message = lambda _c, _d, message: self.heard.append(json.loads(message.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker")
    yield broker
    broker.kill()


def test_topics_and_a_broker_that_goes_and_comes(slot: Path, broker: Broker, tmp_path: Path) -> None:
    ear = Ear(broker.port, "answers")
    place = f"mqtt://127.0.0.1:{broker.port}"
    sample = images(1)[0]["image"]
    process = subprocess.Popen([*PROGRAM, str(slot), f"{place}/samples", f"{place}/answers", "--bytes", "--json"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip

    def hears(client: mqtt.Client) -> bool:
        before = len(ear.heard)
        client.publish("samples", sample.tobytes(), qos=1)
        time.sleep(0.1)
        return len(ear.heard) > before

    until(lambda: hears(ear.client), 30.0, "an answer")
    assert len(ear.heard[0]["outputs"]["scores"][0]) == 10
    broker.kill()
    again = Broker(tmp_path / "again", broker.port)
    try:
        until(ear.client.is_connected, 20.0, "the ear")
        until(lambda: hears(ear.client), 40.0, "an answer after the broker came back")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        summary = json.loads(out.splitlines()[-1])
        assert summary["published"] == summary["predictions"] >= 2
        assert summary["delay_p99_ms"] > 0
    finally:
        process.kill()
        ear.close()
        again.kill()


def test_delays_travel_in_the_windows_of_this_devices_agent(broker: Broker, tmp_path: Path) -> None:
    depot, server = Depot(tmp_path / "depot"), ServerSide(broker.port)
    agent = AgentProcess(tmp_path / "device", depot, broker.port)
    samples = [sample["image"] for sample in images(3)]
    began_s = time.time() - 40.0
    lines = "\n".join(json.dumps({"inputs": sample.tolist(), "time_s": began_s}) for sample in samples).encode()
    try:
        for version in ("1", "2"):
            release = depot.publish(version)
            server.send_goal(depot.goal(int(version), model_goal(release, version, probation=SHORT)))
            if version == "1":
                agent.start()
            assert server.ended(version).loaded_digest == release.digest
            code, answers, said = run("digits", "-", "--config", agent.config, "--json", given=lines)
            assert (code, answers[-1]["told_agent"]) == (0, 3), said
            assert (answers[-1]["version"], answers[-1]["published"]) == (version, 3)
            found = until(lambda: _with_delays(server), 20.0, "a window with delays")
            assert (found.version, found.digest, found.stream_delay_us.total) == (version, release.digest, 3)
            assert 40e6 <= quantile(found.stream_delay_us, 0.01) < 300e6, "from the input's own time"
            server.windows.clear()
        # of a release that is no longer served nothing is counted
        old = depot.folder / "bundle-1"
        model = open_model(old)
        teller = DelayTeller(delays := Delays(), model.slot.slot, agent.socket).start()
        model.close()
        delays.add(0.5)
        teller.close()
        assert (teller.told, delays.count) == (0, 1)
        code, answers, _ = run(old, "-", "--json", given=lines)
        assert (code, answers[-1]["told_agent"]) == (0, None), "a bundle is nobody's"
        # an agent that is away stops no stream
        agent.stop()
        code, answers, said = run("digits", "-", "--config", agent.config, "--json", given=lines)
        assert (code, answers[-1]["told_agent"], answers[-1]["published"]) == (0, 0, 3)
        assert "3 delays not in the agent's telemetry" in said
    finally:
        agent.stop()
        server.close()
        depot.close()


def _with_delays(server: ServerSide) -> Window | None:
    return next((window for window in list(server.windows.values()) if window.stream_delay_us is not None), None)


@pytest.mark.parametrize(
    "arguments", [("nowhere",), ("mqtt://127.0.0.1",), ("-", "http://x/y"), ("-", "-", "--queue", "0")]
)
def test_usage(slot: Path, arguments: tuple[str, ...]) -> None:
    code, answers, said = run(slot, *arguments)
    assert (code, answers) == (2, [])
    assert said.startswith("✖")
