"""Rollouts as an operator handles them: create, pause, resume, abort, roll back. The evaluator does the rest."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection

from edgeship.rollout import (
    DeviceState,
    RolloutEvent,
    RolloutState,
    StageEvent,
    StageState,
    ThresholdPolicy,
    empty_stages,
    parse_policy,
    parse_stages,
    rollout_transition,
    stage_transition,
)
from edgeship.rollout.wording import counted
from edgeship.server import release_sets, rollout_plan
from edgeship.server.context import ServerContext
from edgeship.server.device_reports import on_report, on_running
from edgeship.server.release_sets import ReleaseSet
from edgeship.server.rollout_evaluator import tick
from edgeship.server.rollout_plan import PlannedDevice
from edgeship.server.rollout_steps import cancel, decide, restore, roll_back, was_touched
from edgeship.server.store import releases, rollouts
from edgeship.server.store.rollouts import Rollout
from edgeship_agent.contract.errors import ConfigError

__all__ = ["abort", "create", "on_report", "on_running", "pause", "preview", "resume", "take_back", "tick"]

_SEED_LIMIT: Final = 2**31
#: Rollouts that still give goals to devices; two of one model at a time would pull at the same devices.
_LIVE: Final = (RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.HALTED, RolloutState.ROLLING_BACK)


class RolloutRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /api/v1/rollouts``.

    Attributes:
        stages: cumulative shares, such as ``20%,100%``.
        filter: tag → value that a device must have; empty for all devices.
        policy: keys of :class:`ThresholdPolicy`; what is missing keeps its default.
        seed: of the draw of canaries; None draws one.
        ab_share: of each device's traffic that the release gets beside the version that it runs; 1 replaces that.
        shadow_share: of each device's inputs that the release runs beside it, its answers thrown away; 0 for none.
    """

    model: str
    version: str
    stages: str = "20%,100%"
    filter: dict[str, str] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    ab_share: float = 1.0
    shadow_share: float = 0.0


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /api/v1/rollouts/{id}/{action}``.

    Attributes:
        by: who asks.
        reason: in words; kept with the decision.
        revision: the one that the operator saw; None takes whatever there is now.
    """

    by: str = "operator"
    reason: str = ""
    revision: int | None = None


def preview(context: ServerContext, request: RolloutRequest) -> tuple[Rollout, list[PlannedDevice]]:
    """What a rollout would do: the rollout (not stored) and every device with its stage and variant.

    Raises:
        ConfigError: unknown or blocked release, unreadable policy or stages, another rollout of the model is live, no
            device to reach, or nobody may be a canary.
    """
    with context.read() as connection:
        return _plan(context, connection, request)


def create(context: ServerContext, request: RolloutRequest) -> Rollout:
    """Create and start a rollout; the very same request while it runs is that rollout again, not a second one.

    Raises:
        ConfigError: see :func:`preview`.
    """
    with context.write() as connection:
        known = _find_same(connection, request)
        if known is not None:
            return known
        rollout, planned = _plan(context, connection, request)
        members = [
            rollout_plan.as_member(device, rollout.id, device.stage_index, rollout.created_at_s) for device in planned
        ]
        rollouts.add(connection, rollout, members)
        evidence = {"request": request, "seed": rollout.seed, "devices": planned}
        decide(context, connection, rollout, "created", rollout.reason, msgspec.to_builtins(evidence))
    return rollout


def pause(context: ServerContext, rollout_id: str, change: Change) -> Rollout:
    """Offer it to nobody else for now. A broken gate still halts it.

    Raises:
        IllegalTransition: it is not running.
    """
    with context.write() as connection:
        rollout = _read(connection, rollout_id, change)
        state = rollout_transition(rollout.state, RolloutEvent.PAUSE)
        return _save(context, connection, rollout, "paused_manual", _by("Paused", change), state=state)


def resume(context: ServerContext, rollout_id: str, change: Change) -> Rollout:
    """Go on; the soak of the current stage starts anew.

    Raises:
        IllegalTransition: it is not paused.
    """
    with context.write() as connection:
        rollout = _read(connection, rollout_id, change)
        state = rollout_transition(rollout.state, RolloutEvent.RESUME)
        states = list(rollout.stage_states)
        if states[rollout.stage_index] is StageState.INCONCLUSIVE:
            states[rollout.stage_index] = stage_transition(StageState.INCONCLUSIVE, StageEvent.RESUME)
        started_s = context.clock()
        changes = {"state": state, "stage_states": tuple(states), "stage_started_s": started_s}
        return _save(context, connection, rollout, "resumed", _by("Resumed", change), **changes)


def abort(context: ServerContext, rollout_id: str, change: Change) -> Rollout:
    """End it: devices that committed the release keep it, all others keep or get back what they had.

    Raises:
        IllegalTransition: it has ended.
    """
    with context.write() as connection:
        rollout = _read(connection, rollout_id, change)
        state = rollout_transition(rollout.state, RolloutEvent.ABORT)
        for known in rollouts.members(connection, rollout.id):
            if known.state is DeviceState.REMOVED and was_touched(known):
                restore(context, connection, rollout, known)  # what it takes if it is let in again
            if known.state.is_pending or known.state is DeviceState.OFFLINE_UNREACHED:
                if was_touched(known):
                    restore(context, connection, rollout, known)
                cancel(connection, known, context.clock(), "the rollout was aborted")
        ended_s = context.clock()
        return _save(context, connection, rollout, "aborted", _by("Aborted", change), state=state, ended_at_s=ended_s)


def take_back(context: ServerContext, rollout_id: str, change: Change) -> Rollout:
    """Roll it back everywhere it went, and block the release.

    Raises:
        IllegalTransition: it was rolled back already.
    """
    with context.write() as connection:
        rollout = _read(connection, rollout_id, change)
        sentence = _by("Rolled back", change)
        changed = roll_back(context, connection, rollout, sentence)
        decide(context, connection, changed, "rolling_back", sentence, msgspec.to_builtins(change))
        return changed


def _plan(
    context: ServerContext, connection: Connection, request: RolloutRequest
) -> tuple[Rollout, list[PlannedDevice]]:
    wanted = _wanted(connection, request)
    policy = parse_policy(request.policy)
    shares = parse_stages(request.stages)
    _check_alone(connection, wanted)
    seed = context.rng.randrange(_SEED_LIMIT) if request.seed is None else request.seed
    rows = rollout_plan.matching_devices(connection, request.filter)
    share, mirror = _traffic(request)
    planned = rollout_plan.plan(connection, wanted, rows, needs_base=share < 1.0)
    drawn = rollout_plan.draw(connection, planned, shares, seed)
    _check_reach(request, planned, drawn, len(shares))
    stages, drawn = _without_empty(shares, drawn)
    last = len(stages) - 1
    planned = [msgspec.structs.replace(device, stage_index=drawn.get(device.device_id, last)) for device in planned]
    number = rollouts.next_number(connection)
    now_s = context.clock()
    return Rollout(
        id=f"r{number}",
        number=number,
        model=wanted.name,
        version=wanted.version,
        digest=wanted.digest,
        policy=policy,
        stages=stages,
        filter=request.filter,
        seed=seed,
        state=RolloutState.RUNNING,
        stage_index=0,
        stage_states=(StageState.PENDING,) * len(stages),
        stage_started_s=now_s,
        reason=_start_sentence(wanted, planned, len(stages)) + _traffic_words(share, mirror, policy),
        verdict=None,
        revision=1,
        created_at_s=now_s,
        updated_at_s=now_s,
        share=share,
        mirror=mirror,
        parts=wanted.parts,
    ), planned


def _traffic(request: RolloutRequest) -> tuple[float, float]:
    """Share of the traffic and of the inputs; a shadow gets no traffic.

    Raises:
        ConfigError: not a share, or both at once.
    """
    if not 0.0 < request.ab_share <= 1.0:
        raise ConfigError("not a share of the traffic", key="ab_share", expected="above 0, at most 1 (100%)",
                          got=f"{request.ab_share:g}")  # fmt: skip
    if not 0.0 <= request.shadow_share <= 1.0:
        raise ConfigError("not a share of the inputs", key="shadow_share", expected="0 … 1 (100%)",
                          got=f"{request.shadow_share:g}")  # fmt: skip
    if request.shadow_share and request.ab_share < 1.0:
        raise ConfigError("a shadow answers nothing, so it has no share of the traffic", key="shadow_share",
                          next_step="run it as a shadow first, then with a share of the traffic")  # fmt: skip
    return (0.0, request.shadow_share) if request.shadow_share else (request.ab_share, 0.0)


def _traffic_words(share: float, mirror: float, policy: ThresholdPolicy) -> str:
    """What each device gives it, for the end of a sentence.

    >>> _traffic_words(0.1, 0.0, ThresholdPolicy()), _traffic_words(1.0, 0.0, ThresholdPolicy())
    (', on 10% of the traffic of each', '')
    >>> _traffic_words(0.0, 0.1, ThresholdPolicy(shadow_memory_bytes=200_000_000))
    ", as a shadow on 10% of the inputs of each, within 25% of a processor's time and 200 MB of memory"
    """
    if mirror:
        memory_bytes = policy.shadow_memory_bytes
        memory = f" and {memory_bytes / 1e6:g} MB of memory" if memory_bytes else ""
        budget = f"within {100 * policy.shadow_cpu_ratio:.3g}% of a processor's time{memory}"
        return f", as a shadow on {mirror:.0%} of the inputs of each, {budget}"
    return f", on {share:.0%} of the traffic of each" if share < 1.0 else ""


def _find_same(connection: Connection, request: RolloutRequest) -> Rollout | None:
    """A running rollout that this request has made: its answer may have been lost on the way."""
    traffic = _traffic(request)
    wanted = (request.model, request.version, request.filter, parse_policy(request.policy), traffic)
    for known in rollouts.in_states(connection, [RolloutState.RUNNING]):
        if (known.model, known.version, known.filter, known.policy, (known.share, known.mirror)) != wanted:
            continue
        for made in rollouts.decisions(connection, f"rollout/{known.id}"):
            same_stages = made.kind == "created" and made.evidence["request"]["stages"] == request.stages
            if same_stages and request.seed in (None, known.seed):
                return known
    return None


def _wanted(connection: Connection, request: RolloutRequest) -> ReleaseSet:
    wanted = release_sets.find(connection, request.model, request.version)
    if wanted is None:
        raise ConfigError(
            "no such release",
            key=f"{request.model} {request.version}",
            expected=release_sets.known_words(connection),
            next_step="edgeship releases add BUNDLE",
        )
    if wanted.state == releases.BLOCKED:
        raise ConfigError(
            f"the release is blocked: {wanted.blocked_reason}",
            key=f"{request.model} {request.version}",
            next_step=f"edgeship explain rollout/{wanted.blocked_by}",
        )
    if wanted.label and _traffic(request) != (1.0, 0.0):
        raise ConfigError(
            "a release of several models switches as one: it cannot share the traffic or run as a shadow",
            key="shadow_share" if request.shadow_share else "ab_share",
            next_step="try a model alone beside the version that runs, before it is joined with the others",
        )
    return wanted


def _check_alone(connection: Connection, wanted: ReleaseSet) -> None:
    models = {part.model for part in wanted.parts}
    for other in rollouts.in_states(connection, _LIVE):
        shared = sorted(models & {part.model for part in other.parts})
        if not shared:
            continue
        same = "the same model" if not (wanted.label or other.is_joint) else " and ".join(shared)
        raise ConfigError(
            f"{other.id} of {same} is {other.state.value.replace('_', ' ')}",
            key=wanted.name,
            next_step=f"edgeship rollouts status {other.id} --watch",
        )


def _check_reach(
    request: RolloutRequest, planned: list[PlannedDevice], drawn: dict[str, int], stage_count: int
) -> None:
    """A rollout without devices would pass on no data, and one without canaries would skip its first stage."""
    if not planned:
        tags = ", ".join(f"{tag}={value}" for tag, value in request.filter.items())
        raise ConfigError(
            f"no device has {tags}" if tags else "no device is known yet", next_step="edgeship devices list"
        )
    if not drawn:
        counts: dict[str, int] = {}
        for device in planned:
            words = "already run it" if device.state is DeviceState.ALREADY_RUNNING else device.reason
            counts[words] = counts.get(words, 0) + 1
        found = "; ".join(f"{count}: {words}" for words, count in sorted(counts.items()))
        raise ConfigError(f"no device to reach ({found})", next_step="edgeship devices list")
    if stage_count > 1 and 0 not in drawn.values():
        raise ConfigError("no device may be a canary: each has an open incident", next_step="edgeship incidents list")


def _without_empty(shares: tuple[float, ...], drawn: dict[str, int]) -> tuple[tuple[float, ...], dict[str, int]]:
    """Leave out stages that nobody was drawn for: there would be nothing to judge in them.

    >>> _without_empty((0.2, 0.5, 1.0), {"a": 0, "b": 2})
    ((0.2, 1.0), {'a': 0, 'b': 1})
    """
    kept = [index for index in range(len(shares)) if index not in empty_stages(drawn, len(shares))]
    renumbered = {index: position for position, index in enumerate(kept)}
    stages = [shares[index] for index in kept[:-1]] + [1.0]
    return tuple(stages), {device_id: renumbered[index] for device_id, index in drawn.items()}


def _start_sentence(wanted: ReleaseSet, planned: list[PlannedDevice], stage_count: int) -> str:
    reached = [device for device in planned if device.state is DeviceState.QUEUED]
    canaries = sum(device.stage_index == 0 for device in reached)
    left_out = len(planned) - len(reached)
    fleet, stages = counted(len(reached), "device"), counted(stage_count, "stage")
    held = f" ({', '.join(f'{part.model} {part.version}' for part in wanted.parts)})" if wanted.label else ""
    sentence = f"{wanted.name} {wanted.version}{held} goes to {fleet} in {stages}"
    if stage_count > 1:
        sentence += f", {canaries} of them first"
    return sentence + (f"; {left_out} not reached: no variant, or they run it already" if left_out else "")


def _read(connection: Connection, rollout_id: str, change: Change) -> Rollout:
    rollout = rollouts.find(connection, rollout_id)
    if rollout is None:
        known = ", ".join(each.id for each in rollouts.list_all(connection)) or "none"
        raise ConfigError("no such rollout", key=rollout_id, expected=known, next_step="edgeship rollouts list")
    if change.revision is not None and change.revision != rollout.revision:
        raise rollouts.Conflict(
            "the rollout was changed meanwhile",
            key=rollout_id,
            expected=f"revision {rollout.revision}",
            got=f"revision {change.revision}",
            next_step=f"edgeship rollouts status {rollout_id}",
        )
    return rollout


def _save(
    context: ServerContext, connection: Connection, rollout: Rollout, kind: str, sentence: str, **changes: Any
) -> Rollout:
    changed = rollouts.save(connection, rollout, reason=sentence, updated_at_s=context.clock(), **changes)
    decide(context, connection, changed, kind, sentence, {"from": rollout.state.value, "to": changed.state.value})
    return changed


def _by(word: str, change: Change) -> str:
    return f"{word} by {change.by}" + (f": {change.reason}" if change.reason else "")
