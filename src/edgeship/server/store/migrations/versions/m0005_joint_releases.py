"""Releases of several models: what they hold, and how each of their models stands in a rollout."""

from __future__ import annotations

from typing import Any, Final

from alembic import op
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    select,
    text,
    update,
)

revision: Final = "0005"
down_revision: Final = "0004"
metadata: Final = MetaData()

joint_releases: Final = Table(
    "joint_releases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("version", String, nullable=False),
    Column("digest", String(71), nullable=False),  # of what it holds
    Column("parts", JSON, nullable=False),  # list of {model, version, digest}
    Column("added_at_s", Float, nullable=False),
    Column("state", String, nullable=False),  # available | blocked
    Column("blocked_reason", String, nullable=False, default=""),
    Column("blocked_by", String, nullable=False, default=""),  # rollout id
    UniqueConstraint("name", "version"),
)

# Two models of one release report under one deployment and attempt, each counting its own reports.
_reports: Final = Table(
    "reports_by_model",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("deployment", String, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("model", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("version", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("state", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("detail", String, nullable=False),
    Column("loaded_digest", String, nullable=False),
    Column("figures", JSON, nullable=False),
    Column("without_field_traffic", Boolean, nullable=False),
    Column("received_at_s", Float, nullable=False),
)

_frozen: Final = MetaData()
_rollouts: Final = Table(
    "rollouts",
    _frozen,
    Column("id", String, primary_key=True),
    Column("model", String),
    Column("version", String),
    Column("digest", String),
    Column("parts", JSON),
)
_PART_FIELDS: Final = (
    "state", "substate", "reason", "previous_version", "previous_digest", "activated_at_s", "without_field_traffic",
)  # fmt: skip
_devices: Final = Table(
    "rollout_devices",
    _frozen,
    Column("rollout_id", String, primary_key=True),
    Column("device_id", String, primary_key=True),
    Column("state", String),
    Column("substate", String),
    Column("reason", String),
    Column("previous_version", String),
    Column("previous_digest", String),
    Column("activated_at_s", Float),
    Column("without_field_traffic", Boolean),
    Column("parts", JSON),
)


def upgrade() -> None:
    """Create the tables; every rollout until now is one of a single model."""
    connection = op.get_bind()
    metadata.create_all(connection)
    names = ", ".join(f'"{column.name}"' for column in _reports.columns)
    connection.execute(text(f"INSERT INTO reports_by_model ({names}) SELECT {names} FROM reports"))  # noqa: S608 - names of columns
    op.drop_table("reports")
    op.rename_table("reports_by_model", "reports")
    with op.batch_alter_table("assignments") as table:
        table.add_column(Column("release", String, nullable=False, server_default=""))
    for name in ("rollouts", "rollout_devices"):
        with op.batch_alter_table(name) as table:
            table.add_column(Column("parts", JSON, nullable=False, server_default="[]"))
    _fill(connection)


def _fill(connection: Connection) -> None:
    for rollout in connection.execute(select(_rollouts)).all():
        part: dict[str, Any] = {"model": rollout.model, "version": rollout.version, "digest": rollout.digest}
        connection.execute(update(_rollouts).where(_rollouts.c.id == rollout.id).values(parts=[part]))
        for device in connection.execute(select(_devices).where(_devices.c.rollout_id == rollout.id)).all():
            stands = {**part, **{name: getattr(device, name) for name in _PART_FIELDS}}
            where = (_devices.c.rollout_id == rollout.id, _devices.c.device_id == device.device_id)
            connection.execute(update(_devices).where(*where).values(parts=[stands]))
