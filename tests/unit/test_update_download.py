"""Downloads over a real HTTP server: resume, lengths, refusals, slowness."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship_agent.contract.errors import TransferError, VerificationError
from edgeship_agent.contract.oci import digest_of, hex_of
from edgeship_agent.update.download import Blob, BlobStore, Downloader, Interrupted, Limits

DATA = bytes(range(256)) * 400
BLOB = Blob(digest=digest_of(DATA), size_bytes=len(DATA))


class Server:
    """Answers as a test tells it."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.body = DATA
        self.ignores_ranges = False
        self.lies_about_range = False
        self.ranges: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        self.ranges.append(wanted)
        if self.status is not None:
            request.send_error(self.status)
            return
        start = 0 if self.ignores_ranges or not wanted else int(wanted.removeprefix("bytes=").rstrip("-"))
        request.send_response(206 if start else 200)
        if start:
            said = 0 if self.lies_about_range else start
            request.send_header("Content-Range", f"bytes {said}-{len(DATA) - 1}/{len(DATA)}")
        request.end_headers()
        request.wfile.write(self.body[start:])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def downloader(server: Server, store: BlobStore, **limits: float) -> Downloader:
    ticks = iter(range(10**6))
    return Downloader(server.url, store, lambda: float(next(ticks)), Limits(timeout_s=5.0, **limits))


def partial(store: BlobStore, data: bytes) -> Path:
    path = store.partial / hex_of(BLOB.digest)
    path.write_bytes(data)
    return path


def test_whole(server: Server, store: BlobStore) -> None:
    path = downloader(server, store).fetch(BLOB)
    assert path.read_bytes() == DATA
    downloader(server, store).fetch(BLOB)
    assert server.ranges == [""]


def test_no_faster_than_allowed_and_never_much_at_once(server: Server, store: BlobStore) -> None:
    now_s, pauses = [0.0], []

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        now_s[0] += pause_s

    limits = Limits(timeout_s=5.0, max_bytes_per_s=10_240.0)
    Downloader(server.url, store, lambda: now_s[0], limits, sleep=sleep).fetch(BLOB)
    assert now_s[0] == pytest.approx(len(DATA) / 10_240)
    assert max(pauses) <= 0.25


def test_resume_asks_for_the_rest_only(server: Server, store: BlobStore) -> None:
    partial(store, DATA[:1000])
    assert downloader(server, store).fetch(BLOB).read_bytes() == DATA
    assert server.ranges == ["bytes=1000-"]


def test_a_server_without_ranges_starts_over(server: Server, store: BlobStore) -> None:
    server.ignores_ranges = True
    partial(store, b"x" * 1000)
    assert downloader(server, store).fetch(BLOB).read_bytes() == DATA


def test_another_range_than_asked_for_is_refused(server: Server, store: BlobStore) -> None:
    server.lies_about_range = True
    partial(store, DATA[:1000])
    with pytest.raises(TransferError, match="another range"):
        downloader(server, store).fetch(BLOB)


def test_it_stops_at_the_declared_length(server: Server, store: BlobStore) -> None:
    server.body = DATA + b"more" * 100_000
    assert downloader(server, store).fetch(BLOB).read_bytes() == DATA
    assert sum(path.stat().st_size for path in store.partial.iterdir()) == 0


def test_wrong_bytes_are_removed(server: Server, store: BlobStore) -> None:
    server.body = b"\1" + DATA[1:]
    with pytest.raises(VerificationError, match="another digest"):
        downloader(server, store).fetch(BLOB)
    assert not list(store.partial.iterdir()) and not list(store.blobs.iterdir())


def test_short_answers_keep_what_came(server: Server, store: BlobStore) -> None:
    server.body = DATA[:5000]
    with pytest.raises(TransferError, match="5000 of 102400") as error:
        downloader(server, store).fetch(BLOB)
    assert error.value.retryable
    assert (store.partial / hex_of(BLOB.digest)).stat().st_size == 5000


@pytest.mark.parametrize(("status", "retryable"), [(404, False), (403, False), (429, True), (500, True), (503, True)])
def test_refusals(server: Server, store: BlobStore, status: int, retryable: bool) -> None:
    server.status = status
    with pytest.raises(TransferError, match=str(status)) as error:
        downloader(server, store).fetch(BLOB)
    assert error.value.retryable is retryable


def test_nobody_answers(server: Server, store: BlobStore) -> None:
    server.close()
    with pytest.raises(TransferError) as error:
        downloader(server, store).fetch(BLOB)
    assert error.value.retryable


def test_slow_retrieval_is_aborted(server: Server, store: BlobStore) -> None:
    with pytest.raises(TransferError, match="too slow"):
        downloader(server, store, slow_after_s=1.0, slow_bytes_per_s=1e9).fetch(BLOB)


def test_a_limit_of_ones_own_is_not_slowness(server: Server, store: BlobStore) -> None:
    now_s = [0.0]

    def sleep(pause_s: float) -> None:
        now_s[0] += pause_s

    limits = Limits(timeout_s=5.0, max_bytes_per_s=10_240.0, slow_bytes_per_s=20_480.0, slow_after_s=1.0)
    path = Downloader(server.url, store, lambda: now_s[0], limits, sleep=sleep).fetch(BLOB)
    assert path.read_bytes() == DATA


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + DATA[:1000] + b"\r\n"
#: What comes at once, which byte then comes again and again, and how many bytes of the blob arrived.
DRIPS = {
    "status": (b"HTTP/1.1 200 ", b"O", 0),
    "header": (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x", 0),
    "chunk size": (CHUNKED, b"0", 1000),
    "chunk extension": (CHUNKED + b"1;", b"x", 1000),
    "body": (b"HTTP/1.1 200 OK\r\n\r\n", DATA[:1], None),
}


@contextlib.contextmanager
def dripping(at_once: bytes, byte: bytes) -> Iterator[str]:
    """The address of a server that answers once, goes on byte by byte for some seconds and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve() -> None:
        line, _ = listener.accept()
        with line, contextlib.suppress(OSError):
            line.recv(4096)
            line.sendall(at_once)
            for _ in range(150):
                time.sleep(0.04)
                line.sendall(byte)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(20)
    listener.close()


@pytest.mark.parametrize("where", DRIPS)
def test_bytes_that_come_one_by_one_are_a_stall_wherever_they_come(store: BlobStore, where: str) -> None:
    """Each of them comes in time for a read; what came before is kept."""
    at_once, byte, kept_bytes = DRIPS[where]
    limits = Limits(timeout_s=5.0, slow_after_s=0.6)
    with dripping(at_once, byte) as url, pytest.raises(TransferError, match="too slow") as error:
        Downloader(url, store, time.monotonic, limits).fetch(BLOB)
    assert error.value.retryable
    kept = store.partial / hex_of(BLOB.digest)
    if kept_bytes is not None:
        assert (kept.stat().st_size if kept.exists() else 0) == kept_bytes


def test_a_newer_goal_interrupts(server: Server, store: BlobStore) -> None:
    with pytest.raises(Interrupted):
        downloader(server, store).fetch(BLOB, lambda: True)


def test_a_blob_that_was_damaged_on_disk_is_fetched_again(server: Server, store: BlobStore) -> None:
    store.path(BLOB.digest).write_bytes(b"\1" + DATA[1:])
    assert downloader(server, store).fetch(BLOB).read_bytes() == DATA


def test_only_what_is_wanted_stays(store: BlobStore) -> None:
    store.path(BLOB.digest).write_bytes(DATA)
    store.path(digest_of(b"old")).write_bytes(b"old")
    store.keep_only([BLOB.digest])
    assert [path.name for path in store.blobs.iterdir()] == [hex_of(BLOB.digest)]
