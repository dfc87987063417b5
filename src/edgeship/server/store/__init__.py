"""The fleet server's database: schema, migrations and the queries, one module per topic."""

from edgeship.server.store.database import Store, open_store

__all__ = ["Store", "open_store"]
