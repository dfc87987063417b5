"""Goal states: signed, stored, and only then published; every change of a device's goal is a newer generation.

Order comes from the generation alone. A fleet-wide rollback is therefore a newer goal that names the old digest, and an
old document that somebody replays stays refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import Connection

from edgeship.server import device_reports, releases
from edgeship.server.context import ServerContext
from edgeship.server.store import goals as store
from edgeship.server.store.goals import Assignment, StoredGoal
from edgeship_agent.contract.goal import ArmGoal, GoalState, ModelGoal
from edgeship_agent.contract.messages import PROTOCOL_VERSION, Birth
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import encode

_DAY_S: Final = 86400.0
#: How long a goal may be followed after it was issued, and the age at which it is issued again.
VALIDITY_S: Final = 30 * _DAY_S
RENEW_AFTER_S: Final = 15 * _DAY_S
#: A goal that an online device has not confirmed after so long is sent again.
REPEAT_S: Final = 10.0


def assign(
    context: ServerContext, connection: Connection, assigned: Sequence[Assignment], withdrawn: Iterable[str] = ()
) -> int:
    """Let a device run versions of some models, all by one goal.

    Args:
        context: the server's parts.
        connection: of a writing transaction.
        assigned: of one device, at least one.
        withdrawn: models that it shall run no longer.

    Returns:
        The generation of the new goal.
    """
    for each in assigned:
        store.put_assignment(connection, each)
    return withdraw(context, connection, assigned[0].device_id, withdrawn)


def withdraw(context: ServerContext, connection: Connection, device_id: str, models: Iterable[str]) -> int:
    """Let a device run some models no longer: what is undone where there was nothing before.

    Returns:
        The generation of the new goal.
    """
    for model in models:
        store.remove_assignment(connection, device_id, model)
    return issue(context, connection, device_id)


def issue(context: ServerContext, connection: Connection, device_id: str) -> int:
    """Sign, store and (after the commit) publish a device's goal under the next generation.

    The next generation also exceeds what the device says it accepted: a database that was restored from a backup must
    not send generations that devices have seen.
    """
    known = store.goal_of(connection, device_id)
    stored_generation = 0 if known is None else known.generation
    generation = max(stored_generation, store.accepted_generation(connection, device_id)) + 1
    now_s = context.clock()
    goal = GoalState(
        protocol_version=PROTOCOL_VERSION,
        device_id=device_id,
        generation=generation,
        issued_at_s=now_s,
        expires_at_s=now_s + VALIDITY_S,
        models=tuple(_model_goal(assigned) for assigned in store.assignments_of(connection, device_id)),
    )
    signed = encode(Kind.GOAL, context.trust.sign_goal(goal))
    stored = StoredGoal(device_id=device_id, generation=generation, signed=signed, issued_at_s=now_s)
    store.put_goal(connection, stored)
    publish(context, stored)
    return generation


def publish(context: ServerContext, goal: StoredGoal) -> None:
    """Send a stored goal, retained, after this thread's transaction is committed."""
    context.publish(Topic(device_id=goal.device_id, kind=Kind.GOAL), goal.signed, True)


def on_birth(context: ServerContext, connection: Connection, birth: Birth) -> None:
    """A device connected: take over what it says happened, and tell it again what it shall run."""
    for report in birth.last_reports:
        device_reports.on_report(context, connection, birth.device_id, report)
    device_reports.on_running(context, connection, birth.device_id, birth.running)
    known = store.goal_of(connection, birth.device_id)
    if known is None:
        return
    if birth.goal_generation > known.generation:
        issue(context, connection, birth.device_id)
    else:
        publish(context, known)


def republish_all(context: ServerContext, connection: Connection) -> None:
    """The broker may have forgotten every retained message: send all goals again."""
    for goal in store.all_goals(connection):
        publish(context, goal)


def keep_fresh(context: ServerContext, now_s: float) -> None:
    """Sign again what comes near its expiry, and repeat what an online device has not confirmed; every few seconds."""
    context.trust.repository.refresh()
    releases.publish_all(context)
    with context.read() as connection:
        old = store.issued_before(connection, now_s - RENEW_AFTER_S)
        waiting = store.not_accepted(connection)
    if old:
        with context.write() as connection:
            for device_id in old:
                issue(context, connection, device_id)
    for goal in waiting:
        if now_s - goal.issued_at_s >= REPEAT_S:
            publish(context, goal)


def _model_goal(assigned: Assignment) -> ModelGoal:
    arm = ArmGoal(
        version=assigned.version,
        digest=assigned.digest,
        size_bytes=assigned.size_bytes,
        share=assigned.share,
        mirror=assigned.mirror,
        cpu_ratio=assigned.cpu_ratio,
        memory_bytes=assigned.memory_bytes,
    )
    arms: tuple[ArmGoal, ...] = (arm,)
    if assigned.base_version:
        base = ArmGoal(
            version=assigned.base_version,
            digest=assigned.base_digest,
            size_bytes=assigned.base_size_bytes,
            share=1.0 - assigned.share,
        )
        arms = (base, arm)
    return ModelGoal(
        model=assigned.model,
        arms=arms,
        deployment=assigned.deployment,
        attempt=assigned.attempt,
        is_rollback=assigned.is_rollback,
        force=assigned.force,
        probation=assigned.probation,
        release=assigned.release,
    )
