"""The events table: the audit trail and the source of the live views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from edgeship.server.event_bus import Event
from edgeship.server.store import schema


def record(
    connection: Connection, kind: str, subject: str, sentence: str, data: Mapping[str, Any], at_s: float
) -> Event:
    """Write an event; most callers want :meth:`ServerContext.record`, which also tells the live views."""
    values = {"at_s": at_s, "kind": kind, "subject": subject, "sentence": sentence, "data": dict(data)}
    key = connection.execute(insert(schema.events).values(**values)).inserted_primary_key
    assert key is not None
    return Event(id=int(key[0]), **values)  # type: ignore[arg-type]


def after(connection: Connection, event_id: int, limit: int = 200, subject: str = "") -> list[Event]:
    """Events with a greater id, oldest first.

    Args:
        connection: of any transaction.
        event_id: 0 for all.
        limit: at most so many.
        subject: only this subject; empty for all.
    """
    table = schema.events
    query = select(table).where(table.c.id > event_id).order_by(table.c.id).limit(limit)
    if subject:
        query = query.where(table.c.subject == subject)
    return [_event(row) for row in connection.execute(query)]


def newest(connection: Connection, limit: int = 20, subject: str = "") -> list[Event]:
    """The newest events, newest first."""
    table = schema.events
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if subject:
        query = query.where(table.c.subject == subject)
    return [_event(row) for row in connection.execute(query)]


def _event(row: Row[Any]) -> Event:
    return Event(
        id=row.id, at_s=row.at_s, kind=row.kind, subject=row.subject, sentence=row.sentence, data=dict(row.data)
    )
