"""Invitations and the identities of devices."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import JSON, Boolean, Column, Float, Index, Integer, MetaData, String, Table

revision: Final = "0002"
down_revision: Final = "0001"
metadata: Final = MetaData()

# Invitations of devices. The secret itself is shown once and never kept.
invitations: Final = Table(
    "invitations",
    metadata,
    Column("id", String, primary_key=True),  # e1, e2, ...
    Column("number", Integer, nullable=False, unique=True),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("tags", JSON, nullable=False),  # name → value: the group that its devices belong to
    Column("device_limit", Integer, nullable=False),
    Column("device_count", Integer, nullable=False),
    Column("needs_approval", Boolean, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("expires_at_s", Float, nullable=False),
)

# One row per certificate, and per request that waits for an operator.
identities: Final = Table(
    "identities",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("device_id", String(64), nullable=False),
    Column("state", String, nullable=False),  # pending | active | replaced | revoked
    Column("key_sha256", String(64), nullable=False),  # SubjectPublicKeyInfo, DER
    Column("csr", String, nullable=False),
    Column("certificate", String, nullable=False, default=""),  # PEM; empty while pending
    Column("serial", String, nullable=False, default=""),  # decimal: SQLite has no integers of 160 bits
    Column("target", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("invitation", String, nullable=False),
    Column("requested_at_s", Float, nullable=False),
    Column("changed_at_s", Float, nullable=False),
    Column("expires_at_s", Float, nullable=False, default=0.0),
    Index("identities_by_device", "device_id", "state"),
)


def upgrade() -> None:
    """Create both tables."""
    metadata.create_all(op.get_bind())
