"""The one-file C client, compiled with every warning as an error, against real workers and against garbage."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import helper

from edgeship_agent.contract.frames import InferReply, InferRequest, Request
from edgeship_agent.contract.manifest import InputContract, OutputContract
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.control import Drain, Drained, Ready, WindowClosed
from tests.c_programs import COMPILER, INCLUDE, STRICT, compiled
from tests.conformance.engine_template import save_onnx, value
from tests.conformance.slots import classifier_onnx, images, make_slot
from tests.conformance.workers import RunningWorker
from tests.contract.examples import FRAMES, GOLDEN
from tests.programs import require_program

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return compiled(INCLUDE / "example.c", tmp_path_factory.mktemp("c") / "example", "-O2")


@pytest.fixture(scope="module")
def slot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slots")
    return make_slot(folder / "slot", classifier_onnx(folder / "m.onnx"))


@pytest.fixture
def worker(slot, tmp_path):
    worker = RunningWorker(slot, tmp_path / "w.sock")
    worker.wait_for(Ready)
    yield worker
    worker.close()


def run(example: Path, *words: object) -> tuple[int, str, str]:
    done = subprocess.run([str(example), *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


#: Opens the client at the given place; ends with what that answered.
PLAIN = """
#include "edgeship.h"
#include "edgeship.h"
int main(int count, char **words)
{
    edgeship_client client;
    return count == 2 ? edgeship_open(&client, words[1], 0.1) : 99;
}
"""


def linked_cpp(source: Path, implementation: Path, program: Path) -> Path:
    """A program of C++, compiled as strictly as those of C, around an implementation that stays C."""
    language = ["-std=c++11", *(flag for flag in STRICT if not flag.startswith("-std"))]
    command = [require_program("g++"), *language, f"-I{INCLUDE}", "-o", program, source, implementation]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("suffix", ["c", "cc"])
def test_one_file_implements_and_the_others_just_include(tmp_path, suffix):
    (tmp_path / "one.c").write_text('#define EDGESHIP_IMPLEMENTATION\n#include "edgeship.h"\n')
    implementation = compiled(tmp_path / "one.c", tmp_path / "one.o", "-c")
    (plain := tmp_path / f"plain.{suffix}").write_text(PLAIN)
    if suffix == "cc":
        program = linked_cpp(plain, implementation, tmp_path / "plain")
    else:
        program = compiled(plain, tmp_path / "plain", str(implementation))
    assert run(program, tmp_path / "w.sock") == (0, "", "")
    assert run(program, "/" + "x" * 120) == (3, "", ""), "no socket has so long a name"


def test_it_answers_what_the_python_client_answers(example, worker, tmp_path):
    sample = images(1, seed=4)[0]["image"]
    (tmp_path / "x.raw").write_bytes(sample.tobytes())
    code, printed, errors = run(example, worker.socket_path, "image", "uint8", "8x8", tmp_path / "x.raw", 50)
    assert (code, errors) == (0, "")
    first, second = printed.splitlines()
    assert first.startswith("digits 1 boot-")
    name, dtype, shape, *scores = second.split()
    with Client(worker.socket_path) as client:
        expected = client.infer({"image": sample}).outputs["scores"]
        assert client.status().inferences == 51
    assert (name, dtype, shape) == ("scores", "float32", "1x10")
    np.testing.assert_allclose([float(score) for score in scores], expected[0], rtol=1e-5)


def test_errors_are_sentences(example, worker, tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(72))
    code, _, errors = run(example, worker.socket_path, "image", "uint8", "8x9", tmp_path / "x.raw")
    assert (code, errors) == (1, "image: wrong input (expected uint8 [8, 8], got uint8 [8, 9])\n")
    code, _, errors = run(example, "/" + "x" * 120, "image", "uint8", "8x9", tmp_path / "x.raw")
    assert code == 3
    assert "more than 107 bytes" in errors
    (tmp_path / "none.raw").write_bytes(b"")
    code, _, errors = run(example, worker.socket_path, "image", "complex64", "8x9", tmp_path / "none.raw")
    assert (code, errors) == (3, "input 0: no name, an unknown dtype, or too large\n")


def test_large_frames_go_through_shared_memory(example, tmp_path):
    shape = (700, 500, 3)
    file = save_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("ReduceSum", ["image"], ["scores"], keepdims=0)],
        [value("image", [1, *shape])],
        [value("scores", [])],
    )
    contracts = (InputContract(tensor="image", dtype="float32", shape=shape),)
    changes = {"input_contracts": contracts, "input_schema": {}, "output": OutputContract(kind="raw")}
    worker = RunningWorker(make_slot(tmp_path / "slot", file, **changes), tmp_path / "w.sock")
    worker.wait_for(Ready)
    sample = np.ones(shape, np.float32)
    (tmp_path / "x.raw").write_bytes(sample.tobytes())
    code, printed, errors = run(example, worker.socket_path, "image", "float32", "700x500x3", tmp_path / "x.raw", 5)
    assert (code, errors) == (0, "")
    assert "scores float32 1.05e+06" in printed
    worker.close()


SPINNING = """
#define EDGESHIP_IMPLEMENTATION
#include "edgeship.h"
static float own[100 * 100];
int main(int count, char **words)
{
    edgeship_client client;
    edgeship_answer answer;
    edgeship_tensor image = {.name = "image", .dtype = "float32", .shape = {100, 100}, .axes = 2, .data = own};
    if (count != 2 || edgeship_open(&client, words[1], 5.0) != EDGESHIP_OK)
        return 2;
    edgeship_spin(&client, 300.0);
    for (int turn = 0; turn < 50; turn++) {
        image.data = own;
        if (turn % 3 > 0 && edgeship_room(&client, &image, 1) != EDGESHIP_OK) /* two of three are written in place */
            return 6;
        float *pixels = (float *)(uintptr_t)image.data;
        for (int index = 0; index < 100 * 100; index++)
            pixels[index] = (float)(turn * index);
        if (edgeship_infer(&client, "", &image, 1, 0.0, &answer) != EDGESHIP_OK)
            return 3;
        for (int index = 0; index < 100 * 100; index++)
            if (((const float *)answer.tensors[0].data)[index] != -pixels[index])
                return 4;
    }
    if (client.memory_fd < 0)
        return 5; /* 40 kB go through shared memory */
    edgeship_close(&client);
    return 0;
}
"""


def test_frames_of_some_ten_kilobytes_and_a_client_that_looks_for_its_answer(tmp_path):
    shape = (100, 100)
    file = save_onnx(
        tmp_path / "m.onnx",
        [helper.make_node("Neg", ["image"], ["scores"])],
        [value("image", [1, *shape])],
        [value("scores", [1, *shape])],
    )
    contracts = (InputContract(tensor="image", dtype="float32", shape=shape),)
    changes = {"input_contracts": contracts, "input_schema": {}, "output": OutputContract(kind="raw")}
    worker = RunningWorker(make_slot(tmp_path / "slot", file, **changes), tmp_path / "w.sock", spin_us=200)
    worker.wait_for(Ready)
    (tmp_path / "spinning.c").write_text(SPINNING)
    program = compiled(tmp_path / "spinning.c", tmp_path / "spinning", "-O1")
    assert run(program, worker.socket_path) == (0, "", "")
    worker.close()


def test_a_change_of_workers_is_not_seen(example, slot, tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(64))
    first, second = (RunningWorker(slot, tmp_path / name) for name in ("1.sock", "2.sock"))
    first.wait_for(Ready)
    second.wait_for(Ready)
    link = tmp_path / "infer.sock"
    link.symlink_to(first.socket_path)
    command = [str(example), str(link), "image", "uint8", "8x8", str(tmp_path / "x.raw"), "20000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as application:
        with Client(first.socket_path) as client:
            while client.status().inferences < 100:
                pass
        spare = tmp_path / "spare"
        spare.symlink_to(second.socket_path)
        spare.replace(link)
        first.tell(Drain())
        answered = first.wait_for(Drained).inferences
        _, errors = application.communicate(timeout=120)
    assert (application.returncode, errors) == (0, "")
    with Client(second.socket_path) as client:
        assert client.status().inferences >= 20000 - answered > 0
    first.close()
    second.close()


def test_an_agent_that_is_not_there_or_hangs(example, worker, tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(64))
    source = (INCLUDE / "example.c").read_text().replace("words[1], 5.0", "words[1], 0.3")
    (tmp_path / "hasty.c").write_text(source)
    hasty = compiled(tmp_path / "hasty.c", tmp_path / "hasty")
    code, _, errors = run(hasty, tmp_path / "absent.sock", "image", "uint8", "8x8", tmp_path / "x.raw")
    assert (code, errors) == (2, "the agent cannot be reached: No such file or directory\n")
    os.kill(worker.process.pid, signal.SIGSTOP)
    code, _, errors = run(hasty, worker.socket_path, "image", "uint8", "8x8", tmp_path / "x.raw")
    os.kill(worker.process.pid, signal.SIGCONT)
    assert (code, errors) == (2, "no answer within 0.3 s\n")


def test_the_request_on_the_wire(example, tmp_path):
    """What it writes reads as the golden request does: the same frame, field by field."""
    (tmp_path / "x.raw").write_bytes(bytes((0, 16, 8, 255)))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "w.sock"))
    listener.listen()
    received = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            data = b""
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
                data += connection.recv(4096)
            received.append(data[4:])
            reply = msgspec.msgpack.encode(msgspec.structs.replace(FRAMES["answer"], request_id=1, error=""))
            connection.sendall(len(reply).to_bytes(4, "little") + reply)

    server = threading.Thread(target=serve)
    server.start()
    code, printed, _ = run(example, tmp_path / "w.sock", "image", "uint8", "2x2", tmp_path / "x.raw")
    server.join()
    listener.close()
    assert (code, printed) == (0, "digits v2 b-1-1f-9\nimage uint8 2x2\n")
    request = msgspec.msgpack.decode(received[0], type=Request)
    golden = msgspec.msgpack.decode((GOLDEN / "frame-infer.msgpack").read_bytes(), type=Request)
    assert isinstance(request, InferRequest)
    assert (request.request_id, request.model, request.deadline_us, request.split_key) == (1, "", 0, "")
    ours, theirs = request.tensors[0], golden.tensors[0]
    assert (ours.name, ours.dtype, ours.shape) == (theirs.name, theirs.dtype, theirs.shape)
    assert bytes(ours.data) == bytes(theirs.data)


def _sanitized(tmp_path: Path) -> Path:
    source = Path(__file__).with_name("read_answers.c")
    try:
        program = compiled(source, tmp_path / "read", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    except AssertionError:
        pytest.skip("the compiler has no sanitizers")
    return program


def test_answers_are_read_and_garbage_is_survived(tmp_path):
    program = _sanitized(tmp_path)
    golden = (GOLDEN / "frame-answer.msgpack").read_bytes()
    good = msgspec.structs.replace(FRAMES["answer"], error="")
    plain = msgspec.msgpack.encode(good)
    later = bytes((plain[0] + 2,)) + plain[1:] + msgspec.msgpack.encode("later") + msgspec.msgpack.encode({})
    older = (GOLDEN / "frame-answer-before-arms.msgpack").read_bytes()
    frames = [golden, plain, later, older]
    tensor = msgspec.structs.replace(good.tensors[0], shape=(2**40, 2**40))
    frames.append(msgspec.msgpack.encode(msgspec.structs.replace(good, tensors=(tensor,))))
    frames.append(msgspec.msgpack.encode(msgspec.structs.replace(good, tensors=good.tensors * 17)))
    frames.append(msgspec.msgpack.encode(msgspec.structs.replace(good, request_id=4)))
    frames += [golden[:size] for size in range(len(golden))]
    dice = random.Random(7)
    for _ in range(3000):
        spoiled = bytearray(golden)
        for _ in range(dice.randint(1, 4)):
            spoiled[dice.randrange(len(spoiled))] = dice.randrange(256)
        frames.append(bytes(spoiled))
    data = b"".join(len(frame).to_bytes(4, "little") + frame for frame in frames)
    done = subprocess.run([str(program)], input=data, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.split(b"\0")
    assert len(lines) == len(frames) + 1
    digest = FRAMES["answer"].release_digest
    assert lines[0].decode() == f"1 nothing is wrong|b-1-1f-9|digits|v2|{digest}|b|412|1|image uint8 2 2,0,16,8,255"
    assert lines[1] == lines[2]
    assert lines[1].decode() == f"0 |b-1-1f-9|digits|v2|{digest}|b|412|1|image uint8 2 2,0,16,8,255"
    assert lines[3] == lines[0].replace(b"|b|", b"||")
    assert [line.split(b"|")[0] for line in lines[4:7]] == [b"4 what came back is no answer"] * 3
    assert all(line.startswith(b"4 ") for line in lines[7 : 7 + len(golden)])
    assert isinstance(msgspec.msgpack.decode(golden, type=InferReply), InferReply)


def test_labels_and_outcomes(worker, tmp_path):
    program = compiled(Path(__file__).with_name("label_answers.c"), tmp_path / "label", "-O2")
    command = [str(program), str(worker.socket_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    label, again, unknown, elsewhere, name, outcome = done.stdout.splitlines()
    assert (label, again) == ("label 0 1 ", "again 0 0 ")
    assert unknown.startswith("unknown 1 0 no class of this index")
    assert elsewhere == "elsewhere 0 0 "
    assert name.startswith("name 1 0 no class of this name")
    assert outcome == "outcome 0 1 "
    worker.tell(Drain())
    worker.wait_for(Drained)
    windows = [message.window for message in worker.messages if isinstance(message, WindowClosed)]
    labels = [tally for window in windows for tally in window.labels]
    assert [(tally.labelled, tally.confusion[0][1:]) for tally in labels] == [(1, (7, 1))]
    assert sum(window.label_unknown for window in windows) == 1
    assert [(t.name, t.count, t.total) for window in windows for t in window.outcomes] == [("rework_minutes", 1, 12.5)]
