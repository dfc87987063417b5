"""Is the server alive, and which version is it?"""

from __future__ import annotations

from litestar import get
from msgspec import Struct

from edgeship import __version__


class Health(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/health``."""

    schema_version: int = 1
    status: str
    version: str


@get("/api/v1/health", sync_to_thread=False)
def health() -> Health:
    """The server answers."""
    return Health(status="ok", version=__version__)


router = [health]
