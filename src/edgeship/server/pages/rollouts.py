"""Rollout pages and their buttons."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath
from litestar.response import Redirect
from sqlalchemy import Connection

from edgeship.server import rollouts as engine
from edgeship.server.arm_comparison import compare_arms
from edgeship.server.context import ServerContext
from edgeship.server.pages import rollout_page
from edgeship.server.pages.layout import Page, PageNotFound, respond
from edgeship.server.pages.turning import difference_chart
from edgeship.server.pages.words import path
from edgeship.server.store import events
from edgeship.server.store import rollouts as store

_EVENTS = 100


@get("/rollouts", sync_to_thread=True, include_in_schema=False)
def rollouts_page(request: Request[Any, Any, Any], context: NamedDependency[ServerContext]) -> Response[str]:
    """Every rollout, newest first."""

    def build(connection: Connection, now_s: float) -> Page:
        body = rollout_page.render_list(store.list_all(connection), now_s)
        return Page(title="Rollouts", section="Rollouts", body=body)

    return respond(request, context, build)


@get("/rollouts/{rollout_id:str}", sync_to_thread=True, include_in_schema=False)
def one_rollout_page(
    request: Request[Any, Any, Any], rollout_id: FromPath[str], context: NamedDependency[ServerContext]
) -> Response[str]:
    """One rollout."""

    def build(connection: Connection, now_s: float) -> Page:
        rollout = store.find(connection, rollout_id)
        if rollout is None:
            raise PageNotFound(f"There is no rollout {rollout_id}; the list of rollouts names all.")
        members = store.members(connection, rollout_id)
        view = rollout_page.RolloutView(
            now_s=now_s,
            rollout=rollout,
            members=members,
            decisions=store.decisions(connection, f"rollout/{rollout_id}"),
            events=events.newest(connection, _EVENTS, f"rollout/{rollout_id}"),
            difference=difference_chart(connection, context.blobs, rollout, members),
            comparison=compare_arms(connection, rollout, members) if rollout.has_base else (),
        )
        return Page(title=f"Rollout {rollout_id}", section="Rollouts", body=rollout_page.render(view))

    return respond(request, context, build)


@post("/rollouts/{rollout_id:str}/{action:str}", sync_to_thread=True, include_in_schema=False)
def change_rollout(
    rollout_id: FromPath[str], action: FromPath[str], context: NamedDependency[ServerContext]
) -> Redirect:
    """A button of the rollout's page; then back to the page, which says what came of it.

    Pages of other sites are refused before (:func:`edgeship.server.guards.refuse_foreign_writes`).

    Raises:
        NotFoundException: there is no such button.
    """
    steps = {"pause": engine.pause, "resume": engine.resume, "abort": engine.abort, "rollback": engine.take_back}
    if action not in steps:
        raise NotFoundException(f"no action {action}: {', '.join(steps)}")
    steps[action](context, rollout_id, engine.Change(by="dashboard"))
    return Redirect(path("rollouts", rollout_id), status_code=303)
