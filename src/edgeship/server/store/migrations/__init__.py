"""Alembic migrations of the fleet server's database."""
