"""The updater: reads as the procedure. Persist, act, persist, publish; the table says which step may follow.

It runs in a thread of its own, one model at a time, and is told the newest goal by :meth:`Updater.submit`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from msgspec import structs

from edgeship_agent.contract.errors import ContractError, EdgeshipError, TransferError, VerificationError
from edgeship_agent.contract.goal import GoalState, ModelGoal
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.update.acquire import Acquirer, Offer
from edgeship_agent.update.activation import Activator
from edgeship_agent.update.attempt import Attempt, entered, new_attempt
from edgeship_agent.update.conditions import METERED
from edgeship_agent.update.download import BlobStore, Interrupted
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.machine import Event, Restart, breaks_loop, can_cancel, on_restart, transition
from edgeship_agent.update.offer import Refusal
from edgeship_agent.update.ports import Publish
from edgeship_agent.update.slots import Slot, Slots, verify_slot, verify_whole
from edgeship_agent.update.state import BadPair, StateFile
from edgeship_agent.update.traffic import MAIN_ARM, arms_of

T = TypeVar("T")

#: How often an update that waits for its window looks again.
_LOOK_S: Final = 5.0
#: Ends of a probation that say nothing against the bundle: it may be tried again, with another budget.
_NO_FAULT: Final = frozenset({"rollback_requested", "shadow_memory"})

#: How an attempt ends when obtaining or downloading its bundle fails for good.
_ENDS: Final[dict[tuple[UpdateState, type[EdgeshipError]], tuple[Event, str]]] = {
    (UpdateState.PRECHECK, TransferError): (Event.FAIL, "unreachable"),
    (UpdateState.PRECHECK, VerificationError): (Event.REJECT, "untrusted"),
    (UpdateState.PRECHECK, ContractError): (Event.REJECT, "bad_bundle"),
    (UpdateState.DOWNLOADING, TransferError): (Event.FAIL, "download"),
    (UpdateState.DOWNLOADING, VerificationError): (Event.FAIL, "digest_mismatch"),
    (UpdateState.DOWNLOADING, ContractError): (Event.REJECT, "bad_bundle"),
}


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How patiently transfers are tried again.

    Attributes:
        attempts: tries of one transfer before the update fails.
        retry_s: pause after the first failure; doubles each time, with jitter, up to ``retry_max_s``.
    """

    attempts: int = 10
    retry_s: float = 1.0
    retry_max_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that the updater works with."""

    journal: Journal
    slots: Slots
    store: BlobStore
    state: StateFile
    acquirer: Acquirer
    activator: Activator
    publish: Publish
    pace: Pace = field(default_factory=Pace)
    why_wait: Callable[[], tuple[str, str]] = lambda: ("", "")
    clock: Callable[[], float] = time.time
    rng: random.Random = field(default_factory=random.Random)


class Updater:
    """Brings the device to its goal and tells what happened.

    Args:
        parts: its collaborators.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._goal: GoalState | None = None
        self._running: GoalState | None = None
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._steps: dict[UpdateState, Callable[[Attempt], Attempt]] = {
            UpdateState.ACCEPTED: lambda attempt: self._enter(attempt, Event.BEGIN),
            UpdateState.PRECHECK: self._precheck,
            UpdateState.DOWNLOADING: self._download,
            UpdateState.VERIFYING: self._verify,
            UpdateState.STAGED: self._staged,
            UpdateState.WAIT_WINDOW: self._wait_window,
            UpdateState.ACTIVATING: self._activate,
            UpdateState.PROBATION: self._probation,
            UpdateState.ROLLING_BACK: self._roll_back,
        }

    # -- from other threads ------------------------------------------------------------------------------------------

    def submit(self, goal: GoalState) -> None:
        """Take the newest goal; what is under way ends first where it cannot be taken back."""
        self._goal = goal
        self._changed.set()

    def stop(self) -> None:
        """Ask the thread to end at the next safe point."""
        self._stopped.set()
        self._changed.set()

    @property
    def is_stopped(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopped.is_set()

    # -- the thread --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Finish what a restart interrupted, then follow every goal."""
        self.resume()
        while not self._stopped.is_set():
            self._changed.wait()
            self._changed.clear()
            goal = self._goal
            if goal is not None and not self._stopped.is_set():
                self.follow(goal)

    def resume(self) -> None:
        """Go on with attempts that the agent did not finish before it ended."""
        for attempt in self._parts.journal.attempts():
            action = on_restart(attempt.state)
            if action is Restart.REPORT_AGAIN or self._stopped.is_set():
                continue
            crashed = action is Restart.COUNT_CRASH and not self._parts.journal.stopped_cleanly
            crashes = attempt.crashes + int(crashed)
            again = structs.replace(attempt, transitions=attempt.transitions + 1, crashes=crashes)
            self._parts.journal.append(again)
            self._finish(again)

    def follow(self, goal: GoalState) -> None:
        """Bring every model to the goal; models that are not in it are served no longer."""
        self._running = goal
        wanted = {model.model for model in goal.models if model.arms}
        for model, arm in self._parts.slots.arms():
            if model not in wanted:
                self._parts.activator.remove(model, arm)
        for model_goal in goal.models:
            if self._goal is not None and self._goal.generation > goal.generation:
                return  # a newer goal waits
            if model_goal.arms:
                if model_goal.is_rollback:
                    self._drop_arms(model_goal)
                self._reconcile(model_goal)
                if self._loaded(new_attempt(model_goal, model_goal.arms[0])) == model_goal.arms[0].digest:
                    self._drop_arms(model_goal)

    def _drop_arms(self, goal: ModelGoal) -> None:
        """Serve no arm that the goal does not name: once its main arm is there, so that a failed update changes none.

        Of a goal that this agent cannot follow everything stays as it is.
        """
        names = [name for name, _ in arms_of(goal)]
        for model, arm in self._parts.slots.arms():
            if model == goal.model and names and arm not in names:
                self._parts.activator.remove(model, arm)

    def bring(self, goal: ModelGoal) -> Attempt:
        """Bring one model to a goal that no server gave; the others stay as they are. Returns how it ended."""
        self._reconcile(goal)
        ended = self._parts.journal.find(new_attempt(goal, goal.arms[0]).key)
        assert ended is not None  # every way through a reconciliation is persisted
        return ended

    def _reconcile(self, goal: ModelGoal) -> None:
        """Bring one arm after the other to the goal, the main arm first: the others are compared with it."""
        starts = _starts(goal)
        if not starts:
            start = new_attempt(goal, goal.arms[-1])
            if self._parts.journal.find(start.key) is None:
                detail = "this agent serves one version, a challenger with a share and a shadow per model"
                self._enter(start, Event.REJECT, reason="arms_unsupported", detail=detail)
            return
        for start in starts:
            if len(starts) > 1 and start.arm == MAIN_ARM and self._loaded(start) == start.digest:
                continue  # only what is new is an attempt
            self._reconcile_arm(goal, start)
            if self._loaded(start) != start.digest:
                return

    def _reconcile_arm(self, goal: ModelGoal, start: Attempt) -> None:
        active = self._parts.slots.active(start.model, start.arm)
        is_active = active is not None and active.info.digest == start.digest
        if active is not None and is_active and start.arm != MAIN_ARM and active.traffic != start.traffic:
            self._parts.activator.share(active, start.traffic)
        known = self._parts.journal.find(start.key)
        if known is not None and (is_active or known.state is not UpdateState.COMMITTED):
            self._finish(known)
            return
        if is_active and self._loaded(start) == start.digest:
            self._enter(start, Event.ALREADY_RUNNING, reason="already_running", without_field_traffic=goal.is_rollback)
            return
        previous = self._parts.slots.retained(start.model, start.arm) if is_active else active
        if previous is not None:
            start = structs.replace(start, previous_digest=previous.info.digest, previous_version=previous.info.version)
        self._finish(self._enter(start, Event.ACCEPT))

    def _finish(self, attempt: Attempt) -> None:
        """Run an attempt to its end; one that has ended is reported again."""
        if attempt.state.is_terminal:
            self._parts.publish(attempt)
            return
        while not self._stopped.is_set():
            attempt = self._ended_early(attempt) or self._steps[attempt.state](attempt)
            if attempt.state.is_terminal:
                self._clean_up(attempt)
                return

    def _ended_early(self, attempt: Attempt) -> Attempt | None:
        broken = breaks_loop(attempt.state, attempt.transitions)
        if broken is not None:
            detail = f"stopped after {attempt.transitions} steps: it went in circles"
            return self._enter(attempt, broken, reason="loop", detail=detail)
        if can_cancel(attempt.state) and self._is_superseded(attempt):
            if self._is_canceled(attempt):
                return self._enter(attempt, Event.CANCEL, reason="canceled", detail="the server takes the update back")
            return self._enter(attempt, Event.SUPERSEDE, reason="superseded", detail="a newer goal asks for another")
        return None

    # -- the steps, in order -----------------------------------------------------------------------------------------

    def _precheck(self, attempt: Attempt) -> Attempt:
        refusal = self._known_bad(attempt)
        if refusal is not None:
            return self._reject(attempt, refusal)
        if self._local(attempt) is not None:
            return self._enter(attempt, Event.PASS, detail="the bundle is on this device already")
        retained = self._parts.slots.active(attempt.model, attempt.arm)
        retained_contract = None if retained is None else retained.contract_hash()
        floor_s = self._parts.state.now.time_floor_s

        def obtain() -> Offer | Refusal:
            return self._parts.acquirer.obtain(
                attempt,
                floor_s=floor_s,
                retained=retained_contract,
                should_stop=lambda: self._is_superseded(attempt) or self._stopped.is_set(),
            )

        offer = self._patiently(attempt, obtain)
        if isinstance(offer, Attempt):
            return offer
        return self._reject(attempt, offer) if isinstance(offer, Refusal) else self._enter(attempt, Event.PASS)

    def _download(self, attempt: Attempt) -> Attempt:
        if self._local(attempt) is not None:
            return self._enter(attempt, Event.PASS)

        if self._waits(attempt, loads=True)[0]:  # nothing is loaded outside of the window either
            self._pause(attempt, _LOOK_S)
            return attempt

        def fetch() -> Offer:
            offer = self._parts.acquirer.stored(attempt)
            self._parts.acquirer.download(offer, lambda: self._is_superseded(attempt) or self._stopped.is_set())
            return offer

        offer = self._patiently(attempt, fetch)
        return offer if isinstance(offer, Attempt) else self._enter(attempt, Event.PASS, figures=_sizes(offer))

    def _verify(self, attempt: Attempt) -> Attempt:
        parts = self._parts
        try:
            slot = self._local(attempt)
            if slot is None:
                slot = parts.slots.stage(parts.acquirer.content(parts.acquirer.stored(attempt), attempt))
                verify_whole(slot)
        except (VerificationError, ContractError) as error:
            return self._enter(attempt, Event.DAMAGED, reason="damaged", detail=error.sentence())
        outcome = parts.activator.golden(slot)
        figures = {**attempt.figures, "relative_rms": outcome.relative_rms, "relative_rms_limit": outcome.limit}
        if not outcome.passed:
            self._remember_bad(attempt, outcome.reason)
            return self._enter(attempt, Event.REJECT, reason=outcome.reason, detail=outcome.detail, figures=figures)
        return self._enter(attempt, Event.PASS, figures=figures)

    def _staged(self, attempt: Attempt) -> Attempt:
        """Hash both bundles again: the new one, and the one that a rollback would go to."""
        if self._local(attempt) is None:
            return self._enter(attempt, Event.DAMAGED, reason="damaged", detail="the staged bundle was changed")
        previous = self._parts.slots.active(attempt.model, attempt.arm)
        if previous is not None and previous.info.digest != attempt.digest:
            try:
                verify_slot(previous)
            except (VerificationError, ContractError) as error:
                detail = f"there is nothing to roll back to: {error.sentence()}"
                return self._enter(attempt, Event.FAIL, reason="previous_damaged", detail=detail)
        reason, detail = self._waits(attempt)
        if reason:
            return self._enter(attempt, Event.CLOSED_WINDOW, reason=reason, detail=detail)
        return self._enter(attempt, Event.PASS)

    def _wait_window(self, attempt: Attempt) -> Attempt:
        """Look again after a while; both bundles are hashed again when the time has come."""
        if not self._waits(attempt)[0]:
            return self._enter(attempt, Event.PASS)
        self._pause(attempt, _LOOK_S)
        return attempt

    def _waits(self, attempt: Attempt, *, loads: bool = False) -> tuple[str, str]:
        """Why an attempt has to wait; a rollback, and what is forced, never has to."""
        reason, detail = ("", "") if attempt.is_rollback or attempt.force else self._parts.why_wait()
        return ("", "") if reason == METERED and not loads else (reason, detail)

    def _activate(self, attempt: Attempt) -> Attempt:
        activation = self._parts.activator.activate(attempt)
        if self._stopped.is_set():
            return attempt  # the worker may have been ended with the agent: nothing is known yet
        if activation.ok:
            return self._enter(attempt, Event.PASS)
        self._remember_bad(attempt, activation.reason)
        return self._enter(attempt, Event.FAIL, reason=activation.reason, detail=activation.detail)

    def _probation(self, attempt: Attempt) -> Attempt:
        result = self._parts.activator.prove(
            attempt, interrupted=lambda: self._is_taken_back(attempt), stopped=self._stopped, persist=self._persist
        )
        if result is None:
            return attempt  # the agent is being stopped; it goes on after the restart
        if result.ok:
            return self._enter(
                attempt,
                Event.PASS,
                detail=result.detail,
                figures={**attempt.figures, **result.figures},
                without_field_traffic=result.without_field_traffic,
                crashes=result.crashes,
            )
        if result.reason not in _NO_FAULT:
            self._remember_bad(attempt, result.reason)
        return self._enter(
            attempt,
            Event.FAIL,
            reason=result.reason,
            detail=result.detail,
            figures={**attempt.figures, **result.figures},
            crashes=result.crashes,
        )

    def _roll_back(self, attempt: Attempt) -> Attempt:
        restored = self._parts.activator.restore(attempt)
        event = Event.PASS if restored.ok else Event.LOST
        detail = "; ".join(part for part in (attempt.detail, restored.detail) if part)
        return self._enter(attempt, event, reason=attempt.reason or restored.reason, detail=detail)

    # -- bookkeeping -------------------------------------------------------------------------------------------------

    def _enter(self, attempt: Attempt, event: Event, **changes: object) -> Attempt:
        """Persist the state that follows, then publish it."""
        following = transition(attempt.state, event)
        seq = self._parts.journal.next_seq(attempt.deployment, attempt.attempt)
        facts = {"loaded_digest": self._loaded(attempt), "at_s": self._parts.clock(), **changes}
        snapshot = entered(structs.replace(attempt, seq=seq), following, **facts)
        self._persist(snapshot)
        self._parts.publish(snapshot)
        return snapshot

    def _persist(self, attempt: Attempt) -> None:
        self._parts.journal.append(attempt)

    def _reject(self, attempt: Attempt, refusal: Refusal) -> Attempt:
        return self._enter(attempt, Event.REJECT, reason=refusal.reason, detail=refusal.detail)

    def _clean_up(self, attempt: Attempt) -> None:
        """Free what the attempt does not need any more; blobs that a slot is made from stay."""
        slots = self._parts.slots
        slots.clear_staging(attempt.model, attempt.arm)
        if any(not other.state.is_terminal for other in self._parts.journal.attempts()):
            return
        try:
            wanted = [digest for slot in slots.all() for digest in slot.digests()]
        except (ContractError, OSError):
            return  # a slot is damaged: nothing is thrown away while nobody knows what it needs
        self._parts.store.keep_only(wanted)

    def _patiently(self, attempt: Attempt, action: Callable[[], T]) -> T | Attempt:
        """Try again with growing, jittered pauses; a wrong digest is tried once more, then it is final.

        Returns:
            What the action gave; or the next snapshot, where it failed for good or was interrupted.
        """
        pace, wrong_digests = self._parts.pace, 0
        for number in range(1, pace.attempts + 1):
            try:
                return action()
            except Interrupted:
                return attempt
            except (TransferError, VerificationError, ContractError) as error:
                wrong_digests += isinstance(error, VerificationError)
                may_retry = (error.retryable if isinstance(error, TransferError) else False) or (
                    isinstance(error, VerificationError) and error.expected is not None and wrong_digests == 1
                )
                if not may_retry or number == pace.attempts:
                    event, reason = _ENDS[attempt.state, type(error)]
                    return self._enter(attempt, event, reason=reason, detail=error.sentence())
            if not self._pause(attempt, min(pace.retry_s * 2 ** (number - 1), pace.retry_max_s)):
                return attempt
        return attempt

    def _pause(self, attempt: Attempt, pause_s: float) -> bool:
        """Wait; False where a newer goal or the end of the agent cut it short."""
        until_s = time.monotonic() + pause_s * self._parts.rng.uniform(0.5, 1.0)
        while (left_s := until_s - time.monotonic()) > 0:
            if self._stopped.wait(min(left_s, 0.1)) or self._is_superseded(attempt):
                return False
        return True

    def _local(self, attempt: Attempt) -> Slot | None:
        """The bundle in a slot or in the staging folder, hashed again, or None."""
        slots = self._parts.slots
        for slot in (
            slots.find(attempt.model, attempt.arm, attempt.digest),
            slots.staged(attempt.model, attempt.arm, attempt.digest),
        ):
            if slot is None:
                continue
            try:
                verify_whole(slot)
            except (VerificationError, ContractError):
                continue
            return slot
        return None

    def _loaded(self, attempt: Attempt) -> str:
        return self._parts.activator.loaded(attempt.model, attempt.arm)

    def _known_bad(self, attempt: Attempt) -> Refusal | None:
        if attempt.force or attempt.is_rollback:
            return None
        reason = self._parts.state.bad_reason(attempt.digest, self._contract(attempt.model))
        if reason is None:
            return None
        detail = f"this bundle failed on this device before ({reason}); trying it again needs force"
        return Refusal(reason="known_bad", detail=detail)

    def _remember_bad(self, attempt: Attempt, reason: str) -> None:
        pair = BadPair(digest=attempt.digest, contract=self._contract(attempt.model), reason=reason)
        self._parts.state.remember_bad(pair)

    def _contract(self, model: str) -> str:
        return ",".join(self._parts.acquirer.facts.accepts.get(model, ()))

    def _newest(self, model: str) -> tuple[bool, ModelGoal | None]:
        """Whether a goal is known that is newer than the one being followed, and what it says of a model."""
        goal, running = self._goal, self._running
        if goal is None or (running is not None and goal.generation <= running.generation):
            return False, None
        return True, next((m for m in goal.models if m.model == model and m.arms), None)

    def _is_superseded(self, attempt: Attempt) -> bool:
        is_newer, goal = self._newest(attempt.model)
        return is_newer and (goal is None or attempt.key not in [start.key for start in _starts(goal)])

    def _is_canceled(self, attempt: Attempt) -> bool:
        """Whether the newer goal asks for nothing but what is served already: there is no update any more."""
        _, goal = self._newest(attempt.model)
        active = self._parts.slots.active(attempt.model, attempt.arm)
        served = None if active is None else active.info.digest
        wanted = {} if goal is None else {start.arm: start.digest for start in _starts(goal)}
        return served == wanted.get(attempt.arm)

    def _is_taken_back(self, attempt: Attempt) -> bool:
        """Whether the server wants the model of this attempt to go: only that ends a probation early."""
        is_newer, goal = self._newest(attempt.model)
        if not is_newer:
            return False
        return goal is None or (goal.is_rollback and attempt.digest not in [arm.digest for arm in goal.arms])


def _starts(goal: ModelGoal) -> list[Attempt]:
    """The attempts that a goal asks for, the main arm's first."""
    return [new_attempt(goal, arm, arm_name=name) for name, arm in arms_of(goal)]


def _sizes(offer: Offer) -> dict[str, float]:
    return {"size_bytes": float(sum(file.size_bytes for variant in offer.variants for file in variant.files))}
