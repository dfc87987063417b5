"""Blobs by digest: uploaded once by the command line, downloaded in pieces by devices and their caches."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, Final

from litestar import Request, Response, get, head, put
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import Struct

from edgeship.server.blob_store import BlobWriter, blob_path, blob_size, read_chunks
from edgeship.server.context import ServerContext

_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")
# Only a stat() happens before the answer starts, and Litestar 2.25 wraps handlers that share a path twice when they
# run in a thread, which breaks those that return a Response: hence sync_to_thread=False below.
_MEDIA_TYPE: Final = "application/octet-stream"


class StoredBlob(Struct, frozen=True, kw_only=True):
    """Answer of ``PUT /api/v1/blobs/{digest}``."""

    schema_version: int = 1
    digest: str
    size_bytes: int


@put("/api/v1/blobs/{digest:str}", request_max_body_size=None, status_code=201)
async def upload_blob(
    request: Request[Any, Any, Any], digest: FromPath[str], context: NamedDependency[ServerContext]
) -> StoredBlob:
    """Store a blob; its content must have the digest of its name. A blob that is there is not written again."""
    known = blob_size(context.blobs, digest)
    if known is not None:
        return StoredBlob(digest=digest, size_bytes=known)
    with BlobWriter(context.blobs, digest) as writer:
        async for chunk in request.stream():
            writer.write(chunk)
        size_bytes = await asyncio.to_thread(writer.finish)
    return StoredBlob(digest=digest, size_bytes=size_bytes)


@head("/api/v1/blobs/{digest:str}", sync_to_thread=False)
def look_up_blob(digest: FromPath[str], context: NamedDependency[ServerContext]) -> Response[None]:
    """Whether the server has a blob."""
    return _describe(context, digest)


@get("/blobs/sha256/{name:str}", sync_to_thread=False)
def download_blob(
    request: Request[Any, Any, Any], name: FromPath[str], context: NamedDependency[ServerContext]
) -> Response[Any]:
    """A blob, or the part of it that ``Range`` names. It never changes, so caches may keep it for ever."""
    return serve_blob(request, context.blobs, f"sha256:{name}")


@head("/blobs/sha256/{name:str}", sync_to_thread=False)
def describe_blob(name: FromPath[str], context: NamedDependency[ServerContext]) -> Response[None]:
    """Length and name of a blob."""
    return _describe(context, f"sha256:{name}")


def serve_blob(request: Request[Any, Any, Any], root: Path, digest: str) -> Response[Any]:
    """The answer to a download, whole or in part.

    Raises:
        ContractError: not a digest.
        NotFoundException: not there.
    """
    size_bytes = blob_size(root, digest)
    if size_bytes is None:
        raise NotFoundException(f"no blob {digest}")
    headers = _headers(digest, size_bytes)
    wanted = request.headers.get("range", "")
    if_range = request.headers.get("if-range", "")
    if not wanted.startswith("bytes=") or if_range not in ("", headers["etag"]):
        return Stream(read_chunks(blob_path(root, digest), 0, size_bytes - 1), headers=headers, media_type=_MEDIA_TYPE)
    part = parse_range(wanted, size_bytes)
    if part is None:
        return Response(b"", status_code=416, headers={"content-range": f"bytes */{size_bytes}"})
    first, last = part
    headers["content-length"] = str(last - first + 1)
    headers["content-range"] = f"bytes {first}-{last}/{size_bytes}"
    chunks = read_chunks(blob_path(root, digest), first, last)
    return Stream(chunks, status_code=206, headers=headers, media_type=_MEDIA_TYPE)


def parse_range(header: str, size_bytes: int) -> tuple[int, int] | None:
    """First and last byte (inclusive) of a ``Range`` header with one part.

    Returns:
        None where it cannot be satisfied.

    Source: RFC 9110, section 14.1.2.

    >>> parse_range("bytes=10-", 100), parse_range("bytes=-10", 100), parse_range("bytes=5-500", 100)
    ((10, 99), (90, 99), (5, 99))
    >>> parse_range("bytes=100-", 100) is None
    True
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first_text, last_text = match.groups()
    if not first_text:
        first, last = max(0, size_bytes - int(last_text)), size_bytes - 1
    else:
        first, last = int(first_text), min(int(last_text or size_bytes - 1), size_bytes - 1)
    return (first, last) if first <= last < size_bytes else None


def _describe(context: ServerContext, digest: str) -> Response[None]:
    size_bytes = blob_size(context.blobs, digest)
    if size_bytes is None:
        raise NotFoundException(f"no blob {digest}")
    return Response(None, headers=_headers(digest, size_bytes))


def _headers(digest: str, size_bytes: int) -> dict[str, str]:
    return {
        "content-length": str(size_bytes),
        "accept-ranges": "bytes",
        "etag": f'"{digest}"',
        "cache-control": "public, max-age=31536000, immutable",
    }


#: What devices may ask for.
downloads = [download_blob, describe_blob]
router = [upload_blob, look_up_blob, *downloads]
