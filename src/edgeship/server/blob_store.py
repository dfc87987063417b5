"""Content by digest on disk: ``blobs/sha256/<hex>``. What is there is whole and has the digest of its name."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from edgeship.server.disk import sync_directory
from edgeship_agent.contract.errors import TransferError, VerificationError
from edgeship_agent.contract.oci import check_digest, digest_of, hex_of

#: Largest blob that is taken; a weight file of an edge model is far below.
MAX_BLOB_BYTES: Final = 8 * 1024**3
CHUNK_BYTES: Final = 256 * 1024


def blob_path(root: Path, digest: str) -> Path:
    """Where a blob lies.

    Raises:
        ContractError: not a digest.
    """
    return root / "sha256" / hex_of(digest)


def blob_size(root: Path, digest: str) -> int | None:
    """Length in bytes, or None where the blob is not there."""
    try:
        return blob_path(root, digest).stat().st_size
    except FileNotFoundError:
        return None


def read_blob(root: Path, digest: str) -> bytes:
    """A small blob's content, hashed again.

    Raises:
        VerificationError: not there, or damaged on disk.
    """
    path = blob_path(root, digest)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise VerificationError(
            "blob was not uploaded", key=digest, next_step="edgeship releases add BUNDLE uploads what is missing"
        ) from error
    if digest_of(data) != digest:
        raise VerificationError("blob is damaged on the server's disk", file=path, expected=digest, got=digest_of(data))
    return data


def read_chunks(path: Path, first: int, last: int) -> Iterator[bytes]:
    """Bytes ``first`` to ``last`` (inclusive) of a file, in pieces."""
    with path.open("rb") as file:
        file.seek(first)
        left = last - first + 1
        while left > 0:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk


class BlobWriter:
    """Receives one blob; it appears under its name only when :meth:`finish` found its digest right.

    Use it as a context manager: what was not finished is removed.

    Args:
        root: the blob directory.
        digest: what the content must hash to.

    Raises:
        ContractError: not a digest.
    """

    def __init__(self, root: Path, digest: str) -> None:
        self._digest = check_digest(digest)
        self._path = blob_path(root, digest)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=".incoming-")
        self._temporary = Path(name)
        self._file: IO[bytes] = os.fdopen(handle, "wb")
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Append a piece.

        Raises:
            TransferError: longer than any blob may be.
        """
        self._size += len(chunk)
        if self._size > MAX_BLOB_BYTES:
            raise TransferError(f"blob is longer than {MAX_BLOB_BYTES} bytes", retryable=False, file=self._digest)
        self._hash.update(chunk)
        self._file.write(chunk)

    def finish(self) -> int:
        """Keep the blob.

        Returns:
            Its length in bytes.

        Raises:
            VerificationError: the content is not what the digest names; nothing is kept.
        """
        got = "sha256:" + self._hash.hexdigest()
        if got != self._digest:
            raise VerificationError("content does not match its digest", expected=self._digest, got=got)
        self._file.flush()
        os.fchmod(self._file.fileno(), 0o644)
        os.fsync(self._file.fileno())
        self._temporary.replace(self._path)
        sync_directory(self._path.parent)
        return self._size

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)
