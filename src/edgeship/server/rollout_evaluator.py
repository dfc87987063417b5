"""One step of every rollout that has something to do: offer, time out, judge, roll back, confirm.

Everything is read from the database, so a server that was stopped in the middle goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from msgspec import structs
from sqlalchemy import Connection

from edgeship.rollout import (
    DeviceEvent,
    DeviceEvidence,
    DeviceState,
    RolloutEvent,
    RolloutState,
    StageEvent,
    StageState,
    Verdict,
    VerdictKind,
    deadline_event,
    device_transition,
    judge,
    rollout_transition,
    stage_transition,
)
from edgeship.rollout.wording import counted
from edgeship.server import release_sets, rollout_evidence, rollout_plan
from edgeship.server.context import ServerContext
from edgeship.server.device_reports import ROLLBACK_FAILED, rollback_deployment
from edgeship.server.rollout_steps import (
    UNTOUCHED,
    decide,
    is_ours,
    moved,
    offer,
    restore,
    roll_back,
    staged,
    verdict_evidence,
    was_touched,
    with_stage,
)
from edgeship.server.store import devices, goals, identities, reports, rollouts
from edgeship.server.store.rollouts import Member, MemberPart, Rollout
from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.contract.messages import UpdateState

#: So many devices' evidence is read per second of the evaluator's time: 1,000 devices are judged every 100 s.
JUDGED_DEVICES_PER_S: Final = 10.0
_log = logging.getLogger("edgeship.server.rollouts")
_JUDGED: Final = (RolloutState.RUNNING, RolloutState.PAUSED)
#: A rollback that is incomplete is still confirmed when the last devices come back.
_RETURNING: Final = (RolloutState.ROLLING_BACK, RolloutState.ROLLBACK_INCOMPLETE)


def tick(context: ServerContext, connection: Connection, now_s: float) -> None:
    """Move every rollout that has something to do by at most one decision.

    Each in a savepoint of its own: one that cannot be moved must not hold up the others, least of all a rollback.
    """
    for states, step in ((_JUDGED, _advance), (_RETURNING, _confirm_rollback)):
        for rollout in rollouts.in_states(connection, states):
            try:
                with context.store.savepoint(connection):
                    step(context, connection, rollout, now_s)
            except EdgeshipError as error:
                _log.error("rollout %s was not moved: %s", rollout.id, error.sentence())


def evidence_now(
    context: ServerContext, connection: Connection, rollout: Rollout, now_s: float
) -> tuple[list[DeviceEvidence], float]:
    """The evidence of the devices that were reached so far, and the seconds since the stage started."""
    reached = [known for known in rollouts.members(connection, rollout.id) if known.stage_index <= rollout.stage_index]
    return rollout_evidence.gather(context, connection, rollout, reached), now_s - rollout.stage_started_s


def _advance(context: ServerContext, connection: Connection, rollout: Rollout, now_s: float) -> None:
    if rollout.state is RolloutState.RUNNING:
        _admit_late_joiners(connection, rollout, now_s)
    if _end_deserted(context, connection, rollout, now_s):
        return
    if rollout.state is RolloutState.RUNNING:
        rollout = _offer_stage(context, connection, rollout, now_s)
    _apply_deadlines(connection, rollout, now_s)
    rollout = _start_soak(connection, rollout, now_s)
    if _is_turn(context, connection, rollout, now_s):
        _judge(context, connection, rollout, now_s)


def _end_deserted(context: ServerContext, connection: Connection, rollout: Rollout, now_s: float) -> bool:
    """Abort a rollout whose devices were all put out of the fleet: nothing can be offered, seen or judged any more."""
    gone = identities.put_out(connection)
    reached = [m for m in rollouts.members(connection, rollout.id) if m.state not in UNTOUCHED]
    removed = [known.device_id for known in reached if known.state is DeviceState.REMOVED or known.device_id in gone]
    if not removed or len(removed) < len(reached):
        return False
    for known in reached:
        if was_touched(known):
            restore(context, connection, rollout, known)  # what it takes if it is let in again
    who = f"{removed[0]} was" if len(removed) == 1 else f"all {len(removed)} devices were"
    sentence = f"Aborted: nobody is left in it, {who} {identities.PUT_OUT}"
    state = rollout_transition(rollout.state, RolloutEvent.ABORT)
    changes = {"state": state, "reason": sentence, "updated_at_s": now_s, "ended_at_s": now_s}
    aborted = rollouts.save(connection, rollout, **changes)
    decide(context, connection, aborted, "aborted", sentence, {"from": rollout.state.value, "removed": removed})
    return True


def _is_turn(context: ServerContext, connection: Connection, rollout: Rollout, now_s: float) -> bool:
    """Whether to look at the evidence in this step: a large fleet is judged less often, so that a step stays short."""
    pace_s = rollouts.count_members(connection, rollout.id) / JUDGED_DEVICES_PER_S
    tick_s = context.config.tick_s
    return pace_s <= tick_s or now_s // pace_s != (now_s - tick_s) // pace_s


def _judge(context: ServerContext, connection: Connection, rollout: Rollout, now_s: float) -> None:
    devices_evidence, elapsed_s = evidence_now(context, connection, rollout, now_s)
    verdict = judge(rollout.policy, devices_evidence, elapsed_s=elapsed_s)
    evidence = verdict_evidence(rollout, devices_evidence, elapsed_s, verdict)
    if verdict.kind is VerdictKind.HALT:
        _halt(context, connection, rollout, verdict, evidence)
    elif rollout.state is not RolloutState.RUNNING or verdict.kind is VerdictKind.HOLD:
        _keep_verdict(connection, rollout, verdict, now_s)
    elif verdict.kind is VerdictKind.PAUSE:
        _pause(context, connection, rollout, verdict, evidence)
    else:
        _promote(context, connection, rollout, verdict, evidence)


def _admit_late_joiners(connection: Connection, rollout: Rollout, now_s: float) -> None:
    """Devices that came after the draw join the last stage."""
    known = {member.device_id: member.stage_index for member in rollouts.members(connection, rollout.id)}
    rows = rollout_plan.matching_devices(connection, rollout.filter)
    if all(row.id in known for row in rows):
        return
    wanted = release_sets.find(connection, rollout.model, rollout.version)
    assert wanted is not None  # a rollout is only made of a release that is there, and none is ever removed
    unknown = [row for row in rows if row.id not in known]
    late = rollout_plan.plan(connection, wanted, unknown, needs_base=rollout.has_base)
    drawn = rollout_plan.draw(connection, late, rollout.stages, rollout.seed, known)
    last = len(rollout.stages) - 1
    rollouts.add_members(
        connection,
        [rollout_plan.as_member(device, rollout.id, drawn.get(device.device_id, last), now_s) for device in late],
    )


def _offer_stage(context: ServerContext, connection: Connection, rollout: Rollout, now_s: float) -> Rollout:
    waiting = [
        known
        for known in rollouts.members(connection, rollout.id)
        if known.stage_index <= rollout.stage_index and known.state is DeviceState.QUEUED
    ]
    offer(context, connection, rollout, waiting)
    if rollout.stage_states[rollout.stage_index] is not StageState.PENDING:
        return rollout
    state = stage_transition(StageState.PENDING, StageEvent.OFFER)
    changed = rollouts.save(
        connection, rollout, stage_states=with_stage(rollout, state), stage_started_s=now_s, updated_at_s=now_s
    )
    sentence = (
        f"stage {rollout.stage_index + 1} of {len(rollout.stages)} was offered to {counted(len(waiting), 'device')}"
    )
    offered = {"devices": [known.device_id for known in waiting]}
    decide(context, connection, changed, "stage_offered", sentence, offered)
    return changed


def _apply_deadlines(connection: Connection, rollout: Rollout, now_s: float) -> None:
    for known in rollouts.members(connection, rollout.id):
        if not known.state.is_pending or known.offered_at_s is None:
            continue
        if now_s - known.offered_at_s < rollout.policy.offer_timeout_s:
            continue
        event = deadline_event(
            heard_since_offer=_was_heard(connection, known), activated=known.activated_at_s is not None
        )
        parts = [
            structs.replace(part, state=device_transition(part.state, event), reason=event.value)
            if part.state.is_pending
            else part
            for part in known.parts
        ]
        rollouts.save_parts(connection, known, now_s, parts)


def _was_heard(connection: Connection, known: Member) -> bool:
    """Whether the device knows of the offer: it reported about it, or its newest goal is confirmed."""
    goal = goals.goal_of(connection, known.device_id)
    confirmed = goal is not None and goals.accepted_generation(connection, known.device_id) >= goal.generation
    return any(part.substate for part in known.parts) or confirmed


def _start_soak(connection: Connection, rollout: Rollout, now_s: float) -> Rollout:
    if rollout.stage_states[rollout.stage_index] is not StageState.OFFERING:
        return rollout
    stage = [m for m in rollouts.members(connection, rollout.id) if m.stage_index == rollout.stage_index]
    if not any(known.activated_at_s is not None for known in stage):
        return rollout
    state = stage_transition(StageState.OFFERING, StageEvent.SOAK)
    return rollouts.save(connection, rollout, stage_states=with_stage(rollout, state), updated_at_s=now_s)


def _keep_verdict(connection: Connection, rollout: Rollout, verdict: Verdict, now_s: float) -> None:
    """The newest figures, for whoever looks; nothing is decided, so the revision stays."""
    paused = rollout.state is RolloutState.PAUSED
    reason = rollout.reason if paused else staged(verdict.sentence, rollout.stage_index)
    if verdict != rollout.verdict or reason != rollout.reason:
        rollouts.keep_verdict(connection, rollout, verdict, reason, now_s)


def _halt(
    context: ServerContext, connection: Connection, rollout: Rollout, verdict: Verdict, evidence: dict[str, Any]
) -> None:
    sentence = staged(verdict.sentence, rollout.stage_index)
    stage = rollout.stage_states[rollout.stage_index]
    if stage is not StageState.PENDING:  # paused before anybody of this stage was offered it
        stage = stage_transition(stage, StageEvent.HALT)
    state = rollout_transition(rollout.state, RolloutEvent.HALT)
    halted = rollouts.save(
        connection, rollout, state=state, stage_states=with_stage(rollout, stage), verdict=verdict, reason=sentence
    )
    decide(context, connection, halted, "halted", sentence, evidence)
    roll_back(context, connection, halted, sentence)


def _pause(
    context: ServerContext, connection: Connection, rollout: Rollout, verdict: Verdict, evidence: dict[str, Any]
) -> None:
    sentence = staged(verdict.sentence, rollout.stage_index)
    stage = stage_transition(rollout.stage_states[rollout.stage_index], StageEvent.PAUSE)
    state = rollout_transition(rollout.state, RolloutEvent.PAUSE)
    changes = {"state": state, "stage_states": with_stage(rollout, stage), "verdict": verdict, "reason": sentence}
    paused = rollouts.save(connection, rollout, **changes, updated_at_s=context.clock())
    decide(context, connection, paused, "paused_inconclusive", sentence, evidence)


def _promote(
    context: ServerContext, connection: Connection, rollout: Rollout, verdict: Verdict, evidence: dict[str, Any]
) -> None:
    sentence = staged(verdict.sentence, rollout.stage_index)
    judging = stage_transition(rollout.stage_states[rollout.stage_index], StageEvent.JUDGE)
    passed = with_stage(rollout, stage_transition(judging, StageEvent.PROMOTE))
    now_s = context.clock()
    changes: dict[str, Any] = {"stage_states": passed, "verdict": verdict, "reason": sentence, "updated_at_s": now_s}
    is_last = rollout.stage_index == len(rollout.stages) - 1
    if is_last:
        state = rollout_transition(rollout.state, RolloutEvent.COMPLETE)
        changes |= {"state": state, "ended_at_s": now_s}
    else:
        changes |= {"stage_index": rollout.stage_index + 1, "stage_started_s": now_s}
    promoted = rollouts.save(connection, rollout, **changes)
    decide(context, connection, promoted, "completed" if is_last else "promoted", sentence, evidence)


def _confirm_rollback(context: ServerContext, connection: Connection, rollout: Rollout, now_s: float) -> None:
    """Look who runs the old digest again; all of them ends the rollback, the deadline makes it incomplete.

    Nobody waits for a device that was put out of the fleet; its goal stays, for the day that it is let in again.
    """
    gone = identities.put_out(connection)
    everyone = [known for known in rollouts.members(connection, rollout.id) if was_touched(known)]
    touched = [known for known in everyone if known.device_id not in gone]
    for known in everyone:
        if known.device_id in gone and known.reason != identities.PUT_OUT:
            rollouts.save_member(connection, known, now_s, reason=identities.PUT_OUT)
    waiting = [known for known in touched if not _is_restored(connection, rollout, known)]
    for known in touched:
        _show_return(connection, known, known in waiting, now_s)
    if not waiting:
        state = rollout_transition(rollout.state, RolloutEvent.RESTORED)
        words = _restored_sentence(touched, len(everyone) - len(touched))
        _end_rollback(context, connection, rollout, state, words, now_s)
    elif (
        rollout.state is RolloutState.ROLLING_BACK
        and now_s - rollout.stage_started_s >= rollout.policy.rollback_timeout_s
    ):
        state = rollout_transition(rollout.state, RolloutEvent.ROLLBACK_DEADLINE)
        names = ", ".join(known.device_id for known in waiting[:5])
        words = f"Rollback incomplete: {len(waiting)} of {len(touched)} devices have not confirmed it: {names}"
        _end_rollback(context, connection, rollout, state, words, now_s)


def _is_restored(connection: Connection, rollout: Rollout, known: Member) -> bool:
    """Whether a device reports, of every model, that what it ran before is loaded again, for its newest goal."""
    return all(_is_back(connection, rollout, known.device_id, part) for part in known.parts)


def _is_back(connection: Connection, rollout: Rollout, device_id: str, part: MemberPart) -> bool:
    assigned = goals.assignment(connection, device_id, part.model)
    deployment = rollback_deployment(rollout.id)
    if assigned is not None and not is_ours(assigned, rollout, part):
        return True  # a later rollout has taken the device over
    if assigned is not None and assigned.deployment == deployment:
        report = reports.newest(connection, device_id, deployment, assigned.attempt, part.model)
        if report is not None and report.state is UpdateState.COMMITTED:
            return report.loaded_digest == part.previous_digest
    return _runs_previous(connection, device_id, part)


def _runs_previous(connection: Connection, device_id: str, part: MemberPart) -> bool:
    goal = goals.goal_of(connection, device_id)
    row = devices.find(connection, device_id)
    if goal is None or row is None or row.goal_generation < goal.generation:
        return False
    loaded = [arm["digest"] for arm in row.running if arm["model"] == part.model]
    return loaded == ([part.previous_digest] if part.previous_digest else [])


def _show_return(connection: Connection, known: Member, is_waiting: bool, now_s: float) -> None:
    """Say of each device how its rollback stands; what the device itself said about a failed one stays."""
    parts = known.parts if is_waiting else moved(known, DeviceEvent.RESTORED)
    state = known.state if is_waiting else rollouts.summed_up(parts)["state"]
    if not is_waiting:
        reason = f"runs {known.previous_version} again" if known.previous_version else "runs no version of it"
    elif known.reason.startswith(ROLLBACK_FAILED):
        reason = known.reason
    else:
        row = devices.find(connection, known.device_id)
        online = row is not None and row.online
        reason = "waiting for the rollback" if online else "offline: takes the rollback when it returns"
    if (state, reason) != (known.state, known.reason):
        rollouts.save_parts(connection, known, now_s, parts, state=state, reason=reason)


def _restored_sentence(touched: Sequence[Member], gone_count: int) -> str:
    gone = f"{counted(gone_count, 'device')} that had it {'was' if gone_count == 1 else 'were'} {identities.PUT_OUT}"
    if not touched:
        return f"Rolled back: {gone if gone_count else 'no device had it'}"
    versions = sorted({known.previous_version for known in touched if known.previous_version})
    who, verb = ("the one device", "runs") if len(touched) == 1 else (f"all {len(touched)} devices", "run")
    what = f"{' or '.join(versions)} again" if versions else "no version of it"
    return f"Rolled back: {who} that had it {verb} {what}" + (f"; {gone}" if gone_count else "")


def _end_rollback(
    context: ServerContext, connection: Connection, rollout: Rollout, state: RolloutState, words: str, now_s: float
) -> None:
    release = release_sets.find(connection, rollout.model, rollout.version)
    reason = words if release is None else f"{release.blocked_reason}. {words}"
    ended = rollouts.save(connection, rollout, state=state, reason=reason, updated_at_s=now_s, ended_at_s=now_s)
    decide(context, connection, ended, state.value, words, {"from": rollout.state.value})
