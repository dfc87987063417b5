"""Drift over the API: the newest judgement of every device and model version."""

from __future__ import annotations

from typing import Any

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import Struct
from sqlalchemy import Connection, Row

from edgeship.server.context import ServerContext
from edgeship.server.store import drift, labels, windows
from edgeship.server.version_table import Observed, observed_of


class DeviceDrift(Struct, frozen=True, kw_only=True):
    """The newest judgement of one device and model version.

    Attributes:
        sample_count: of the worst signal, which may be measured in a share of the calls; without one, answered calls.
        state: ``no_data``, ``ok``, ``warn`` or ``alert``.
        figures: one per signal and reference: value, interval, samples, limits, state.
        alarm: memory of the alarms by kind of incident.
        observed: accuracy by labels on this device; None without labels.
    """

    device_id: str
    model: str
    version: str
    updated_at_s: float
    sample_count: int
    state: str
    worst_signal: str
    worst_value: float
    figures: list[dict[str, Any]]
    alarm: dict[str, Any]
    observed: Observed | None = None


class DriftList(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/drift``."""

    schema_version: int = 1
    devices: list[DeviceDrift]


@get("/api/v1/drift", sync_to_thread=True)
def list_drift(
    context: NamedDependency[ServerContext],
    device: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    version: FromQuery[str | None] = None,
) -> DriftList:
    """Every judgement; of one device, model or version where they are named."""
    with context.read() as connection:
        rows = [
            row
            for row in drift.list_states(connection, device or "")
            if model in (None, row.model) and version in (None, row.version)
        ]
        return DriftList(devices=[_judgement(connection, row) for row in rows])


def _judgement(connection: Connection, row: Row[Any]) -> DeviceDrift:
    names = [name for name in DeviceDrift.__struct_fields__ if name != "observed"]
    noted = labels.by_version(connection, row.model, device_ids=[row.device_id]).get(row.version)
    key = (row.device_id, row.model, row.version)
    calls = windows.calls_of(connection, key) if noted is not None else 0
    return DeviceDrift(**{name: getattr(row, name) for name in names}, observed=observed_of(noted, calls))


router = [list_drift]
