"""What the pages read from the database beyond the stores' own queries."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection, Row, func, select

from edgeship.server.store import identities, schema, windows
from edgeship_agent.contract.sketch import ExponentialSketch, merge

T = TypeVar("T")
Presence = Literal["online", "stale", "offline", "revoked"]

#: A device that is online but silent for more than this share of the time after which it counts as gone is stale.
_STALE_SHARE: Final = 0.5
_LATENCY_WINDOWS: Final = 100


class Running(Struct, frozen=True, kw_only=True):
    """A model that a device says it has loaded; ``fallback`` as in :class:`RunningArm`."""

    model: str
    version: str
    digest: str
    arm: str = ""
    variant: str = ""
    state: str = ""
    retained_version: str = ""
    fallback: str = ""


class Outbox(Struct, frozen=True, kw_only=True):
    """A device's own books about its windows, as in :class:`OutboxCounters`."""

    created: int = 0
    acknowledged: int = 0
    evicted: int = 0
    waiting: int = 0
    unclean_ends: int = 0


class Device(Struct, frozen=True, kw_only=True):
    """One device as pages show it.

    Attributes:
        tags: its own, under the operator's.
    """

    id: str
    target: str
    arch: str
    isa: tuple[str, ...]
    runtimes: dict[str, str]
    tags: dict[str, str]
    agent_version: str
    presence: Presence
    first_seen_s: float
    last_seen_s: float
    goal_generation: int
    running: tuple[Running, ...]
    outbox: Outbox


class Incident(Struct, frozen=True, kw_only=True):
    """One incident; the attributes are the columns of its table."""

    id: int
    kind: str
    device_id: str
    model: str
    version: str
    state: str
    severity: str
    sentence: str
    opened_at_s: float
    closed_at_s: float | None = None
    evidence: dict[str, Any] = field(default_factory=dict)


class ReportLine(Struct, frozen=True, kw_only=True):
    """One update report of a device, as the server received it."""

    deployment: str
    attempt: int
    seq: int
    model: str
    version: str
    state: str
    reason: str
    detail: str
    figures: dict[str, float]
    received_at_s: float


class DriftState(Struct, frozen=True, kw_only=True):
    """The newest drift figures of a device and model version."""

    device_id: str
    model: str
    version: str
    updated_at_s: float
    sample_count: int
    worst_signal: str
    worst_value: float
    state: str
    figures: list[dict[str, Any]]


def presence_of(online: bool, last_seen_s: float, now_s: float, silence_s: float) -> Presence:
    """Whether a device is there.

    Args:
        online: what the server last decided.
        last_seen_s: when it was heard.
        now_s: the time.
        silence_s: after so long without a word it counts as gone.

    >>> presence_of(True, 100.0, 110.0, 90.0), presence_of(True, 100.0, 160.0, 90.0), presence_of(False, 0.0, 0.0, 90.0)
    ('online', 'stale', 'offline')
    """
    if not online:
        return "offline"
    return "stale" if now_s - last_seen_s > _STALE_SHARE * silence_s else "online"


def list_devices(connection: Connection, now_s: float, silence_s: float) -> list[Device]:
    """Every device by id."""
    rows = connection.execute(select(schema.devices).order_by(schema.devices.c.id))
    gone = identities.put_out(connection)
    return [_device(row, now_s, silence_s, gone) for row in rows]


def find_device(connection: Connection, device_id: str, now_s: float, silence_s: float) -> Device | None:
    """One device, or None."""
    row = connection.execute(select(schema.devices).where(schema.devices.c.id == device_id)).one_or_none()
    return None if row is None else _device(row, now_s, silence_s, identities.put_out(connection))


def _columns(row: Row[Any]) -> dict[str, Any]:
    """A row as a map; names of columns are a subclass of str, which msgspec does not take for a key."""
    return {str(name): value for name, value in row._mapping.items()}


def _struct_of(row: Row[Any], kind: type[T]) -> T:
    return msgspec.convert(_columns(row), kind)


def _device(row: Row[Any], now_s: float, silence_s: float, gone: Collection[str]) -> Device:
    values = _columns(row)
    values["tags"] = {**values["tags"], **values.pop("operator_tags")}
    presence = presence_of(values.pop("online"), values["last_seen_s"], now_s, silence_s)
    values["presence"] = "revoked" if values["id"] in gone else presence
    return msgspec.convert(values, Device)


def list_incidents(connection: Connection, *, state: str = "", device_id: str = "", limit: int = 200) -> list[Incident]:
    """Incidents, open ones first, then the newest."""
    table = schema.incidents
    query = select(table).order_by(table.c.state.desc(), table.c.opened_at_s.desc(), table.c.id.desc()).limit(limit)
    if state:
        query = query.where(table.c.state == state)
    if device_id:
        query = query.where(table.c.device_id == device_id)
    return [_struct_of(row, Incident) for row in connection.execute(query)]


def find_incident(connection: Connection, incident_id: int) -> Incident | None:
    """One incident, or None."""
    row = connection.execute(select(schema.incidents).where(schema.incidents.c.id == incident_id)).one_or_none()
    return None if row is None else _struct_of(row, Incident)


def reports_of(connection: Connection, device_id: str, limit: int = 40) -> list[ReportLine]:
    """A device's update reports, newest first."""
    table = schema.reports
    query = select(table).where(table.c.device_id == device_id)
    query = query.order_by(table.c.received_at_s.desc(), table.c.attempt.desc(), table.c.seq.desc()).limit(limit)
    return [_struct_of(row, ReportLine) for row in connection.execute(query)]


def drift_states(connection: Connection, device_id: str = "") -> list[DriftState]:
    """Drift figures, the worst first."""
    table = schema.drift_states
    query = select(table).order_by(table.c.worst_value.desc(), table.c.device_id, table.c.version)
    if device_id:
        query = query.where(table.c.device_id == device_id)
    return [_struct_of(row, DriftState) for row in connection.execute(query)]


class Speed(Struct, frozen=True, kw_only=True):
    """How fast a version was in a device's newest windows, added up; both in µs.

    Attributes:
        latency_us: per call.
        stream_delay_us: per answer of a stream, from end to end; empty where there was none.
    """

    latency_us: ExponentialSketch
    stream_delay_us: ExponentialSketch


def speed_of(connection: Connection, device_id: str, model: str, version: str) -> Speed:
    """How fast one version was on a device of late."""
    found = windows.newest(connection, (device_id, model, version), _LATENCY_WINDOWS)
    return Speed(
        latency_us=_added_up(window.latency_us for window in found),
        stream_delay_us=_added_up(window.stream_delay_us for window in found if window.stream_delay_us is not None),
    )


def _added_up(sketches: Iterable[ExponentialSketch]) -> ExponentialSketch:
    total = ExponentialSketch()
    for sketch in sketches:
        added = merge(total, sketch)
        assert isinstance(added, ExponentialSketch)
        total = added
    return total


def versions_seen(connection: Connection, device_id: str) -> list[tuple[str, str]]:
    """Models and versions that a device sent windows of, the newest first."""
    table = schema.windows
    query = (
        select(table.c.model, table.c.version)
        .where(table.c.device_id == device_id)
        .group_by(table.c.model, table.c.version)
        .order_by(func.max(table.c.received_at_s).desc())
    )
    return [(row.model, row.version) for row in connection.execute(query)]
