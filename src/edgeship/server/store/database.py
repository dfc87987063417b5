"""Opening the database: migrations, pragmas, and the two kinds of transaction."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError

from edgeship_agent.contract.errors import ConfigError

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS: Final = 10_000


class Store:
    """The database with its transactions.

    Writers of this process queue on a lock instead of on SQLite's busy handler, which is unfair and sleeps.

    Args:
        engine: an engine whose schema is up to date.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writers = threading.RLock()
        self._local = threading.local()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, on disk before the block is left, and rolled back on an error.

        Not to be nested: what runs inside takes the connection as an argument.
        """
        with self._writers:
            if getattr(self._local, "pending", None) is not None:
                raise RuntimeError("a writing transaction inside another; hand the connection on instead")
            pending: list[Callable[[], None]] = []
            self._local.pending = pending
            try:
                engine = self.engine.execution_options(edgeship_write=True)
                with engine.begin() as connection:
                    yield connection
            finally:
                self._local.pending = None
            for action in pending:  # still one writer at a time: two goals of a device leave in the order of commits
                action()

    @contextmanager
    def savepoint(self, connection: Connection) -> Iterator[None]:
        """A part of a writing transaction that fails alone: its changes and what it wanted to send are taken back."""
        pending: list[Callable[[], None]] = self._local.pending
        count = len(pending)
        try:
            with connection.begin_nested():
                yield
        except BaseException:
            del pending[count:]
            raise

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run ``action`` once this thread's writing transaction is committed; at once when there is none.

        Whatever leaves the process (a goal, an acknowledgement, a live event) goes through here: nobody may hear of
        a change that is rolled back.
        """
        pending = getattr(self._local, "pending", None)
        if pending is None:
            action()
        else:
            pending.append(action)

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def open_store(url: str) -> Store:
    """Open the database at ``url`` and bring its schema up to date.

    Raises:
        ConfigError: not a database of this program, or one that a newer version made.
    """
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        _migrate(engine)
    except (DatabaseError, CommandError) as error:
        engine.dispose()
        raise ConfigError(
            f"cannot open the database: {error}".splitlines()[0],
            file=engine.url.database,
            next_step="point --data at another folder, or restore this one from a backup",
        ) from error
    return Store(engine)


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.execution_options(edgeship_write=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    assert isinstance(connection, sqlite3.Connection)
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not guessed by the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # what is acknowledged survives a power cut
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("edgeship_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
