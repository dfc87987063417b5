"""One update attempt as the journal keeps it: everything that a restarted agent needs to go on."""

from __future__ import annotations

from msgspec import Struct, field, structs

from edgeship_agent.contract.goal import ArmGoal, ModelGoal, Probation
from edgeship_agent.contract.messages import PROTOCOL_VERSION, UpdateReport, UpdateState
from edgeship_agent.update.traffic import MAIN_ARM, Traffic, traffic_of


class AttemptKey(Struct, frozen=True, kw_only=True):
    """What tells attempts apart."""

    deployment: str
    attempt: int
    model: str
    arm: str
    digest: str


class Member(Struct, frozen=True, kw_only=True):
    """One model of a release, as every attempt of that release names it: any of them can tell who is missing."""

    model: str
    version: str
    digest: str
    size_bytes: int


class Attempt(Struct, frozen=True, kw_only=True):
    """A snapshot of an attempt; the newest one of a key counts.

    Attributes:
        previous_digest, previous_version: what a rollback goes to; empty for none (a first install).
        seq: counts the reports of (deployment, attempt) from 1.
        transitions: entries into states so far, repeats after a restart included.
        crashes: deaths of worker or agent in probation so far.
        traffic: what the arm gets once it is active.
        release: that several models are switched together for; empty for a model alone.
        members: of that release, this model among them.
    """

    deployment: str
    attempt: int
    model: str
    arm: str
    version: str
    digest: str
    size_bytes: int
    state: UpdateState = UpdateState.IDLE
    reason: str = ""
    detail: str = ""
    loaded_digest: str = ""
    previous_digest: str = ""
    previous_version: str = ""
    seq: int = 0
    transitions: int = 0
    crashes: int = 0
    at_s: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    without_field_traffic: bool = False
    is_rollback: bool = False
    force: bool = False
    probation_inferences: int = 100
    probation_duration_s: float = 60.0
    probation_deadline_s: float = 600.0
    probation_max_failed_ratio: float = 0.01
    probation_latency_p99_ms: float = 0.0
    traffic: Traffic = Traffic()
    release: str = ""
    members: tuple[Member, ...] = ()

    @property
    def key(self) -> AttemptKey:
        """What tells it apart from other attempts."""
        return AttemptKey(
            deployment=self.deployment, attempt=self.attempt, model=self.model, arm=self.arm, digest=self.digest
        )

    @property
    def probation(self) -> Probation:
        """The limits that the goal set."""
        return Probation(
            inferences=self.probation_inferences,
            duration_s=self.probation_duration_s,
            deadline_s=self.probation_deadline_s,
            max_failed_ratio=self.probation_max_failed_ratio,
            latency_p99_ms=self.probation_latency_p99_ms,
        )


def new_attempt(goal: ModelGoal, arm: ArmGoal, *, arm_name: str = MAIN_ARM) -> Attempt:
    """The attempt that a goal asks for, not yet accepted."""
    return Attempt(
        deployment=goal.deployment,
        attempt=goal.attempt,
        model=goal.model,
        arm=arm_name,
        version=arm.version,
        digest=arm.digest,
        size_bytes=arm.size_bytes,
        is_rollback=goal.is_rollback,
        force=goal.force,
        probation_inferences=goal.probation.inferences,
        probation_duration_s=goal.probation.duration_s,
        probation_deadline_s=goal.probation.deadline_s,
        probation_max_failed_ratio=goal.probation.max_failed_ratio,
        probation_latency_p99_ms=goal.probation.latency_p99_ms,
        traffic=traffic_of(arm),
        release=goal.release,
    )


def entered(attempt: Attempt, state: UpdateState, **changes: object) -> Attempt:
    """The next snapshot: one more transition and one more report; reason and detail start afresh.

    >>> arm = ArmGoal(version="1", digest="x", size_bytes=1)
    >>> start = new_attempt(ModelGoal(model="m", arms=(arm,), deployment="d"), arm)
    >>> entered(start, UpdateState.ACCEPTED).seq
    1
    """
    values: dict[str, object] = {"reason": "", "detail": "", **changes}
    return structs.replace(attempt, state=state, seq=attempt.seq + 1, transitions=attempt.transitions + 1, **values)


def report_of(attempt: Attempt, device_id: str, session: int) -> UpdateReport:
    """The message that tells the server about a snapshot."""
    return UpdateReport(
        protocol_version=PROTOCOL_VERSION,
        device_id=device_id,
        deployment=attempt.deployment,
        attempt=attempt.attempt,
        seq=attempt.seq,
        model=attempt.model,
        arm=attempt.arm,
        version=attempt.version,
        digest=attempt.digest,
        state=attempt.state,
        reason=attempt.reason,
        detail=attempt.detail,
        loaded_digest=attempt.loaded_digest,
        at_s=attempt.at_s,
        figures=attempt.figures,
        without_field_traffic=attempt.without_field_traffic,
        session=session,
    )
