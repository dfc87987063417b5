"""Devices over the API: what is out there, what it runs, and what became of its windows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from litestar import get, patch
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, FromQuery, JSONBody
from msgspec import Struct, field
from sqlalchemy import Connection, Row

from edgeship.server.context import ServerContext
from edgeship.server.store import devices, identities, incidents, labels, windows
from edgeship.server.version_table import Observed, observed_of
from edgeship_agent.contract.errors import InputError

_MAX_TAGS = 64
_MAX_TAG = 256


class DeviceSummary(Struct, frozen=True, kw_only=True):
    """A device in the list.

    Attributes:
        tags: the device's own under the operator's.
        revoked: put out of the fleet, and not let in again.
        running: what is loaded now: model, arm, version, digest, variant, state, retained_version,
            fallback.
        outbox: the device's own books: windows created, acknowledged, evicted, waiting.
        windows_stored: windows of the device that this server holds.
    """

    id: str
    target: str
    arch: str
    isa: list[str]
    runtimes: dict[str, str]
    tags: dict[str, str]
    agent_version: str
    online: bool
    revoked: bool
    first_seen_s: float
    last_seen_s: float
    goal_generation: int
    running: list[dict[str, str]]
    outbox: dict[str, int]
    windows_stored: int
    open_incidents: int


class DeviceList(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/devices``."""

    schema_version: int = 1
    devices: list[DeviceSummary]


class ModelTotals(Struct, frozen=True, kw_only=True):
    """Calls of one model version on one device, over all its windows, and its accuracy there by labels."""

    model: str
    version: str
    variant: str
    windows: int
    inferences: int
    failures: int
    deadline_misses: int
    crashes: int
    newest_window_s: float
    observed: Observed | None = None


class Device(DeviceSummary, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/devices/{id}``.

    Attributes:
        windows_duplicate: repeats that were dropped.
        windows_evicted: windows that the device gave up before they arrived.
    """

    schema_version: int = 1
    operator_tags: dict[str, str]
    windows_duplicate: int
    windows_evicted: int
    totals: list[ModelTotals]


class TagChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``PATCH /api/v1/devices/{id}/tags``: the operator's tags; they win over the device's own."""

    set: dict[str, str] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)


@get("/api/v1/devices", sync_to_thread=True)
def list_devices(context: NamedDependency[ServerContext], tag: FromQuery[str | None] = None) -> DeviceList:
    """Every device by id; ``tag=NAME=VALUE`` shows those that have it."""
    name, _, value = (tag or "").partition("=")
    with context.read() as connection:
        rows = [
            row for row in devices.list_all(connection) if not tag or devices.effective_tags(row).get(name) == value
        ]
        gone = identities.put_out(connection)
        return DeviceList(devices=[DeviceSummary(**_summary(connection, row, gone)) for row in rows])


@get("/api/v1/devices/{device_id:str}", sync_to_thread=True)
def show_device(context: NamedDependency[ServerContext], device_id: FromPath[str]) -> Device:
    """One device with its books and totals."""
    with context.read() as connection:
        return _device(connection, _find(connection, device_id))


@patch("/api/v1/devices/{device_id:str}/tags", sync_to_thread=True)
def tag_device(context: NamedDependency[ServerContext], device_id: FromPath[str], data: JSONBody[TagChange]) -> Device:
    """Change the operator's tags of a device."""
    with context.write() as connection:
        row = _find(connection, device_id)
        tags = {name: value for name, value in {**row.operator_tags, **data.set}.items() if name not in data.remove}
        check_tags(tags)
        devices.save_operator_tags(connection, device_id, tags)
        sentence = f"{device_id} tagged: " + (", ".join(f"{name}={value}" for name, value in tags.items()) or "no tags")
        context.record(connection, "device_tagged", f"device/{device_id}", sentence, {"operator_tags": tags})
        return _device(connection, _find(connection, device_id))


def check_tags(tags: dict[str, str]) -> None:
    """Refuse tags that no filter could name.

    Raises:
        InputError: too many, too long, or with ``=`` in a name.
    """
    if len(tags) > _MAX_TAGS:
        raise InputError("too many tags", expected=f"≤ {_MAX_TAGS}", got=len(tags))
    for name, value in tags.items():
        if not name or len(name) > _MAX_TAG or len(value) > _MAX_TAG or "=" in name:
            raise InputError("not a tag", key=name[:80], expected=f"NAME=VALUE, each of 1–{_MAX_TAG} characters")


def _find(connection: Connection, device_id: str) -> Row[Any]:
    row = devices.find(connection, device_id)
    if row is None:
        raise NotFoundException(f"no device {device_id}; `edgeship devices list` names all")
    return row


def _summary(connection: Connection, row: Row[Any], gone: Collection[str]) -> dict[str, Any]:
    copied = (
        *("id", "target", "arch", "isa", "runtimes", "agent_version", "online", "first_seen_s", "last_seen_s"),
        *("goal_generation", "running", "outbox"),
    )
    values = {name: getattr(row, name) for name in copied}
    return {
        **values,
        "revoked": row.id in gone,
        "tags": devices.effective_tags(row),
        "windows_stored": devices.books(connection, row.id)["stored"],
        "open_incidents": len(incidents.list_incidents(connection, incidents.OPEN, row.id)),
    }


def _device(connection: Connection, row: Row[Any]) -> Device:
    books = devices.books(connection, row.id)
    found = windows.totals(connection, row.id)
    noted = {
        model: labels.by_version(connection, model, device_ids=[row.id]) for model in {each.model for each in found}
    }
    totals = [
        ModelTotals(
            model=total.model,
            version=total.version,
            variant=total.variant,
            windows=total.windows,
            inferences=total.inferences,
            failures=total.failures,
            deadline_misses=total.deadline_misses,
            crashes=total.crashes,
            newest_window_s=total.newest_s,
            observed=observed_of(noted[total.model].get(total.version), int(total.inferences)),
        )
        for total in found
    ]
    return Device(
        **_summary(connection, row, identities.put_out(connection)),
        operator_tags=row.operator_tags,
        windows_duplicate=books["duplicates"],
        windows_evicted=books["evicted"],
        totals=totals,
    )


router = [list_devices, show_device, tag_device]
