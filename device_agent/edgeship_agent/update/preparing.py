"""What comes before a switch: a bundle is checked, fetched, verified and staged; each model of a release by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from edgeship_agent.contract.errors import ContractError, EdgeshipError, TransferError, VerificationError
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.update.acquire import Offer
from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.conditions import METERED
from edgeship_agent.update.download import Interrupted
from edgeship_agent.update.joint import waits_for
from edgeship_agent.update.ledger import Ledger
from edgeship_agent.update.machine import Event
from edgeship_agent.update.offer import Promised, Refusal
from edgeship_agent.update.parts import Parts
from edgeship_agent.update.slots import Slot, verify_slot, verify_whole

T = TypeVar("T")

#: How often an update that waits for its window looks again.
_LOOK_S: Final = 5.0

#: How an attempt ends when obtaining or downloading its bundle fails for good.
_ENDS: Final[dict[tuple[UpdateState, type[EdgeshipError]], tuple[Event, str]]] = {
    (UpdateState.PRECHECK, TransferError): (Event.FAIL, "unreachable"),
    (UpdateState.PRECHECK, VerificationError): (Event.REJECT, "untrusted"),
    (UpdateState.PRECHECK, ContractError): (Event.REJECT, "bad_bundle"),
    (UpdateState.DOWNLOADING, TransferError): (Event.FAIL, "download"),
    (UpdateState.DOWNLOADING, VerificationError): (Event.FAIL, "digest_mismatch"),
    (UpdateState.DOWNLOADING, ContractError): (Event.REJECT, "bad_bundle"),
}


class Preparer:
    """Brings one attempt from ``accepted`` to ``staged``, a state at a time.

    Args:
        parts: collaborators of the updater.
        ledger: persists and tells.
        is_superseded: whether a newer goal asks for something else than an attempt.
        stopped: set when the agent is being stopped.
    """

    def __init__(
        self, parts: Parts, ledger: Ledger, is_superseded: Callable[[Attempt], bool], stopped: threading.Event
    ) -> None:
        self._parts = parts
        self._ledger = ledger
        self._enter = ledger.enter
        self._is_superseded = is_superseded
        self._stopped = stopped
        self._release: Sequence[Attempt] = ()
        self._steps: dict[UpdateState, Callable[[Attempt], Attempt]] = {
            UpdateState.ACCEPTED: lambda attempt: self._enter(attempt, Event.BEGIN),
            UpdateState.PRECHECK: self._precheck,
            UpdateState.DOWNLOADING: self._download,
            UpdateState.VERIFYING: self._verify,
            UpdateState.WAIT_WINDOW: self._wait_window,
        }

    def step(self, attempt: Attempt, release: Sequence[Attempt]) -> Attempt:
        """The next snapshot; the same one where it has to wait, or was interrupted.

        Args:
            attempt: not staged yet.
            release: the attempts of what is switched together, this one among them.
        """
        self._release = release
        return self._steps[attempt.state](attempt)

    def _precheck(self, attempt: Attempt) -> Attempt:
        refusal = self._ledger.known_bad(attempt)
        if refusal is not None:
            return self._reject(attempt, refusal)
        if self._local(attempt) is not None:
            return self._enter(attempt, Event.PASS, detail="the bundle is on this device already")
        retained = self._parts.slots.active(attempt.model, attempt.arm)
        retained_contract = None if retained is None else retained.contract_hash()
        floor_s = self._parts.state.now.time_floor_s
        promised = self._promised_beside(attempt)

        def obtain() -> Offer | Refusal:
            return self._parts.acquirer.obtain(
                attempt,
                floor_s=floor_s,
                retained=retained_contract,
                promised=promised,
                should_stop=lambda: self._is_superseded(attempt) or self._stopped.is_set(),
            )

        offer = self._patiently(attempt, obtain)
        if isinstance(offer, Attempt):
            return offer
        return self._reject(attempt, offer) if isinstance(offer, Refusal) else self._enter(attempt, Event.PASS)

    def _promised_beside(self, attempt: Attempt) -> Promised:
        """What the other models of the release are going to take, as far as that is known by now.

        Whoever is checked last knows of all.
        """
        others = [each for each in self._release if each.key != attempt.key and not each.state.is_terminal]
        return sum(map(self._promised, others), Promised())

    def _promised(self, other: Attempt) -> Promised:
        slots = self._parts.slots
        place = (other.model, other.arm, other.digest)
        try:
            slot = slots.find(*place) or slots.staged(*place)
            if slot is not None:
                return Promised(models=(other.model,), memory_bytes=slot.variant().min_memory_bytes)
            is_checked = other.state not in (UpdateState.ACCEPTED, UpdateState.PRECHECK)
            return self._parts.acquirer.promised(other) if is_checked else Promised()
        except (VerificationError, ContractError):
            return Promised()  # damaged: its own next step finds that, and ends the release or obtains it again

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
            self._ledger.remember_bad(attempt, outcome.reason)
            return self._enter(attempt, Event.REJECT, reason=outcome.reason, detail=outcome.detail, figures=figures)
        return self._enter(attempt, Event.PASS, figures=figures, detail=waits_for(self._release, attempt))

    def ready(self, attempt: Attempt) -> Attempt:
        """Hash both bundles again: the new one, and the one that a rollback would go to.

        Returns:
            The staged attempt where it may be switched now, else its next snapshot.
        """
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
        return attempt

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

    def _reject(self, attempt: Attempt, refusal: Refusal) -> Attempt:
        return self._enter(attempt, Event.REJECT, reason=refusal.reason, detail=refusal.detail)

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


def _sizes(offer: Offer) -> dict[str, float]:
    return {"size_bytes": float(sum(file.size_bytes for variant in offer.variants for file in variant.files))}
