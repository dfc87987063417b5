"""The updater: reads as the procedure. Persist, act, persist, publish; the tables say which step may follow.

It runs in a thread of its own, one release at a time, and is told the newest goal by :meth:`Updater.submit`. A model
alone is a release of one: there is one way through this code (:mod:`edgeship_agent.update.joint`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import structs

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.goal import GoalState, ModelGoal
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.update.activation import Proof
from edgeship_agent.update.attempt import Attempt, AttemptKey, new_attempt
from edgeship_agent.update.joint import (
    Work,
    begins_anew,
    can_be_taken_back,
    cause_of,
    digests_of,
    ending_of,
    is_wanted,
    missing_from,
    next_work,
    refusal_of,
    releases_of,
    shared_reason,
    starts_of,
    wanted_by,
)
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.ledger import Ledger, Step
from edgeship_agent.update.machine import Event, Restart, breaks_loop, can_cancel, on_restart
from edgeship_agent.update.parts import Parts
from edgeship_agent.update.preparing import Preparer
from edgeship_agent.update.traffic import MAIN_ARM, arms_of

#: How attempts end that the newest goal does not ask for any more: event, reason, detail.
_CANCELED: Final = (Event.CANCEL, "canceled", "the server takes the update back")
_SUPERSEDED: Final = (Event.SUPERSEDE, "superseded", "a newer goal asks for another")
#: Ends of a probation that say nothing against the bundle: it may be tried again, with another budget.
_NO_FAULT: Final = frozenset({"rollback_requested", "shadow_memory"})


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
        self._crashes = _crashes_before(parts.journal)
        self._ledger = Ledger(parts)
        self._preparer = Preparer(parts, self._ledger, self._is_superseded, self._stopped)
        self._work: dict[Work, Callable[[list[Attempt]], list[Attempt]]] = {
            Work.PREPARE: self._prepare,
            Work.END: self._end_others,
            Work.BEGIN: self._begin_switch,
            Work.SWITCH: self._switch,
            Work.PROVE: self._prove,
            Work.COMMIT: self._commit,
            Work.TURN_BACK: self._turn_back,
            Work.RESTORE: self._restore,
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
        """Finish what a restart or an error interrupted, then follow every goal.

        Raises:
            Exception: the goal could not be followed, on a full disk, say: the next run follows it again.
        """
        self.resume()
        while not self._stopped.is_set():
            self._changed.wait()
            self._changed.clear()
            goal = self._goal
            if goal is not None and not self._stopped.is_set():
                try:
                    self.follow(goal)
                except Exception:
                    self._changed.set()
                    raise

    def resume(self) -> None:
        """Go on with attempts that the agent did not finish before it ended, or before an error in this life."""
        releases: dict[tuple[object, ...], list[Attempt]] = {}
        for attempt in self._parts.journal.attempts():
            own = (attempt.deployment, attempt.attempt, attempt.release, attempt.members)
            releases.setdefault(own if attempt.release else (attempt.key,), []).append(attempt)
        for release in releases.values():
            if self._stopped.is_set() or all(attempt.state.is_terminal for attempt in release):
                continue
            again = [attempt if attempt.state.is_terminal else self._again(attempt) for attempt in release]
            self._finish([*again, *map(self._begin, missing_from(again))])

    def _again(self, attempt: Attempt) -> Attempt:
        """An attempt that was found under way, after the death of the agent or after an error: only a death counts."""
        crashes = max(attempt.crashes, self._crashes.get(attempt.key, 0))
        again = structs.replace(attempt, transitions=attempt.transitions + 1, crashes=crashes)
        self._parts.journal.append(again)
        return again

    def follow(self, goal: GoalState) -> None:
        """Bring every model to the goal; models that are not in it are served no longer."""
        self._running = goal
        wanted = {model.model for model in goal.models if model.arms}
        self._parts.activator.remove([key for key in self._parts.slots.arms() if key[0] not in wanted])
        for release in releases_of([model for model in goal.models if model.arms]):
            if self._goal is not None and self._goal.generation > goal.generation:
                return  # a newer goal waits
            for model_goal in release:
                if model_goal.is_rollback:
                    self._drop_arms(model_goal)
            self._reconcile(release)
            for model_goal in release:
                if self._ledger.loaded(new_attempt(model_goal, model_goal.arms[0])) == model_goal.arms[0].digest:
                    self._drop_arms(model_goal)

    def _drop_arms(self, goal: ModelGoal) -> None:
        """Serve no arm that the goal does not name: once its main arm is there, so that a failed update changes none.

        Of a goal that this agent cannot follow everything stays as it is.
        """
        names = [name for name, _ in arms_of(goal)]
        others = [(model, arm) for model, arm in self._parts.slots.arms() if model == goal.model and arm not in names]
        self._parts.activator.remove(others if names else [])

    def bring(self, release: Sequence[ModelGoal]) -> list[Attempt]:
        """Bring the models of one release to a goal that no server gave; the others stay as they are.

        Returns:
            How each of them ended.
        """
        self._reconcile(release)
        ends = [self._parts.journal.find(new_attempt(goal, goal.arms[0]).key) for goal in release]
        return [end for end in ends if end is not None]  # every way through a reconciliation is persisted

    def _reconcile(self, release: Sequence[ModelGoal]) -> None:
        """Bring a release to the goal: several models at once, or the arms of one model one after the other."""
        reason, detail = refusal_of(release)
        if reason:
            self._refuse(release, reason, detail)
        elif release[0].release:
            self._finish([self._begin(start) for start in starts_of(release)])
        else:
            self._reconcile_arms(release[0])

    def _refuse(self, release: Sequence[ModelGoal], reason: str, detail: str) -> None:
        for goal in release:
            start = new_attempt(goal, goal.arms[-1])
            if self._parts.journal.find(start.key) is None:
                self._ledger.enter(start, Event.REJECT, reason=reason, detail=detail)

    def _reconcile_arms(self, goal: ModelGoal) -> None:
        """Bring one arm after the other to the goal, the main arm first: the others are compared with it."""
        starts = wanted_by([goal], goal.model)
        if not starts:
            detail = "this agent serves one version, a challenger with a share and a shadow per model"
            self._refuse([goal], "arms_unsupported", detail)
        for start in starts:
            if len(starts) > 1 and start.arm == MAIN_ARM and self._ledger.loaded(start) == start.digest:
                continue  # only what is new is an attempt
            active = self._parts.slots.active(start.model, start.arm)
            is_active = active is not None and active.info.digest == start.digest
            was_loaded = self._ledger.loaded(start) == start.digest
            if active is not None and is_active and start.arm != MAIN_ARM and active.traffic != start.traffic:
                self._parts.activator.share(active, start.traffic)  # a shadow that may hold less is ended at once
            self._finish([self._begin(start, was_loaded=was_loaded)])
            if self._ledger.loaded(start) != start.digest:
                return

    def _begin(self, start: Attempt, *, was_loaded: bool = False) -> Attempt:
        """The attempt as the journal knows it; or accepted now, or at its end where what it asks for runs already.

        Args:
            start: what a goal asks for.
            was_loaded: whether it ran before its traffic was brought to the goal.
        """
        active = self._parts.slots.active(start.model, start.arm)
        is_active = active is not None and active.info.digest == start.digest
        known = self._parts.journal.find(start.key)
        if known is not None and begins_anew(known, start):
            known = None
        if known is not None and (is_active or known.state is not UpdateState.COMMITTED):
            if known.state.is_terminal:
                self._parts.publish(known)
            return known
        if is_active and (was_loaded or self._ledger.loaded(start) == start.digest):
            running = {"reason": "already_running", "without_field_traffic": start.is_rollback}
            return self._ledger.enter(start, Event.ALREADY_RUNNING, **running)
        previous = active
        if is_active and not start.release:
            previous = self._parts.slots.retained(start.model, start.arm)
        if previous is not None:
            start = structs.replace(start, previous_digest=previous.info.digest, previous_version=previous.info.version)
        return self._ledger.enter(start, Event.ACCEPT)

    def _finish(self, release: list[Attempt]) -> None:
        """Run the attempts of a release to their ends."""
        work = Work.PREPARE
        while work is not Work.DONE and not self._stopped.is_set():
            before = release
            release = self._ended_early(release)
            work = next_work(release)
            if work is not Work.DONE:
                release = self._work[work](release)
            for attempt in release:
                if attempt.state.is_terminal and attempt not in before:
                    self._clean_up(attempt)

    def _ended_early(self, release: list[Attempt]) -> list[Attempt]:
        """End what goes in circles, and all of a release that the newest goal does not ask for any more."""
        steps: list[Step] = []
        for attempt in _under_way(release):
            broken = breaks_loop(attempt.state, attempt.transitions)
            if broken is not None:
                detail = f"stopped after {attempt.transitions} steps: it went in circles"
                steps.append((attempt, broken, {"reason": "loop", "detail": detail}))
        if steps:
            return _with(release, self._ledger.enter_all(steps))
        if can_be_taken_back(release) and any(map(self._is_superseded, _under_way(release))):
            event, reason, detail = _SUPERSEDED
            if self._is_canceled(release):
                event, reason, detail = _CANCELED
            facts = {"reason": reason, "detail": detail}
            steps = [(attempt, event, dict(facts)) for attempt in _under_way(release)]
        return _with(release, self._ledger.enter_all(steps)) if steps else release

    # -- what can be next for a release ------------------------------------------------------------------------------

    def _prepare(self, release: list[Attempt]) -> list[Attempt]:
        """One step of the first model that is not staged yet; all are checked before any of them is downloaded."""
        late = [a for a in release if can_cancel(a.state) and a.state is not UpdateState.STAGED]
        unchecked = [a for a in late if a.state in (UpdateState.ACCEPTED, UpdateState.PRECHECK)]
        return _with(release, [self._preparer.step((unchecked or late)[0], release)])

    def _begin_switch(self, release: list[Attempt]) -> list[Attempt]:
        """All are staged: look at each of them once more, then take all of them over the line in one record."""
        staged = [attempt for attempt in release if attempt.state is UpdateState.STAGED]
        for attempt in staged:
            ready = self._preparer.ready(attempt)
            if ready is not attempt:
                return _with(release, [ready])
        return _with(release, self._ledger.enter_all([(attempt, Event.PASS, {}) for attempt in staged]))

    def _switch(self, release: list[Attempt]) -> list[Attempt]:
        under_way = _under_way(release)
        activation = self._parts.activator.activate(under_way)
        if self._stopped.is_set():
            return release  # workers may have been ended with the agent: nothing is known yet
        if activation.ok:
            entering = [attempt for attempt in under_way if attempt.state is UpdateState.ACTIVATING]
            return _with(release, self._ledger.enter_all([(attempt, Event.PASS, {}) for attempt in entering]))
        faults = [attempt for attempt in under_way if activation.model in ("", attempt.model)]
        for attempt in faults:
            self._ledger.remember_bad(attempt, activation.reason)
        facts = {"reason": activation.reason, "detail": activation.detail}
        return self._turn_back(release, [(attempt, Event.FAIL, facts) for attempt in faults])

    def _prove(self, release: list[Attempt]) -> list[Attempt]:
        watched = _under_way(release)
        # the workers count this life's crashes from its beginning, also after an error in the midst of a probation
        earlier = [structs.replace(attempt, crashes=self._crashes.get(attempt.key, 0)) for attempt in watched]
        proofs = self._parts.activator.prove(
            earlier, interrupted=self._is_taken_back, stopped=self._stopped, persist=self._parts.journal.append
        )
        if proofs is None:
            return release  # the agent is being stopped; it goes on after the restart
        found = [(attempt, proof) for attempt, proof in zip(watched, proofs, strict=True) if proof is not None]
        failed = [(attempt, proof) for attempt, proof in found if not proof.ok]
        if not failed:
            passed = [(attempt, Event.PASS, _passed(attempt, proof)) for attempt, proof in found]
            return _with(release, self._ledger.enter_all(passed))
        for attempt, proof in failed:
            if proof.reason not in _NO_FAULT:
                self._ledger.remember_bad(attempt, proof.reason)
        return self._turn_back(release, [(attempt, Event.FAIL, _failed(attempt, proof)) for attempt, proof in failed])

    def _commit(self, release: list[Attempt]) -> list[Attempt]:
        detail = "the agent ended when it was committed with the other models of its release"
        steps: list[Step] = [(attempt, Event.PASS, {"detail": detail}) for attempt in _under_way(release)]
        return _with(release, self._ledger.enter_all(steps))

    def _end_others(self, release: list[Attempt]) -> list[Attempt]:
        """Nothing was switched: the others end where they stand."""
        cause = cause_of(release)
        steps: list[Step] = [(attempt, ending_of(cause), shared_reason(cause)) for attempt in _under_way(release)]
        return _with(release, self._ledger.enter_all(steps))

    def _turn_back(self, release: list[Attempt], faults: Sequence[Step] = ()) -> list[Attempt]:
        """Take all of a release back, those at fault with their own reason."""
        at_fault = [attempt for attempt, _, _ in faults]
        told = [structs.replace(a, state=UpdateState.ROLLING_BACK, **_said(facts)) for a, _, facts in faults]
        shared = shared_reason(cause_of([*told, *release]))
        states = (UpdateState.ACTIVATING, UpdateState.PROBATION)
        others = [a for a in _under_way(release) if a not in at_fault and a.state in states]
        early = [a for a in _under_way(release) if can_cancel(a.state)]
        steps = [*faults, *((attempt, Event.FAIL, dict(shared)) for attempt in (*others, *early))]
        return _with(release, self._ledger.enter_all(steps))

    def _restore(self, release: list[Attempt]) -> list[Attempt]:
        turning = _under_way(release)
        steps: list[Step] = []
        for attempt, restored in zip(turning, self._parts.activator.restore(turning), strict=True):
            detail = "; ".join(part for part in (attempt.detail, restored.detail) if part)
            facts = {"reason": attempt.reason or restored.reason, "detail": detail}
            steps.append((attempt, Event.PASS if restored.ok else Event.LOST, facts))
        return _with(release, self._ledger.enter_all(steps))

    # -- bookkeeping -------------------------------------------------------------------------------------------------

    def _clean_up(self, attempt: Attempt) -> None:
        """Free what the attempt does not need any more; blobs that a slot is made from stay."""
        self._crashes.pop(attempt.key, None)
        slots = self._parts.slots
        slots.clear_staging(attempt.model, attempt.arm)
        if self._parts.journal.under_way():
            return
        try:
            wanted = [digest for slot in slots.all() for digest in slot.digests()]
        except (ContractError, OSError):
            return  # a slot is damaged: nothing is thrown away while nobody knows what it needs
        self._parts.store.keep_only(wanted)

    def _newest(self) -> Sequence[ModelGoal] | None:
        """The models of a goal that is newer than the one being followed; None where none is known."""
        goal, running = self._goal, self._running
        is_newer = goal is not None and (running is None or goal.generation > running.generation)
        return goal.models if goal is not None and is_newer else None

    def _is_superseded(self, attempt: Attempt) -> bool:
        """Whether a newer goal asks for something else: of a release of several models, for any of them."""
        models = self._newest()
        return models is not None and not is_wanted(attempt, models)

    def _is_canceled(self, release: Sequence[Attempt]) -> bool:
        """Whether the newer goal asks for nothing but what is served already: there is no update any more."""
        models = self._newest() or ()
        keys = digests_of(release)
        wanted = digests_of([start for model, _ in keys for start in wanted_by(models, model)])
        served = [(key, self._parts.slots.active(*key)) for key in keys]
        return all((None if slot is None else slot.info.digest) == wanted.get(key) for key, slot in served)

    def _is_taken_back(self, attempt: Attempt) -> bool:
        """Whether the server wants the model of this attempt to go: only that ends a probation early."""
        models = self._newest()
        if models is None:
            return False
        goal = next((goal for goal in models if goal.model == attempt.model and goal.arms), None)
        return goal is None or (goal.is_rollback and attempt.digest not in [arm.digest for arm in goal.arms])


def _under_way(release: Sequence[Attempt]) -> list[Attempt]:
    return [attempt for attempt in release if not attempt.state.is_terminal]


def _crashes_before(journal: Journal) -> dict[AttemptKey, int]:
    """Crashes in earlier lives of the agent, of the attempts that this life found under way: its death is one."""
    died = not journal.stopped_cleanly
    return {
        attempt.key: attempt.crashes + int(died and on_restart(attempt.state) is Restart.COUNT_CRASH)
        for attempt in journal.under_way()
    }


def _with(release: Sequence[Attempt], changed: Sequence[Attempt]) -> list[Attempt]:
    """The release with the newer snapshots of some of its attempts."""
    newer = {attempt.key: attempt for attempt in changed}
    return [newer.get(attempt.key, attempt) for attempt in release]


def _said(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("reason", "detail")}


def _passed(attempt: Attempt, proof: Proof) -> dict[str, Any]:
    return {
        "detail": proof.detail,
        "figures": {**attempt.figures, **proof.figures},
        "without_field_traffic": proof.without_field_traffic,
        "crashes": proof.crashes,
    }


def _failed(attempt: Attempt, proof: Proof) -> dict[str, Any]:
    figures = {**attempt.figures, **proof.figures}
    return {"reason": proof.reason, "detail": proof.detail, "figures": figures, "crashes": proof.crashes}
