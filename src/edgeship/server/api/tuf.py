"""The update repository as devices read it: signed metadata, and image indexes as targets."""

from __future__ import annotations

import re
from typing import Any, Final

from litestar import Request, Response, get
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from edgeship.server.api.blobs import serve_blob
from edgeship.server.context import ServerContext

_METADATA_NAME: Final = re.compile(r"(\d+\.(root|targets|snapshot)|timestamp)\.json")
#: ``<hash>.<name>.json`` is how a client asks under consistent snapshots; ``<name>.json`` is for people.
_TARGET_NAME: Final = re.compile(r"(?:([0-9a-f]{64})\.)?([0-9a-f]{64})\.json")


@get("/tuf/metadata/{name:str}", sync_to_thread=True)
def read_metadata(name: FromPath[str], context: NamedDependency[ServerContext]) -> Response[bytes]:
    """One metadata file; versioned ones never change, the timestamp is never cached."""
    path = context.trust.directory / name
    if not _METADATA_NAME.fullmatch(name) or not path.is_file():
        raise NotFoundException(f"no metadata {name}")
    caching = "no-store" if name.startswith("timestamp") else "public, max-age=31536000, immutable"
    return Response(path.read_bytes(), media_type="application/json", headers={"cache-control": caching})


@get("/tuf/targets/bundles/{name:str}", sync_to_thread=True)
def read_target(
    request: Request[Any, Any, Any], name: FromPath[str], context: NamedDependency[ServerContext]
) -> Response[Any]:
    """The image index of a bundle; its digest is its name."""
    match = _TARGET_NAME.fullmatch(name)
    if match is None or match[1] not in (None, match[2]):
        raise NotFoundException(f"no target {name}")
    digest = f"sha256:{match[2]}"
    if not context.trust.repository.has(digest):
        raise NotFoundException(f"no target {name}")
    return serve_blob(request, context.blobs, digest)


router = [read_metadata, read_target]
