"""What devices of other machines are answered: two small applications, so that a device reaches nothing else.

The enrolment service asks for a token. The update service asks for a certificate before the first byte of a request,
and answers reads alone: update metadata, image indexes and blobs, which prove themselves.
"""

from __future__ import annotations

from typing import Any, Final

from litestar import Litestar, Response, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import JSONBody

from edgeship.server.api import blobs, tuf
from edgeship.server.app import explain_error
from edgeship.server.context import ServerContext
from edgeship_agent.contract.enrolment import (
    AUTHORITY_PATH,
    ENROL_PATH,
    RENEW_PATH,
    EnrolAnswer,
    EnrolRequest,
    RenewRequest,
)
from edgeship_agent.contract.errors import EdgeshipError

_MAX_REQUEST_BYTES: Final = 64 * 1024


@get(AUTHORITY_PATH, sync_to_thread=True)
def read_authority(context: NamedDependency[ServerContext]) -> Response[bytes]:
    """The certificate of the fleet's authority; a token names its fingerprint."""
    return Response(context.members.authority.pem, media_type="application/x-pem-file")


@post(ENROL_PATH, sync_to_thread=True, status_code=200)
def enrol(context: NamedDependency[ServerContext], data: JSONBody[EnrolRequest]) -> EnrolAnswer:
    """Let a device in."""
    return context.members.enrol(data)


@post(RENEW_PATH, sync_to_thread=True, status_code=200)
def renew(context: NamedDependency[ServerContext], data: JSONBody[RenewRequest]) -> EnrolAnswer:
    """The next certificate of a member."""
    return context.members.renew(data)


def enrolment_app(context: ServerContext) -> Litestar:
    """The enrolment service."""
    return _app(context, [read_authority, enrol, renew])


def updates_app(context: ServerContext) -> Litestar:
    """The update service."""
    return _app(context, [*tuf.router, *blobs.downloads])


def _app(context: ServerContext, handlers: list[Any]) -> Litestar:
    return Litestar(
        route_handlers=handlers,
        dependencies={"context": Provide(lambda: context, sync_to_thread=False)},
        state=State({"context": context}),
        exception_handlers={EdgeshipError: explain_error},
        request_max_body_size=_MAX_REQUEST_BYTES,
        logging_config=None,
        openapi_config=None,
    )
