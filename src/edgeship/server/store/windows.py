"""Telemetry windows and the books of their streams: every window once, whatever arrives how often."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, structs
from sqlalchemy import Connection, Row, func, insert, select, update

from edgeship.server.store import labels, schema
from edgeship_agent.contract.messages import Window, WindowBatch

_windows = schema.windows
_streams = schema.streams
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Window)


class Stored(Struct, frozen=True, kw_only=True):
    """What became of one batch.

    Attributes:
        acknowledged_seq: every window up to here is safe, or was given up by the device.
        windows: those that were new.
        duplicates: repeats that were dropped.
        evicted: windows that the device gave up before they arrived, found out with this batch.
        refused: numbers of windows that are never stored, which the acknowledgement passed over with this batch.
    """

    acknowledged_seq: int
    windows: tuple[Window, ...]
    duplicates: int
    evicted: int
    refused: tuple[int, ...] = ()


def store_batch(
    connection: Connection, batch: WindowBatch, now_s: float, refused: Collection[int] = frozenset()
) -> Stored:
    """Store what is new of a batch and move the stream's high-water mark.

    A window that arrives although the device had already given it up is stored, and taken out of the evicted ones.

    Args:
        connection: of a writing transaction.
        batch: as admitted.
        now_s: server time.
        refused: numbers of its windows that are not to be stored, now or ever: they are acknowledged like the others.
    """
    batch = structs.replace(batch, windows=tuple(window for window in batch.windows if window.seq not in refused))
    stream = _find_stream(connection, batch.device_id, batch.boot_id)
    new = _new_windows(connection, batch)
    if new:
        connection.execute(insert(_windows), [_row(batch.device_id, window, now_s) for window in new])
        labels.add(connection, batch.device_id, new, now_s)
    high_water = stream.acknowledged_seq if stream else 0
    late = sum(1 for window in new if window.seq <= high_water)
    evicted = _gap(connection, batch, high_water) - late
    from_seq = max(high_water, batch.floor_seq - 1)
    acknowledged_seq = _contiguous(connection, batch, from_seq, refused)
    duplicates = len(batch.windows) - len(new)
    _save_stream(connection, batch, stream is not None, now_s, (acknowledged_seq, len(new), duplicates, evicted))
    return Stored(
        acknowledged_seq=acknowledged_seq,
        windows=tuple(new),
        duplicates=duplicates,
        evicted=evicted,
        refused=tuple(seq for seq in sorted(refused) if from_seq < seq <= acknowledged_seq),
    )


def _find_stream(connection: Connection, device_id: str, boot_id: str) -> Row[Any] | None:
    query = select(_streams).where(_streams.c.device_id == device_id, _streams.c.boot_id == boot_id)
    return connection.execute(query).one_or_none()


def _new_windows(connection: Connection, batch: WindowBatch) -> list[Window]:
    by_seq = {window.seq: window for window in reversed(batch.windows)}
    query = select(_windows.c.seq).where(
        _windows.c.device_id == batch.device_id, _windows.c.boot_id == batch.boot_id, _windows.c.seq.in_(list(by_seq))
    )
    known = set(connection.execute(query).scalars()) if by_seq else set()
    return [by_seq[seq] for seq in sorted(by_seq) if seq not in known]


def _gap(connection: Connection, batch: WindowBatch, high_water: int) -> int:
    """Windows between the high-water mark and the device's floor that never arrived."""
    skipped = batch.floor_seq - 1 - high_water
    if skipped <= 0:
        return 0
    query = select(func.count()).where(
        _windows.c.device_id == batch.device_id,
        _windows.c.boot_id == batch.boot_id,
        _windows.c.seq > high_water,
        _windows.c.seq < batch.floor_seq,
    )
    return skipped - int(connection.execute(query).scalar_one())


def _contiguous(connection: Connection, batch: WindowBatch, from_seq: int, refused: Collection[int]) -> int:
    query = (
        select(_windows.c.seq)
        .where(_windows.c.device_id == batch.device_id, _windows.c.boot_id == batch.boot_id, _windows.c.seq > from_seq)
        .order_by(_windows.c.seq)
    )
    for seq in heapq.merge(connection.execute(query).scalars(), sorted(refused)):
        if seq > from_seq + 1:
            break
        from_seq = max(from_seq, seq)
    return from_seq


def _save_stream(
    connection: Connection, batch: WindowBatch, exists: bool, now_s: float, figures: tuple[int, int, int, int]
) -> None:
    acknowledged_seq, stored, duplicates, evicted = figures
    key = {"device_id": batch.device_id, "boot_id": batch.boot_id}
    common = {"acknowledged_seq": acknowledged_seq, "updated_at_s": now_s}
    if not exists:
        books = {"stored": stored, "duplicates": duplicates, "evicted": evicted}
        connection.execute(insert(_streams).values(**key, **common, **books))
        return
    connection.execute(
        update(_streams)
        .where(_streams.c.device_id == batch.device_id, _streams.c.boot_id == batch.boot_id)
        .values(
            **common,
            stored=_streams.c.stored + stored,
            duplicates=_streams.c.duplicates + duplicates,
            evicted=_streams.c.evicted + evicted,
        )
    )


def newest(
    connection: Connection, key: tuple[str, str, str], limit: int, *, profile_hash: str = "", since_s: float = 0.0
) -> list[Window]:
    """A device's newest windows of one version, oldest first.

    Args:
        connection: of any transaction.
        key: device id, model, version.
        limit: at most so many.
        profile_hash: only windows over these bins; empty for any.
        since_s: only windows that were received later (server time).
    """
    query = _of_version(key).where(_windows.c.received_at_s > since_s)
    if profile_hash:
        query = query.where(_windows.c.profile_hash == profile_hash)
    query = query.order_by(_windows.c.received_at_s.desc(), _windows.c.seq.desc()).limit(limit)
    return [decode(payload) for payload in connection.execute(query).scalars()][::-1]


def oldest(connection: Connection, key: tuple[str, str, str], limit: int, profile_hash: str) -> list[Window]:
    """A device's first windows of one version over the same bins, oldest first."""
    query = _of_version(key).where(_windows.c.profile_hash == profile_hash)
    query = query.order_by(_windows.c.received_at_s, _windows.c.seq).limit(limit)
    return [decode(payload) for payload in connection.execute(query).scalars()]


def count_of(connection: Connection, key: tuple[str, str, str], profile_hash: str) -> int:
    """How many windows of a version over the same bins a device has sent."""
    device_id, model, version = key
    query = select(func.count()).where(
        _windows.c.device_id == device_id,
        _windows.c.model == model,
        _windows.c.version == version,
        _windows.c.profile_hash == profile_hash,
    )
    return int(connection.execute(query).scalar_one())


def calls_of(connection: Connection, key: tuple[str, str, str]) -> int:
    """Answered calls of a device's version, over all its windows."""
    device_id, model, version = key
    query = select(func.sum(_windows.c.inferences)).where(
        _windows.c.device_id == device_id, _windows.c.model == model, _windows.c.version == version
    )
    return int(connection.execute(query).scalar_one() or 0)


def decode(payload: bytes) -> Window:
    """A window as it was stored."""
    return _decoder.decode(payload)


def keys_since(connection: Connection, since_s: float) -> set[tuple[str, str, str]]:
    """Device, model and version of every window received since ``since_s``."""
    columns = (_windows.c.device_id, _windows.c.model, _windows.c.version)
    query = select(*columns).where(_windows.c.received_at_s >= since_s).distinct()
    return {(row[0], row[1], row[2]) for row in connection.execute(query)}


def totals(connection: Connection, device_id: str) -> Sequence[Row[Any]]:
    """Windows, calls, failures and crashes of a device per model and version, with the time of the newest window."""
    columns = [
        func.sum(_windows.c[name]).label(name) for name in ("inferences", "failures", "deadline_misses", "crashes")
    ]
    group = (_windows.c.model, _windows.c.version, _windows.c.variant)
    query = (
        select(*group, func.count().label("windows"), func.max(_windows.c.received_at_s).label("newest_s"), *columns)
        .where(_windows.c.device_id == device_id)
        .group_by(*group)
        .order_by(func.max(_windows.c.received_at_s).desc())
    )
    return connection.execute(query).all()


def _of_version(key: tuple[str, str, str]) -> Any:
    device_id, model, version = key
    return select(_windows.c.payload).where(
        _windows.c.device_id == device_id, _windows.c.model == model, _windows.c.version == version
    )


def _row(device_id: str, window: Window, now_s: float) -> dict[str, Any]:
    copied = (
        *("boot_id", "seq", "model", "version", "arm", "digest", "variant", "profile_hash"),
        *("started_at_s", "ended_at_s", "inferences", "failures", "deadline_misses", "crashes"),
    )
    values = {name: getattr(window, name) for name in copied}
    return {"device_id": device_id, "received_at_s": now_s, "payload": _encoder.encode(window), **values}
