"""Update reports as devices sent them: each once, by (device, deployment, attempt, model, seq)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select

from edgeship.server.store import schema
from edgeship_agent.contract.messages import PROTOCOL_VERSION, UpdateReport, UpdateState

_table = schema.reports


def add(connection: Connection, report: UpdateReport, now_s: float) -> int | None:
    """Keep a report.

    Returns:
        The greatest ``seq`` of this attempt at this model that was known before (0 for none), or None where this very
        report was known: a repeat changes nothing.
    """
    known = connection.execute(
        select(_table.c.seq).where(*_attempt(report.device_id, report.deployment, report.attempt, report.model))
    ).scalars()
    seqs = set(known)
    if report.seq in seqs:
        return None
    names = set(_table.c.keys()) - {"received_at_s", "state"}
    values: dict[str, Any] = {name: getattr(report, name) for name in names}
    connection.execute(insert(_table).values(**values, state=report.state.value, received_at_s=now_s))
    return max(seqs, default=0)


def newest(connection: Connection, device_id: str, deployment: str, attempt: int, model: str) -> UpdateReport | None:
    """The newest report of an attempt at a model, or None."""
    where = _attempt(device_id, deployment, attempt, model)
    query = select(_table).where(*where).order_by(_table.c.seq.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else _report(row)


def of_attempt(connection: Connection, device_id: str, deployment: str, attempt: int, model: str) -> list[UpdateReport]:
    """Every report of an attempt at a model, in order."""
    query = select(_table).where(*_attempt(device_id, deployment, attempt, model)).order_by(_table.c.seq)
    return [_report(row) for row in connection.execute(query)]


def _attempt(device_id: str, deployment: str, attempt: int, model: str) -> tuple[Any, ...]:
    mine = (_table.c.device_id == device_id, _table.c.deployment == deployment)
    return (*mine, _table.c.attempt == attempt, _table.c.model == model)


def _report(row: Row[Any]) -> UpdateReport:
    values = row._asdict()
    fields = {name: values[name] for name in UpdateReport.__struct_fields__ if name in values}
    fields["state"] = UpdateState(fields["state"])
    return UpdateReport(protocol_version=PROTOCOL_VERSION, arm="main", **fields)
