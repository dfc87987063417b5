"""What a shadow may take of a device; labels for predictions that were lost with a worker."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import BigInteger, Column, Float

revision: Final = "0004"
down_revision: Final = "0003"


def upgrade() -> None:
    """Shadows that run now keep what devices gave them until now."""
    with op.batch_alter_table("assignments") as table:
        table.add_column(Column("cpu_ratio", Float, nullable=False, server_default="0.25"))
        table.add_column(Column("memory_bytes", BigInteger, nullable=False, server_default="0"))
    with op.batch_alter_table("labels") as table:
        table.add_column(Column("lost", BigInteger, nullable=False, server_default="0"))
