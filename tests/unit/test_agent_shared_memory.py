"""Frames through shared memory, and applications that use it badly, against real workers."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import tempfile
import threading
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
from edgeship_agent.serving.loop import Loop
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


@pytest.fixture(scope="module")
def looking_worker(tmp_path_factory):
    """A worker that looks for the next request before it sleeps: image [9000] float32 (36 kB) → its negative."""
    folder = tmp_path_factory.mktemp("small")
    file = save_onnx(
        folder / "m.onnx",
        [helper.make_node("Neg", ["image"], ["scores"])],
        [value("image", [1, 9000])],
        [value("scores", [1, 9000])],
    )
    contracts = (InputContract(tensor="image", dtype="float32", shape=(9000,)),)
    slot = make_slot(
        folder / "slot", file, input_contracts=contracts, input_schema={}, output=OutputContract(kind="raw")
    )
    worker = RunningWorker(slot, folder / "w.sock", spin_us=300)
    worker.wait_for(Ready)
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
    with connect(worker) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(30):  # the worker may close the connection before all of them are sent
            with os.fdopen(memfd(), "rb") as descriptor:
                socket.send_fds(connection, [b"\x10"], [descriptor.fileno()])
    assert settles_at(lambda: descriptors(worker), worker.idle_descriptors)
    assert settles_at(lambda: mappings(worker), 0)


def test_wrong_large_inputs_are_answered_with_an_error(worker):
    with Client(worker.socket_path) as client:
        with pytest.raises(EngineError, match="wrong input"):
            client.infer({"image": sample(0, 600)})
        assert client.infer({"image": sample(0)}).outputs
        with pytest.raises(ContractError, match="too long"):
            client.infer({"image": np.zeros(80_000_000, np.uint8)})


def patterned(number: float) -> np.ndarray:
    return np.full((SIDE, SIDE), number, np.float32)


def test_two_clients_get_their_own_answers(worker):
    with Client(worker.socket_path) as left, Client(worker.socket_path) as right:
        for turn in range(6):
            for client, number in ((left, turn), (right, 100 + turn)):
                scores = client.infer({"image": patterned(number)}).outputs["scores"]
                assert (scores.min(), scores.max()) == (-number, -number)


def test_a_client_that_dies_while_its_frame_is_read_harms_nobody(worker):
    with Client(worker.socket_path) as client:
        for seed in range(8):
            descriptor = memfd()
            connection = connect(worker)
            socket.send_fds(connection, [frame()], [descriptor])
            connection.close()  # the answer finds nobody, the memory has no other owner than the worker
            os.close(descriptor)
            image = sample(seed)
            np.testing.assert_array_equal(client.infer({"image": image}).outputs["scores"][0], -image)
    assert settles_at(lambda: mappings(worker), 0)


def test_a_client_that_writes_while_it_is_read_harms_itself_alone(worker):
    descriptor = memfd()
    shared = mmap.mmap(descriptor, SIZE_BYTES)
    values = np.frombuffer(shared, np.float32)
    is_over = threading.Event()

    def scribble() -> None:
        numbers = np.random.default_rng(0).integers(0, 2**32, values.size, np.uint32).view(np.float32)
        while not is_over.is_set():
            values[:] = numbers
            values[:] = np.nan

    writer = threading.Thread(target=scribble)
    writer.start()
    try:
        with connect(worker) as connection, Client(worker.socket_path) as client:
            assert not ask(connection, frame(), descriptor).error
            for number in range(2, 12):
                assert not ask(connection, frame(number)).error
                assert client.infer({"image": patterned(number)}).outputs["scores"].max() == -number
    finally:
        is_over.set()
        writer.join()
        os.close(descriptor)


def test_the_memory_that_was_passed_last_is_read(worker):
    """What was worked out of a description for one memory is not used for the next."""
    with connect(worker) as connection:
        for number in (1.0, 2.0, 3.0):
            descriptor = memfd()
            os.pwrite(descriptor, patterned(number).tobytes(), 0)
            reply = ask(connection, frame(int(number)), descriptor)
            assert np.frombuffer(reply.tensors[0].data, np.float32).max() == -number
            os.pwrite(descriptor, patterned(-number).tobytes(), 0)
            again = ask(connection, frame(10 + int(number)))
            assert np.frombuffer(again.tensors[0].data, np.float32).min() == number
            os.close(descriptor)


def test_many_descriptions_of_one_memory():
    descriptor = memfd(4096)
    os.pwrite(descriptor, np.arange(1024, dtype=np.uint32).tobytes(), 0)
    passed = PassedMemory(descriptor, 4096)
    for turn in range(3):
        for first in range(20):
            described = SharedTensor(name="x" * (1 + 500 * turn), dtype="uint32", shape=(2,), offset=4 * first)
            (found,) = passed.arrays((described,) * (1 + 2 * turn)).values()
            assert found.tolist() == [first, first + 1]
            assert len(passed._known) <= 4
    bad = SharedTensor(name="x", dtype="uint32", shape=(2,), offset=4092)
    for _ in range(2):
        with pytest.raises(ContractError, match="outside"):
            passed.arrays((bad,))


def test_arrays_of_another_kind_are_not_written_where_the_last_ones_lay():
    memory = OutgoingMemory(1000)
    image = np.arange(100, dtype=np.uint8)
    assert memory.write_again({"x": image}) is None, "nothing was written before"
    first, second = memory.write({"x": image}), memory.write({"x": image})
    assert memory.write_again({"x": image}) == first
    assert memory.write_again({"x": image}) == second
    others = ({"x": image[:50]}, {"x": image.astype(np.int8)}, {"y": image}, {"x": image, "y": image}, {"x": [1]}, {})
    for other in others:
        assert memory.write_again(other) is None
    passed = PassedMemory(os.dup(memory.fd), 1000)
    assert memory.write_again({"x": image[::-1]}) == first
    assert passed.arrays(first)["x"].tolist() == image[::-1].tolist()
    assert passed.arrays(second)["x"].tolist() == image.tolist()
    memory.close()


def test_requests_of_changing_sizes_and_kinds(looking_worker):
    """Through shared memory or in the frame, as their size asks for; what was there before is never what is read."""
    values = np.arange(9000, dtype=np.float32)
    with Client(looking_worker.socket_path) as client:
        for other in (values[:10], values[:8999], np.arange(20_000, dtype=np.float32), values.astype(np.float64)):
            np.testing.assert_array_equal(client.infer({"image": values}).outputs["scores"][0], -values)
            with pytest.raises(EngineError, match="wrong input"):
                client.infer({"image": other})
            np.testing.assert_array_equal(client.infer({"image": values[::-1]}).outputs["scores"][0], -values[::-1])
            with pytest.raises(EngineError, match="missing input"):
                client.infer({"z": values})


def test_room_is_filled_by_the_application_and_not_copied(worker):
    with Client(worker.socket_path) as client:
        places = []
        for number in range(1, 6):
            frame = client.room({"image": ((SIDE, SIDE), "float32")})
            frame["image"][...] = number
            places.append(frame["image"].ctypes.data)
            assert client.infer(frame).outputs["scores"].max() == -number
        assert places[0] == places[2] != places[1] == places[3], "two places take turns"
        image = sample(3)
        np.testing.assert_array_equal(client.infer({"image": image}).outputs["scores"][0], -image)
        # the same array once more is no mistake: it lies where the last request's did, and is copied
        np.testing.assert_array_equal(client.infer(frame).outputs["scores"].max(), -5)
        frame = client.room({"image": ((SIDE, SIDE), "float32")})
        frame["image"][...] = 7.0
        client.close()
        assert frame["image"][0, 0] == 7.0, "what the application holds outlives the connection"
        assert client.infer(frame).outputs["scores"].max() == -7.0


def test_room_of_other_kinds(worker):
    with Client(worker.socket_path) as client:
        small = client.room({"a": ((3,), "uint8"), "b": ((), "float64"), "c": ((0, 4), "int16")})
        assert [(array.shape, array.dtype.name) for array in small.values()] == [
            ((3,), "uint8"),
            ((), "float64"),
            ((0, 4), "int16"),
        ]
        with pytest.raises(EngineError, match="missing input"):
            client.infer(small)
        assert client.room({}) == {}
        larger = client.room({"image": ((SIDE, SIDE), "float32")})
        larger["image"][...] = 2.0
        assert client.infer(larger).outputs["scores"].max() == -2.0
        with pytest.raises(ContractError, match="impossible shape"):
            client.room({"image": ((-1, 4), "uint8")})
        with pytest.raises(ContractError, match="unknown dtype"):
            client.room({"image": ((4,), "object")})
        with pytest.raises(ContractError, match="too long"):
            client.room({"image": ((1 << 27,), "uint8")})


def test_looking_instead_of_sleeping_changes_no_answer(looking_worker):
    values = np.arange(9000, dtype=np.float32)
    with Client(looking_worker.socket_path, spin_us=500.0) as client:
        for number in range(20):
            np.testing.assert_array_equal(
                client.infer({"image": values + number}).outputs["scores"][0], -values - number
            )
        time.sleep(0.05)  # far longer than anybody looks
        np.testing.assert_array_equal(client.infer({"image": values}).outputs["scores"][0], -values)


def test_a_loop_that_looks_sleeps_when_nobody_asks():
    loop, (ours, theirs) = Loop(spin_us=2000.0), socket.socketpair()
    came, times = [], []
    loop.add_reader(ours, lambda: came.append(ours.recv(10)))
    for index in range(5):
        loop.call_later(0.04 * index, lambda: theirs.send(b"x"))
    loop.every(0.03, lambda: times.append(time.monotonic()))
    loop.call_later(0.5, loop.stop)
    used_s = time.process_time()
    loop.run()
    used_s = time.process_time() - used_s
    assert (came, len(times) >= 4) == ([b"x"] * 5, True)
    assert used_s < 0.25, "it looked all the time"
    loop.close()
    ours.close()
    theirs.close()


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
