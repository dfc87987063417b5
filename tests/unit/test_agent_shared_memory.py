"""Frames through shared memory, and applications that use it badly, against real workers."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import helper

from edgeship_agent.contract.errors import ContractError, EngineError
from edgeship_agent.contract.frames import InferReply, SharedInferRequest, SharedTensor, StatusReply
from edgeship_agent.contract.manifest import InputContract, OutputContract
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.control import Drain, Drained, Ready, WindowClosed
from edgeship_agent.serving.shared import OutgoingMemory, PassedMemory
from tests.conformance.engine_template import save_onnx, value
from tests.conformance.slots import make_slot
from tests.conformance.workers import RunningWorker

SIDE = 512
SIZE_BYTES = SIDE * SIDE * 4
SHRINK = fcntl.F_SEAL_SHRINK


@pytest.fixture(scope="module")
def slot(tmp_path_factory):
    """image [512, 512] float32 (1 MiB) → its negative."""
    folder = tmp_path_factory.mktemp("large")
    file = save_onnx(
        folder / "m.onnx",
        [helper.make_node("Neg", ["image"], ["scores"])],
        [value("image", [1, SIDE, SIDE])],
        [value("scores", [1, SIDE, SIDE])],
    )
    contracts = (InputContract(tensor="image", dtype="float32", shape=(SIDE, SIDE)),)
    return make_slot(
        folder / "slot", file, input_contracts=contracts, input_schema={}, output=OutputContract(kind="raw")
    )


@pytest.fixture(scope="module")
def worker(slot, tmp_path_factory):
    worker = RunningWorker(slot, tmp_path_factory.mktemp("run") / "w.sock")
    worker.wait_for(Ready)
    worker.idle_descriptors = descriptors(worker)
    yield worker
    worker.close()


def sample(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)


def descriptors(worker: RunningWorker) -> int:
    return len(list(Path(f"/proc/{worker.process.pid}/fd").iterdir()))


def mappings(worker: RunningWorker) -> int:
    return Path(f"/proc/{worker.process.pid}/maps").read_text().count("memfd:")


def settles_at(figure, wanted: int) -> bool:
    give_up_s = time.monotonic() + 10
    while figure() != wanted:
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.01)
    return True


def memfd(size_bytes: int = SIZE_BYTES, seals: int = SHRINK) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def frame(request_id: int = 1, **changes) -> bytes:
    tensor = {"name": "image", "dtype": "float32", "shape": (SIDE, SIDE), "offset": 0} | changes
    data = msgspec.msgpack.encode(
        SharedInferRequest(request_id=request_id, model="", tensors=(SharedTensor(**tensor),))
    )
    return len(data).to_bytes(4, "little") + data


def connect(worker: RunningWorker) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(30)
    connection.connect(str(worker.socket_path))
    return connection


def ask(connection: socket.socket, data: bytes, *fds: int) -> InferReply | None:
    """The answer, or None where the connection was closed."""
    try:
        socket.send_fds(connection, [data], list(fds)) if fds else connection.sendall(data)
        received = b""
        while len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "little"):
            chunk = connection.recv(1 << 20)
            if not chunk:
                return None
            received += chunk
    except ConnectionError:
        return None
    return msgspec.msgpack.decode(received[4:], type=InferReply | StatusReply)


def test_large_samples_are_answered_as_they_are(worker):
    with Client(worker.socket_path) as client:
        for seed in range(5):
            image = sample(seed)
            np.testing.assert_array_equal(client.infer({"image": image}).outputs["scores"][0], -image)
        turned = sample(9).T
        np.testing.assert_array_equal(client.infer({"image": turned}).outputs["scores"][0], -turned)
        assert mappings(worker) >= 1, "nothing went through shared memory"


def test_signals_are_those_of_what_was_sent(slot, tmp_path):
    """Two requests take turns in the memory: the one that is measured is not overwritten by the next."""
    worker = RunningWorker(slot, tmp_path / "w.sock", window_inferences=1000)
    worker.wait_for(Ready)
    with Client(worker.socket_path) as client:
        for index in range(40):
            image = np.full((SIDE, SIDE), np.nan if index % 2 else 1.0, np.float32)
            client.infer({"image": image})
    worker.tell(Drain())
    worker.wait_for(Drained)
    (window,) = [message.window for message in worker.messages if isinstance(message, WindowClosed)]
    assert (window.inferences, window.schema_faults, window.hard_stops) == (40, {"missing": 20}, ())
    worker.close()


def test_nothing_is_left_of_clients_that_are_gone(worker):
    assert settles_at(lambda: mappings(worker), 0)
    for seed in range(12):
        with Client(worker.socket_path) as client:
            client.infer({"image": sample(seed)})
    assert settles_at(lambda: mappings(worker), 0)
    assert settles_at(lambda: descriptors(worker), worker.idle_descriptors)


def refused(worker: RunningWorker, descriptor: int, **changes) -> str:
    with connect(worker) as connection:
        reply = ask(connection, frame(**changes), descriptor)
        assert reply is not None
        again = ask(connection, frame(2, **changes))
        assert (again.request_id, again.error) == (2, reply.error), "the connection serves on"
    os.close(descriptor)
    return reply.error


def test_memory_that_could_shrink_under_its_reader_is_refused(worker):
    assert "F_SEAL_SHRINK" in refused(worker, memfd(seals=0))
    assert "F_SEAL_SHRINK" in refused(worker, memfd(seals=fcntl.F_SEAL_GROW))
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE_BYTES)
        assert "cannot be mapped" in refused(worker, os.dup(file.fileno()))
    assert "F_SEAL_SHRINK" in refused(worker, os.open("/dev/zero", os.O_RDONLY))
    ours, theirs = os.pipe()
    assert "F_SEAL_SHRINK" in refused(worker, ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("size_bytes", "changes", "message"),
    [
        (SIZE_BYTES - 4, {}, "outside the shared memory"),
        (SIZE_BYTES, {"offset": 4}, "outside the shared memory"),
        (SIZE_BYTES, {"offset": -4}, "outside the shared memory"),
        (SIZE_BYTES, {"offset": 2**62}, "outside the shared memory"),
        (SIZE_BYTES, {"shape": (2**40, 2**40)}, "outside the shared memory"),
        (SIZE_BYTES, {"shape": (-1, SIDE)}, "impossible shape"),
        (SIZE_BYTES, {"dtype": "object"}, "unknown dtype"),
        (0, {}, "of this size"),
        (2**40, {}, "of this size"),
    ],
)
def test_what_does_not_lie_in_the_memory_is_refused(worker, size_bytes, changes, message):
    assert message in refused(worker, memfd(size_bytes), **changes)


def test_a_reader_of_sealed_memory_survives_attempts_to_shrink_it(worker):
    descriptor = memfd()
    with connect(worker) as connection:
        assert not ask(connection, frame(), descriptor).error
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        assert not ask(connection, frame(2)).error
    os.close(descriptor)


def test_no_memory_and_too_many_descriptors(worker):
    with connect(worker) as connection:
        assert "no shared memory was passed" in ask(connection, frame()).error
    for count in (2, 3, 60):
        several = [memfd() for _ in range(count)]
        with connect(worker) as connection:
            assert ask(connection, frame(), *several) is None
        for descriptor in several:
            os.close(descriptor)
    assert settles_at(lambda: descriptors(worker), worker.idle_descriptors)
    with Client(worker.socket_path) as client:
        assert client.infer({"image": sample(1)}).outputs


def test_descriptors_with_no_request_are_not_kept(worker):
    with connect(worker) as connection:
        for _ in range(30):
            descriptor = memfd()
            socket.send_fds(connection, [b"\x10"], [descriptor])
            os.close(descriptor)
    assert settles_at(lambda: descriptors(worker), worker.idle_descriptors)
    assert settles_at(lambda: mappings(worker), 0)


def test_wrong_large_inputs_are_answered_with_an_error(worker):
    with Client(worker.socket_path) as client:
        with pytest.raises(EngineError, match="wrong input"):
            client.infer({"image": sample(0, 600)})
        assert client.infer({"image": sample(0)}).outputs
        with pytest.raises(ContractError, match="too long"):
            client.infer({"image": np.zeros(80_000_000, np.uint8)})


def test_the_memory_grows_with_the_request():
    memory = OutgoingMemory(100)
    assert memory.half_bytes == os.sysconf("SC_PAGE_SIZE")
    first = memory.write({"x": np.arange(10, dtype=np.uint8), "y": np.ones((2, 2))})
    second = memory.write({"x": np.zeros(10, np.uint8)})
    passed = PassedMemory(os.dup(memory.fd), 1000)
    assert passed.arrays(first)["x"].tolist() == list(range(10))
    assert passed.arrays(first)["y"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert passed.arrays(second)["x"].tolist() == [0] * 10
    with pytest.raises(ValueError, match="read-only"):
        passed.arrays(first)["x"][0] = 1
    memory.close()
