"""Goal states at the door: only a newer one, signed by this fleet's key for this very device, is let in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from msgspec import Struct

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.goal import GoalState
from edgeship_agent.contract.topics import Kind
from edgeship_agent.contract.wire import decode, decode_goal
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import reference_time, verify_goal


class RefusedGoal(Struct, frozen=True, kw_only=True):
    """Why a goal state was not let in: a code, a sentence, and how often that happened on this device."""

    reason: str
    detail: str
    count: int


class GoalDesk:
    """Checks goal states and remembers the newest.

    Args:
        device_id: this device.
        public_key: raw Ed25519 key of this fleet's goal states.
        state: remembers generation, time floor and refusals.
        clock: wall clock, seconds since 1970; only expiry looks at it, floored by what was signed before.
    """

    def __init__(self, device_id: str, public_key: bytes, state: StateFile, clock: Callable[[], float]) -> None:
        self._device_id = device_id
        self._public_key = public_key
        self._state = state
        self._clock = clock
        self._uncounted: dict[str, int] = {}

    def receive(self, payload: bytes) -> GoalState | RefusedGoal:
        """Let a goal state in, or say why not. A refused one changes nothing but its counter."""
        try:
            signed = decode(Kind.GOAL, payload)
            goal = verify_goal(signed, self._public_key)
        except VerificationError as error:
            return self.refuse("bad_signature", error.sentence())
        except ContractError as error:
            return self.refuse("unreadable", error.sentence())
        refusal = self._check(goal, hashlib.sha256(signed.payload).hexdigest())
        if refusal is not None:
            return self.refuse(*refusal)
        self._state.raise_floor(goal.issued_at_s)
        if goal.generation > self._state.now.goal_generation:
            self._state.change(
                goal_generation=goal.generation,
                goal_payload_sha256=hashlib.sha256(signed.payload).hexdigest(),
                goal_payload=signed.payload.hex(),
            )
        return goal

    def refused(self) -> dict[str, int]:
        """Reason → how many goal states were refused for it."""
        counts = dict(self._state.now.refused_goals)
        for reason, number in self._uncounted.items():
            counts[reason] = counts.get(reason, 0) + number
        return counts

    def save_counts(self) -> None:
        """Write the counters of refusals; not at each of them, so that a flood costs no disk."""
        if self._uncounted:
            self._state.count_refusals(self._uncounted)
            self._uncounted = {}

    def remembered(self) -> GoalState | None:
        """The goal that was let in last, to go on with after a restart."""
        payload = self._state.now.goal_payload
        if not payload:
            return None
        try:
            return decode_goal(bytes.fromhex(payload))
        except (ContractError, ValueError):
            return None  # the server sends it again

    def _check(self, goal: GoalState, payload_sha256: str) -> tuple[str, str] | None:
        known = self._state.now
        if goal.device_id != self._device_id:
            return "wrong_device", f"the goal state is for {goal.device_id}"
        if goal.generation < known.goal_generation:
            return "lower_generation", f"generation {goal.generation} is older than {known.goal_generation}"
        if goal.generation == known.goal_generation:
            if payload_sha256 == known.goal_payload_sha256:
                return None
            return "conflicting_generation", f"generation {goal.generation} came with another content before"
        now_s = reference_time(self._clock(), known.time_floor_s)
        if goal.expires_at_s <= now_s:
            return "expired", f"expired {now_s - goal.expires_at_s:.0f} s ago"
        return None

    def refuse(self, reason: str, detail: str) -> RefusedGoal:
        """Count a refusal; it goes to the disk later."""
        self._uncounted[reason] = self._uncounted.get(reason, 0) + 1
        count = self._state.now.refused_goals.get(reason, 0) + self._uncounted[reason]
        return RefusedGoal(reason=reason, detail=detail, count=count)
