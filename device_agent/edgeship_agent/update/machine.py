"""The update table: which step may follow which, and what a restart does in each state.

Pure: no clock, no disk, no network. The shell (:mod:`edgeship_agent.update.updater`) persists a state, acts, persists
the next one and publishes it: a power cut at any point leaves a state that names what to do next.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from edgeship_agent.contract.errors import IllegalTransition
from edgeship_agent.contract.messages import UpdateState

#: Entries into states, repeats after a restart included, that one attempt may make before it is stopped.
MAX_TRANSITIONS: Final = 32
#: Deaths of the worker or of the agent in probation from which on the previous model is restored.
MAX_PROBATION_CRASHES: Final = 3


class Event(str, Enum):
    """What can happen to an attempt."""

    ACCEPT = "accept"  # a new goal asks for it
    ALREADY_RUNNING = "already_running"  # the digest asked for is the one that is loaded
    BEGIN = "begin"
    PASS = "pass"  # the work of the state is done # noqa: S105
    REJECT = "reject"  # the device must not run this bundle
    FAIL = "fail"  # it could not be done
    DAMAGED = "damaged"  # what was downloaded is not what was hashed before
    CLOSED_WINDOW = "closed_window"
    NEEDS_SHADOW = "needs_shadow"
    CANCEL = "cancel"
    SUPERSEDE = "supersede"  # a newer goal asks for something else
    LOST = "lost"  # the previous model cannot be restored


class Restart(str, Enum):
    """What a restarted agent does with an attempt that was in some state."""

    REDO = "redo"  # enter the state again from its beginning
    REHASH = "rehash"  # trust nothing on disk: hash again, then go on
    READ_POINTER = "read_pointer"  # the active pointer says whether the swap happened
    COUNT_CRASH = "count_crash"  # unless the agent was stopped cleanly
    REPEAT_ROLLBACK = "repeat_rollback"  # idempotent, no network
    REPORT_AGAIN = "report_again"


_S = UpdateState

_STEPS: Final[dict[tuple[UpdateState, Event], UpdateState]] = {
    (_S.IDLE, Event.ACCEPT): _S.ACCEPTED,
    (_S.IDLE, Event.ALREADY_RUNNING): _S.COMMITTED,
    (_S.IDLE, Event.REJECT): _S.REJECTED,
    (_S.ACCEPTED, Event.BEGIN): _S.PRECHECK,
    (_S.ACCEPTED, Event.FAIL): _S.FAILED_CLEAN,
    (_S.PRECHECK, Event.PASS): _S.DOWNLOADING,
    (_S.PRECHECK, Event.REJECT): _S.REJECTED,
    (_S.PRECHECK, Event.FAIL): _S.FAILED_CLEAN,
    (_S.DOWNLOADING, Event.PASS): _S.VERIFYING,
    (_S.DOWNLOADING, Event.REJECT): _S.REJECTED,
    (_S.DOWNLOADING, Event.FAIL): _S.FAILED_CLEAN,
    (_S.VERIFYING, Event.PASS): _S.STAGED,
    (_S.VERIFYING, Event.DAMAGED): _S.DOWNLOADING,
    (_S.VERIFYING, Event.REJECT): _S.REJECTED,
    (_S.VERIFYING, Event.FAIL): _S.FAILED_CLEAN,
    (_S.STAGED, Event.PASS): _S.ACTIVATING,
    (_S.STAGED, Event.CLOSED_WINDOW): _S.WAIT_WINDOW,
    (_S.STAGED, Event.NEEDS_SHADOW): _S.SHADOW,
    (_S.STAGED, Event.DAMAGED): _S.DOWNLOADING,
    (_S.STAGED, Event.REJECT): _S.REJECTED,
    (_S.STAGED, Event.FAIL): _S.FAILED_CLEAN,
    (_S.WAIT_WINDOW, Event.PASS): _S.STAGED,
    (_S.WAIT_WINDOW, Event.FAIL): _S.FAILED_CLEAN,
    (_S.SHADOW, Event.PASS): _S.ACTIVATING,
    (_S.SHADOW, Event.REJECT): _S.REJECTED,
    (_S.SHADOW, Event.FAIL): _S.FAILED_CLEAN,
    (_S.ACTIVATING, Event.PASS): _S.PROBATION,
    (_S.ACTIVATING, Event.FAIL): _S.ROLLING_BACK,
    (_S.PROBATION, Event.PASS): _S.COMMITTED,
    (_S.PROBATION, Event.FAIL): _S.ROLLING_BACK,
    (_S.ROLLING_BACK, Event.PASS): _S.ROLLED_BACK,
    (_S.ROLLING_BACK, Event.LOST): _S.INCONSISTENT,
}

_CANCELABLE: Final = (_S.ACCEPTED, _S.PRECHECK, _S.DOWNLOADING, _S.VERIFYING, _S.STAGED, _S.WAIT_WINDOW, _S.SHADOW)

#: (state, event) → state; everything that is not in here is refused.
TABLE: Final[dict[tuple[UpdateState, Event], UpdateState]] = {
    **_STEPS,
    **{(state, Event.CANCEL): _S.CANCELED for state in _CANCELABLE},
    **{(state, Event.SUPERSEDE): _S.SUPERSEDED for state in _CANCELABLE},
}

#: What a restart does with an attempt that died in a state.
RESTART: Final[dict[UpdateState, Restart]] = {
    _S.ACCEPTED: Restart.REDO,
    _S.PRECHECK: Restart.REDO,
    _S.DOWNLOADING: Restart.REDO,
    _S.VERIFYING: Restart.REHASH,
    _S.STAGED: Restart.REHASH,
    _S.WAIT_WINDOW: Restart.REHASH,
    _S.SHADOW: Restart.REHASH,
    _S.ACTIVATING: Restart.READ_POINTER,
    _S.PROBATION: Restart.COUNT_CRASH,
    _S.ROLLING_BACK: Restart.REPEAT_ROLLBACK,
    **{state: Restart.REPORT_AGAIN for state in UpdateState if state.is_terminal},
}


def transition(state: UpdateState, event: Event) -> UpdateState:
    """The state that follows.

    Raises:
        IllegalTransition: the table has no such step; the attempt stays where it is.

    >>> transition(UpdateState.PROBATION, Event.FAIL).value
    'rolling_back'
    >>> transition(UpdateState.PROBATION, Event.CANCEL)
    Traceback (most recent call last):
    edgeship_agent.contract.errors.IllegalTransition: probation: cancel is not possible in this state
    """
    following = TABLE.get((state, event))
    if following is None:
        raise IllegalTransition(f"{event.value} is not possible in this state", key=state.value)
    return following


def can_cancel(state: UpdateState) -> bool:
    """Whether a newer goal or an operator may still take the attempt back.

    >>> can_cancel(UpdateState.STAGED), can_cancel(UpdateState.ACTIVATING)
    (True, False)
    """
    return state in _CANCELABLE


def on_restart(state: UpdateState) -> Restart:
    """What to do with an attempt that a restart found in ``state``.

    >>> on_restart(UpdateState.ACTIVATING).value
    'read_pointer'
    """
    return RESTART[state]


def breaks_loop(state: UpdateState, transitions: int) -> Event | None:
    """The event that ends an attempt which goes round and round, or None while it may go on.

    Rolling back is never stopped: the device must end on a working model.

    >>> breaks_loop(UpdateState.DOWNLOADING, 33).value, breaks_loop(UpdateState.ROLLING_BACK, 99)
    ('fail', None)
    """
    if transitions <= MAX_TRANSITIONS or state.is_terminal or state in (_S.IDLE, _S.ROLLING_BACK):
        return None
    return Event.FAIL
