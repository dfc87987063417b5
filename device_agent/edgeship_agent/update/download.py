"""Downloads that resume: one URL per digest, Range requests, never a byte more than declared.

A partial file lies in ``store/partial/<hex>``; what is complete and has the right hash moves to
``store/blobs/sha256/<hex>``. Integrity comes from the digest alone, so that any proxy on the way may serve it.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError, TransferError, VerificationError
from edgeship_agent.contract.oci import hex_of
from edgeship_agent.update.disk import DISK, Disk, digest_of_file

_CHUNK_BYTES: Final = 256 * 1024
#: How often a transfer that may be silent, or next to silent, is asked whether it shall end.
_LOOK_S: Final = 0.2


class Limits(Struct, frozen=True, kw_only=True):
    """What a transfer may take.

    Attributes:
        timeout_s: for connecting and for each read.
        max_bytes_per_s: of one transfer, averaged over a second; 0 for no limit.
        slow_bytes_per_s: a transfer that is slower over ``slow_after_s`` is aborted and tried again later; what the
            limit holds back does not count.
    """

    timeout_s: float = 20.0
    max_bytes_per_s: float = 0.0
    slow_bytes_per_s: float = 512.0
    slow_after_s: float = 30.0


class Blob(Struct, frozen=True, kw_only=True):
    """What to download: its digest and its exact length."""

    digest: str
    size_bytes: int


class Interrupted(TransferError):
    """The transfer was stopped on purpose; the partial file stays."""


class MonotonicClock(Protocol):
    """Seconds that never go back."""

    def __call__(self) -> float: ...  # noqa: D102


class BlobStore:
    """Verified blobs on disk.

    Args:
        root: the ``store`` folder.
        disk: how they get there.
    """

    def __init__(self, root: Path, disk: Disk = DISK) -> None:
        self.blobs = root / "blobs" / "sha256"
        self.partial = root / "partial"
        self.disk = disk
        disk.make_folders(root, certain=False)  # its name is on the disk with the journal's, beside it
        disk.make_folders(self.blobs)
        if not self.partial.exists():
            disk.make_folder(self.partial)

    def path(self, digest: str) -> Path:
        """Where a verified blob lies, or would lie."""
        return self.blobs / hex_of(digest)

    def has(self, blob: Blob) -> bool:
        """Whether a blob is there; hashed again, and removed if it was damaged."""
        path = self.path(blob.digest)
        if not path.is_file():
            return False
        if path.stat().st_size == blob.size_bytes and digest_of_file(path) == blob.digest:
            return True
        self.disk.unlink(path)
        return False

    def keep_only(self, digests: Iterable[str]) -> None:
        """Remove every blob and partial file that nothing refers to."""
        wanted = {hex_of(digest) for digest in digests}
        for folder in (self.blobs, self.partial):
            for path in folder.iterdir():
                if path.name not in wanted:
                    self.disk.unlink(path)

    def free_bytes(self) -> int:
        """Room on the file system."""
        return shutil.disk_usage(self.blobs).free


class Downloader:
    """Fetches blobs from one server.

    Args:
        base_url: ``http://host:port``; blobs lie at ``/blobs/sha256/<hex>``.
        store: where they go.
        clock: seconds that never go back.
        limits: timeouts, the slowest and the fastest speed.
        tls: makes the context of a connection, where the URL asks for TLS.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        base_url: str,
        store: BlobStore,
        clock: MonotonicClock,
        limits: Limits | None = None,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self._base_url = base_url.rstrip("/")
        self._server = urlsplit(self._base_url)  # once: urllib would remember every blob's address
        self._store = store
        self._clock = clock
        self._limits = limits or Limits()
        self._tls = tls

    def fetch(self, blob: Blob, should_stop: Callable[[], bool] = lambda: False) -> Path:
        """The verified blob; downloads what is missing of it.

        Raises:
            TransferError: the server cannot be reached, is too slow, or refuses for good (not retryable).
            VerificationError: what came has another digest; it was removed.
            Interrupted: ``should_stop`` said so.
        """
        path = self._store.path(blob.digest)
        if self._store.has(blob):
            return path
        partial = self._store.partial / path.name
        if partial.exists() and partial.stat().st_size > blob.size_bytes:
            self._store.disk.unlink(partial)
        self._transfer(blob, partial, should_stop)
        got = digest_of_file(partial)
        if got != blob.digest:
            self._store.disk.unlink(partial)
            raise VerificationError("the download has another digest", file=path.name, expected=blob.digest, got=got)
        self._store.disk.rename(partial, path)
        self._store.disk.sync_folder(path.parent)
        return path

    def _transfer(self, blob: Blob, partial: Path, should_stop: Callable[[], bool]) -> None:
        have_bytes = partial.stat().st_size if partial.exists() else 0
        if have_bytes == blob.size_bytes and have_bytes > 0:
            return
        path = f"/blobs/sha256/{hex_of(blob.digest)}"
        url, connection = self._base_url + path, self._connect()
        speed = _Speed(self._limits, self._clock)
        try:
            connection.connect()
            speed.begin()
            with _watched(connection, lambda: speed.is_too_slow() or should_stop()):
                headers = {"Range": f"bytes={have_bytes}-"} if have_bytes else {}
                connection.request("GET", self._server.path + path, headers=headers)
                with connection.getresponse() as response:
                    start_bytes = _start_of(response, have_bytes, url)
                    self._receive(response, partial, start_bytes, blob, speed, should_stop)
        except (OSError, http.client.HTTPException) as error:
            if should_stop():
                raise Interrupted("stopped by a newer goal", retryable=True, file=partial) from error
            cause = f"transfer broken: {str(error) or type(error).__name__}"
            if speed.was_too_slow:
                cause = "transfer too slow, aborted"
            raise TransferError(cause, retryable=True, file=url) from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        parts, timeout_s = self._server, self._limits.timeout_s
        if parts.scheme == "http" and parts.hostname:
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
        if parts.scheme == "https" and parts.hostname:
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=self._tls())
        raise ConfigError("not a server address", key="server_url", expected="https://HOST:PORT", got=self._base_url)

    def _receive(
        self,
        response: http.client.HTTPResponse,
        partial: Path,
        start_bytes: int,
        blob: Blob,
        speed: _Speed,
        should_stop: Callable[[], bool],
    ) -> None:
        with self._store.disk.open(partial, append=True) as file:
            file.cut(start_bytes)
            received, start_s = start_bytes, self._clock()
            speed.begin()
            while received < blob.size_bytes:
                if should_stop():
                    raise Interrupted("stopped by a newer goal", retryable=True, file=partial)
                if speed.is_too_slow():
                    raise ConnectionError("too slow")
                chunk = response.read1(min(self._chunk_bytes(), blob.size_bytes - received))
                if not chunk:
                    raise ConnectionError(f"{received} of {blob.size_bytes} bytes came")
                file.write(chunk)
                received += len(chunk)
                speed.count(len(chunk))
                self._hold_back(received - start_bytes, start_s, speed)
            file.sync()

    def _chunk_bytes(self) -> int:
        """Never more than a quarter of a second's share at once, so that the line stays free for others."""
        cap = self._limits.max_bytes_per_s
        return min(_CHUNK_BYTES, max(int(cap / 4), 1)) if cap > 0 else _CHUNK_BYTES

    def _hold_back(self, got_bytes: int, start_s: float, speed: _Speed) -> None:
        """Wait until the bytes of this transfer are as old as the limit asks for."""
        if self._limits.max_bytes_per_s > 0:
            ahead_s = got_bytes / self._limits.max_bytes_per_s - (self._clock() - start_s)
            if ahead_s > 0:
                speed.leave_out(ahead_s)
                self._sleep(ahead_s)


class _Speed:
    """How fast the other side of a transfer is. Used by the thread that receives and by the one that watches.

    Until the answer's first lines are complete nothing counts as received: they must be there in ``slow_after_s``.

    Args:
        limits: the slowest speed, and over which time.
        clock: seconds that never go back.
    """

    def __init__(self, limits: Limits, clock: MonotonicClock) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._since_s, self._got_bytes = clock(), 0
        self.was_too_slow = False

    def begin(self) -> None:
        """Look at what comes from now on."""
        with self._lock:
            self._since_s, self._got_bytes = self._clock(), 0

    def count(self, size_bytes: int) -> None:
        """So much came."""
        with self._lock:
            self._got_bytes += size_bytes

    def leave_out(self, pause_s: float) -> None:
        """A pause of our own follows: it says nothing about the other side."""
        with self._lock:
            self._since_s += pause_s

    def is_too_slow(self) -> bool:
        """Whether too little came, now or before."""
        with self._lock:
            elapsed_s = self._clock() - self._since_s
            if elapsed_s >= self._limits.slow_after_s:
                self.was_too_slow |= self._got_bytes < self._limits.slow_bytes_per_s * elapsed_s
                self._since_s, self._got_bytes = self._since_s + elapsed_s, 0
            return self.was_too_slow


@contextmanager
def _watched(connection: http.client.HTTPConnection, shall_end: Callable[[], bool]) -> Iterator[None]:
    """Shut a connection down as soon as the transfer shall end, also while nothing, or next to nothing, comes over it.

    A timeout is no limit: each byte begins it anew, and lines of HTTP are waited for until they are complete.
    """
    is_over, line = threading.Event(), connection.sock

    def watch() -> None:
        while not is_over.wait(_LOOK_S):
            if shall_end():
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
                return

    watching = threading.Thread(target=watch, name="download-watch", daemon=True)
    watching.start()
    try:
        yield
    finally:
        is_over.set()
        watching.join()


def _start_of(response: http.client.HTTPResponse, have_bytes: int, url: str) -> int:
    """From which byte on the answer goes.

    Raises:
        TransferError: the server refuses; 4xx is for good, but for 408, 416 and 429.
    """
    if response.status == 200:
        return 0
    if response.status == 206:
        expected = f"bytes {have_bytes}-"
        if (response.getheader("Content-Range") or "").startswith(expected):
            return have_bytes
        raise TransferError("the server answered another range than asked for", retryable=True, file=url)
    retryable = response.status >= 500 or response.status in (408, 416, 429)
    raise TransferError(f"the server answered {response.status} {response.reason}", retryable=retryable, file=url)
