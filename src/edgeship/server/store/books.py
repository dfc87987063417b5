"""The server's own counters about what it refused or dropped, kept over restarts."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, insert, select, update

from edgeship.server.store import schema

_KEY: Final = "books"
_table = schema.settings


def count(connection: Connection, name: str, by: int = 1) -> None:
    """Add to a counter: ``malformed``, ``refused_windows``, ``unknown_device``, ``stale_wills``, ``stale_births``."""
    counters = read(connection)
    values = {"value": {**counters, name: counters.get(name, 0) + by}}
    if connection.execute(update(_table).where(_table.c.key == _KEY).values(**values)).rowcount == 0:
        connection.execute(insert(_table).values(key=_KEY, **values))


def read(connection: Connection) -> dict[str, int]:
    """Every counter."""
    found = connection.execute(select(_table.c.value).where(_table.c.key == _KEY)).scalar_one_or_none()
    return dict(found or {})
