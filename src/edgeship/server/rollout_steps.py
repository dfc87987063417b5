"""The steps that change goals: offering a release to devices, and taking it back everywhere it went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
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
from edgeship.server import clones, goals
from edgeship.server.context import ServerContext
from edgeship.server.device_reports import rollback_deployment
from edgeship.server.store import goals as goal_store
from edgeship.server.store import releases, rollouts
from edgeship.server.store.goals import Assignment
from edgeship.server.store.rollouts import Member, Rollout
from edgeship_agent.contract.errors import ConfigError

#: States of devices that a rollout never touched.
UNTOUCHED: Final = frozenset({DeviceState.NO_VARIANT, DeviceState.ALREADY_RUNNING, DeviceState.REMOVED})


def offer(context: ServerContext, connection: Connection, rollout: Rollout, waiting: Iterable[Member]) -> None:
    """Publish the goal that names the release to some devices."""
    release = releases.find(connection, rollout.model, rollout.version)
    if release is None or release.state == releases.BLOCKED:
        raise ConfigError("the release is gone or blocked", key=f"{rollout.model} {rollout.version}")
    now_s = context.clock()
    cloned = clones.cloned(connection)
    for known in waiting:
        if known.device_id in cloned:
            cancel(connection, known, now_s, f"two machines share its identity: incident {cloned[known.device_id]}")
            continue
        goals.assign(
            context,
            connection,
            Assignment(
                device_id=known.device_id,
                model=rollout.model,
                version=rollout.version,
                digest=rollout.digest,
                size_bytes=release.size_bytes,
                deployment=rollout.id,
                attempt=known.attempt,
                probation=rollout.policy.probation(),
                **_beside(connection, rollout, known),
            ),
        )
        state = device_transition(known.state, DeviceEvent.OFFER)
        rollouts.save_member(connection, known, now_s, state=state, offered_at_s=now_s)


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
    releases.block(connection, rollout.model, rollout.version, reason=sentence, rollout_id=rollout.id)
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
    """Give one device a newer goal that names what it ran before the rollout.

    Returns:
        False where a later rollout has already given it another goal.
    """
    current = goal_store.assignment(connection, known.device_id, rollout.model)
    again = current is not None and current.deployment == rollback_deployment(rollout.id)
    if current is None or (current.deployment != rollout.id and not again):
        return False
    if not known.previous_digest:
        goals.withdraw(context, connection, known.device_id, rollout.model)
        return True
    before = releases.find_digest(connection, known.previous_digest)
    goals.assign(
        context,
        connection,
        Assignment(
            device_id=known.device_id,
            model=rollout.model,
            version=known.previous_version,
            digest=known.previous_digest,
            size_bytes=0 if before is None else before.size_bytes,
            deployment=rollback_deployment(rollout.id),
            attempt=current.attempt + 1 if again else 1,
            is_rollback=True,
            force=again,
            probation=rollout.policy.probation(),
        ),
    )
    return True


def cancel(connection: Connection, known: Member, now_s: float, reason: str) -> None:
    """A device will not be offered the release any more."""
    state = device_transition(known.state, DeviceEvent.CANCELED)
    rollouts.save_member(connection, known, now_s, state=state, reason=reason)


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
