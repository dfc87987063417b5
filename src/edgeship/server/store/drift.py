"""Drift figures: each device's own reference per version, and the newest judgement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Row, Table, and_, insert, select, update

from edgeship.server.store import schema
from edgeship_agent.contract.sketch import Sketch

_references = schema.device_references
_states = schema.drift_states
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(dict[str, Sketch])

#: device id, model, version
ModelKey = tuple[str, str, str]


class Reference(Struct, frozen=True, kw_only=True):
    """A device's own first windows of a version, over one set of bins.

    Attributes:
        complete: enough windows and samples; it does not change any more.
    """

    window_count: int
    sample_count: int
    signals: dict[str, Sketch]
    complete: bool


def find_reference(connection: Connection, key: ModelKey, profile_hash: str) -> Reference | None:
    """A device's reference, or None."""
    row = connection.execute(select(_references).where(_reference_key(key, profile_hash))).one_or_none()
    if row is None:
        return None
    return Reference(
        window_count=row.window_count,
        sample_count=row.sample_count,
        signals=_decoder.decode(row.signals),
        complete=row.complete,
    )


def save_reference(connection: Connection, key: ModelKey, profile_hash: str, reference: Reference) -> None:
    """Insert or replace a device's reference."""
    values = {
        "window_count": reference.window_count,
        "sample_count": reference.sample_count,
        "signals": _encoder.encode(reference.signals),
        "complete": reference.complete,
    }
    names = {**_names(key), "profile_hash": profile_hash}
    _save(connection, _references, _reference_key(key, profile_hash), names, values)


def find_state(connection: Connection, key: ModelKey) -> Row[Any] | None:
    """The newest judgement of a device and version, or None."""
    return connection.execute(select(_states).where(_state_key(key))).one_or_none()


def save_state(connection: Connection, key: ModelKey, values: Mapping[str, Any]) -> None:
    """Insert or replace a judgement; ``values`` are the columns beside the key."""
    _save(connection, _states, _state_key(key), _names(key), values)


def forget_alarms(connection: Connection, key: ModelKey) -> None:
    """Let the alarms of a device and version start anew: its incidents were closed from outside."""
    connection.execute(update(_states).where(_state_key(key)).values(alarm={}))


def list_states(connection: Connection, device_id: str = "") -> list[Row[Any]]:
    """Every judgement, by device, model and version; of one device if it is named."""
    query = select(_states).order_by(_states.c.device_id, _states.c.model, _states.c.updated_at_s.desc())
    if device_id:
        query = query.where(_states.c.device_id == device_id)
    return list(connection.execute(query))


def _save(connection: Connection, table: Table, where: Any, key: dict[str, str], values: Mapping[str, Any]) -> None:
    if connection.execute(update(table).where(where).values(**values)).rowcount == 0:
        connection.execute(insert(table).values(**key, **values))


def _names(key: ModelKey) -> dict[str, str]:
    return dict(zip(("device_id", "model", "version"), key, strict=True))


def _state_key(key: ModelKey) -> Any:
    return and_(*(_states.c[name] == value for name, value in _names(key).items()))


def _reference_key(key: ModelKey, profile_hash: str) -> Any:
    names = {**_names(key), "profile_hash": profile_hash}
    return and_(*(_references.c[name] == value for name, value in names.items()))
