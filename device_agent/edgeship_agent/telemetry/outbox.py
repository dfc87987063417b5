"""Windows that the server has not acknowledged yet, on disk.

A window leaves only on the server's own cumulative acknowledgement, sent after its database commit; a broker's PUBACK
proves nothing. When the outbox is full the oldest windows go first, counted and reported. One SQLite file (WAL); every
change and its counters are one transaction, so ``created = acknowledged + evicted + waiting`` holds after any crash.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from edgeship_agent.contract.errors import ContractError, EdgeshipError
from edgeship_agent.contract.messages import OutboxCounters, Window

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE windows (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    boot_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (boot_id, seq)
);
CREATE TABLE boots (boot_id TEXT PRIMARY KEY, last_seq INTEGER NOT NULL);
CREATE TABLE counters (
    created INTEGER NOT NULL, acknowledged INTEGER NOT NULL, evicted INTEGER NOT NULL
);
INSERT INTO counters VALUES (0, 0, 0);
"""
#: Greatest number that SQLite holds.
_MOST_SEQ: Final = 2**63 - 1
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Window)


class Outbox:
    """Store-and-forward queue of windows. Used by one thread.

    Args:
        path: the SQLite file; made on first use.
        max_bytes: most bytes of encoded windows that wait.

    Attributes:
        set_aside: where a file that could not be read was moved to, or None; its windows are lost, and so are its
            counters: both start anew.

    Raises:
        EdgeshipError: the file cannot be opened.
        ContractError: it was written by a newer agent.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        try:
            self._database, self._waiting_bytes, self.set_aside = _open_whole(path)
        except (sqlite3.Error, OSError) as error:
            raise EdgeshipError(f"the outbox cannot be opened: {error}", file=path) from error

    def add(self, window: Window) -> None:
        """Store a numbered window; a window of the same start and number is stored once.

        Raises:
            ContractError: the window has no number.
            EdgeshipError: the disk does not take it.
        """
        if window.seq < 1:
            raise ContractError("a window without a number", key="seq", expected="≥ 1", got=window.seq)
        self.store([window], 0, 0, {window.boot_id: window.seq})

    def store(self, windows: Sequence[Window], acknowledged: int, evicted: int, last: Mapping[str, int]) -> None:
        """Store numbered windows, and count others that came and went without touching the disk, in one transaction.

        Args:
            windows: oldest first; a window of the same start and number is stored once.
            acknowledged: windows that the server acknowledged while they were in memory alone.
            evicted: windows that were given up there.
            last: start of the agent → highest number given.

        Raises:
            EdgeshipError: the disk does not take it.
        """
        waiting_bytes, created = self._waiting_bytes, acknowledged + evicted
        with self._transaction() as database:
            for window in windows:
                data = _encoder.encode(window)
                inserted = database.execute(
                    "INSERT OR IGNORE INTO windows (boot_id, seq, size_bytes, data) VALUES (?, ?, ?, ?)",
                    (window.boot_id, window.seq, len(data), data),
                ).rowcount
                created += inserted
                waiting_bytes += len(data) * inserted
            database.executemany(
                "INSERT INTO boots VALUES (?, ?) ON CONFLICT (boot_id) DO UPDATE SET last_seq = MAX(last_seq, ?)",
                [(boot_id, seq, seq) for boot_id, seq in last.items()],
            )
            database.execute(
                "UPDATE counters SET created = created + ?, acknowledged = acknowledged + ?, evicted = evicted + ?",
                (created, acknowledged, evicted),
            )
            waiting_bytes = self._evict(database, waiting_bytes)
        self._waiting_bytes = waiting_bytes

    def _evict(self, database: sqlite3.Connection, waiting_bytes: int) -> int:
        """Drop the oldest windows until the rest fits; returns the bytes that then wait."""
        if waiting_bytes <= self._max_bytes:
            return waiting_bytes
        doomed = []
        for identity, size_bytes in database.execute("SELECT id, size_bytes FROM windows ORDER BY id"):
            doomed.append((identity,))
            waiting_bytes -= size_bytes
            if waiting_bytes <= self._max_bytes:
                break
        database.executemany("DELETE FROM windows WHERE id = ?", doomed)
        database.execute("UPDATE counters SET evicted = evicted + ?", (len(doomed),))
        return waiting_bytes

    def pending(self, limit: int, *, boot_id: str | None = None) -> list[Window]:
        """The oldest waiting windows, in the order in which they were added; what cannot be read is given up.

        Args:
            limit: most windows.
            boot_id: only those of that start of the agent; all starts otherwise. One batch on the wire holds windows
                of one start.

        Raises:
            EdgeshipError: the disk does not give them, or does not take that some were given up.
        """
        while True:
            with self._reading() as database:
                rows = database.execute(
                    "SELECT id, boot_id, seq, CAST(data AS BLOB) FROM windows"
                    " WHERE ? IS NULL OR boot_id = ? ORDER BY id LIMIT ?",
                    (boot_id, boot_id, limit),
                ).fetchall()
            found = [(identity, _window_of(boot, seq, data)) for identity, boot, seq, data in rows]
            damaged = [identity for identity, window in found if window is None]
            if not damaged:
                return [window for _, window in found if window is not None]
            self._give_up(damaged)

    def _give_up(self, identities: Sequence[int]) -> None:
        """Drop rows that hold no window any more: flash memory forgets. They count as evicted."""
        places = [(identity,) for identity in identities]
        with self._transaction() as database:
            sizes = [
                database.execute("SELECT size_bytes FROM windows WHERE id = ?", place).fetchone() for place in places
            ]
            database.executemany("DELETE FROM windows WHERE id = ?", places)
            database.execute("UPDATE counters SET evicted = evicted + ?", (len(places),))
        self._waiting_bytes -= sum(size_bytes for (size_bytes,) in sizes)

    def waiting_boots(self) -> list[str]:
        """Starts of the agent that still have waiting windows, the oldest first.

        Raises:
            EdgeshipError: the disk does not give them.
        """
        with self._reading() as database:
            rows = database.execute("SELECT boot_id FROM windows GROUP BY boot_id ORDER BY MIN(id)")
            return [boot_id for (boot_id,) in rows]

    def acknowledge(self, boot_id: str, seq: int) -> int:
        """Drop every window of that start up to ``seq``; repeats do nothing.

        Returns:
            How many windows were dropped.

        Raises:
            ContractError: no window can have that number.
            EdgeshipError: the disk does not take it.
        """
        if not 0 <= seq <= _MOST_SEQ:
            raise ContractError("no number of a window", key="seq", expected=f"0–{_MOST_SEQ}", got=seq)
        with self._transaction() as database:
            count, size_bytes = database.execute(
                "SELECT COUNT(*), COALESCE(SUM(size_bytes), 0) FROM windows WHERE boot_id = ? AND seq <= ?",
                (boot_id, seq),
            ).fetchone()
            if not count:
                return 0
            database.execute("DELETE FROM windows WHERE boot_id = ? AND seq <= ?", (boot_id, seq))
            database.execute("UPDATE counters SET acknowledged = acknowledged + ?", (count,))
            database.execute(
                "DELETE FROM boots WHERE boot_id NOT IN (SELECT boot_id FROM windows)"
                " AND rowid < (SELECT MAX(rowid) FROM boots)"
            )
        self._waiting_bytes -= size_bytes
        return int(count)

    def counters(self) -> OutboxCounters:
        """What became of every window since the file was made.

        Raises:
            EdgeshipError: the disk does not give them.
        """
        with self._reading() as database:
            created, acknowledged, evicted, waiting = database.execute(
                "SELECT created, acknowledged, evicted, (SELECT COUNT(*) FROM windows) FROM counters"
            ).fetchone()
        return OutboxCounters(created=created, acknowledged=acknowledged, evicted=evicted, waiting=waiting)

    def floor_seq(self, boot_id: str) -> int:
        """The lowest number of that start that can still arrive; 1 for a start that is not known.

        Raises:
            EdgeshipError: the disk does not give it.
        """
        with self._reading() as database:
            (floor,) = database.execute(
                "SELECT COALESCE((SELECT MIN(seq) FROM windows WHERE boot_id = ?),"
                " (SELECT last_seq + 1 FROM boots WHERE boot_id = ?), 1)",
                (boot_id, boot_id),
            ).fetchone()
        return int(floor)

    def last_seq(self, boot_id: str) -> int:
        """The highest number given in that start; 0 for none.

        Raises:
            EdgeshipError: the disk does not give it.
        """
        with self._reading() as database:
            row = database.execute("SELECT last_seq FROM boots WHERE boot_id = ?", (boot_id,)).fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._database
        except sqlite3.Error as error:
            raise EdgeshipError(
                f"the outbox cannot be read: {error}",
                file=self._path,
                next_step="restart the agent: it sets a damaged outbox aside and begins a new one",
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
        except sqlite3.Error as error:
            raise EdgeshipError(
                f"the outbox cannot be written: {error}",
                file=self._path,
                next_step="free some space on the device, or lower telemetry.outbox_bytes",
            ) from error


def _window_of(boot_id: str, seq: int, data: bytes) -> Window | None:
    """The window of a row; None where its bytes are not that window any more."""
    try:
        window = _decoder.decode(data)
    except (msgspec.MsgspecError, ContractError, ValueError, TypeError, RecursionError):
        return None
    return window if (window.boot_id, window.seq) == (boot_id, seq) else None


def _open_whole(path: Path) -> tuple[sqlite3.Connection, int, Path | None]:
    """The database, the bytes that wait in it, and where a damaged file was moved to, if there was one."""
    try:
        return (*_open(path), None)
    except sqlite3.OperationalError:
        raise  # the disk, not the file
    except sqlite3.DatabaseError:
        damaged = _set_aside(path)
        return (*_open(path), damaged)


def _open(path: Path) -> tuple[sqlite3.Connection, int]:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # FULL: a window that was counted survives a power cut
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        _refuse_newer(version, path)
        if version == 0:
            database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        waiting_bytes = _check(database)
    except BaseException:
        database.close()
        raise
    return database, waiting_bytes


def _check(database: sqlite3.Connection) -> int:
    """Read every page once: what is damaged is found now, and not at some window. Returns the bytes that wait."""
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    (waiting_bytes,) = database.execute("SELECT COALESCE(SUM(size_bytes), 0) FROM windows").fetchone()
    if database.execute("SELECT COUNT(*) FROM counters").fetchone() != (1,):
        raise sqlite3.DatabaseError("its counters are gone")
    return int(waiting_bytes)


def _refuse_newer(version: int, path: Path) -> None:
    if version > _SCHEMA_VERSION:
        raise ContractError("an outbox of a newer agent", file=path, expected=_SCHEMA_VERSION, got=version)


def _set_aside(path: Path) -> Path:
    """Move a damaged file (and its journal) out of the way; an earlier one that was set aside is replaced."""
    damaged = path.with_name(path.name + ".damaged")
    path.replace(damaged)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return damaged
