"""Rollouts, the devices in them, their update reports, and every decision with its evidence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Row, func, insert, select, update

from edgeship.rollout import DeviceState, RolloutState, StageState, ThresholdPolicy, Verdict, deciding, named
from edgeship.server.store import schema
from edgeship.server.store.joint import Part
from edgeship_agent.contract.errors import EdgeshipError

_rollouts = schema.rollouts
_members = schema.rollout_devices
_decisions = schema.decisions


class Rollout(Struct, frozen=True, kw_only=True):
    """One rollout; the attributes are the columns of its table.

    Attributes:
        stages: cumulative shares of the fleet, 0–1.
        filter: tag → value that a device must have.
        seed: of the draw of canaries.
        stage_started_s: start of the current stage; when it rolls back, start of the rollback.
        reason: one sentence: the newest verdict in words.
        revision: grows with every change; a writer names the one that it read.
        share: of each device's traffic that the release gets, 0–1; the version from before answers the rest.
        mirror: of each device's inputs that the release runs beside the version from before, unseen.
        model, version, digest: of the release, or of the joint one.
        parts: its models; one, or those of a joint release.
    """

    id: str
    number: int
    model: str
    version: str
    digest: str
    policy: ThresholdPolicy
    stages: tuple[float, ...]
    filter: dict[str, str]
    seed: int
    state: RolloutState
    stage_index: int
    stage_states: tuple[StageState, ...]
    stage_started_s: float
    reason: str
    verdict: Verdict | None
    revision: int
    created_at_s: float
    updated_at_s: float
    ended_at_s: float | None = None
    share: float = 1.0
    mirror: float = 0.0
    parts: tuple[Part, ...] = ()

    @property
    def is_joint(self) -> bool:
        """Whether several models switch together."""
        return len(self.parts) > 1

    @property
    def has_base(self) -> bool:
        """Whether the version from before goes on beside the release."""
        return self.share < 1.0


class MemberPart(Part, frozen=True, kw_only=True):
    """How one model of the release stands on one device; fields as in :class:`Member`."""

    state: DeviceState
    substate: str = ""
    reason: str = ""
    previous_version: str = ""
    previous_digest: str = ""
    activated_at_s: float | None = None
    without_field_traffic: bool = False

    @property
    def switches(self) -> bool:
        """Whether the device ran something else before."""
        return self.previous_digest != self.digest


class Member(Struct, frozen=True, kw_only=True):
    """One device of a rollout. How it stands is summed up from how the models of the release stand on it.

    Attributes:
        substate: state of the device's own update attempt; empty before its first report.
        reason: short code of a failure or refusal, or words about what is waited for.
        previous_version, previous_digest: what it ran before; empty where it had none.
        parts: by model; one, or those of a joint release.
    """

    rollout_id: str
    device_id: str
    stage_index: int
    stratum: str
    state: DeviceState
    substate: str = ""
    reason: str = ""
    attempt: int = 1
    previous_version: str = ""
    previous_digest: str = ""
    offered_at_s: float | None = None
    activated_at_s: float | None = None
    updated_at_s: float = 0.0
    without_field_traffic: bool = False
    parts: tuple[MemberPart, ...] = ()

    def part(self, model: str) -> MemberPart | None:
        """How a model stands, or None where the release does not hold it."""
        return next((part for part in self.parts if part.model == model), None)


def summed_up(parts: Sequence[MemberPart]) -> dict[str, Any]:
    """What a device's row says about it as a whole, from its parts."""
    decides = parts[deciding([(part.state, part.reason) for part in parts])]
    model = decides.model if len(parts) > 1 else ""
    activated = [part.activated_at_s for part in parts if part.activated_at_s is not None and part.switches]
    if not any(part.switches for part in parts):
        activated = [part.activated_at_s for part in parts if part.activated_at_s is not None]
    return {
        "state": decides.state,
        "substate": decides.substate,
        "reason": named(model, decides.reason),
        "activated_at_s": min(activated, default=None),
        "without_field_traffic": any(part.without_field_traffic for part in parts),
    }


class Decision(Struct, frozen=True, kw_only=True):
    """A decision and what it was made from."""

    id: int
    subject: str
    at_s: float
    kind: str
    sentence: str
    evidence: dict[str, Any]


class Conflict(EdgeshipError):
    """Somebody else changed the rollout since it was read."""


_ROLLOUT_FIELDS: Final = Rollout.__struct_fields__
_MEMBER_FIELDS: Final = Member.__struct_fields__


def find(connection: Connection, rollout_id: str) -> Rollout | None:
    """The rollout of that id, or None."""
    row = connection.execute(select(_rollouts).where(_rollouts.c.id == rollout_id)).one_or_none()
    return None if row is None else _rollout(row)


def list_all(connection: Connection) -> list[Rollout]:
    """Every rollout, newest first."""
    return [_rollout(row) for row in connection.execute(select(_rollouts).order_by(_rollouts.c.number.desc()))]


def in_states(connection: Connection, states: Iterable[RolloutState]) -> list[Rollout]:
    """Rollouts in one of some states, oldest first."""
    query = select(_rollouts).where(_rollouts.c.state.in_([state.value for state in states]))
    return [_rollout(row) for row in connection.execute(query.order_by(_rollouts.c.number))]


def next_number(connection: Connection) -> int:
    """Number of the next rollout."""
    return int(connection.execute(select(func.coalesce(func.max(_rollouts.c.number), 0))).scalar_one()) + 1


def add(connection: Connection, rollout: Rollout, members: Iterable[Member]) -> None:
    """Insert a rollout with its devices."""
    connection.execute(insert(_rollouts).values(**_columns(rollout, _ROLLOUT_FIELDS)))
    add_members(connection, members)


def add_members(connection: Connection, members: Iterable[Member]) -> None:
    """Insert devices of a rollout."""
    rows = [_columns(member, _MEMBER_FIELDS) for member in members]
    if rows:
        connection.execute(insert(_members), rows)


def save(connection: Connection, rollout: Rollout, **changes: object) -> Rollout:
    """Change a rollout that nobody else changed since it was read.

    Args:
        connection: of a writing transaction.
        rollout: as it was read.
        changes: new values by field.

    Returns:
        The rollout as it is now.

    Raises:
        Conflict: its revision is not the one that was read.
    """
    changed = msgspec.structs.replace(rollout, revision=rollout.revision + 1, **changes)
    names = [*changes, "revision"]
    result = connection.execute(
        update(_rollouts)
        .where(_rollouts.c.id == rollout.id, _rollouts.c.revision == rollout.revision)
        .values(**_columns(changed, names))
    )
    if result.rowcount != 1:
        raise Conflict(
            "the rollout was changed meanwhile",
            key=rollout.id,
            expected=f"revision {rollout.revision}",
            next_step=f"look at it (edgeship rollouts status {rollout.id}) and try again",
        )
    return changed


def keep_verdict(connection: Connection, rollout: Rollout, verdict: Verdict, reason: str, at_s: float) -> None:
    """Show the newest figures of a rollout that nobody changed since it was read; no decision, so no new revision."""
    values = {"verdict": msgspec.to_builtins(verdict), "reason": reason, "updated_at_s": at_s}
    connection.execute(
        update(_rollouts).where(_rollouts.c.id == rollout.id, _rollouts.c.revision == rollout.revision).values(**values)
    )


def members(connection: Connection, rollout_id: str) -> list[Member]:
    """The devices of a rollout, by stage and id."""
    query = select(_members).where(_members.c.rollout_id == rollout_id)
    rows = connection.execute(query.order_by(_members.c.stage_index, _members.c.device_id))
    return [_member(row) for row in rows]


def count_members(connection: Connection, rollout_id: str) -> int:
    """How many devices a rollout has."""
    query = select(func.count()).select_from(_members).where(_members.c.rollout_id == rollout_id)
    return int(connection.execute(query).scalar_one())


def member(connection: Connection, rollout_id: str, device_id: str) -> Member | None:
    """One device of a rollout, or None."""
    query = select(_members).where(_members.c.rollout_id == rollout_id, _members.c.device_id == device_id)
    row = connection.execute(query).one_or_none()
    return None if row is None else _member(row)


def memberships(connection: Connection, device_id: str) -> list[Member]:
    """A device's places in all rollouts, newest rollout first."""
    query = select(_members).join(_rollouts, _rollouts.c.id == _members.c.rollout_id)
    rows = connection.execute(query.where(_members.c.device_id == device_id).order_by(_rollouts.c.number.desc()))
    return [_member(row) for row in rows]


def save_member(connection: Connection, known: Member, now_s: float, **changes: object) -> Member:
    """Change a device's place in a rollout."""
    changed = msgspec.structs.replace(known, updated_at_s=now_s, **changes)
    connection.execute(
        update(_members)
        .where(_members.c.rollout_id == known.rollout_id, _members.c.device_id == known.device_id)
        .values(**_columns(changed, [*changes, "updated_at_s"]))
    )
    return changed


def save_parts(
    connection: Connection, known: Member, now_s: float, parts: Sequence[MemberPart], **changes: object
) -> Member:
    """Change how the models stand on a device, and with that the device; ``changes`` stand above what is summed up."""
    return save_member(connection, known, now_s, parts=tuple(parts), **{**summed_up(parts), **changes})


def record_decision(
    connection: Connection, subject: str, kind: str, sentence: str, evidence: Mapping[str, Any], at_s: float
) -> None:
    """Keep a decision with the evidence that it can be replayed from."""
    values = {"subject": subject, "kind": kind, "sentence": sentence, "evidence": dict(evidence), "at_s": at_s}
    connection.execute(insert(_decisions).values(**values))


def decisions(connection: Connection, subject: str, limit: int = 50) -> list[Decision]:
    """Decisions about something, newest first."""
    query = select(_decisions).where(_decisions.c.subject == subject)
    rows = connection.execute(query.order_by(_decisions.c.at_s.desc(), _decisions.c.id.desc()).limit(limit))
    return [as_decision(row) for row in rows]


def _columns(value: Struct, names: Iterable[str]) -> dict[str, Any]:
    return {name: msgspec.to_builtins(getattr(value, name)) for name in names}


def as_decision(row: Row[Any]) -> Decision:
    """A row of the decisions table as a value."""
    return msgspec.convert(_fields(row), Decision)


def _rollout(row: Row[Any]) -> Rollout:
    return msgspec.convert(_fields(row), Rollout)


def _member(row: Row[Any]) -> Member:
    return msgspec.convert(_fields(row), Member)


def _fields(row: Row[Any]) -> dict[str, Any]:
    """Values by column; the database library's names are a subclass of str, which the decoder refuses."""
    return {str(name): value for name, value in row._mapping.items()}
