"""Static files: read once, addressed by their content, cached for good."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from edgeship.charts import STYLESHEET

#: Name in the address → (file beside this module, media type). htmx is vendored as it was published, with its licence.
_FILES: Final = {
    "edgeship.css": ("pages.css", "text/css; charset=utf-8"),
    "htmx.js": ("htmx-2.0.11.min.js", "text/javascript; charset=utf-8"),
    "htmx-LICENSE.txt": ("htmx-LICENSE.txt", "text/plain; charset=utf-8"),
    "live.js": ("live.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}


@cache
def read_asset(name: str) -> bytes:
    """Content of a static file.

    Raises:
        KeyError: there is none of that name.
    """
    data = (files(__package__) / "static" / _FILES[name][0]).read_bytes()
    return STYLESHEET.encode() + data if name == "edgeship.css" else data


@cache
def asset_url(name: str) -> str:
    """Address of a static file; changes with its content, so a browser never keeps an old one."""
    return f"/static/{name}?v={hashlib.sha256(read_asset(name)).hexdigest()[:12]}"


@get("/static/{name:str}", sync_to_thread=False, include_in_schema=False)
def static_file(name: FromPath[str]) -> Response[bytes]:
    """Stylesheet, htmx (with its licence), the page's few lines of script, and the icon."""
    if name not in _FILES:
        raise NotFoundException(f"no static file {name}")
    headers = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
    return Response(read_asset(name), media_type=_FILES[name][1], headers=headers)
