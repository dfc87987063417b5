"""Activation, probation and rollback: the pointer, the worker behind it, and whether the new model may stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol

from msgspec import Struct, field, structs

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.pointer import ArmKey
from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.golden_check import GoldenOutcome, check_slot
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.ports import Activation, Workers
from edgeship_agent.update.probation import Observation, Outcome, judge_probation
from edgeship_agent.update.slots import Checked, Slot, Slots, verify_slot
from edgeship_agent.update.traffic import MAIN_ARM, Traffic

#: How often a probation is looked at, and how many silent replays end it.
_POLL_S: Final = 0.05
_MAX_SILENT_REPLAYS: Final = 5
#: How long a worker on probation may take to load its model, restarts included.
_LOADING_S: Final = 180.0


class Clock(Protocol):
    """Seconds that never go back."""

    def __call__(self) -> float: ...  # noqa: D102


class Proof(Struct, frozen=True, kw_only=True):
    """How a probation ended."""

    ok: bool
    crashes: int
    reason: str = ""
    detail: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    without_field_traffic: bool = False


class Activator:
    """Switches models and watches the new one.

    Args:
        slots: the bundles on disk.
        workers: the processes that serve them.
        launcher: starts the throw-away process of the golden check.
        fingerprint: what golden outputs of a runtime depend on, on this machine.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        slots: Slots,
        workers: Workers,
        launcher: Launcher,
        fingerprint: Callable[[str], Mapping[str, str]],
        clock: Clock,
    ) -> None:
        self._slots = slots
        self._workers = workers
        self._launcher = launcher
        self._fingerprint = fingerprint
        self._clock = clock
        self._stand_ins: dict[tuple[str, str], Slot] = {}

    def loaded(self, model: str, arm: str) -> str:
        """Digest of the bundle whose worker serves now; empty for none."""
        return self._workers.observe(model, arm)[0]

    def golden(self, slot: Slot) -> GoldenOutcome:
        """Check a slot's golden outputs in a throw-away process and remember under which runtime they held."""
        outcome = check_slot(self._launcher, slot.directory)
        if outcome.passed:
            fingerprint = dict(self._fingerprint(slot.variant().runtime))
            self._slots.remember_check(slot, Checked(fingerprint=fingerprint, relative_rms=outcome.relative_rms))
        return outcome

    def is_checked(self, slot: Slot) -> bool:
        """Whether the last golden check of a slot was made under the runtime that is installed now."""
        checked = slot.checked()
        return checked is not None and checked.fingerprint == dict(self._fingerprint(slot.variant().runtime))

    def stand_in(self, fallback: Slot, reason: str) -> Slot:
        """Serve a slot's fallback for as long as the slot is the active one in this life of the agent; why, as a code.

        Every start decides anew: where the runtime is what it was again, so is the variant.
        """
        slot = structs.replace(fallback, stands_in_for=reason)
        self._stand_ins[slot.info.model, slot.info.arm] = slot
        return slot

    def _served(self, slot: Slot) -> Slot:
        """What is served where a slot is the active one."""
        other = self._stand_ins.get((slot.info.model, slot.info.arm))
        is_of_slot = other is not None and other.directory.parent == slot.directory
        if other is None or not is_of_slot or other.info.digest != slot.info.digest:
            return slot
        return structs.replace(other, traffic=slot.traffic, switched=slot.switched)

    def activate(self, release: Sequence[Attempt]) -> Activation:
        """Swap the pointer for all of a release, then let its workers take over at once; the old ones serve until then.

        Idempotent. The pointer is swapped once, after every slot was filled and hashed.
        """
        slots: dict[ArmKey, Slot] = {}
        for attempt in release:
            try:
                slots[attempt.model, attempt.arm] = self._ready_slot(attempt)
            except (VerificationError, ContractError) as error:
                return Activation(ok=False, reason="activation", detail=error.sentence(), model=attempt.model)
        self._slots.switch(slots.values())
        served: dict[ArmKey, Slot | None] = {}
        for attempt in release:
            key = (attempt.model, attempt.arm)
            active = self._slots.active(*key) or slots[key]  # with the number of the swap
            served[key] = self._served(structs.replace(active, traffic=attempt.traffic))
        return self._workers.serve(served)

    def _ready_slot(self, attempt: Attempt) -> Slot:
        """The attempt's bundle in a slot, hashed, and its traffic said; not yet the active one."""
        active = self._slots.active(attempt.model, attempt.arm)
        if active is not None and active.info.digest == attempt.digest:
            return active
        slot = self._slots.install_staged(attempt.model, attempt.arm, attempt.digest)
        verify_slot(slot)
        self._slots.set_traffic(attempt.model, attempt.arm, attempt.traffic)
        return slot

    def share(self, active: Slot, traffic: Traffic) -> None:
        """Give an arm that is active another part of the traffic."""
        model, arm = active.info.model, active.info.arm
        self._slots.set_traffic(model, arm, traffic)
        self._workers.serve({(model, arm): self._served(structs.replace(active, traffic=traffic))})

    def restore(self, release: Sequence[Attempt]) -> list[Activation]:
        """Go back to the bundles before, from the disk alone, in one swap; what had none serves no model. Idempotent.

        Returns:
            For each attempt whether that could be done; one that could not takes no other along.
        """
        ways = [self._way_back(attempt) for attempt in release]
        keys = [(attempt.model, attempt.arm) for attempt in release]
        slots = {key: slot for key, (slot, _) in zip(keys, ways, strict=True)}
        found = [slot for slot in slots.values() if slot is not None]
        self._slots.switch(found, [key for key, slot in slots.items() if slot is None])
        # read again: of an arm beside the main one, what it gets lies beside its pointer
        served = {key: slot and self._served(self._slots.active(*key) or slot) for key, slot in slots.items()}
        outcomes = dict.fromkeys(keys, self._workers.serve(served))
        if not all(outcome.ok for outcome in outcomes.values()) and len(served) > 1:
            outcomes = {key: self._workers.serve({key: slot}) for key, slot in served.items()}
        results = []
        for attempt, key, (_, way) in zip(release, keys, ways, strict=True):
            if outcomes[key].ok and way.ok:
                self._discard(attempt)
            results.append(way if outcomes[key].ok else outcomes[key])
        return results

    def _way_back(self, attempt: Attempt) -> tuple[Slot | None, Activation]:
        """The slot that an attempt goes back to, hashed; None for none, and whether that is as it should be."""
        if not attempt.previous_digest:
            detail = "no model was here before: this device serves none now"
            if attempt.arm != MAIN_ARM:
                detail = "the main arm answers everything again"
            return None, Activation(ok=True, reason="no_previous", detail=detail)
        previous = self._slots.find(attempt.model, attempt.arm, attempt.previous_digest)
        if previous is None:
            detail = "the previous bundle is not on this device"
            return None, Activation(ok=False, reason="previous_lost", detail=detail, model=attempt.model)
        try:
            verify_slot(previous)
        except (VerificationError, ContractError) as error:
            detail = error.sentence()
            return None, Activation(ok=False, reason="previous_damaged", detail=detail, model=attempt.model)
        return previous, Activation(ok=True, detail=f"version {attempt.previous_version} serves again")

    def _discard(self, attempt: Attempt) -> None:
        """A bundle that failed here, or whose release did, is nothing to roll back to."""
        candidate = self._slots.find(attempt.model, attempt.arm, attempt.digest)
        if candidate is not None and attempt.digest != attempt.previous_digest:
            self._slots.discard(candidate)

    def remove(self, keys: Collection[ArmKey]) -> None:
        """Serve no model, from one moment on; the bundles stay on disk."""
        if keys:
            self._slots.switch((), keys)
            self._workers.serve(dict.fromkeys(keys))

    def prove(
        self,
        release: Sequence[Attempt],
        *,
        interrupted: Callable[[Attempt], bool],
        stopped: threading.Event,
        persist: Callable[[Attempt], None],
    ) -> list[Proof | None] | None:
        """Watch the active models of a release until all of them may stay or one must go.

        Args:
            release: attempts in probation; their crashes are those of earlier lives of the agent.
            interrupted: whether the server takes a model back.
            stopped: set when the agent is being stopped.
            persist: keeps a crash in the journal as it happens.

        Returns:
            A proof for each, or None for those that were fine when another one failed; None alone where the agent is
            being stopped.
        """
        watches = [_Watch(attempt, self._workers, self._clock) for attempt in release]
        while not stopped.wait(_POLL_S):
            for watch in watches:
                watch.look(interrupted, persist)
            if any(watch.has_failed for watch in watches):
                return [watch.proof if watch.has_failed else None for watch in watches]
            if all(watch.proof is not None for watch in watches):
                return [watch.proof for watch in watches]
        return None


class _Watch:
    """Looks at one model on probation; one that has passed is watched on, until those beside it have."""

    def __init__(self, attempt: Attempt, workers: Workers, clock: Clock) -> None:
        self._attempt = attempt
        self._workers = workers
        self._clock = clock
        self._start_s = self._loaded_s = clock()
        self._known_crashes = attempt.crashes
        self._silent = 0
        self.proof: Proof | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it must go."""
        return self.proof is not None and not self.proof.ok

    def look(self, interrupted: Callable[[Attempt], bool], persist: Callable[[Attempt], None]) -> None:
        """Look once; what is found lies in ``proof``."""
        attempt = self._attempt
        digest, seen = self._seen()
        if seen.crashes > self._known_crashes:
            self._known_crashes = seen.crashes
            persist(structs.replace(attempt, crashes=seen.crashes))
        if interrupted(attempt):
            self.proof = _failed(seen, "rollback_requested", "the server takes this version back")
            return
        now_s = self._clock()
        verdict = judge_probation(attempt.probation, seen, now_s - self._start_s)
        if verdict.outcome is Outcome.FAIL:
            self.proof = _failed(seen, verdict.reason, verdict.detail)
        elif digest != attempt.digest:  # the worker starts, or starts again after a crash that was counted
            self.proof = None
            if now_s - self._loaded_s > _LOADING_S:
                self.proof = _failed(seen, "no_answer", f"the worker was not ready within {_LOADING_S:g} s")
        else:
            self._loaded_s = now_s
            if self.proof is None and (verdict.outcome is not Outcome.WAIT or attempt.is_rollback):
                self._answer(seen, short=verdict.outcome is not Outcome.COMMIT)

    def _answer(self, seen: Observation, *, short: bool) -> None:
        self.proof = self._conclude(seen, short=short)
        if self.proof is None:
            self._silent += 1
            if self._silent >= _MAX_SILENT_REPLAYS:
                self.proof = _failed(seen, "no_answer", "the worker does not answer the golden inputs")

    def _seen(self) -> tuple[str, Observation]:
        """Digest that is loaded now, and what was seen; crashes of the agent's earlier lives count."""
        digest, seen = self._workers.observe(self._attempt.model, self._attempt.arm)
        return digest, structs.replace(seen, crashes=seen.crashes + self._attempt.crashes)

    def _conclude(self, seen: Observation, *, short: bool) -> Proof | None:
        """Golden inputs through the live worker: once, and where traffic was short until they stand in for it."""
        attempt = self._attempt
        wanted = attempt.probation.inferences if short and not attempt.is_rollback else 0
        outcome = self._workers.replay(attempt.model, attempt.arm, max(wanted - seen.inferences, 0))
        if not outcome.answered:
            return None
        replayed = outcome.inferences
        figures = {**_figures(seen), "replayed": float(replayed), "relative_rms": outcome.relative_rms}
        if not outcome.passed:
            detail = f"golden outputs through the live worker: {outcome.detail}"
            return structs.replace(_failed(seen, "golden_mismatch", detail), figures=figures)
        detail = ""
        if short:
            detail = f"committed without field traffic: {seen.inferences} calls, {replayed} golden inputs replayed"
        return Proof(ok=True, crashes=seen.crashes, detail=detail, figures=figures, without_field_traffic=short)


def _failed(seen: Observation, reason: str, detail: str) -> Proof:
    return Proof(ok=False, crashes=seen.crashes, reason=reason, detail=detail, figures=_figures(seen))


def _figures(seen: Observation) -> dict[str, float]:
    figures = {
        "inferences": float(seen.inferences),
        "failures": float(seen.failures),
        "crashes": float(seen.crashes),
    }
    if seen.latency_p99_ms is not None:
        figures["latency_p99_ms"] = seen.latency_p99_ms
    return figures
