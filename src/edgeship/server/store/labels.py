"""What windows said of earlier predictions: labels, outcomes, and shadows beside the champion."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Row, func, insert, select

from edgeship.server.store import schema
from edgeship_agent.contract.messages import LabelTally, OutcomeTally, ShadowTally, Window

_labels = schema.labels
_outcomes = schema.outcomes
_shadows = schema.shadows


class Labelled(Struct, frozen=True, kw_only=True):
    """Labels of one version.

    Attributes:
        unknown: labels whose prediction the device did not remember; reported by windows of this version.
        lost: labels for predictions that a device lost with a worker that died; likewise.
        confidence: mean of the labelled predictions, 0–1.
    """

    labelled: int = 0
    correct: int = 0
    unknown: int = 0
    lost: int = 0
    confidence: float = 0.0


class OutcomeSums(Struct, frozen=True, kw_only=True):
    """A business figure of one version; fields as in :class:`OutcomeTally`."""

    version: str
    name: str
    count: int
    total: float
    square_total: float


def add(connection: Connection, device_id: str, windows: Iterable[Window], now_s: float) -> None:
    """Store what new windows said."""
    label_rows: list[dict[str, Any]] = []
    outcome_rows: list[dict[str, Any]] = []
    shadow_rows: list[dict[str, Any]] = []
    for window in windows:
        key = {
            "device_id": device_id,
            "boot_id": window.boot_id,
            "seq": window.seq,
            "model": window.model,
            "received_at_s": now_s,
        }
        tallies = [_label_row(tally) for tally in window.labels]
        if window.label_unknown or window.label_lost:
            nobody = LabelTally(version=window.version, arm=window.arm, digest="", labelled=0, correct=0)
            tallies.append(_label_row(nobody, unknown=window.label_unknown, lost=window.label_lost))
        label_rows += [{**key, "position": index, **row} for index, row in enumerate(tallies)]
        outcome_rows += [{**key, "position": i, **_outcome_row(tally)} for i, tally in enumerate(window.outcomes)]
        shadow_rows += [
            {**key, "position": i, "beside": window.version, **_shadow_row(tally)}
            for i, tally in enumerate(window.shadow)
        ]
    for table, rows in ((_labels, label_rows), (_outcomes, outcome_rows), (_shadows, shadow_rows)):
        if rows:
            connection.execute(insert(table), rows)


def by_version(
    connection: Connection,
    model: str,
    *,
    device_ids: Collection[str] | None = None,
    predicted_since_s: float = 0.0,
) -> dict[str, Labelled]:
    """Labels of every version of a model.

    Args:
        connection: of any transaction.
        model: its name.
        device_ids: of these devices alone; None for all.
        predicted_since_s: only rows whose every prediction was made since then (the device's clock).
    """
    names = ("labelled", "correct", "unknown", "lost", "confidence_sum_millionths")
    query = (
        select(_labels.c.version, *(func.sum(_labels.c[name]).label(name) for name in names))
        .where(_labels.c.model == model)
        .group_by(_labels.c.version)
    )
    if device_ids is not None:
        query = query.where(_labels.c.device_id.in_(device_ids))
    if predicted_since_s:
        query = query.where(_labels.c.predicted_from_s >= predicted_since_s)
    return {
        row.version: Labelled(
            labelled=int(row.labelled),
            correct=int(row.correct),
            unknown=int(row.unknown),
            lost=int(row.lost),
            confidence=row.confidence_sum_millionths / 1e6 / row.labelled if row.labelled else 0.0,
        )
        for row in connection.execute(query)
    }


def newest(connection: Connection, key: tuple[str, str, str], limit: int) -> Sequence[Row[Any]]:
    """The newest rows with labels for a device, model and version."""
    device_id, model, version = key
    query = (
        select(_labels)
        .where(
            _labels.c.device_id == device_id,
            _labels.c.model == model,
            _labels.c.version == version,
            _labels.c.labelled > 0,
        )
        .order_by(_labels.c.received_at_s.desc(), _labels.c.seq.desc())
        .limit(limit)
    )
    return connection.execute(query).all()


def outcomes(
    connection: Connection, model: str, *, device_ids: Collection[str] | None = None, since_s: float = 0.0
) -> list[OutcomeSums]:
    """Business figures of every version of a model, by version and name."""
    sums = [func.sum(_outcomes.c[name]).label(name) for name in ("count", "total", "square_total")]
    query = (
        select(_outcomes.c.version, _outcomes.c.name, *sums)
        .where(_outcomes.c.model == model, _outcomes.c.received_at_s >= since_s)
        .group_by(_outcomes.c.version, _outcomes.c.name)
        .order_by(_outcomes.c.version, _outcomes.c.name)
    )
    if device_ids is not None:
        query = query.where(_outcomes.c.device_id.in_(device_ids))
    return [
        # by place: "count" is a method of every row
        OutcomeSums(version=row[0], name=row[1], count=int(row[2]), total=float(row[3]), square_total=float(row[4]))
        for row in connection.execute(query)
    ]


def shadow_sums(connection: Connection, model: str, version: str, since_s: float = 0.0) -> ShadowTally | None:
    """What a version did as a shadow, over all devices; None where it never was one."""
    names = [name for name in ShadowTally.__struct_fields__ if name not in ("version", "digest")]
    query = select(func.count(), *(func.sum(_shadows.c[name]).label(name) for name in names)).where(
        _shadows.c.model == model, _shadows.c.version == version, _shadows.c.received_at_s >= since_s
    )
    row = connection.execute(query).one()
    if not row[0]:
        return None
    return ShadowTally(version=version, digest="", **{name: getattr(row, name) for name in names})


def _label_row(tally: LabelTally, *, unknown: int = 0, lost: int = 0) -> dict[str, Any]:
    return {
        "version": tally.version,
        "arm": tally.arm,
        "labelled": tally.labelled,
        "correct": tally.correct,
        "unknown": unknown,
        "lost": lost,
        "confidence_sum_millionths": tally.confidence_sum_millionths,
        "confusion": [list(cell) for cell in tally.confusion],
        "predicted_from_s": tally.predicted_from_s,
        "predicted_until_s": tally.predicted_until_s,
    }


def _outcome_row(tally: OutcomeTally) -> dict[str, Any]:
    return {name: getattr(tally, name) for name in ("version", "arm", "name", "count", "total", "square_total")}


def _shadow_row(tally: ShadowTally) -> dict[str, Any]:
    return {name: getattr(tally, name) for name in ShadowTally.__struct_fields__ if name != "digest"}
