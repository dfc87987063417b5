"""Real worker processes on real models, asked over their socket as applications and supervisors do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import openvino
import pytest
from onnx import helper

from edgeship_agent.contract.errors import EngineError, TransferError
from edgeship_agent.contract.frames import InferReply, InferRequest
from edgeship_agent.contract.manifest import InputContract, OutputContract
from edgeship_agent.runtime.golden import GoldenResult
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.runtime.tensors import to_tensor
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.control import (
    Counters,
    Drain,
    Drained,
    Failed,
    Ready,
    Replay,
    Replayed,
    Stop,
    WindowClosed,
    WorkerSettings,
)
from edgeship_agent.serving.library import LocalModel
from edgeship_agent.serving.session import ModelSession
from edgeship_agent.serving.slot import read_slot
from edgeship_agent.serving.worker import Worker, WorkerOptions, read_clocks
from edgeship_agent.telemetry.window import WindowLimits
from tests.conformance.engine_template import TEST_DATA, save_onnx, value
from tests.conformance.slots import classifier_onnx, images, make_slot, python
from tests.conformance.workers import RunningWorker


@pytest.fixture(scope="module")
def slot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slots")
    return make_slot(folder / "ort", classifier_onnx(folder / "m.onnx"))


@pytest.fixture
def start(tmp_path):
    workers = []

    def start(slot, name="w.sock", **settings) -> RunningWorker:
        worker = RunningWorker(slot, tmp_path / name, **settings)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def worker(start, slot):
    worker = start(slot, window_inferences=50, counters_s=0.2)
    worker.wait_for(Ready)
    return worker


def raw_frame(request: InferRequest) -> bytes:
    data = msgspec.msgpack.encode(request)
    return len(data).to_bytes(4, "little") + data


def connect(path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(30)
    connection.connect(str(path))
    return connection


def reply_on(connection: socket.socket) -> InferReply:
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
        chunk = connection.recv(65536)
        assert chunk, "closed"
        data += chunk
    return msgspec.msgpack.decode(data[4:], type=InferReply)


def request_of(raw: dict, request_id: int = 1, **fields) -> InferRequest:
    tensors = tuple(to_tensor(name, array) for name, array in raw.items())
    return InferRequest(request_id=request_id, model="", tensors=tensors, **fields)


def stop(worker: RunningWorker) -> None:
    worker.tell(Stop())
    assert worker.stderr() == ""
    assert worker.process.returncode == 0
    assert not worker.socket_path.exists()


def test_a_worker_answers_what_the_library_answers(worker, slot):
    with Client(worker.socket_path) as client, LocalModel.open(slot) as model:
        for sample in images(5, seed=9):
            over_socket, in_process = client.infer(sample), model.predict(sample)
            np.testing.assert_array_equal(over_socket.outputs["scores"], in_process.outputs["scores"])
            assert over_socket.release_digest == in_process.release_digest
            assert over_socket.latency_us > 0
        status = client.status()
        assert (status.model, status.version, status.arm, status.inferences, status.errors) == (
            "digits",
            "1",
            "main",
            5,
            0,
        )
    stop(worker)


def test_openvino_is_served_too(start, tmp_path):
    onnx_file = classifier_onnx(tmp_path / "m.onnx")
    file = tmp_path / "model.xml"
    openvino.save_model(openvino.convert_model(onnx_file), file, compress_to_fp16=False)
    worker = start(make_slot(tmp_path / "slot", file, "openvino"))
    assert worker.wait_for(Ready).variant == "test/openvino/fp32"
    with Client(worker.socket_path) as client:
        assert client.infer(images(1)[0]).outputs["scores"].shape == (1, 10)
    worker.tell(Replay())
    assert worker.wait_for(Replayed).passed


@pytest.mark.skipif(not (TEST_DATA / "tflite").is_dir(), reason=f"no test models in {TEST_DATA}")
def test_litert_is_served_too(start, tmp_path):
    changes = {
        "input_contracts": (InputContract(tensor="image", dtype="float32", shape=(1,)),),
        "input_schema": {},
        "output": OutputContract(kind="raw"),
    }
    slot = make_slot(tmp_path / "slot", TEST_DATA / "tflite" / "hello_world_float.tflite", "litert", **changes)
    worker = start(slot, window_inferences=20)
    assert worker.wait_for(Ready).variant == "test/litert/fp32"
    with Client(worker.socket_path) as client:
        for angle in np.linspace(0, 6, 20, dtype=np.float32):
            result = client.infer({"image": angle.reshape(1)}).outputs["scores"]
            assert abs(float(result[0, 0]) - np.sin(angle)) < 0.15
    assert worker.wait_for(WindowClosed).window.inferences == 20


def test_prediction_ids_are_unique_over_restarts(start, slot):
    seen = set()
    for name in ("a.sock", "b.sock"):
        worker = start(slot, name)
        worker.wait_for(Ready)
        with Client(worker.socket_path) as client:
            seen |= {client.infer(images(1)[0]).prediction_id for _ in range(10)}
    assert len(seen) == 20


def test_every_call_is_in_exactly_one_window(worker):
    with Client(worker.socket_path) as client:
        for sample in images(130):
            client.infer(sample)
    worker.tell(Drain())
    assert worker.wait_for(Drained).inferences == 130
    windows = [message.window for message in worker.messages if isinstance(message, WindowClosed)]
    assert [window.inferences for window in windows] == [50, 50, 30]
    assert sum(window.signals["output/class"].total for window in windows) == 130
    assert sum(window.latency_us.total for window in windows) == 130
    assert {(window.seq, window.boot_id, window.hard_stops) for window in windows} == {(0, "boot", ())}
    assert windows[0].gauges["memory_bytes"] > 1e6
    stop(worker)


def test_a_constant_class_is_a_hard_stop(worker):
    with Client(worker.socket_path) as client:
        for _ in range(50):
            client.infer(images(1)[0])
    assert worker.wait_for(WindowClosed).window.hard_stops == ("constant_class",)
    while not worker.wait_for(Counters).hard_stops:
        pass


@pytest.mark.parametrize(
    ("raw", "message", "fault"),
    [
        ({"image": np.zeros((8, 8), np.float32)}, "expected uint8", "type"),
        ({"image": np.zeros((8, 9), np.uint8)}, "got uint8 \\[8, 9\\]", "type"),
        ({}, "missing input", "missing"),
    ],
)
def test_a_wrong_input_is_answered_counted_and_survived(start, slot, raw, message, fault):
    worker = start(slot, window_s=0.1)
    worker.wait_for(Ready)
    with Client(worker.socket_path) as client:
        with pytest.raises(EngineError, match=message):
            client.infer(raw)
        assert client.infer(images(1)[0]).outputs
        assert client.status().errors == 1
    window = worker.wait_for(WindowClosed).window
    assert (window.failures, window.inferences, window.schema_faults) == (1, 0, {fault: 1})


def test_a_value_out_of_its_documented_range_is_answered_and_counted(worker):
    with Client(worker.socket_path) as client:
        for sample in images(49):
            client.infer(sample)
        client.infer({"image": np.full((8, 8), 200, np.uint8)})
    assert worker.wait_for(WindowClosed).window.schema_faults == {"range": 1}


@pytest.fixture(scope="module")
def root_slot(tmp_path_factory):
    """x [1, 4] float32 → √x: NaN for what is negative."""
    folder = tmp_path_factory.mktemp("root")
    file = save_onnx(
        folder / "root.onnx",
        [helper.make_node("Sqrt", ["image"], ["scores"])],
        [value("image", [1, 4])],
        [value("scores", [1, 4])],
    )
    contracts = (InputContract(tensor="image", dtype="float32", shape=(4,)),)
    return make_slot(folder / "slot", file, input_contracts=contracts, input_schema={})


def test_nan_out_of_finite_input_is_a_hard_stop(start, root_slot):
    worker = start(root_slot, window_inferences=20)
    worker.wait_for(Ready)
    with Client(worker.socket_path) as client:
        for _ in range(20):
            client.infer({"image": np.array([-1, 1, 2, 3], np.float32)})
    assert worker.wait_for(WindowClosed).window.hard_stops == ("nan_output",)


def test_nan_in_the_input_is_missing_data_and_not_the_models_fault(start, root_slot):
    worker = start(root_slot, window_inferences=20)
    worker.wait_for(Ready)
    with Client(worker.socket_path) as client:
        for _ in range(20):
            client.infer({"image": np.array([np.nan, 1, 2, 3], np.float32)})
    window = worker.wait_for(WindowClosed).window
    assert (window.hard_stops, window.schema_faults, window.inferences) == ((), {"missing": 20}, 20)


class Faulty(ModelSession):
    """A session with bugs in it."""

    def label(self, *_, **__) -> bool:
        raise ZeroDivisionError("a bug")

    def count_failure(self, *_) -> None:
        raise KeyError("another")


@pytest.fixture
def faulty(slot, tmp_path):
    """The path of a worker in this process, in whose session some calls fail as nobody foresaw."""
    ours, theirs = socket.socketpair()
    found, settings = read_slot(slot), WorkerSettings()
    predictor = Predictor.open(found.manifest, found.variant, found.model_path, threads=1)
    session = Faulty(found, predictor, WindowLimits(), "boot", read_clocks)
    options = WorkerOptions(
        slot=slot, arm="main", boot_id="boot", socket=tmp_path / "w.sock", control_fd=-1, settings=settings
    )
    worker = threading.Thread(target=Worker(session, options).serve, args=(theirs,))
    worker.start()
    assert ours.recv(1), "it says that it is ready"
    yield options.socket
    ours.close()
    worker.join(30)
    theirs.close()
    session.close()
    assert not worker.is_alive()


def test_whatever_fails_inside_is_an_answer_and_the_next_request_is_answered(faulty, capfd):
    with Client(faulty, timeout_s=10.0) as client:
        known = client.infer(images(1)[0]).prediction_id
        held = client._socket
        for _ in range(3):
            with pytest.raises(EngineError, match="internal error: ZeroDivisionError: a bug"):
                client.label(known, 1)
            with pytest.raises(EngineError, match="internal error: KeyError: 'another'"):
                client.infer({})
            assert client.infer(images(1)[0]).outputs
        assert client._socket is held
    assert "KeyError: 'another'" in capfd.readouterr().err


def test_a_model_of_another_name_is_refused_without_blame(worker):
    with Client(worker.socket_path) as client:
        with pytest.raises(EngineError, match="'faces' is not served here"):
            client.infer(images(1)[0], model="faces")
        assert client.infer(images(1)[0], model="digits").model == "digits"
        assert client.status().errors == 0


def test_a_request_that_waited_past_its_deadline_is_shed(worker):
    connection = connect(worker.socket_path)
    os.kill(worker.process.pid, signal.SIGSTOP)
    connection.sendall(raw_frame(request_of(images(1)[0], deadline_us=1)))
    os.kill(worker.process.pid, signal.SIGCONT)
    assert reply_on(connection).error.startswith("shed: it waited longer than its deadline")
    connection.close()
    while worker.wait_for(Counters).shed != 1:
        pass


def test_a_late_answer_is_given_and_counted(start, slot):
    worker = start(slot, deadline_ms=0.0)
    worker.wait_for(Ready)
    results = []
    with Client(worker.socket_path) as client:
        for deadline_ms in np.geomspace(0.01, 1.0, 60):
            try:
                results.append(
                    client.infer(images(1)[0], deadline_ms=float(deadline_ms)).latency_us > deadline_ms * 1000
                )
            except EngineError:
                results.append(None)
    worker.tell(Drain())
    worker.wait_for(Drained)
    counters = [message for message in worker.messages if isinstance(message, Counters)][-1]
    assert (counters.shed, counters.failures) == (results.count(None), 0)
    assert counters.inferences == 60 - results.count(None)
    assert abs(counters.deadline_misses - results.count(True)) <= 2  # latency_us is rounded


def freeze(pid):
    """Stop a process, and return only when it has stopped: what is sent after that waits for it."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "the process does not stop"
        time.sleep(0.001)


def test_more_waiting_than_allowed_is_shed(start, slot):
    worker = start(slot, max_waiting=2)
    worker.wait_for(Ready)
    connections = [connect(worker.socket_path) for _ in range(8)]
    with Client(worker.socket_path) as client:
        client.status()  # all connections before it are accepted
    freeze(worker.process.pid)
    for number, connection in enumerate(connections):
        connection.sendall(raw_frame(request_of(images(1)[0], number)))
    os.kill(worker.process.pid, signal.SIGCONT)
    replies = [reply_on(connection) for connection in connections]
    assert [reply.request_id for reply in replies] == list(range(8))
    assert sum("requests are waiting" in reply.error for reply in replies) == 6
    assert sum(not reply.error for reply in replies) == 2
    for connection in connections:
        connection.close()


GARBAGE = [
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff" + b"x" * 100,
    b"\x05\x00\x00\x00hello",
    b"GET / HTTP/1.1\r\n\r\n" * 10,
    (3).to_bytes(4, "little") + msgspec.msgpack.encode(["infer", 1]),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_frame_closes_that_connection_only(worker, garbage):
    with Client(worker.socket_path) as client:
        client.infer(images(1)[0])
        bad = connect(worker.socket_path)
        bad.sendall(garbage)
        with contextlib.suppress(ConnectionResetError):
            assert bad.recv(1) == b""
        bad.close()
        held = client._socket
        client.infer(images(1)[0])
        assert client._socket is held


def test_a_frame_over_the_limit_closes_that_connection_only(start, slot):
    worker = start(slot, max_frame_bytes=1000)
    worker.wait_for(Ready)
    bad = connect(worker.socket_path)
    bad.sendall((1001).to_bytes(4, "little"))
    assert bad.recv(1) == b""
    bad.close()
    with Client(worker.socket_path) as client:
        assert client.infer(images(1)[0]).outputs


def test_frames_may_come_in_any_pieces_and_several_at_once(worker):
    frames = b"".join(raw_frame(request_of(images(1)[0], number)) for number in range(20))
    connection = connect(worker.socket_path)
    for start in range(0, len(frames), 37):
        connection.sendall(frames[start : start + 37])
    connection.shutdown(socket.SHUT_WR)
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    connection.close()
    ids = []
    while data:
        length = int.from_bytes(data[:4], "little")
        ids.append(msgspec.msgpack.decode(data[4 : 4 + length], type=InferReply).request_id)
        data = data[4 + length :]
    assert ids == list(range(20))


def test_thousands_of_small_frames_at_once(start, slot):
    worker = start(slot, max_waiting=0)
    worker.wait_for(Ready)
    connection = connect(worker.socket_path)
    frame = raw_frame(InferRequest(request_id=7, model="", tensors=()))
    sender = threading.Thread(target=connection.sendall, args=(frame * 5000,))
    sender.start()
    shed = b""
    while shed.count(b"requests are waiting") < 5000:
        chunk = connection.recv(1 << 20)
        assert chunk
        shed += chunk
    sender.join()
    connection.close()


def test_large_tensors_go_through(start, tmp_path):
    file = save_onnx(
        tmp_path / "big.onnx",
        [helper.make_node("Neg", ["image"], ["scores"])],
        [value("image", [1, 700, 700])],
        [value("scores", [1, 700, 700])],
    )
    contracts = (InputContract(tensor="image", dtype="float32", shape=(700, 700)),)
    worker = start(make_slot(tmp_path / "slot", file, input_contracts=contracts, input_schema={}))
    worker.wait_for(Ready)
    sample = np.random.default_rng(0).normal(size=(700, 700)).astype(np.float32)
    with Client(worker.socket_path) as client:
        for _ in range(3):
            np.testing.assert_array_equal(client.infer({"image": sample}).outputs["scores"][0], -sample)


def test_clients_that_vanish_are_forgotten(worker):
    for _ in range(20):
        connection = connect(worker.socket_path)
        connection.sendall(raw_frame(request_of(images(1)[0]))[:-5])
        connection.close()
        connection = connect(worker.socket_path)
        connection.sendall(raw_frame(request_of(images(1)[0])))
        connection.close()
    with Client(worker.socket_path) as client:
        assert client.infer(images(1)[0]).outputs
    stop(worker)


def test_applications_never_see_a_switch_of_models(start, slot, tmp_path):
    second_slot = tmp_path / "second"
    shutil.copytree(slot, second_slot)
    for name, key in (("slot.json", "version"), ("edgeship.json", "version")):
        document = msgspec.json.decode((second_slot / name).read_bytes())
        document[key] = "2"
        (second_slot / name).write_bytes(msgspec.json.encode(document))
    first = start(slot, "first.sock")
    first.wait_for(Ready)
    link = tmp_path / "infer.sock"
    link.symlink_to(first.socket_path)
    versions, errors, done = [], [], threading.Event()

    def application() -> None:
        with Client(link, timeout_s=20) as client:
            while not done.is_set() or versions[-1] != "2":
                try:
                    versions.append(client.infer(images(1)[0]).version)
                except (EngineError, TransferError) as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=application) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(versions) < 50:
        time.sleep(0.01)
    second = start(second_slot, "second.sock")
    second.wait_for(Ready)
    fresh = tmp_path / "infer.sock.new"
    fresh.symlink_to(second.socket_path)
    fresh.replace(link)
    first.tell(Drain())
    drained = first.wait_for(Drained)
    stop(first)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(versions) == {"1", "2"}
    assert drained.inferences >= versions.count("1")


def test_a_worker_dies_with_its_supervisor(worker):
    worker.control.close()
    worker.process.wait(30)
    assert not worker.socket_path.exists()


def test_a_worker_dies_with_its_supervisor_even_while_a_model_runs(start, tmp_path):
    size = 3000
    names = ["image", *(f"step{number}" for number in range(400)), "scores"]
    file = save_onnx(
        tmp_path / "slow.onnx",  # minutes of work
        [helper.make_node("MatMul", [name, "image"], [after]) for name, after in pairwise(names)],
        [value("image", [1, size, size])],
        [value("scores", [1, size, size])],
    )
    contracts = (InputContract(tensor="image", dtype="float32", shape=(size, -1)),)  # no warm-up
    worker = start(make_slot(tmp_path / "slot", file, input_contracts=contracts, input_schema={}))
    worker.wait_for(Ready)
    connection = connect(worker.socket_path)
    connection.sendall(raw_frame(request_of({"image": np.zeros((size, size), np.float32)})))
    while any(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))):  # then the model runs: nothing is looked at before
        time.sleep(0.01)
    worker.control.close()
    assert worker.process.wait(60) == 1, "cut off, not left in good order: that would take minutes"
    connection.close()


def test_a_killed_worker_is_an_error_in_words_and_its_successor_is_found(start, slot):
    worker = start(slot)
    worker.wait_for(Ready)
    with Client(worker.socket_path, timeout_s=0.5) as client:
        client.infer(images(1)[0])
        worker.process.kill()
        worker.process.wait(30)
        with pytest.raises(TransferError, match="cannot be reached") as caught:
            client.infer(images(1)[0])
        assert caught.value.retryable
        successor = start(slot)
        successor.wait_for(Ready)
        assert client.infer(images(1)[0]).outputs


def test_replay_runs_the_golden_inputs_and_counts_no_traffic(worker):
    worker.tell(Replay(inferences=20))
    result = worker.wait_for(Replayed)
    assert (result.passed, result.relative_rms, result.inferences, result.reason) == (True, 0.0, 24, "")
    with Client(worker.socket_path) as client:
        assert client.status().inferences == 0


@pytest.fixture
def wrong_slot(tmp_path):
    """Its golden outputs are those of another model."""
    other = classifier_onnx(tmp_path / "other.onnx", scale=1.5)
    return make_slot(tmp_path / "wrong", classifier_onnx(tmp_path / "m.onnx"), golden_from=other)


def test_replay_tells_a_model_that_computes_something_else(start, wrong_slot):
    worker = start(wrong_slot)
    worker.wait_for(Ready)
    worker.tell(Replay())
    result = worker.wait_for(Replayed)
    assert not result.passed
    assert "relative RMS 0.33" in result.reason


def test_a_slot_that_cannot_be_served_is_told(start, slot, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(slot, broken)
    (broken / "files" / "m.onnx").write_bytes(b"no model")
    assert "wrong digest" in failure(start(broken, "1.sock"))["slot"]
    assert "another arm" in failure(start(slot, "2.sock", arm="shadow"))["slot"]
    assert "cannot be opened" in failure(start(slot, "absent/3.sock"))["socket"]
    assert "too long" in failure(start(slot, "x" * 120 + ".sock"))["socket"]


def failure(worker: RunningWorker) -> dict[str, str]:
    message = worker.wait_for(Failed)
    assert worker.process.wait(30) != 0
    return {message.reason: message.detail}


def golden_process(slot) -> tuple[int, GoldenResult]:
    command = [sys.executable, "-W", "error", "-m", "edgeship_agent.serving.golden", "--slot", str(slot)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.returncode, msgspec.json.decode(done.stdout, type=GoldenResult)


def test_the_golden_check_in_a_process_of_its_own(slot, wrong_slot, tmp_path):
    code, result = golden_process(slot)
    assert (code, result.passed, result.samples) == (0, True, 8)
    code, result = golden_process(wrong_slot)
    assert (code, result.passed) == (0, False)
    code, result = golden_process(tmp_path / "absent")
    assert (code, result.passed, "cannot be read" in result.reason) == (1, False, True)


def test_the_library_makes_windows_and_checks_golden_outputs(slot):
    with LocalModel.open(slot, limits=WindowLimits(inferences=20)) as model:
        assert model.check_golden().passed
        for sample in images(20):
            assert model.take_window() is None
            model.predict(sample)
        window = model.take_window()
        assert (window.inferences, window.model) == (20, "digits")


def test_an_application_pays_little_for_the_client():
    # the promise is 45 MB; numpy alone takes 26
    code = """
import sys, edgeship_agent, edgeship_agent.serving.client
heavy = {"onnx", "openvino", "pandas", "pydantic", "edgeship", "onnxruntime", "ai_edge_litert", "asyncio", "sqlite3"}
print(sorted(heavy & set(sys.modules)), int(open("/proc/self/statm").read().split()[1]) * 4096)
"""
    modules, size_bytes = python(code).rsplit(" ", 1)
    assert modules == "[]"
    assert int(size_bytes) < 45_000_000


def test_a_supervisor_holds_no_arrays():
    code = "import sys, edgeship_agent.supervisor.run; print('numpy' in sys.modules)"
    assert python(code).strip() == "False"
