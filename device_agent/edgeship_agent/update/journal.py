"""The journal: append-only lines ``crc32 json``, one fsync each, the newest snapshot of an attempt counts.

A torn tail (power cut in the middle of a write) is cut off at the last good record. Every record carries the format's
version; fields that this version does not know are kept as they are when the file is compacted.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.update.attempt import Attempt, AttemptKey
from edgeship_agent.update.disk import sync_directory, write_atomic

JOURNAL_VERSION: Final = 1
#: Size from which on the journal is rewritten with the newest snapshots alone.
COMPACT_BYTES: Final = 1024 * 1024
#: Finished attempts that are remembered; older ones are forgotten when the journal is compacted.
KEPT_ATTEMPTS: Final = 64
_decoder: Final = msgspec.json.Decoder(dict[str, Any])


class Journal:
    """The attempts of a device, on disk. May be used from several threads.

    Args:
        path: the file; made when it is not there.
        compact_bytes: size from which on it is compacted at start.

    Raises:
        ContractError: the file was written by a newer major format.
    """

    def __init__(self, path: Path, *, compact_bytes: int = COMPACT_BYTES) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._records: dict[AttemptKey, dict[str, Any]] = {}
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._clean = True
        self._load()
        if path.exists() and path.stat().st_size > compact_bytes:
            self._compact()
        is_new = not path.exists()
        self._file = path.open("ab", buffering=0)
        if is_new:
            sync_directory(path.parent)

    @property
    def stopped_cleanly(self) -> bool:
        """Whether the agent that wrote the last record stopped on purpose."""
        return self._clean

    def attempts(self) -> tuple[Attempt, ...]:
        """The newest snapshot of every attempt, oldest attempt first."""
        with self._lock:
            return tuple(self._attempts.values())

    def find(self, key: AttemptKey) -> Attempt | None:
        """The newest snapshot of one attempt."""
        return self._attempts.get(key)

    def next_seq(self, deployment: str, attempt: int) -> int:
        """The highest report number used by a (deployment, attempt), over all of its models; 0 for none."""
        numbers = (a.seq for a in self.attempts() if a.deployment == deployment and a.attempt == attempt)
        return max(numbers, default=0)

    def append(self, attempt: Attempt) -> None:
        """Persist a snapshot; it is on the disk when this returns."""
        record = {"v": JOURNAL_VERSION, "kind": "attempt", **msgspec.to_builtins(attempt)}
        with self._lock:
            self._write(record)
            self._remember(attempt.key, record, attempt)

    def mark(self, name: str) -> None:
        """Persist ``start`` or ``clean_stop``."""
        with self._lock:
            self._write({"v": JOURNAL_VERSION, "kind": name})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(_line(record))
        os.fsync(self._file.fileno())

    def _remember(self, key: AttemptKey, record: dict[str, Any], attempt: Attempt) -> None:
        self._records.pop(key, None)
        self._attempts.pop(key, None)
        self._records[key] = record
        self._attempts[key] = attempt

    def _load(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        good_bytes = 0
        for record, end in _records(data):
            good_bytes = end
            if record.get("v", 0) > JOURNAL_VERSION:
                raise ContractError(
                    "the journal was written by a newer agent",
                    file=self._path,
                    expected=f"version ≤ {JOURNAL_VERSION}",
                    got=record.get("v"),
                )
            self._take(record)
        if good_bytes < len(data):
            with self._path.open("r+b") as file:
                file.truncate(good_bytes)
                os.fsync(file.fileno())

    def _take(self, record: dict[str, Any]) -> None:
        kind = record.get("kind")
        self._clean = kind == "clean_stop"
        if kind != "attempt":
            return
        try:
            attempt = msgspec.convert(record, Attempt)
        except msgspec.ValidationError as error:
            raise ContractError(f"unreadable record: {error}", file=self._path) from error
        self._remember(attempt.key, record, attempt)

    def _compact(self) -> None:
        finished = [key for key, attempt in self._attempts.items() if attempt.state.is_terminal]
        for key in finished[:-KEPT_ATTEMPTS]:
            del self._records[key], self._attempts[key]
        lines = [_line(record) for record in self._records.values()]
        lines.append(_line({"v": JOURNAL_VERSION, "kind": "clean_stop" if self._clean else "start"}))
        write_atomic(self._path, b"".join(lines))


def _line(record: dict[str, Any]) -> bytes:
    body = msgspec.json.encode(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _records(data: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Good records from the beginning and where each ends; stops at the first damaged one."""
    position = 0
    while (end := data.find(b"\n", position)) >= 0:
        line = data[position:end]
        if len(line) < 10 or line[8:9] != b" " or line[:8] != b"%08x" % zlib.crc32(line[9:]):
            return
        try:
            record = _decoder.decode(line[9:])
        except msgspec.MsgspecError:
            return
        position = end + 1
        yield record, position
