"""Staged rollouts as pure functions: who gets a release when, which step follows which, and the canary judge."""

from edgeship.rollout.evidence import DeviceEvidence, DriftFigure, GateResult, Verdict, VerdictKind
from edgeship.rollout.judge import judge
from edgeship.rollout.parts import RELEASE_MEMBER, deciding, named
from edgeship.rollout.policy import ThresholdPolicy, parse_policy, parse_stages
from edgeship.rollout.stages import Candidate, draw_stages, empty_stages
from edgeship.rollout.states import (
    DeviceEvent,
    DeviceState,
    PauseReason,
    RolloutEvent,
    RolloutState,
    StageEvent,
    StageState,
    deadline_event,
    device_event,
    device_transition,
    rollout_transition,
    stage_transition,
)

__all__ = [
    "RELEASE_MEMBER",
    "Candidate",
    "DeviceEvent",
    "DeviceEvidence",
    "DeviceState",
    "DriftFigure",
    "GateResult",
    "PauseReason",
    "RolloutEvent",
    "RolloutState",
    "StageEvent",
    "StageState",
    "ThresholdPolicy",
    "Verdict",
    "VerdictKind",
    "deadline_event",
    "deciding",
    "device_event",
    "device_transition",
    "draw_stages",
    "empty_stages",
    "judge",
    "named",
    "parse_policy",
    "parse_stages",
    "rollout_transition",
    "stage_transition",
]
