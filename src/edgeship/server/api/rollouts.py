"""Rollouts over REST."""

from __future__ import annotations

from typing import Final

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, JSONBody
from msgspec import Struct

from edgeship.server import rollouts
from edgeship.server.arm_comparison import Compared, compare_arms
from edgeship.server.context import ServerContext
from edgeship.server.rollout_plan import PlannedDevice
from edgeship.server.rollouts import Change, RolloutRequest
from edgeship.server.store import rollouts as store
from edgeship.server.store.rollouts import Member, Rollout

_ACTIONS: Final = {
    "pause": rollouts.pause,
    "resume": rollouts.resume,
    "abort": rollouts.abort,
    "rollback": rollouts.take_back,
}


class RolloutList(Struct, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/rollouts``."""

    schema_version: int = 1
    rollouts: list[Rollout]


class RolloutDevice(Member, frozen=True, kw_only=True):
    """A device of a rollout; ``id`` is its device id, as in every document about devices."""

    id: str


class RolloutDetail(Rollout, frozen=True, kw_only=True):
    """Answer of ``GET /api/v1/rollouts/{id}``: the rollout's own fields, and its devices.

    Attributes:
        previous_versions: what the devices ran before that were offered it: what a rollback goes to.
        comparison: of a release that shares the traffic, or is a shadow: its figures beside those of the version from
            before, since the rollout began.
    """

    schema_version: int = 1
    devices: list[RolloutDevice]
    previous_versions: list[str]
    comparison: list[Compared]


class RolloutPreview(Struct, frozen=True, kw_only=True):
    """Answer to a dry run: nothing was stored."""

    schema_version: int = 1
    rollout: Rollout
    devices: list[PlannedDevice]


@post("/api/v1/rollouts", sync_to_thread=True)
def create_rollout(data: JSONBody[RolloutRequest], context: NamedDependency[ServerContext]) -> RolloutDetail:
    """Create and start a rollout."""
    return _detail(context, rollouts.create(context, data).id)


@post("/api/v1/rollouts/preview", sync_to_thread=True, status_code=200)
def preview_rollout(data: JSONBody[RolloutRequest], context: NamedDependency[ServerContext]) -> RolloutPreview:
    """A dry run: who would get what in which stage. Nothing is stored."""
    rollout, planned = rollouts.preview(context, data)
    return RolloutPreview(rollout=rollout, devices=planned)


@get("/api/v1/rollouts", sync_to_thread=True)
def list_rollouts(context: NamedDependency[ServerContext]) -> RolloutList:
    """Every rollout, newest first."""
    with context.read() as connection:
        return RolloutList(rollouts=store.list_all(connection))


@get("/api/v1/rollouts/{rollout_id:str}", sync_to_thread=True)
def show_rollout(rollout_id: FromPath[str], context: NamedDependency[ServerContext]) -> RolloutDetail:
    """One rollout with its devices."""
    return _detail(context, rollout_id)


@post("/api/v1/rollouts/{rollout_id:str}/{action:str}", sync_to_thread=True, status_code=200)
def change_rollout(
    rollout_id: FromPath[str],
    action: FromPath[str],
    context: NamedDependency[ServerContext],
    data: JSONBody[Change | None] = None,
) -> RolloutDetail:
    """``pause``, ``resume``, ``abort`` or ``rollback``."""
    if action not in _ACTIONS:
        raise NotFoundException(f"no action {action}; there are {', '.join(_ACTIONS)}")
    _ACTIONS[action](context, rollout_id, data or Change())
    return _detail(context, rollout_id)


def _detail(context: ServerContext, rollout_id: str) -> RolloutDetail:
    with context.read() as connection:
        rollout = store.find(connection, rollout_id)
        if rollout is None:
            raise NotFoundException(f"no rollout {rollout_id}; `edgeship rollouts list` names all")
        members = store.members(connection, rollout_id)
        comparison = compare_arms(connection, rollout, members) if rollout.has_base else []
    before = sorted({known.previous_version for known in members if known.offered_at_s and known.previous_version})
    return RolloutDetail(
        **msgspec.structs.asdict(rollout),
        devices=[RolloutDevice(id=known.device_id, **msgspec.structs.asdict(known)) for known in members],
        previous_versions=before,
        comparison=comparison,
    )


router = [create_rollout, preview_rollout, list_rollouts, show_rollout, change_rollout]
