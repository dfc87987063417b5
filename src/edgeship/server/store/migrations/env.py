"""Runs the migrations on the connection that the server hands over (there is no alembic.ini)."""

from __future__ import annotations

from alembic import context

from edgeship.server.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter a table in place
)
with context.begin_transaction():
    context.run_migrations()
