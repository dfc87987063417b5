"""The frame around every page: navigation and the part that is kept up to date."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlencode

from litestar import MediaType, Request, Response
from msgspec import Struct
from sqlalchemy import Connection

from edgeship.charts import Child, Markup, element, fragment
from edgeship.server.context import ServerContext
from edgeship.server.pages.assets import asset_url

#: Beside the headers of every answer (:mod:`edgeship.server.guards`). The referrer stays on this site:
#: with ``no-referrer`` a browser posts forms with ``Origin: null``, which cannot be told from a foreign page.
_HEADERS: Final = {"cache-control": "no-store", "referrer-policy": "same-origin"}
_NAVIGATION: Final = (
    ("Fleet", "/"),
    ("Rollouts", "/rollouts"),
    ("Devices", "/devices"),
    ("Releases", "/releases"),
    ("Drift", "/drift"),
    ("Incidents", "/incidents"),
    ("Events", "/events"),
)
_HTMX_SETTINGS: Final = (
    '{"includeIndicatorStyles":false,"allowEval":false,"allowScriptTags":false,"selfRequestsOnly":true,'
    '"historyEnabled":false,"defaultSettleDelay":0}'
)
POLL_S: Final = 2
SLOW_POLL_S: Final = 10


class Page(Struct, frozen=True, kw_only=True):
    """A page's content.

    Attributes:
        title: of the window.
        section: name of the entry in the navigation.
        body: everything below the navigation; replaced as a whole when it has changed.
        poll_s: how often the page asks whether it has changed.
    """

    title: str
    section: str
    body: Markup
    poll_s: int = POLL_S


class PageNotFound(Exception):
    """There is no such thing; the sentence says what and where to look instead."""


Build = Callable[[Connection, float], Page]


def respond(request: Request[Any, Any, Any], context: ServerContext, build: Build) -> Response[str]:
    """Answer with the whole page, or (``part=live``) with its live part, or with 204 where that has not changed.

    Args:
        request: its query may hold ``part`` and ``seen``, the fingerprint of what the browser shows.
        context: database and clock.
        build: makes the page from one state of the database and the time.
    """
    try:
        with context.read() as connection:
            page = build(connection, context.clock())
    except PageNotFound as error:
        body = fragment(element("h1", "Not found"), element("p", str(error), class_="lead"))
        return _html(_whole(Page(title="Not found", section="", body=body), _live(body, "", 0)), 404)
    fingerprint = hashlib.sha256(page.body.encode()).hexdigest()[:16]
    if request.query_params.get("part") == "live":
        if request.query_params.get("seen") == fingerprint:
            return _html("", 204)
        return _html(_live(page.body, _poll_url(request, fingerprint), page.poll_s))
    return _html(_whole(page, _live(page.body, _poll_url(request, fingerprint), page.poll_s)))


def _html(text: str, status_code: int = 200) -> Response[str]:
    return Response(text, status_code=status_code, media_type=MediaType.HTML, headers=_HEADERS)


def _poll_url(request: Request[Any, Any, Any], fingerprint: str) -> str:
    kept = [(key, value) for key, value in request.query_params.multi_items() if key not in {"part", "seen"}]
    return f"{request.url.path}?{urlencode([*kept, ('part', 'live'), ('seen', fingerprint)])}"


def _live(body: Markup, poll_url: str, poll_s: int) -> Markup:
    if not poll_url:
        return element("div", body, id="live")
    return element(
        "div", body, id="live", hx_get=poll_url, hx_trigger=f"every {poll_s}s", hx_swap="outerHTML", hx_target="this"
    )


def _whole(page: Page, live: Markup) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="htmx-config", content=_HTMX_SETTINGS),
        element("title", f"{page.title} · Edgeship"),
        element("link", rel="icon", href=asset_url("icon.svg"), type="image/svg+xml"),
        element("link", rel="stylesheet", href=asset_url("edgeship.css")),
        element("script", src=asset_url("htmx.js"), defer=True),
        element("script", src=asset_url("live.js"), defer=True),
    )
    body = element(
        "body",
        element("a", "Skip to content", href="#content", class_="skip"),
        element("p", "The server does not answer. What you see is the last known state.", id="lost", hidden=True),
        element("header", element("div", _brand(), _navigation(page.section), class_="bar-in"), class_="bar"),
        element("main", live, id="content"),
        element("footer", _footer()),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en")


def _brand() -> Markup:
    return element("a", "Edgeship", href="/", class_="brand")


def _navigation(section: str) -> Markup:
    links = [
        element("a", name, href=href, aria_current="page" if name == section else None) for name, href in _NAVIGATION
    ]
    return element("nav", links, aria_label="Pages")


def _footer() -> Child:
    return fragment(
        "Times are UTC. The same over REST: ",
        element("a", "/api/v1", href="/api"),
        element("noscript", " · Live updates need JavaScript; reload for the newest state."),
    )
