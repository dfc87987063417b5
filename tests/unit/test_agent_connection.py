"""An application's connection: whatever the pieces in which frames come, each is handed on once, whole and in order."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading

import msgspec
import pytest

from edgeship_agent.contract.frames import LENGTH, InferRequest, LabelRequest, Tensor
from edgeship_agent.serving.connection import Connection
from edgeship_agent.serving.loop import Loop

LIMIT = 1 << 20
#: What a connection's buffer holds at first.
BUFFER = 64 * 1024
_encoder = msgspec.msgpack.Encoder()


def frame_of(size: int, number: int) -> bytes:
    """A request of exactly so many bytes, length included."""

    def made(data_bytes: int) -> bytes:
        tensor = Tensor(name="x", dtype="uint8", shape=(data_bytes,), data=random.Random(number).randbytes(data_bytes))
        return _encoder.encode(InferRequest(request_id=number, model="", tensors=(tensor,)))

    data_bytes = size - LENGTH.size
    while len(payload := made(data_bytes)) + LENGTH.size > size:
        data_bytes -= 1
    assert len(payload) + LENGTH.size == size
    return LENGTH.pack(len(payload)) + payload


class Served:
    """A loop on this thread with one connection, whose requests are answered with their number."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.application, endpoint = socket.socketpair()
        endpoint.setblocking(False)
        self.seen: list[tuple[int, bytes]] = []
        self.answers_later = False
        self.lost = 0
        self.connection = Connection(self.loop, endpoint, self._on_request, self._on_lost, LIMIT)

    def _on_request(self, connection: Connection, request: InferRequest, received_ns: int) -> None:
        assert received_ns > 0
        if isinstance(request, InferRequest):
            self.seen.append((request.request_id, bytes(request.tensors[0].data)))
        connection.reply(LENGTH.pack(request.request_id))
        if self.answers_later:
            self.loop.call_soon(connection.finish)
        else:
            connection.finish()

    def _on_lost(self, connection: Connection) -> None:
        self.lost += 1
        self.loop.stop()

    def run(self, send: list[bytes]) -> bytes:
        """Until all was sent and read; returns the answers."""
        answers = bytearray()

        def tell() -> None:
            for piece in send:
                self.application.sendall(piece)
            self.application.shutdown(socket.SHUT_WR)

        def listen() -> None:
            with contextlib.suppress(ConnectionResetError):
                while chunk := self.application.recv(65536):
                    answers.extend(chunk)

        threads = [threading.Thread(target=tell), threading.Thread(target=listen)]
        for thread in threads:
            thread.start()
        self.loop.call_later(30.0, self.connection.drop)  # a test that hangs fails
        self.loop.run()
        for thread in threads:
            thread.join()
        self.loop.close()
        return bytes(answers)


SIZES = [
    [BUFFER],
    [BUFFER, 100, BUFFER],
    [BUFFER - 1, BUFFER + 1, 60],
    [2 * BUFFER, 80, 4 * BUFFER, 80],
    [100, 3 * BUFFER + 17, 100],
]


@pytest.fixture
def served():
    served = Served()
    yield served
    served.application.close()


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=[str(sizes[:4]) for sizes in SIZES])
@pytest.mark.parametrize("piece", ["whole", "at once", "buffer", "random"])
def test_frames_of_any_size_in_any_pieces_come_once_and_in_order(served, sizes, piece, later):
    served.answers_later = later
    frames = [frame_of(size, number) for number, size in enumerate(sizes)]
    stream = b"".join(frames)
    if piece == "whole":
        pieces = frames
    elif piece == "at once":
        pieces = [stream]
    elif piece == "buffer":
        pieces = [stream[start : start + BUFFER] for start in range(0, len(stream), BUFFER)]
    else:
        cuts = sorted({0, len(stream), *(random.Random(1).randrange(len(stream)) for _ in range(40))})
        pieces = [stream[start:end] for start, end in itertools.pairwise(cuts)]
    served.run(pieces)
    assert [number for number, _ in served.seen] == list(range(len(sizes)))
    assert all(data in frame for (_, data), frame in zip(served.seen, frames, strict=True))
    assert served.lost == 1


def test_many_small_frames_at_once(served):
    served.answers_later = True  # else each would be answered within the one before it
    answers = served.run([b"".join(frame_of(70, number) for number in range(3000))])
    assert answers == b"".join(LENGTH.pack(number) for number in range(3000))
    assert [number for number, _ in served.seen] == list(range(3000))


@pytest.mark.parametrize("length", [0, LIMIT + 1, 2**32 - 1])
def test_a_length_that_no_frame_has_ends_the_connection(served, length):
    served.run([LENGTH.pack(length)])
    assert (served.seen, served.lost) == ([], 1)


def test_an_application_that_goes_in_the_middle_of_a_frame_is_forgotten(served):
    served.run([frame_of(500, 1), frame_of(500, 2)[:-1]])
    assert [number for number, _ in served.seen] == [1]
    assert served.lost == 1


def test_other_requests_are_handed_on_too(served):
    payload = _encoder.encode(LabelRequest(request_id=7, prediction_id="a-1", label=3))
    assert served.run([LENGTH.pack(len(payload)) + payload]) == LENGTH.pack(7)
