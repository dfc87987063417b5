"""The devices table: who is out there, what it runs, and when it was heard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.sql import ColumnElement

from edgeship.server.store import schema
from edgeship_agent.contract.messages import Birth, Heartbeat, OutboxCounters, RunningArm

_table = schema.devices


def find(connection: Connection, device_id: str) -> Row[Any] | None:
    """A device's row, or None."""
    return connection.execute(select(_table).where(_table.c.id == device_id)).one_or_none()


def list_all(connection: Connection) -> list[Row[Any]]:
    """Every device by id."""
    return list(connection.execute(select(_table).order_by(_table.c.id)))


def effective_tags(row: Row[Any]) -> dict[str, str]:
    """A device's own tags under the operator's."""
    return {**row.tags, **row.operator_tags}


def save_birth(connection: Connection, birth: Birth, now_s: float) -> None:
    """Insert or replace what a birth says; first sight and the operator's tags stay."""
    values = {
        "target": birth.target,
        "arch": birth.arch,
        "isa": list(birth.isa),
        "runtimes": birth.runtimes,
        "tags": birth.tags,
        "agent_version": birth.agent_version,
        "accepts": birth.accepts,
        **_state(birth, now_s),
    }
    if connection.execute(update(_table).where(_table.c.id == birth.device_id).values(**values)).rowcount == 0:
        first = {"id": birth.device_id, "first_seen_s": now_s, "operator_tags": {}}
        connection.execute(insert(_table).values(**values, **first))


def save_heartbeat(connection: Connection, heartbeat: Heartbeat, now_s: float) -> bool:
    """Replace what a heartbeat says.

    Returns:
        Whether the device is known; a heartbeat does not say enough to make its row.
    """
    query = update(_table).where(_table.c.id == heartbeat.device_id).values(**_state(heartbeat, now_s))
    return connection.execute(query).rowcount > 0


def save_outbox(connection: Connection, device_id: str, outbox: OutboxCounters, now_s: float) -> None:
    """A device was heard, and these are its books."""
    values = {"outbox": msgspec.structs.asdict(outbox), "last_seen_s": now_s, "online": True}
    connection.execute(update(_table).where(_table.c.id == device_id).values(**values))


def save_seen(connection: Connection, device_id: str, now_s: float) -> None:
    """A device was heard."""
    connection.execute(update(_table).where(_table.c.id == device_id).values(last_seen_s=now_s, online=True))


def save_offline(connection: Connection, device_id: str) -> None:
    """A device is gone."""
    connection.execute(update(_table).where(_table.c.id == device_id).values(online=False))


def silent_since(connection: Connection, before_s: float) -> list[Row[Any]]:
    """Devices that count as online and were last heard before ``before_s``."""
    query = select(_table).where(_table.c.online, _table.c.last_seen_s < before_s).order_by(_table.c.id)
    return list(connection.execute(query))


def save_operator_tags(connection: Connection, device_id: str, tags: Mapping[str, str]) -> None:
    """Replace the operator's tags of a device."""
    connection.execute(update(_table).where(_table.c.id == device_id).values(operator_tags=dict(tags)))


def books(connection: Connection, device_id: str) -> dict[str, int]:
    """The server's books about a device's windows, over all starts of its agent.

    Returns:
        ``stored``, ``duplicates`` (dropped) and ``evicted`` (given up by the device before they arrived).
    """
    streams = schema.streams
    columns: list[ColumnElement[Any]] = [
        func.coalesce(func.sum(streams.c[name]), 0).label(name) for name in ("stored", "duplicates", "evicted")
    ]
    row = connection.execute(select(*columns).where(streams.c.device_id == device_id)).one()
    return {name: int(value) for name, value in row._mapping.items()}


def _state(message: Birth | Heartbeat, now_s: float) -> dict[str, Any]:
    return {
        "session": message.session,
        "online": True,
        "last_seen_s": now_s,
        "goal_generation": message.goal_generation,
        "running": running_rows(message.running),
        "outbox": msgspec.structs.asdict(message.outbox),
    }


def running_rows(running: Iterable[RunningArm]) -> list[dict[str, str]]:
    """What a device runs, as the ``running`` column holds it."""
    return [msgspec.structs.asdict(arm) for arm in running]
