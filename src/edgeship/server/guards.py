"""What protects a server on loopback from the browser beside it: headers, allowed hosts, no requests across sites.

There is no login yet, so any page in the same browser could talk to the server. A foreign page cannot: its requests
carry a foreign ``Origin`` or ``Sec-Fetch-Site`` and are refused, and a name that a stranger points at 127.0.0.1 (DNS
rebinding) is not an allowed host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from litestar import Request, Response
from litestar.exceptions import PermissionDeniedException

#: Nothing from anywhere else, no inline script and no inline style, no frame around us.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def guard(allowed_hosts: frozenset[str]) -> Callable[[Request[Any, Any, Any]], None]:
    """The check before every request.

    Args:
        allowed_hosts: names by which the server may be called, whatever the port (a tunnel changes it); empty for any.
    """

    def check(request: Request[Any, Any, Any]) -> None:
        if allowed_hosts and host_name(request.headers.get("host", "")) not in allowed_hosts:
            raise PermissionDeniedException("refused: the server is not known by this name")
        refuse_foreign_writes(request)

    return check


def host_name(host: str) -> str:
    """A ``Host`` header without its port.

    >>> host_name("localhost:8080"), host_name("[::1]:8080"), host_name("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def refuse_foreign_writes(request: Request[Any, Any, Any]) -> None:
    """Refuse a request that changes something and comes from another site's page.

    Raises:
        PermissionDeniedException: its origin is not this server. Programs send no origin and pass.
    """
    if request.method in _SAFE_METHODS:
        return
    origin = request.headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host", "")
    if foreign or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise PermissionDeniedException("refused: the request comes from a page of another site")


def add_headers(response: Response[Any]) -> Response[Any]:
    """Set every security header that the handler did not set itself."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
