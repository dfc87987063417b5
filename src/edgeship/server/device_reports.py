"""What devices say about updates, taken over into the rollouts: repeats and late comers change nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from edgeship.rollout import DeviceEvent, DeviceState, RolloutState, device_event, device_transition
from edgeship.server.context import ServerContext
from edgeship.server.store import reports, rollouts
from edgeship.server.store.rollouts import Member, MemberPart, Rollout
from edgeship_agent.contract.messages import RunningArm, UpdateReport, UpdateState

#: A rollback is a deployment of its own: its reports are not those of the update that it takes back.
ROLLBACK_SUFFIX: Final = "-rollback"
#: How the reason of a device begins that could not take a rollback.
ROLLBACK_FAILED: Final = "rollback "
#: The deployment under which a device reports a goal state that it did not believe.
REFUSED_GOAL: Final = "refused-goal"
_ACTIVATED: Final = frozenset({UpdateState.PROBATION, UpdateState.COMMITTED})
_WATCHED: Final = frozenset({RolloutState.RUNNING, RolloutState.PAUSED})
_ENDS: Final = frozenset(
    {
        *(UpdateState.COMMITTED, UpdateState.ROLLED_BACK, UpdateState.INCONSISTENT),
        *(UpdateState.REJECTED, UpdateState.FAILED_CLEAN, UpdateState.CANCELED),
    }
)


def rollback_deployment(rollout_id: str) -> str:
    """Name of the deployment that takes a rollout back.

    >>> rollback_deployment("r3")
    'r3-rollback'
    """
    return rollout_id + ROLLBACK_SUFFIX


def on_report(context: ServerContext, connection: Connection, device_id: str, report: UpdateReport) -> None:
    """Keep a report and move the device within its rollout.

    A report that is known, of another attempt, or older than one that was seen is kept and moves nothing.
    """
    now_s = context.clock()
    seen_seq = reports.add(connection, report, now_s)
    if seen_seq is None or report.seq < seen_seq:
        return
    if report.deployment == REFUSED_GOAL:
        _take_refused_goal(context, connection, report)
        return
    if report.deployment.endswith(ROLLBACK_SUFFIX):
        _take_rollback_report(context, connection, report)
        return
    rollout = rollouts.find(connection, report.deployment)
    known = rollouts.member(connection, report.deployment, device_id)
    part = None if known is None else known.part(report.model)
    if rollout is None or known is None or part is None:
        return
    if known.attempt != report.attempt or report.digest != part.digest:
        return  # a base that had to be brought first reports as well
    matches = report.loaded_digest == part.digest
    state = device_transition(part.state, device_event(report.state, digest_matches=matches))
    changes: dict[str, Any] = {"state": state, "substate": report.state.value, "reason": _reason(report, matches)}
    if report.state in _ACTIVATED:
        changes["without_field_traffic"] = report.without_field_traffic
        if part.activated_at_s is None:
            changes["activated_at_s"] = now_s
    rollouts.save_parts(connection, known, now_s, _with(known, part, **changes))
    if report.state in _ENDS and state is not part.state:
        _record_end(context, connection, rollout, report, state)


def _with(known: Member, part: MemberPart, **changes: object) -> list[MemberPart]:
    return [msgspec.structs.replace(each, **changes) if each is part else each for each in known.parts]


def on_running(context: ServerContext, connection: Connection, device_id: str, running: Iterable[RunningArm]) -> None:
    """Compare what a device has loaded with what it had committed: another digest later is a regression."""
    loaded: dict[str, list[RunningArm]] = {}
    for arm in running:
        if arm.state == "committed":
            loaded.setdefault(arm.model, []).append(arm)
    if not loaded:
        return
    for known in rollouts.memberships(connection, device_id):
        if not any(part.state is DeviceState.SUCCEEDED for part in known.parts):
            continue
        rollout = rollouts.find(connection, known.rollout_id)
        if rollout is None or rollout.state not in _WATCHED:
            continue
        parts = [_seen(part, loaded.get(part.model, [])) for part in known.parts]
        if parts != list(known.parts):
            rollouts.save_parts(connection, known, context.clock(), parts)
            _record_regression(context, connection, known, parts, loaded)


def _seen(part: MemberPart, loaded: Sequence[RunningArm]) -> MemberPart:
    """A part after a look at what the device has loaded of its model."""
    if part.state is not DeviceState.SUCCEEDED or not loaded or part.digest in [arm.digest for arm in loaded]:
        return part
    state = device_transition(part.state, DeviceEvent.WRONG_DIGEST)
    return msgspec.structs.replace(part, state=state, reason="wrong_digest")


def _record_regression(
    context: ServerContext,
    connection: Connection,
    known: Member,
    parts: Sequence[MemberPart],
    loaded: Mapping[str, Sequence[RunningArm]],
) -> None:
    for before, after in zip(known.parts, parts, strict=True):
        if before is after:
            continue
        runs = f"{after.model} {loaded[after.model][0].version}"
        sentence = f"{known.device_id} runs {runs}, not the {after.version} that it had committed"
        _record(context, connection, known.device_id, "update_regressed", sentence, {"rollout": known.rollout_id})


def _take_refused_goal(context: ServerContext, connection: Connection, report: UpdateReport) -> None:
    """A goal of another key, another device or another time: nothing was changed there, and somebody should know."""
    why = report.detail or report.reason.replace("_", " ")
    sentence = f"{report.device_id} refused a goal state: {why}"
    data = {"reason": report.reason, "refused_goals": report.figures.get("refused_goals", 0.0)}
    _record(context, connection, report.device_id, "goal_refused", sentence, data)
    _keep_decision(connection, report, sentence, context.clock())


def _take_rollback_report(context: ServerContext, connection: Connection, report: UpdateReport) -> None:
    rollout_id = report.deployment.removesuffix(ROLLBACK_SUFFIX)
    known = rollouts.member(connection, rollout_id, report.device_id)
    part = None if known is None else known.part(report.model)
    if known is None or part is None or report.state not in _ENDS:
        return
    if report.state is UpdateState.COMMITTED and report.loaded_digest == part.previous_digest:
        return  # the evaluator confirms it and says so
    now_s = context.clock()
    rollouts.save_member(connection, known, now_s, reason=f"{ROLLBACK_FAILED}{report.state.value}: {report.reason}")
    sentence = f"{report.device_id} could not take the rollback: {report.detail or report.reason or report.state.value}"
    _record(context, connection, report.device_id, "rollback_failed", sentence, {"rollout": rollout_id})
    _keep_decision(connection, report, sentence, now_s)


def _reason(report: UpdateReport, matches: bool) -> str:
    if report.state is UpdateState.COMMITTED and not matches:
        return "wrong_digest"
    return report.reason


def _record_end(
    context: ServerContext, connection: Connection, rollout: Rollout, report: UpdateReport, state: DeviceState
) -> None:
    sentence = end_sentence(report, state)
    data = {"rollout": rollout.id, "attempt": report.attempt, "reason": report.reason}
    _record(context, connection, report.device_id, f"update_{state.value}", sentence, data)
    if state is not DeviceState.SUCCEEDED:
        _keep_decision(connection, report, sentence, context.clock())


def end_sentence(report: UpdateReport, state: DeviceState) -> str:
    """How an update attempt ended, in words."""
    what = f"{report.model} {report.version}"
    why = report.detail or report.reason.replace("_", " ")
    words = {
        DeviceState.SUCCEEDED: f"{report.device_id} runs {what}",
        DeviceState.REJECTED: f"{report.device_id} refused {what}",
        DeviceState.ROLLED_BACK: f"{report.device_id} rolled {what} back by itself",
        DeviceState.CANCELED: f"{report.device_id} canceled {what}",
    }
    sentence = words.get(state, f"{report.device_id} failed to take {what}")
    return f"{sentence}: {why}" if why and state is not DeviceState.SUCCEEDED else sentence


def _keep_decision(connection: Connection, report: UpdateReport, sentence: str, at_s: float) -> None:
    subject = f"refusal/{report.device_id}/{report.deployment}.{report.attempt}"
    evidence = {"report": {name: getattr(report, name) for name in report.__struct_fields__}}
    rollouts.record_decision(connection, subject, report.state.value, sentence, msgspec.to_builtins(evidence), at_s)


def _record(
    context: ServerContext, connection: Connection, device_id: str, kind: str, sentence: str, data: dict[str, Any]
) -> None:
    context.record(connection, kind, f"device/{device_id}", sentence, data)
