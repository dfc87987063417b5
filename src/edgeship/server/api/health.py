"""Is the server alive, which version is it, and what has it refused so far?"""

from __future__ import annotations

from litestar import get
from litestar.di import NamedDependency
from msgspec import Struct

from edgeship import __version__
from edgeship.server.context import ServerContext
from edgeship.server.store import books


class Health(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/health``.

    Attributes:
        broker_connected: whether devices can be heard now.
        books: counters of what was refused or dropped: ``malformed`` messages, ``refused_windows`` of readable
            ones, ``unknown_device``, ``stale_wills``, ...
    """

    schema_version: int = 1
    status: str
    version: str
    broker_connected: bool
    books: dict[str, int]


@get("/api/v1/health", sync_to_thread=True)
def health(context: NamedDependency[ServerContext]) -> Health:
    """The server and its database answer."""
    with context.read() as connection:
        counters = books.read(connection)
    return Health(status="ok", version=__version__, broker_connected=context.is_connected, books=counters)


router = [health]
