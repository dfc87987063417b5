"""What is served when the agent starts: the active bundle, unless the runtime under it has changed and it fails."""

from __future__ import annotations

import contextlib
from typing import Protocol

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.update.activation import Activator
from edgeship_agent.update.slots import Slot, Slots, verify_slot
from edgeship_agent.update.traffic import MAIN_ARM


class Say(Protocol):
    """Writes a line to the log."""

    def __call__(self, event: str, **fields: object) -> None: ...  # noqa: D102


def slots_to_serve(slots: Slots, activator: Activator, log: Say) -> list[Slot]:
    """The slot of every model arm that may serve now.

    Every file is hashed again: flash memory forgets. The fingerprint (runtime version, ISA) of the last golden check is
    compared with today's: an update of the system may have changed the runtime under a committed model. Where it
    differs the golden inputs come first. On failure the previous bundle, checked the same way, takes over; where that
    fails or is not there, the bundle in full precision; with none of them the device serves no model.
    """
    chosen = []
    for model, arm in slots.arms():
        slot = _first_good(slots, activator, log, model, arm)
        if slot is not None:
            chosen.append(slot)
    return chosen


def _first_good(slots: Slots, activator: Activator, log: Say, model: str, arm: str) -> Slot | None:
    if not slots.is_wanted(model, arm):
        return None
    active, reason = slots.active(model, arm), "damaged"
    if active is not None:
        reason = _wrong_with(active, activator, log)
        if not reason:
            return active
    previous = slots.retained(model, arm) if arm == MAIN_ARM else None  # the main arm takes over from the others
    if previous is not None and not _wrong_with(previous, activator, log):
        _point(slots, previous)
        log("fallback", model=model, arm=arm, version=previous.info.version, reason=reason)
        return previous
    for slot in (active, previous) if arm == MAIN_ARM else ():
        fallback = None if slot is None else slot.fallback()
        if slot is None or fallback is None or _wrong_with(fallback, activator, log):
            continue
        if slot is previous:
            _point(slots, slot)
        log("fallback", model=model, arm=arm, version=slot.info.version, variant=fallback.info.variant, reason=reason)
        return activator.stand_in(fallback, reason)
    with contextlib.suppress(OSError):
        slots.clear_pointer(model, arm)
    log("no_model", model=model, arm=arm, detail="no bundle on this device passes its golden check any more")
    return None


def _point(slots: Slots, slot: Slot) -> None:
    with contextlib.suppress(OSError):  # a disk that takes nothing: the next start finds the same again
        slots.point(slot)


def _wrong_with(slot: Slot, activator: Activator, log: Say) -> str:
    """Why a slot cannot be served here, as a code; empty where it can."""
    info = slot.info
    try:
        verify_slot(slot)
        if activator.is_checked(slot):
            return ""
        outcome = activator.golden(slot)
    except (ContractError, VerificationError) as error:
        log("damaged_slot", model=info.model, version=info.version, variant=info.variant, detail=error.sentence())
        return "damaged"
    said = {"model": info.model, "version": info.version, "variant": info.variant, "detail": outcome.detail}
    log("fingerprint_changed", golden="passed" if outcome.passed else outcome.reason, **said)
    return "" if outcome.passed else outcome.reason
