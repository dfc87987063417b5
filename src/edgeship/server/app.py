"""The web application: REST API, live events, device downloads and dashboard in one Litestar app."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Final

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from edgeship import __version__
from edgeship.server.context import ServerContext
from edgeship_agent.contract.errors import EdgeshipError

#: Modules with a ``router``: a list of route handlers.
_ROUTERS: Final = (
    "edgeship.server.api.health",
    "edgeship.server.api.devices",
    "edgeship.server.api.drift",
    "edgeship.server.api.incidents",
    "edgeship.server.api.events",
    "edgeship.server.api.blobs",
    "edgeship.server.api.tuf",
    "edgeship.server.api.releases",
    "edgeship.server.api.rollouts",
    "edgeship.server.api.explain",
    "edgeship.server.pages",
)
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024


def create_app(context: ServerContext) -> Litestar:
    """The application over one context; handlers take ``context: ServerContext`` as a dependency."""
    handlers: list[Any] = []
    for name in _ROUTERS:
        if importlib.util.find_spec(name) is not None:
            handlers.extend(getattr(importlib.import_module(name), "router", []))
    return Litestar(
        route_handlers=handlers,
        dependencies={"context": Provide(lambda: context, sync_to_thread=False)},
        state=State({"context": context}),
        exception_handlers={EdgeshipError: _explain_error},
        logging_config=None,
        request_max_body_size=_MAX_BODY_BYTES,
        openapi_config=OpenAPIConfig(
            title="Edgeship fleet server", version=__version__, path="/api", render_plugins=[JsonRenderPlugin()]
        ),
    )


def _explain_error(_request: Request[Any, Any, Any], error: EdgeshipError) -> Response[dict[str, object]]:
    body: dict[str, object] = {"error": error.sentence(), "next_step": error.next_step, "exit_code": error.exit_code}
    return Response(body, status_code=400)
