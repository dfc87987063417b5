"""The journal: append-only lines ``crc32 json``, one fsync each, the newest snapshot of an attempt counts.

A torn tail (power cut in the middle of a write) is cut off at the last good record. Every record carries the format's
version, ``v`` and ``minor``. Fields, and records of a newer minor version, that this version does not know are kept as
they are when the file is compacted; a journal of a newer major version is set aside, and the models that it was about
are served on: what serves is decided by the slots alone.
"""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.update.attempt import Attempt, AttemptKey
from edgeship_agent.update.disk import DISK, Disk, OpenFile
from edgeship_agent.update.remembered import CRC_BYTES, Remembered, attempt_of, line_of

JOURNAL_VERSION: Final = 1
#: 1: attempts name the release that they belong to; what serves is said by one pointer, no longer by links.
JOURNAL_MINOR: Final = 1
#: The first minor version of an agent that writes the pointer (:mod:`edgeship_agent.contract.pointer`).
_FIRST_WITH_POINTER: Final = 1
#: Size from which on the journal is rewritten with the newest snapshots alone.
COMPACT_BYTES: Final = 1024 * 1024
#: A file that is rewritten again is so many times as large as it was after it was rewritten last.
_GROWTH: Final = 2
_START: Final = "start"
_CLEAN_STOP: Final = "clean_stop"
_MARKS: Final = (_START, _CLEAN_STOP)
_decoder: Final = msgspec.json.Decoder(dict[str, Any])


class Journal:
    """The attempts of a device, on disk. May be used from several threads.

    Args:
        path: the file; made when it is not there.
        compact_bytes: size from which on it is compacted.
        disk: how it is written.

    Attributes:
        set_aside: where a journal of a newer major version was moved to, or None.

    Raises:
        ContractError: a whole record of this very version cannot be read.
    """

    def __init__(self, path: Path, *, compact_bytes: int = COMPACT_BYTES, disk: Disk = DISK) -> None:
        self._path = path
        self._disk = disk
        self.set_aside: Path | None = None
        self._foreign: list[bytes] = []
        self._lock = threading.Lock()
        self._remembered = Remembered()
        self._clean = True
        self._is_newer = False
        self._minor = JOURNAL_MINOR  # of the agent that wrote last
        self._compact_above = compact_bytes
        self._size_bytes = self._load()
        self._file: OpenFile | None = None
        with contextlib.suppress(OSError):  # a disk that is read-only or full: tried again with the next record
            if self._size_bytes > self._compact_above:
                self._rewrite(_CLEAN_STOP if self._clean else _START)
            self._open()

    @property
    def stopped_cleanly(self) -> bool:
        """Whether the agent that wrote the last record stopped on purpose."""
        return self._clean

    @property
    def was_older(self) -> bool:
        """Whether the agent that wrote the last record knows no pointer: only its links are up to date then."""
        return self._minor < _FIRST_WITH_POINTER

    @property
    def not_understood(self) -> int:
        """Records that a newer agent wrote and this one cannot read."""
        return len(self._foreign)

    def attempts(self) -> tuple[Attempt, ...]:
        """The newest snapshot of every attempt: those that have ended in that order, then those under way."""
        return tuple(self.newest())

    def newest(self, count: int = 0) -> Iterator[Attempt]:
        """The last ``count`` of them, or all for 0, read one after another."""
        with self._lock:
            lines = self._remembered.lines()
        return map(attempt_of, lines[-count:])

    def under_way(self) -> tuple[Attempt, ...]:
        """The newest snapshot of every attempt that has not ended."""
        with self._lock:
            return self._remembered.under_way()

    def find(self, key: AttemptKey) -> Attempt | None:
        """The newest snapshot of one attempt."""
        return next((attempt for attempt in self.newest() if attempt.key == key), None)

    def last_seq(self, deployment: str, attempt: int) -> int:
        """The highest report number used by a (deployment, attempt), over all of its models; 0 for none."""
        numbers = (a.seq for a in self.newest() if a.deployment == deployment and a.attempt == attempt)
        return max(numbers, default=0)

    def append(self, *attempts: Attempt) -> None:
        """Persist snapshots, those of a release in one write; they are on the disk when this returns."""
        lines = [line_of({**_head("attempt"), **msgspec.to_builtins(attempt)}) for attempt in attempts]
        with self._lock:
            if not self._was_rewritten(lines):
                self._write(lines)
            self._remembered.put(lines)

    def mark(self, name: str) -> None:
        """Persist ``start`` or ``clean_stop``."""
        with self._lock:
            self._write([line_of(_head(name))])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> OpenFile:
        if self._is_newer:
            self._put_aside()
        is_new = not self._path.exists()
        file = self._disk.open(self._path, append=True)
        if is_new:
            self._disk.sync_folder(self._path.parent)
        elif self._path.stat().st_size > self._size_bytes:
            file.cut(self._size_bytes)  # a torn tail; it goes to the disk with the next record
        self._file = file
        return file

    def _write(self, lines: Sequence[bytes]) -> None:
        data, file = b"".join(lines), self._file or self._open()
        try:
            file.write(data)
            file.sync()
        except OSError:
            # half a record in the middle would hide all that follow it
            file.cut(self._size_bytes)
            raise
        self._size_bytes += len(data)
        self._minor = JOURNAL_MINOR

    def _load(self) -> int:
        """Take every good record; returns where the last one ends."""
        if not self._path.exists():
            return 0
        good_bytes, attempts = 0, list[bytes]()
        for record, line in _records(self._path.read_bytes()):
            good_bytes += len(line)
            if record.get("v", 0) > JOURNAL_VERSION:
                self._is_newer = True
                self._foreign, self._clean = [], True
                self._minor = JOURNAL_MINOR
                return 0
            if self._is_attempt(record, line):
                attempts.append(line)
        self._remembered.put(attempts)
        return good_bytes

    def _put_aside(self) -> None:
        """Start anew beside a journal that cannot be read; the newer agent finds its own under the other name."""
        self.set_aside = self._path.with_name(self._path.name + ".newer")
        self._disk.rename(self._path, self.set_aside)
        self._is_newer = False

    def _is_attempt(self, record: dict[str, Any], line: bytes) -> bool:
        """Whether a record is a snapshot that this version knows; what it is otherwise is taken note of."""
        kind, self._minor = record.get("kind"), record.get("minor", 0)
        if kind in _MARKS:
            self._clean = kind == _CLEAN_STOP
            return False
        is_newer = self._minor > JOURNAL_MINOR
        if kind != "attempt" and is_newer:
            self._foreign.append(line)
            return False
        self._clean = False
        try:
            attempt_of(line)
        except msgspec.ValidationError as error:
            if is_newer:
                self._foreign.append(line)
                return False
            raise ContractError(f"unreadable record: {error}", file=self._path) from error
        return True

    def _was_rewritten(self, lines: Sequence[bytes]) -> bool:
        """Persist lines with a new file, where the old one has grown and there is room for a second."""
        if self._size_bytes <= self._compact_above:
            return False
        self._minor = JOURNAL_MINOR
        try:
            self._rewrite(_START, lines)
        except OSError:
            return False
        return True

    def _rewrite(self, mark: str, lines: Sequence[bytes] = ()) -> None:
        """Replace the file by one of what is still known; the next record is written to that.

        Args:
            mark: whether the agent that was here last, or is here, has stopped.
            lines: newer than everything that is known.

        Raises:
            OSError: the old file may be in place, or the new one.
        """
        last = line_of({**_head(mark), "minor": self._minor})  # who was here last is still to be seen
        data = b"".join([*self._foreign, *self._remembered.lines(), *lines, last])
        before = self._path.stat().st_ino
        try:
            self._disk.write_atomic(self._path, data)
        finally:
            self.close()
            self._file = None
            if self._path.stat().st_ino != before:
                self._size_bytes = len(data)
                self._compact_above = max(self._compact_above, _GROWTH * len(data))


def _head(kind: str) -> dict[str, Any]:
    return {"v": JOURNAL_VERSION, "minor": JOURNAL_MINOR, "kind": kind}


def _records(data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Good records from the beginning, each with its line; stops at the first damaged one."""
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        line = data[position:end]
        head, body = line[:CRC_BYTES], line[CRC_BYTES:]
        if not body or head != b"%08x " % zlib.crc32(body):
            return
        try:
            record = _decoder.decode(body)
        except msgspec.MsgspecError:
            return
        position = end + 1
        yield record, line + b"\n"
