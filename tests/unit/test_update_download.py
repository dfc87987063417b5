"""Downloads over a real HTTP server: resume, lengths, refusals, slowness."""

from __future__ import annotations

import http.server
import threading
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
