"""Why a device did not take an update, or gave it back: its own report, told with the rule behind the reason code."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, select

from edgeship.rollout import RELEASE_MEMBER, device_event, device_transition
from edgeship.rollout.states import DeviceState
from edgeship.server.device_reports import REFUSED_GOAL, end_sentence
from edgeship.server.explanation import Explanation, Rule, replayed
from edgeship.server.store import reports, rollouts, schema
from edgeship.server.store.rollouts import Decision
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.messages import UpdateReport, UpdateState

#: Reason code of the device → (the rule, what to do).
RULES: Final[dict[str, tuple[str, str]]] = {
    "no_variant": ("the bundle has a variant for the device's target", "build with -t for that target"),
    "arch": ("the variant is for the device's architecture", "correct the target in the device's agent.toml"),
    "runtime_missing": ("the variant's runtime is installed on the device", "install the runtime on the device"),
    "runtime_version": ("the runtime's version is in the range that was verified", "update the runtime on the device"),
    "memory": ("the worker's measured memory fits into what is free", "choose a smaller variant for this target"),
    "disk": ("the state directory has room for both slots and the reserve", "free disk space on the device"),
    "output_contract": (
        "the application accepts the bundle's output contract (labels in order, units, thresholds, postprocessing)",
        "update the application and what it accepts in agent.toml first, or keep the contract",
    ),
    "retained_contract": (
        "the application also accepts the contract of the bundle that a rollback would go to",
        "let the application accept both contracts until the update is committed",
    ),
    "golden_mismatch": (
        "the golden inputs give the golden outputs within the tolerance in the manifest",
        "verify the bundle on this hardware; its runtime computes something else",
    ),
    "golden_crash": ("the model survives its golden inputs in a throw-away process", "the model crashes its runtime"),
    "golden_error": (
        "the runtime opens the model and answers the golden inputs",
        "read the detail: the runtime says why",
    ),
    "golden_timeout": ("the golden inputs are answered in time", "the model is too slow for this device"),
    "known_bad": ("this bundle has not failed on this device before", "ship a new version: this one is remembered"),
    "untrusted": (
        "the update repository vouches for the bundle",
        "compare root.json and goal key in agent.toml with the server's DATA/trust",
    ),
    "unreachable": ("the server can be reached", "check server_url in agent.toml and the network"),
    "download": ("every file can be downloaded", "check the network between device and server"),
    "digest_mismatch": ("what was downloaded has the digest that was signed", "check caches and proxies in between"),
    "crash_loop": ("the worker does not die three times in probation", "run the variant on the desk and read its log"),
    "failed_calls": (
        "failed calls in probation stay below the limit",
        "look at the device's log for the first failure",
    ),
    "latency": ("p99 in probation stays below the limit", "choose a faster variant, or raise the limit knowingly"),
    "activation": ("the new model's files are whole when they are switched to", "check the device's disk"),
    "activation_failed": ("the new model's worker starts and answers", "read the worker's last words in the detail"),
    "no_answer": ("the worker answers the golden inputs in probation", "read the agent's log of the device"),
    "rollback_requested": ("the server has not taken the version back", "explain the rollout: it was halted"),
    "loop": ("an attempt ends within 32 steps", "read the agent's log: something fails and is tried again"),
    "damaged": ("what was staged is still what was verified", "check the device's disk"),
    "previous_damaged": ("the bundle that a rollback would go to is whole", "check the device's disk"),
    "previous_lost": (
        "the bundle that a rollback would go to is on the device",
        "roll out the version that it should run",
    ),
    "bad_bundle": ("the bundle follows the contract", "verify it: edgeship verify BUNDLE"),
    "wrong_bundle": ("the bundle has the name and version of the goal", "add the release again"),
    "arms_unsupported": ("the agent serves as many versions at once as the goal names", "update the agent"),
    "goal_bad_signature": (
        "a goal state is signed with the goal key of the device's configuration",
        "compare goal_key in agent.toml with the server's DATA/trust/goal.pub; if they match, a stranger writes goals",
    ),
    "goal_wrong_device": ("a goal state names the device that it reaches", "look for who publishes to its topics"),
    "goal_expired": ("a goal state has not expired", "check the clocks of device and server"),
    "goal_lower_generation": (
        "the generation of a device's goal states only grows",
        "an old goal was replayed, or the server was restored from an older copy",
    ),
    "goal_conflicting_generation": (
        "one generation has one content",
        "two servers sign with one key, or the server was restored from an older copy",
    ),
    "goal_unreadable": ("a goal state can be read", "look for who publishes to the device's topics"),
    RELEASE_MEMBER: (
        "every model of a release takes the update, or none",
        "read the detail: it names the model that ended the update, and explain that one",
    ),
    "wrong_digest": (
        "the digest that is loaded is the one that was offered",
        "look at the device: it runs something else",
    ),
}
_OTHER: Final = ("the device can take the update", "read the device's detail and its log")


def explain_refusal(connection: Connection, device_id: str, attempt: str) -> Explanation:
    """Explain how an update attempt of a device ended.

    Args:
        connection: of any transaction.
        device_id: the device.
        attempt: ``<rollout>.<number>``, ``<rollout>``, a number (the newest rollout's), or empty for the newest.

    Raises:
        ConfigError: this device refused nothing of that name.
    """
    decision = _find(connection, device_id, attempt)
    report = read_report(decision.evidence["report"])
    rule, advice = RULES.get(report.reason, _OTHER)
    name = f"{report.deployment}.{report.attempt}"
    limit = next((value for key, value in report.figures.items() if key.endswith("_limit")), None)
    measured = next((value for key, value in report.figures.items() if f"{key}_limit" in report.figures), None)
    return Explanation(
        id=f"refusal/{device_id}/{name}",
        sentence=decision.sentence,
        state=report.state.value,
        decided_at_s=decision.at_s,
        window=f"attempt {report.attempt} of {report.deployment}: report {report.seq} of the device",
        rules=[
            Rule(
                id=report.reason or report.state.value,
                rule=rule,
                value=measured,
                limit=limit,
                low=None,
                high=None,
                n=int(report.figures.get("inferences", 0)),
                holds=False,
                devices=(device_id,),
                sentence=report.detail or report.reason.replace("_", " "),
            )
        ],
        advice=advice[0].upper() + advice[1:] + ".",
        replay=replayed(_replay(connection, report, decision)),
        history=[_step(each) for each in _reports(connection, report)],
        next_steps=_next_steps(report),
    )


def _reports(connection: Connection, report: UpdateReport) -> list[UpdateReport]:
    return reports.of_attempt(connection, report.device_id, report.deployment, report.attempt, report.model)


def _next_steps(report: UpdateReport) -> list[str]:
    steps = [f"edgeship devices show {report.device_id}"]
    if report.deployment == REFUSED_GOAL:
        return steps
    return [*steps, f"edgeship explain rollout/{report.deployment.split('-')[0]}"]


def read_report(fields: dict[str, Any]) -> UpdateReport:
    """A report from stored evidence; fields that this version does not know are ignored."""
    known = {name: value for name, value in fields.items() if name in UpdateReport.__struct_fields__}
    return UpdateReport(**{**known, "state": UpdateState(known["state"])})


def _find(connection: Connection, device_id: str, attempt: str) -> Decision:
    table = schema.decisions
    prefix = f"refusal/{device_id}/"
    query = select(table).where(table.c.subject.startswith(prefix, autoescape=True))
    rows = connection.execute(query.order_by(table.c.at_s.desc(), table.c.id.desc()))
    found = [rollouts.as_decision(row) for row in rows]
    for decision in found:
        deployment, _, number = decision.subject.removeprefix(prefix).rpartition(".")
        if attempt in ("", deployment, number, f"{deployment}.{number}"):
            return _cause([each for each in found if each.subject == decision.subject])
    known = ", ".join(dict.fromkeys(each.subject.removeprefix(prefix) for each in found)) or "none"
    raise ConfigError(
        "this device refused no such attempt",
        key=f"{prefix}{attempt}",
        expected=known,
        next_step=f"edgeship devices show {device_id}",
    )


def _cause(decisions: list[Decision]) -> Decision:
    """Of one attempt, newest first, the decision about the model that ended first by itself: its siblings followed."""
    own = [each for each in decisions if each.evidence["report"].get("reason") != RELEASE_MEMBER]
    return own[0] if own else decisions[0]


def _replay(connection: Connection, report: UpdateReport, decision: Decision) -> bool:
    """Whether the stored report still leads to the same end and the same words."""
    rollout = rollouts.find(connection, report.deployment)
    if rollout is None:
        return report.detail in decision.sentence  # a rollback's report: it moves no state
    matches = any((report.model, report.loaded_digest) == (part.model, part.digest) for part in rollout.parts)
    state = device_transition(DeviceState.IN_PROGRESS, device_event(report.state, digest_matches=matches))
    return end_sentence(report, state) == decision.sentence


def _step(report: UpdateReport) -> str:
    words = report.detail or report.reason.replace("_", " ")
    return report.state.value + (f": {words}" if words else "")
