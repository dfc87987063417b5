"""Why: every verdict with its rule, value, interval, samples, devices and next step, recomputed from what was stored.

``rollout/<id>`` and ``rollout/<id>/<gate>``, ``incident/<id>``, ``refusal/<device>/<attempt>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection

from edgeship.rollout import DeviceEvidence, GateResult, RolloutState, ThresholdPolicy, Verdict, judge
from edgeship.rollout.wording import counted
from edgeship.server.context import ServerContext
from edgeship.server.explanation import IDENTICAL, LIVE, Explanation, Rule, replayed
from edgeship.server.incident_replay import explain_incident
from edgeship.server.refusals import explain_refusal
from edgeship.server.rollout_evaluator import evidence_now
from edgeship.server.rollout_steps import staged
from edgeship.server.store import rollouts
from edgeship.server.store.rollouts import Decision, Rollout
from edgeship_agent.contract.errors import ConfigError

#: Decisions that were made by the judge, so that they carry its evidence.
_JUDGED: Final = frozenset({"halted", "paused_inconclusive", "promoted", "completed"})
_KINDS: Final = "rollout/<id>, rollout/<id>/<gate>, incident/<id>, refusal/<device>/<attempt>, build/<gate>[@DIR]"


def explain(context: ServerContext, subject: str) -> Explanation:
    """Explain something that the server decided.

    Raises:
        ConfigError: no such kind of thing, or no such thing.
    """
    kind, _, rest = subject.strip("/").partition("/")
    with context.read() as connection:
        if kind == "rollout" and rest:
            rollout_id, _, gate = rest.partition("/")
            return _explain_rollout(context, connection, rollout_id, gate)
        if kind == "incident" and rest:
            return explain_incident(context, connection, rest)
        if kind == "refusal" and rest:
            device_id, _, attempt = rest.partition("/")
            return explain_refusal(connection, device_id, attempt)
    raise ConfigError("nothing of that name can be explained", key=subject, expected=_KINDS)


def replay_verdict(evidence: dict[str, Any]) -> Verdict:
    """The verdict that the judge gives today on stored evidence."""
    policy = msgspec.convert(evidence["policy"], ThresholdPolicy)
    devices = msgspec.convert(evidence["devices"], list[DeviceEvidence])
    return judge(policy, devices, elapsed_s=evidence["elapsed_s"])


def _explain_rollout(context: ServerContext, connection: Connection, rollout_id: str, gate: str) -> Explanation:
    rollout = rollouts.find(connection, rollout_id)
    if rollout is None:
        known = ", ".join(each.id for each in rollouts.list_all(connection)) or "none"
        raise ConfigError("no such rollout", key=rollout_id, expected=known, next_step="edgeship rollouts list")
    decision = _newest_verdict(connection, rollout)
    if decision is None:
        now_s = context.clock()
        devices, elapsed_s = evidence_now(context, connection, rollout, now_s)
        verdict = judge(rollout.policy, devices, elapsed_s=elapsed_s)
        decided_at_s, replay, sentence = now_s, LIVE, staged(verdict.sentence, rollout.stage_index)
    else:
        devices = msgspec.convert(decision.evidence["devices"], list[DeviceEvidence])
        verdict = msgspec.convert(decision.evidence["verdict"], Verdict)
        decided_at_s, sentence = decision.at_s, decision.sentence
        replay = replayed(replay_verdict(decision.evidence) == verdict)
    gates = _gates(verdict, gate, rollout_id)
    return Explanation(
        id=f"rollout/{rollout_id}" + (f"/{gate}" if gate else ""),
        sentence=gates[0].sentence if gate else sentence,
        state=rollout.state.value,
        decided_at_s=decided_at_s,
        window=_window(devices),
        rules=[_rule(each) for each in gates],
        advice=_advice(rollout, replay),
        replay=replay,
        history=[f"{each.kind}: {each.sentence}" for each in rollouts.decisions(connection, f"rollout/{rollout_id}")],
        next_steps=_next_steps(rollout, gates),
    )


def _newest_verdict(connection: Connection, rollout: Rollout) -> Decision | None:
    """The newest judged decision; None while a verdict is still being worked on."""
    if rollout.state is RolloutState.RUNNING:
        return None
    judged = [each for each in rollouts.decisions(connection, f"rollout/{rollout.id}") if each.kind in _JUDGED]
    return judged[0] if judged else None


def _gates(verdict: Verdict, gate: str, rollout_id: str) -> Sequence[GateResult]:
    if not gate:
        return verdict.gates
    found = [each for each in verdict.gates if each.id == gate]
    if not found:
        known = ", ".join(each.id for each in verdict.gates)
        raise ConfigError("no such gate", key=f"rollout/{rollout_id}/{gate}", expected=known)
    return found


def _rule(gate: GateResult) -> Rule:
    return Rule(**{name: getattr(gate, name) for name in Rule.__struct_fields__})


def _window(devices: Sequence[DeviceEvidence]) -> str:
    windows = sum(device.windows for device in devices)
    calls = sum(device.calls for device in devices)
    fleet = counted(len({device.device_id for device in devices}), "device")
    return f"{windows} windows with {calls} calls from {fleet}, each since it was offered the release"


def _advice(rollout: Rollout, replay: str) -> str:
    name = f"{rollout.model} {rollout.version}"
    words = {
        RolloutState.RUNNING: "Nothing is decided yet; these are the figures of this moment.",
        RolloutState.PAUSED: "No data is not a pass: find out why open gates have none, then resume or take it back.",
        RolloutState.COMPLETED: "Every gate held. A drift of this version opens incidents from now on.",
    }
    taken_back = f"{name} is blocked and stays blocked: build the mended model as a new version."
    return words.get(rollout.state, taken_back) + ("" if replay in (IDENTICAL, LIVE) else " The replay differs.")


def _next_steps(rollout: Rollout, gates: Sequence[GateResult]) -> list[str]:
    if rollout.state is RolloutState.RUNNING:
        return [f"edgeship rollouts status {rollout.id} --watch"]
    if rollout.state is RolloutState.PAUSED:
        return [f"edgeship rollouts resume {rollout.id}", f"edgeship rollouts rollback {rollout.id}"]
    devices = [device for gate in gates if gate.holds is False for device in gate.devices]
    steps = [f"edgeship devices show {devices[0]}"] if devices else []
    return [*steps, f"edgeship releases show {rollout.model} {rollout.version}"]
