"""States of a rollout, its stages and its devices, and the tables of the steps between them.

A table is data: what it does not list is either absorbed (a device's reports repeat and overtake each other) or an
:class:`IllegalTransition` (an operator or the server asked for a step that does not exist).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar

from edgeship_agent.contract.errors import IllegalTransition
from edgeship_agent.contract.messages import UpdateState

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class DeviceState(StrEnum):
    """One device within a rollout, as the server sees it."""

    QUEUED = "queued"
    OFFERED = "offered"
    IN_PROGRESS = "in_progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"
    NO_VARIANT = "no_variant"
    ALREADY_RUNNING = "already_running"
    REMOVED = "removed"
    OFFLINE_UNREACHED = "offline_unreached"  # never got the offer: no failure
    LOST_AFTER_ACTIVATE = "lost_after_activate"  # silent after activation: a failure
    REGRESSED = "regressed"  # succeeded, and was seen with another digest later

    @property
    def is_pending(self) -> bool:
        """Whether the device still has something to do."""
        return self in _PENDING

    @property
    def is_failure(self) -> bool:
        """Whether it counts against the release."""
        return self in _FAILURES

    @property
    def is_reached(self) -> bool:
        """Whether the offer arrived: the denominator of a share of failed devices."""
        return self not in _UNREACHED


_PENDING: Final = frozenset({DeviceState.QUEUED, DeviceState.OFFERED, DeviceState.IN_PROGRESS})
_FAILURES: Final = frozenset(
    {
        DeviceState.FAILED,
        DeviceState.ROLLED_BACK,
        DeviceState.TIMED_OUT,
        DeviceState.LOST_AFTER_ACTIVATE,
        DeviceState.REGRESSED,
    }
)
_UNREACHED: Final = frozenset(
    {
        DeviceState.QUEUED,
        DeviceState.NO_VARIANT,
        DeviceState.ALREADY_RUNNING,
        DeviceState.REMOVED,
        DeviceState.OFFLINE_UNREACHED,
    }
)


class RolloutState(StrEnum):
    """A rollout as a whole."""

    DRAFT = "draft"
    VALIDATED = "validated"
    WAITING_APPROVAL = "waiting_approval"
    DENIED = "denied"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    HALTED = "halted"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ROLLBACK_INCOMPLETE = "rollback_incomplete"
    ABORTED = "aborted"

    @property
    def is_active(self) -> bool:
        """Whether the server still has something to do for it."""
        return self not in _ENDED


_ENDED: Final = frozenset(
    {
        RolloutState.DENIED,
        RolloutState.COMPLETED,
        RolloutState.ROLLED_BACK,
        RolloutState.ROLLBACK_INCOMPLETE,
        RolloutState.ABORTED,
    }
)


class PauseReason(StrEnum):
    """Why a rollout is paused."""

    MANUAL = "manual"
    GATE = "gate"
    INCONCLUSIVE = "inconclusive"
    WINDOW = "window"


class StageState(StrEnum):
    """One stage of a rollout."""

    PENDING = "pending"
    OFFERING = "offering"
    SOAKING = "soaking"
    JUDGING = "judging"
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


class RolloutEvent(StrEnum):
    """What moves a rollout."""

    VALIDATE = "validate"
    ASK_APPROVAL = "ask_approval"
    APPROVE = "approve"
    DENY = "deny"
    SCHEDULE = "schedule"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    COMPLETE = "complete"  # the last stage passed
    HALT = "halt"  # a gate is broken
    ROLL_BACK = "roll_back"  # the goals that name the old version are out
    RESTORED = "restored"  # every device reports the old digest loaded
    ROLLBACK_DEADLINE = "rollback_deadline"  # not every device did in time
    ABORT = "abort"


class StageEvent(StrEnum):
    """What moves a stage."""

    OFFER = "offer"
    SOAK = "soak"  # the first device has activated it
    JUDGE = "judge"
    PROMOTE = "promote"
    HOLD = "hold"
    PAUSE = "pause"
    HALT = "halt"
    RESUME = "resume"
    REGRESS = "regress"  # a device that had succeeded runs something else


class DeviceEvent(StrEnum):
    """What moves a device within a rollout."""

    OFFER = "offer"  # the goal was published
    PROGRESS = "progress"  # a report of a state that is not terminal
    COMMITTED = "committed"  # ... and the digest that is loaded is the one that was offered
    WRONG_DIGEST = "wrong_digest"  # committed, or seen later, with another digest loaded
    FAILED = "failed"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"
    UNREACHED = "unreached"  # deadline, and the offer never arrived
    TIMED_OUT = "timed_out"  # deadline, between offer and activation
    LOST = "lost"  # deadline, silent after activation
    NO_VARIANT = "no_variant"
    ALREADY_RUNNING = "already_running"
    REMOVED = "removed"
    RESTORED = "restored"  # the fleet-wide rollback is loaded on it
    RETRY = "retry"  # an operator asks for a new attempt


_ROLLOUT: Final[dict[RolloutState, dict[RolloutEvent, RolloutState]]] = {
    RolloutState.DRAFT: {
        RolloutEvent.VALIDATE: RolloutState.VALIDATED,
        RolloutEvent.ABORT: RolloutState.ABORTED,
    },
    RolloutState.VALIDATED: {
        RolloutEvent.ASK_APPROVAL: RolloutState.WAITING_APPROVAL,
        RolloutEvent.SCHEDULE: RolloutState.SCHEDULED,
        RolloutEvent.START: RolloutState.RUNNING,
        RolloutEvent.ABORT: RolloutState.ABORTED,
    },
    RolloutState.WAITING_APPROVAL: {
        RolloutEvent.APPROVE: RolloutState.SCHEDULED,
        RolloutEvent.DENY: RolloutState.DENIED,
        RolloutEvent.ABORT: RolloutState.ABORTED,
    },
    RolloutState.SCHEDULED: {
        RolloutEvent.START: RolloutState.RUNNING,
        RolloutEvent.ABORT: RolloutState.ABORTED,
    },
    RolloutState.RUNNING: {
        RolloutEvent.PAUSE: RolloutState.PAUSED,
        RolloutEvent.COMPLETE: RolloutState.COMPLETED,
        RolloutEvent.HALT: RolloutState.HALTED,
        RolloutEvent.ROLL_BACK: RolloutState.ROLLING_BACK,
        RolloutEvent.ABORT: RolloutState.ABORTED,
    },
    RolloutState.PAUSED: {
        RolloutEvent.RESUME: RolloutState.RUNNING,
        RolloutEvent.HALT: RolloutState.HALTED,
        RolloutEvent.ROLL_BACK: RolloutState.ROLLING_BACK,
        RolloutEvent.ABORT: RolloutState.ABORTED,
    },
    RolloutState.HALTED: {RolloutEvent.ROLL_BACK: RolloutState.ROLLING_BACK},
    RolloutState.ROLLING_BACK: {
        RolloutEvent.RESTORED: RolloutState.ROLLED_BACK,
        RolloutEvent.ROLLBACK_DEADLINE: RolloutState.ROLLBACK_INCOMPLETE,
    },
    RolloutState.ROLLBACK_INCOMPLETE: {
        RolloutEvent.RESTORED: RolloutState.ROLLED_BACK,  # an offline device came back
        RolloutEvent.ROLL_BACK: RolloutState.ROLLING_BACK,
    },
    RolloutState.COMPLETED: {RolloutEvent.ROLL_BACK: RolloutState.ROLLING_BACK},
    RolloutState.ABORTED: {RolloutEvent.ROLL_BACK: RolloutState.ROLLING_BACK},
    RolloutState.DENIED: {},
    RolloutState.ROLLED_BACK: {},
}

_UNDECIDED_STAGE: Final = {
    StageEvent.HALT: StageState.FAILED,
    StageEvent.PAUSE: StageState.INCONCLUSIVE,
}
_STAGE: Final[dict[StageState, dict[StageEvent, StageState]]] = {
    StageState.PENDING: {StageEvent.OFFER: StageState.OFFERING},
    StageState.OFFERING: {
        **_UNDECIDED_STAGE,
        StageEvent.SOAK: StageState.SOAKING,
        StageEvent.JUDGE: StageState.JUDGING,
        StageEvent.HOLD: StageState.OFFERING,
    },
    StageState.SOAKING: {
        **_UNDECIDED_STAGE,
        StageEvent.JUDGE: StageState.JUDGING,
        StageEvent.HOLD: StageState.SOAKING,
    },
    StageState.JUDGING: {
        **_UNDECIDED_STAGE,
        StageEvent.PROMOTE: StageState.PASSED,
        StageEvent.HOLD: StageState.SOAKING,
    },
    StageState.PASSED: {StageEvent.REGRESS: StageState.JUDGING},
    StageState.INCONCLUSIVE: {
        StageEvent.RESUME: StageState.SOAKING,
        StageEvent.HALT: StageState.FAILED,
    },
    StageState.FAILED: {},
}

#: Where a report leads from every state that is not terminal.
_REPORTED: Final[dict[DeviceEvent, DeviceState]] = {
    DeviceEvent.PROGRESS: DeviceState.IN_PROGRESS,
    DeviceEvent.COMMITTED: DeviceState.SUCCEEDED,
    DeviceEvent.WRONG_DIGEST: DeviceState.FAILED,
    DeviceEvent.FAILED: DeviceState.FAILED,
    DeviceEvent.REJECTED: DeviceState.REJECTED,
    DeviceEvent.ROLLED_BACK: DeviceState.ROLLED_BACK,
    DeviceEvent.CANCELED: DeviceState.CANCELED,
    DeviceEvent.SUPERSEDED: DeviceState.SUPERSEDED,
    DeviceEvent.REMOVED: DeviceState.REMOVED,
    DeviceEvent.RESTORED: DeviceState.ROLLED_BACK,
}
_RETRY: Final = {DeviceEvent.RETRY: DeviceState.QUEUED}
_ENDED_BADLY: Final = {**_RETRY, DeviceEvent.RESTORED: DeviceState.ROLLED_BACK}
_DEVICE: Final[dict[DeviceState, dict[DeviceEvent, DeviceState]]] = {
    DeviceState.QUEUED: {
        **_REPORTED,
        DeviceEvent.OFFER: DeviceState.OFFERED,
        DeviceEvent.NO_VARIANT: DeviceState.NO_VARIANT,
        DeviceEvent.ALREADY_RUNNING: DeviceState.ALREADY_RUNNING,
        DeviceEvent.UNREACHED: DeviceState.OFFLINE_UNREACHED,
    },
    DeviceState.OFFERED: {
        **_REPORTED,
        DeviceEvent.UNREACHED: DeviceState.OFFLINE_UNREACHED,
        DeviceEvent.TIMED_OUT: DeviceState.TIMED_OUT,
        DeviceEvent.LOST: DeviceState.LOST_AFTER_ACTIVATE,
    },
    DeviceState.IN_PROGRESS: {
        **_REPORTED,
        DeviceEvent.TIMED_OUT: DeviceState.TIMED_OUT,
        DeviceEvent.LOST: DeviceState.LOST_AFTER_ACTIVATE,
    },
    # it never got the offer, so what it says when it comes back is news
    DeviceState.OFFLINE_UNREACHED: {**_REPORTED, **_RETRY},
    DeviceState.SUCCEEDED: {
        DeviceEvent.WRONG_DIGEST: DeviceState.REGRESSED,
        DeviceEvent.ROLLED_BACK: DeviceState.REGRESSED,
        DeviceEvent.REMOVED: DeviceState.REMOVED,
        DeviceEvent.RESTORED: DeviceState.ROLLED_BACK,
    },
    DeviceState.FAILED: _ENDED_BADLY,
    DeviceState.REJECTED: _ENDED_BADLY,
    DeviceState.TIMED_OUT: _ENDED_BADLY,
    DeviceState.LOST_AFTER_ACTIVATE: _ENDED_BADLY,
    DeviceState.REGRESSED: _ENDED_BADLY,
    DeviceState.ROLLED_BACK: _RETRY,
    DeviceState.CANCELED: _RETRY,
    DeviceState.SUPERSEDED: {},
    DeviceState.NO_VARIANT: {},
    DeviceState.ALREADY_RUNNING: {},
    DeviceState.REMOVED: {},
}

_EVENT_OF: Final[dict[UpdateState, DeviceEvent]] = {
    UpdateState.COMMITTED: DeviceEvent.COMMITTED,
    UpdateState.ROLLED_BACK: DeviceEvent.ROLLED_BACK,
    UpdateState.INCONSISTENT: DeviceEvent.FAILED,
    UpdateState.REJECTED: DeviceEvent.REJECTED,
    UpdateState.FAILED_CLEAN: DeviceEvent.FAILED,
    UpdateState.CANCELED: DeviceEvent.CANCELED,
    UpdateState.SUPERSEDED: DeviceEvent.SUPERSEDED,
}


def rollout_transition(state: RolloutState, event: RolloutEvent) -> RolloutState:
    """The state of a rollout after an event.

    Raises:
        IllegalTransition: a rollout in this state knows no such step.

    >>> rollout_transition(RolloutState.RUNNING, RolloutEvent.HALT).value
    'halted'
    """
    return _step(_ROLLOUT[state], state, event, "rollout")


def stage_transition(state: StageState, event: StageEvent) -> StageState:
    """The state of a stage after an event.

    Raises:
        IllegalTransition: a stage in this state knows no such step.

    >>> stage_transition(StageState.JUDGING, StageEvent.HOLD).value
    'soaking'
    """
    return _step(_STAGE[state], state, event, "stage")


def device_transition(state: DeviceState, event: DeviceEvent) -> DeviceState:
    """The state of a device after an event; an event that its state does not know is absorbed.

    Messages repeat and overtake each other, so a late or doubled report is no error: it changes nothing. The order
    of the reports of one attempt is the caller's to keep, by (attempt, seq).

    >>> device_transition(DeviceState.IN_PROGRESS, DeviceEvent.COMMITTED).value
    'succeeded'
    >>> device_transition(DeviceState.FAILED, DeviceEvent.COMMITTED).value
    'failed'
    >>> device_transition(DeviceState.SUCCEEDED, DeviceEvent.WRONG_DIGEST).value
    'regressed'
    """
    return _DEVICE[state].get(event, state)


def device_event(state: UpdateState, *, digest_matches: bool) -> DeviceEvent:
    """What a device's report means for its place in the rollout.

    Args:
        state: the reported state of the update attempt.
        digest_matches: whether the digest that is *loaded* is the one that was offered; looked at when committed.

    >>> device_event(UpdateState.COMMITTED, digest_matches=False).value
    'wrong_digest'
    >>> device_event(UpdateState.DOWNLOADING, digest_matches=False).value
    'progress'
    """
    if state is UpdateState.COMMITTED and not digest_matches:
        return DeviceEvent.WRONG_DIGEST
    return _EVENT_OF.get(state, DeviceEvent.PROGRESS)


def deadline_event(*, heard_since_offer: bool, activated: bool) -> DeviceEvent:
    """What it means that a device has not come to an end by its deadline.

    Args:
        heard_since_offer: a report or a birth that names the offered generation arrived.
        activated: it reported that the new version was activated.

    >>> deadline_event(heard_since_offer=False, activated=False).value
    'unreached'
    """
    if activated:
        return DeviceEvent.LOST
    return DeviceEvent.TIMED_OUT if heard_since_offer else DeviceEvent.UNREACHED


def _step(row: dict[E, S], state: S, event: E, subject: str) -> S:
    if event not in row:
        raise IllegalTransition(
            f"a {subject} that is {state.value} cannot {event.value.replace('_', ' ')}",
            expected=", ".join(known.value for known in row) or "nothing: this is an end",
            got=event.value,
        )
    return row[event]
