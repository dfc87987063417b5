"""What is served when the agent starts: the active bundle, unless the runtime under it has changed and it fails."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.pointer import ArmKey
from edgeship_agent.update.activation import Activator
from edgeship_agent.update.joint import RELEASE_MEMBER
from edgeship_agent.update.slots import FALLBACK_FOLDER, Slot, Slots, verify_slot
from edgeship_agent.update.traffic import MAIN_ARM


class Say(Protocol):
    """Writes a line to the log."""

    def __call__(self, event: str, **fields: object) -> None: ...  # noqa: D102


def slots_to_serve(slots: Slots, activator: Activator, log: Say) -> list[Slot]:
    """The slot of every model arm that may serve now.

    Every file is hashed again: flash memory forgets. The fingerprint (runtime version, ISA) of the last golden check is
    compared with today's: an update of the system may have changed the runtime under a committed model. Where it
    differs the golden inputs come first. On failure the previous bundle, checked the same way, takes over; where that
    fails or is not there, the bundle in full precision; with none of them the device serves no model. What was switched
    together goes back together: models of one release are never mixed with those of another.
    """
    chosen: list[Slot] = []
    seen: set[ArmKey] = set()
    for key in slots.arms():
        together = slots.together(*key)
        if together and key not in seen:
            seen.update(together)
            chosen += _Choice(slots, activator, log, together).slots()
    return chosen


class _Choice:
    """What serves of the arms that were switched together.

    Args:
        slots: the bundles on disk.
        activator: makes golden checks.
        log: says what was chosen and why.
        keys: of the arms.
    """

    def __init__(self, slots: Slots, activator: Activator, log: Say, keys: tuple[ArmKey, ...]) -> None:
        self._slots = slots
        self._activator = activator
        self._log = log
        self._keys = keys
        self._reasons: dict[Path, str] = {}
        self._actives = {key: slots.active(*key) for key in keys}

    def slots(self) -> list[Slot]:
        """The first way in which all of them serve; where there is none, the one in which most do, rather of before."""
        ways: list[dict[ArmKey, Slot]] = []
        for found in (self._active, self._previous, self._active_or_fallback, self._previous_or_fallback):
            ways.append({key: slot for key in self._keys if (slot := found(key)) is not None})
            if len(ways[-1]) == len(self._keys):
                break
        complete = len(ways[-1]) == len(self._keys)
        chosen = ways[-1] if complete else max((ways[1], ways[0], *ways[2:]), key=len)
        self._point(chosen)
        return [self._said(key, chosen[key]) for key in self._keys if key in chosen]

    def _active(self, key: ArmKey) -> Slot | None:
        return self._good(self._actives[key])

    def _previous(self, key: ArmKey) -> Slot | None:
        # only the main arm has a way back: it takes over from the others
        return self._good(self._slots.retained(*key)) if key[1] == MAIN_ARM else None

    def _active_or_fallback(self, key: ArmKey) -> Slot | None:
        return self._active(key) or self._fallback_of(key, self._actives[key])

    def _previous_or_fallback(self, key: ArmKey) -> Slot | None:
        return self._previous(key) or self._fallback_of(key, self._slots.retained(*key))

    def _fallback_of(self, key: ArmKey, slot: Slot | None) -> Slot | None:
        return self._good(slot.fallback()) if slot is not None and key[1] == MAIN_ARM else None

    def _good(self, slot: Slot | None) -> Slot | None:
        return slot if slot is not None and not self._wrong_with(slot) else None

    def _wrong_with(self, slot: Slot) -> str:
        if slot.directory not in self._reasons:
            self._reasons[slot.directory] = _wrong_with(slot, self._activator, self._log)
        return self._reasons[slot.directory]

    def _point(self, chosen: dict[ArmKey, Slot]) -> None:
        """What serves from here on is what the pointer names; the slot of a fallback is the one that it lies in."""
        pairs = {key: (self._actives[key], self._slots.retained(*key)) for key in chosen}
        homes = [
            next(each for each in pairs[key] if each is not None and slot.directory.is_relative_to(each.directory))
            for key, slot in chosen.items()
        ]
        without = [key for key in self._keys if key not in chosen]
        for model, arm in without:
            detail = "no bundle on this device passes its golden check any more"
            self._log("no_model", model=model, arm=arm, detail=detail)
        with contextlib.suppress(OSError):  # a disk that takes nothing: the next start finds the same again
            self._slots.switch(homes, without)

    def _said(self, key: ArmKey, slot: Slot) -> Slot:
        """The slot that is served, said where it is not the one that the pointer named."""
        active = self._actives[key]
        if active is not None and active.directory == slot.directory:
            return active
        reason = "damaged" if active is None else self._wrong_with(active) or RELEASE_MEMBER
        model, arm = key
        if slot.directory.name != FALLBACK_FOLDER:
            self._log("fallback", model=model, arm=arm, version=slot.info.version, reason=reason)
            return slot
        self._log("fallback", model=model, arm=arm, version=slot.info.version, variant=slot.info.variant, reason=reason)
        return self._activator.stand_in(slot, reason)


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
