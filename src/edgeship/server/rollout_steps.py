"""The steps that change goals: offering a release to devices, and taking it back everywhere it went."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import structs
from sqlalchemy import Connection

from edgeship.rollout import (
    DeviceEvent,
    DeviceState,
    RolloutEvent,
    StageState,
    Verdict,
    device_transition,
    rollout_transition,
)
from edgeship.server import clones, goals, release_sets
from edgeship.server.context import ServerContext
from edgeship.server.device_reports import rollback_deployment
from edgeship.server.store import goals as goal_store
from edgeship.server.store import joint, releases, rollouts
from edgeship.server.store.goals import Assignment
from edgeship.server.store.rollouts import Member, MemberPart, Rollout
from edgeship_agent.contract.errors import ConfigError

#: States of devices that a rollout never touched.
UNTOUCHED: Final = frozenset({DeviceState.NO_VARIANT, DeviceState.ALREADY_RUNNING})


def offer(context: ServerContext, connection: Connection, rollout: Rollout, waiting: Iterable[Member]) -> None:
    """Publish the goal that names the release to some devices."""
    wanted = release_sets.find(connection, rollout.model, rollout.version)
    if wanted is None or wanted.state == releases.BLOCKED:
        raise ConfigError("the release is gone or blocked", key=f"{rollout.model} {rollout.version}")
    now_s = context.clock()
    cloned = clones.cloned(connection)
    for known in waiting:
        if known.device_id in cloned:
            cancel(connection, known, now_s, f"two machines share its identity: incident {cloned[known.device_id]}")
            continue
        assigned = [
            Assignment(
                device_id=known.device_id,
                model=release.model,
                version=release.version,
                digest=release.digest,
                size_bytes=release.size_bytes,
                deployment=rollout.id,
                attempt=known.attempt,
                probation=rollout.policy.probation(),
                release=wanted.label,
                **_beside(connection, rollout, known),
            )
            for release in wanted.releases
        ]
        goals.assign(context, connection, assigned)
        rollouts.save_parts(connection, known, now_s, moved(known, DeviceEvent.OFFER), offered_at_s=now_s)


def moved(known: Member, event: DeviceEvent, **changes: object) -> list[MemberPart]:
    """The parts of a device after something that happens to all of its models at once."""
    return [structs.replace(part, state=device_transition(part.state, event), **changes) for part in known.parts]


def _beside(connection: Connection, rollout: Rollout, known: Member) -> dict[str, Any]:
    """What of an assignment makes the version from before go on beside the release."""
    if not rollout.has_base:
        return {}
    before = releases.find_digest(connection, known.previous_digest)
    assert before is not None  # the plan left out devices whose version is no release, and none is ever removed
    return {
        "share": rollout.share,
        "mirror": rollout.mirror,
        "cpu_ratio": rollout.policy.shadow_cpu_ratio,
        "memory_bytes": rollout.policy.shadow_memory_bytes,
        "base_version": before.version,
        "base_digest": before.digest,
        "base_size_bytes": before.size_bytes,
    }


def roll_back(
    context: ServerContext, connection: Connection, rollout: Rollout, sentence: str, **changes: Any
) -> Rollout:
    """Take a release back: block it, and give every device that it went to the digest from before.

    Args:
        context: the server's parts.
        connection: of a writing transaction.
        rollout: halted, or ended by an operator.
        sentence: why.
        changes: further new values of the rollout.

    Returns:
        The rollout, now rolling back.
    """
    now_s = context.clock()
    taken_back = release_sets.find(connection, rollout.model, rollout.version)
    assert taken_back is not None  # none is ever removed
    release_sets.block(context, connection, taken_back, sentence, rollout.id)
    for known in rollouts.members(connection, rollout.id):
        if known.state is DeviceState.QUEUED:
            cancel(connection, known, now_s, "the release was taken back")
        elif was_touched(known):
            restore(context, connection, rollout, known)
    subject = f"release/{rollout.model}/{rollout.version}"
    blocked = f"{rollout.model} {rollout.version} is blocked: {sentence}"
    context.record(connection, "release_blocked", subject, blocked, {"rollout": rollout.id})
    state = rollout_transition(rollout.state, RolloutEvent.ROLL_BACK)
    started = {"state": state, "reason": sentence, "stage_started_s": now_s, "updated_at_s": now_s, "ended_at_s": None}
    return rollouts.save(connection, rollout, **{**started, **changes})


def was_touched(known: Member) -> bool:
    """Whether a device was ever offered the release."""
    return known.offered_at_s is not None and known.state not in UNTOUCHED


def restore(context: ServerContext, connection: Connection, rollout: Rollout, known: Member) -> bool:
    """Give one device a newer goal that names what it ran before the rollout: of all models of the release at once.

    Returns:
        False where a later rollout has already given it another goal.
    """
    deployment = rollback_deployment(rollout.id)
    current = [(part, goal_store.assignment(connection, known.device_id, part.model)) for part in known.parts]
    ours = {part.model: each for part, each in current if each is not None and is_ours(each, rollout, part)}
    if not ours:
        return False
    parts = [part for part in known.parts if part.model in ours]
    back = [part for part in parts if part.previous_digest]
    attempts = [each.attempt for each in ours.values() if each.deployment == deployment]
    again = bool(attempts)
    assigned = [
        Assignment(
            device_id=known.device_id,
            model=part.model,
            version=part.previous_version,
            digest=part.previous_digest,
            size_bytes=_size_bytes(connection, part.previous_digest),
            deployment=deployment,
            attempt=max(attempts, default=0) + 1,
            is_rollback=True,
            force=again,
            probation=rollout.policy.probation(),
            release=_label_before(connection, rollout, back),
        )
        for part in back
    ]
    withdrawn = [part.model for part in parts if not part.previous_digest]
    if assigned:
        goals.assign(context, connection, assigned, withdrawn)
    else:
        goals.withdraw(context, connection, known.device_id, withdrawn)
    return True


def is_ours(assigned: Assignment, rollout: Rollout, part: MemberPart) -> bool:
    """Whether a device still has from this rollout what it shall run of a model, and not from a later one.

    A later rollout that was taken back has brought this one's version again.
    """
    if assigned.deployment in (rollout.id, rollback_deployment(rollout.id)):
        return True
    return assigned.is_rollback and assigned.digest == part.digest


def _size_bytes(connection: Connection, digest: str) -> int:
    release = releases.find_digest(connection, digest)
    return 0 if release is None else release.size_bytes


def _label_before(connection: Connection, rollout: Rollout, back: Sequence[MemberPart]) -> str:
    """Under which name what a device had goes back together; a model alone needs none."""
    if len(back) == 1:
        return ""
    had = {(part.model, part.previous_digest) for part in back}
    known = [each for each in joint.list_all(connection) if {(part.model, part.digest) for part in each.parts} == had]
    # no joint release can have such a version: what was never joined goes back as one and is free afterwards
    return known[0].label if known else f"{rollout.model}@before {rollout.version}"


def cancel(connection: Connection, known: Member, now_s: float, reason: str) -> None:
    """A device will not be offered the release any more."""
    parts = moved(known, DeviceEvent.CANCELED)
    rollouts.save_parts(connection, known, now_s, parts, reason=reason)


def with_stage(rollout: Rollout, state: StageState) -> tuple[StageState, ...]:
    """The stage states with another one for the current stage."""
    states = list(rollout.stage_states)
    states[rollout.stage_index] = state
    return tuple(states)


def decide(
    context: ServerContext, connection: Connection, rollout: Rollout, kind: str, sentence: str, evidence: dict[str, Any]
) -> None:
    """Keep a decision about a rollout and tell the live views."""
    rollouts.record_decision(connection, f"rollout/{rollout.id}", kind, sentence, evidence, context.clock())
    data = {"model": rollout.model, "version": rollout.version, "stage": rollout.stage_index + 1}
    context.record(connection, f"rollout_{kind}", f"rollout/{rollout.id}", sentence, data)


def verdict_evidence(rollout: Rollout, devices: object, elapsed_s: float, verdict: Verdict) -> dict[str, Any]:
    """What a verdict is replayed from: policy, devices, time, and the answer itself."""
    evidence = {
        "policy": rollout.policy,
        "devices": devices,
        "elapsed_s": elapsed_s,
        "stage_index": rollout.stage_index,
        "seed": rollout.seed,
        "verdict": verdict,
    }
    document: dict[str, Any] = msgspec.to_builtins(evidence)
    return document


def staged(sentence: str, stage_index: int) -> str:
    """A verdict's sentence with the stage that it is about, counted from 1 for people.

    >>> staged("Halted: 2 worker crashes", 0)
    'Halted at stage 1: 2 worker crashes'
    """
    word, colon, rest = sentence.partition(":")
    return f"{word} at stage {stage_index + 1}{colon}{rest}"
