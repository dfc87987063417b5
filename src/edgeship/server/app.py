"""The web application: REST API, live events, device downloads and dashboard in one Litestar app."""

from __future__ import annotations

from typing import Any, Final

from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from edgeship import __version__
from edgeship.server import pages
from edgeship.server.api import (
    blobs,
    devices,
    drift,
    events,
    explain,
    health,
    identities,
    incidents,
    profile_jobs,
    releases,
    rollouts,
    tuf,
)
from edgeship.server.context import ServerContext
from edgeship.server.guards import add_headers, guard
from edgeship_agent.contract.errors import ConfigError, EdgeshipError, IllegalTransition, InputError

_API: Final = (health, devices, identities, drift, incidents, events, blobs, tuf, releases, rollouts, explain,
               profile_jobs)  # fmt: skip
#: A handler that takes more (a model file) says so itself.
_MAX_BODY_BYTES: Final = 16 * 1024 * 1024


def create_app(context: ServerContext, allowed_hosts: frozenset[str] = frozenset()) -> Litestar:
    """The application over one context.

    Args:
        context: handlers take it as a dependency: ``context: ServerContext``.
        allowed_hosts: names by which it may be called, without a port; empty for any.
    """
    handlers: list[Any] = [handler for module in _API for handler in module.router]
    return Litestar(
        route_handlers=[*handlers, *pages.router],
        dependencies={"context": Provide(lambda: context, sync_to_thread=False)},
        state=State({"context": context}),
        exception_handlers={EdgeshipError: explain_error},
        before_request=guard(allowed_hosts),
        after_request=add_headers,
        request_max_body_size=_MAX_BODY_BYTES,
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="Edgeship fleet server", version=__version__, path="/api", render_plugins=[JsonRenderPlugin()]
        ),
    )


def explain_error(_request: Request[Any, Any, Any], error: EdgeshipError) -> Response[dict[str, object]]:
    """An error in the words of the command line, which shows them as its own."""
    if isinstance(error, IllegalTransition):
        status_code = 409
    else:
        status_code = 400 if isinstance(error, (ConfigError, InputError)) else 422
    body: dict[str, object] = {
        "schema_version": 1,
        "error": error.sentence(),
        "next_step": error.next_step,
        "exit_code": error.exit_code,
    }
    return Response(body, status_code=status_code)
