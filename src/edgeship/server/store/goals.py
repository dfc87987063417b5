"""What each device shall run (assignments), and the signed document that says so (goals)."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Row, delete, insert, select, update

from edgeship.server.store import schema
from edgeship_agent.contract.goal import Probation


class Assignment(Struct, frozen=True, kw_only=True):
    """One model of one device's goal.

    Attributes:
        size_bytes: length of the bundle's image index.
        deployment: id of the rollout that asks for it.
        attempt: counted from 1.
        share: of the traffic that the version gets, 0–1; below 1 the base answers the rest.
        mirror: of the inputs that it runs beside the base, unseen: then its share is 0.
        cpu_ratio, memory_bytes: what it may take meanwhile, as in :class:`ArmGoal`.
        release: ``name@version`` of the release of several models that it is a part of; empty for a model alone.
        base_version, base_digest, base_size_bytes: who answers the rest; empty where the version gets everything.
    """

    device_id: str
    model: str
    version: str
    digest: str
    size_bytes: int
    deployment: str
    attempt: int = 1
    is_rollback: bool = False
    force: bool = False
    probation: Probation = Probation()
    share: float = 1.0
    mirror: float = 0.0
    base_version: str = ""
    base_digest: str = ""
    base_size_bytes: int = 0
    cpu_ratio: float = 0.25
    memory_bytes: int = 0
    release: str = ""


class StoredGoal(Struct, frozen=True, kw_only=True):
    """A device's goal as it was published last.

    Attributes:
        signed: bytes of the ``SignedGoal``.
    """

    device_id: str
    generation: int
    signed: bytes
    issued_at_s: float


def assignments_of(connection: Connection, device_id: str) -> list[Assignment]:
    """What a device shall run, by model name."""
    table = schema.assignments
    rows = connection.execute(select(table).where(table.c.device_id == device_id).order_by(table.c.model))
    return [_assignment(row) for row in rows]


def assignment(connection: Connection, device_id: str, model: str) -> Assignment | None:
    """What one model shall be on a device, or None."""
    table = schema.assignments
    row = connection.execute(select(table).where(table.c.device_id == device_id, table.c.model == model)).one_or_none()
    return None if row is None else _assignment(row)


def put_assignment(connection: Connection, assigned: Assignment) -> None:
    """Insert or replace what one model shall be on a device."""
    remove_assignment(connection, assigned.device_id, assigned.model)
    values: dict[str, Any] = {name: getattr(assigned, name) for name in Assignment.__struct_fields__}
    values["probation"] = {name: getattr(assigned.probation, name) for name in Probation.__struct_fields__}
    connection.execute(insert(schema.assignments).values(**values))


def remove_assignment(connection: Connection, device_id: str, model: str) -> None:
    """The device shall not run this model."""
    table = schema.assignments
    connection.execute(delete(table).where(table.c.device_id == device_id, table.c.model == model))


def goal_of(connection: Connection, device_id: str) -> StoredGoal | None:
    """The newest goal of a device, or None."""
    table = schema.goals
    row = connection.execute(select(table).where(table.c.device_id == device_id)).one_or_none()
    return None if row is None else _goal(row)


def put_goal(connection: Connection, goal: StoredGoal) -> None:
    """Keep a goal; its generation must exceed the stored one.

    Raises:
        ValueError: it does not: two documents would share a generation, and devices would refuse the second.
    """
    table = schema.goals
    known = goal_of(connection, goal.device_id)
    values = {name: getattr(goal, name) for name in StoredGoal.__struct_fields__}
    if known is None:
        connection.execute(insert(table).values(**values))
        return
    if goal.generation <= known.generation:
        raise ValueError(f"generation {goal.generation} of {goal.device_id} is not above {known.generation}")
    connection.execute(update(table).where(table.c.device_id == goal.device_id).values(**values))


def all_goals(connection: Connection) -> list[StoredGoal]:
    """The newest goal of every device."""
    return [_goal(row) for row in connection.execute(select(schema.goals))]


def issued_before(connection: Connection, at_s: float) -> list[str]:
    """Devices whose newest goal is older than that."""
    table = schema.goals
    return list(connection.execute(select(table.c.device_id).where(table.c.issued_at_s < at_s)).scalars())


def not_accepted(connection: Connection) -> list[StoredGoal]:
    """Newest goals that an online device has not confirmed."""
    table, devices = schema.goals, schema.devices
    rows = connection.execute(
        select(table)
        .join(devices, devices.c.id == table.c.device_id)
        .where(devices.c.online, devices.c.goal_generation < table.c.generation)
    )
    return [_goal(row) for row in rows]


def accepted_generation(connection: Connection, device_id: str) -> int:
    """The newest generation that the device says it accepted; 0 for none."""
    table = schema.devices
    found = connection.execute(select(table.c.goal_generation).where(table.c.id == device_id)).scalar_one_or_none()
    return int(found or 0)


def _assignment(row: Row[Any]) -> Assignment:
    values = row._asdict()
    values["probation"] = Probation(**values["probation"])
    return Assignment(**values)


def _goal(row: Row[Any]) -> StoredGoal:
    return StoredGoal(**row._asdict())
