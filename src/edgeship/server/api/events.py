"""Events over the API: the audit trail as a list and as a live stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage
from msgspec import Struct

from edgeship.server.context import ServerContext
from edgeship.server.event_bus import Event
from edgeship.server.store import events

_MOST: Final = 1000
#: A comment keeps proxies and browsers from giving up on a quiet stream.
_KEEP_ALIVE_S: Final = 15.0


class EventList(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/events``."""

    schema_version: int = 1
    events: list[Event]


@get("/api/v1/events", sync_to_thread=True)
def list_events(
    context: NamedDependency[ServerContext],
    after: FromQuery[int | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=_MOST)] = 200,
    subject: FromQuery[str | None] = None,
) -> EventList:
    """With ``after=ID`` what came later, oldest first; without, the newest events, newest first."""
    with context.read() as connection:
        if after is None:
            return EventList(events=events.newest(connection, limit, subject or ""))
        return EventList(events=events.after(connection, after, limit, subject or ""))


@get("/api/v1/events/stream")
async def stream_events(context: NamedDependency[ServerContext], request: Request[Any, Any, Any]) -> ServerSentEvent:
    """Live events (SSE); a ``Last-Event-ID`` header continues where a connection broke."""
    last = request.headers.get("last-event-id", "")
    return ServerSentEvent(_follow(context, int(last) if last.isdecimal() and len(last) < 19 else None))


async def _follow(context: ServerContext, last_id: int | None) -> AsyncIterator[ServerSentEventMessage]:
    loop = asyncio.get_running_loop()
    news = asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the web server is stopping and its loop is closed
            loop.call_soon_threadsafe(news.set)

    with context.bus.subscribe(wake) as subscription:
        yield ServerSentEventMessage(data=None, comment="connected")
        if last_id is not None:
            for event in await asyncio.to_thread(_missed, context, last_id):
                last_id = event.id
                yield _message(event)
        while True:
            try:
                await asyncio.wait_for(news.wait(), _KEEP_ALIVE_S)
            except TimeoutError:
                yield ServerSentEventMessage(data=None, comment="still here")
                continue
            news.clear()
            for event in subscription.take():
                if last_id is None or event.id > last_id:
                    yield _message(event)


def _missed(context: ServerContext, last_id: int) -> list[Event]:
    with context.read() as connection:
        return events.after(connection, last_id, _MOST)


def _message(event: Event) -> ServerSentEventMessage:
    return ServerSentEventMessage(data=msgspec.json.encode(event).decode(), id=event.id, event=event.kind)


router = [list_events, stream_events]
