"""Labels, outcomes and shadows by version; assignments and rollouts with two arms."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, MetaData, String, Table

revision: Final = "0003"
down_revision: Final = "0002"
metadata: Final = MetaData()

# What windows said of predictions that may be older than they are, one row per version and arm.
labels: Final = Table(
    "labels",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("boot_id", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("arm", String, nullable=False),
    Column("received_at_s", Float, nullable=False),
    Column("labelled", BigInteger, nullable=False),
    Column("correct", BigInteger, nullable=False),
    Column("unknown", BigInteger, nullable=False),  # of the window, in a row of its own
    Column("confidence_sum_millionths", BigInteger, nullable=False),
    Column("confusion", JSON, nullable=False),  # list of [predicted, label, count]
    Column("predicted_from_s", Float, nullable=False),  # the device's clock
    Column("predicted_until_s", Float, nullable=False),
    Index("labels_by_version", "model", "version", "received_at_s"),
)

outcomes: Final = Table(
    "outcomes",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("boot_id", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),
    Column("arm", String, nullable=False),
    Column("received_at_s", Float, nullable=False),
    Column("name", String, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("total", Float, nullable=False),
    Column("square_total", Float, nullable=False),
    Index("outcomes_by_version", "model", "version", "received_at_s"),
)

shadows: Final = Table(
    "shadows",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("boot_id", String, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("model", String, nullable=False),
    Column("version", String, nullable=False),  # of the candidate
    Column("beside", String, nullable=False),  # version of the champion
    Column("received_at_s", Float, nullable=False),
    Column("compared", BigInteger, nullable=False),
    Column("disagreed", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("error_square_sum", Float, nullable=False),
    Column("champion_square_sum", Float, nullable=False),
    Column("busy_us", BigInteger, nullable=False),
    Index("shadows_by_version", "model", "version", "received_at_s"),
)


def upgrade() -> None:
    """Create the tables; nobody shares traffic yet."""
    metadata.create_all(op.get_bind())
    with op.batch_alter_table("assignments") as table:
        table.add_column(Column("share", Float, nullable=False, server_default="1.0"))
        table.add_column(Column("mirror", Float, nullable=False, server_default="0.0"))
        table.add_column(Column("base_version", String, nullable=False, server_default=""))
        table.add_column(Column("base_digest", String, nullable=False, server_default=""))
        table.add_column(Column("base_size_bytes", Integer, nullable=False, server_default="0"))
    with op.batch_alter_table("rollouts") as table:
        table.add_column(Column("share", Float, nullable=False, server_default="1.0"))
        table.add_column(Column("mirror", Float, nullable=False, server_default="0.0"))
