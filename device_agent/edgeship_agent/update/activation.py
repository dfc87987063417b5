"""Activation, probation and rollback: the pointer, the worker behind it, and whether the new model may stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from msgspec import Struct, field, structs

from edgeship_agent.contract.errors import ContractError, VerificationError
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
        return structs.replace(other, traffic=slot.traffic)

    def activate(self, attempt: Attempt) -> Activation:
        """Swap the pointer and let the new worker take over; the old one serves until then. Idempotent."""
        try:
            active = self._slots.active(attempt.model, attempt.arm)
            if active is None or active.info.digest != attempt.digest:
                active = self._slots.install_staged(attempt.model, attempt.arm, attempt.digest)
                verify_slot(active)
                self._slots.set_traffic(attempt.model, attempt.arm, attempt.traffic)
                self._slots.point(active)
        except (VerificationError, ContractError) as error:
            return Activation(ok=False, reason="activation", detail=error.sentence())
        active = self._served(structs.replace(active, traffic=attempt.traffic))
        return self._workers.serve(attempt.model, attempt.arm, active)

    def share(self, active: Slot, traffic: Traffic) -> None:
        """Give an arm that is active another part of the traffic."""
        self._slots.set_traffic(active.info.model, active.info.arm, traffic)
        slot = self._served(structs.replace(active, traffic=traffic))
        self._workers.serve(active.info.model, active.info.arm, slot)

    def restore(self, attempt: Attempt) -> Activation:
        """Go back to the bundle before, from the disk alone; with none, the device serves no model. Idempotent."""
        candidate = self._slots.find(attempt.model, attempt.arm, attempt.digest)
        if not attempt.previous_digest:
            self.remove(attempt.model, attempt.arm)
            if candidate is not None:
                self._slots.discard(candidate)
            detail = "no model was here before: this device serves none now"
            if attempt.arm != MAIN_ARM:
                detail = "the main arm answers everything again"
            return Activation(ok=True, reason="no_previous", detail=detail)
        previous = self._slots.find(attempt.model, attempt.arm, attempt.previous_digest)
        if previous is None:
            self.remove(attempt.model, attempt.arm)
            return Activation(ok=False, reason="previous_lost", detail="the previous bundle is not on this device")
        try:
            verify_slot(previous)
        except (VerificationError, ContractError) as error:
            self.remove(attempt.model, attempt.arm)
            return Activation(ok=False, reason="previous_damaged", detail=error.sentence())
        self._slots.point(previous)
        previous = self._slots.active(attempt.model, attempt.arm) or previous
        served = self._workers.serve(attempt.model, attempt.arm, self._served(previous))
        if not served.ok:
            return served
        if candidate is not None:
            self._slots.discard(candidate)
        return Activation(ok=True, detail=f"version {attempt.previous_version} serves again")

    def remove(self, model: str, arm: str) -> None:
        """Serve no model; the bundles stay on disk."""
        self._slots.clear_pointer(model, arm)
        self._workers.serve(model, arm, None)

    def prove(
        self,
        attempt: Attempt,
        *,
        interrupted: Callable[[], bool],
        stopped: threading.Event,
        persist: Callable[[Attempt], None],
    ) -> Proof | None:
        """Watch the active model until it may stay or must go.

        Args:
            attempt: in probation; its crashes are those of earlier lives of the agent.
            interrupted: whether the server takes the model back.
            stopped: set when the agent is being stopped.
            persist: keeps a crash in the journal as it happens.

        Returns:
            The proof, or None where the agent is being stopped.
        """
        start_s, known_crashes = self._clock(), attempt.crashes
        loaded_s, silent = start_s, 0
        while not stopped.wait(_POLL_S):
            digest, seen = self._seen(attempt)
            if seen.crashes > known_crashes:
                known_crashes = seen.crashes
                persist(structs.replace(attempt, crashes=known_crashes))
            if interrupted():
                return _failed(seen, "rollback_requested", "the server takes this version back")
            now_s = self._clock()
            verdict = judge_probation(attempt.probation, seen, now_s - start_s)
            if verdict.outcome is Outcome.FAIL:
                return _failed(seen, verdict.reason, verdict.detail)
            if digest != attempt.digest:  # the worker starts, or starts again after a crash that was counted
                if now_s - loaded_s > _LOADING_S:
                    return _failed(seen, "no_answer", f"the worker was not ready within {_LOADING_S:g} s")
                continue
            loaded_s = now_s
            if verdict.outcome is Outcome.WAIT and not attempt.is_rollback:
                continue
            proof = self._conclude(attempt, seen, short=verdict.outcome is not Outcome.COMMIT)
            if proof is not None:
                return proof
            silent += 1
            if silent >= _MAX_SILENT_REPLAYS:
                return _failed(seen, "no_answer", "the worker does not answer the golden inputs")
        return None

    def _seen(self, attempt: Attempt) -> tuple[str, Observation]:
        """Digest that is loaded now, and what was seen; crashes of the agent's earlier lives count."""
        digest, seen = self._workers.observe(attempt.model, attempt.arm)
        return digest, structs.replace(seen, crashes=seen.crashes + attempt.crashes)

    def _conclude(self, attempt: Attempt, seen: Observation, *, short: bool) -> Proof | None:
        """Golden inputs through the live worker: once, and where traffic was short until they stand in for it."""
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
