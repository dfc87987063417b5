"""Every step of an attempt, persisted and then told; and what is remembered of bundles that failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from edgeship_agent.update.attempt import Attempt, entered
from edgeship_agent.update.machine import Event, transition
from edgeship_agent.update.offer import Refusal
from edgeship_agent.update.parts import Parts
from edgeship_agent.update.state import BadPair

#: An attempt, what happens to it, and the facts that go with it.
Step = tuple[Attempt, Event, dict[str, Any]]


class Ledger:
    """Takes attempts from state to state.

    Args:
        parts: journal, clock, and who is told.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def enter(self, attempt: Attempt, event: Event, **changes: Any) -> Attempt:
        """Persist the state that follows, then publish it."""
        return self.enter_all([(attempt, event, changes)])[0]

    def enter_all(self, steps: Sequence[Step]) -> list[Attempt]:
        """Persist the states that follow, all in one write, then publish them."""
        snapshots: list[Attempt] = []
        for attempt, event, changes in steps:
            following = transition(attempt.state, event)
            before = max((s.seq for s in snapshots if _same(s, attempt)), default=0)
            seq = before or self._parts.journal.last_seq(attempt.deployment, attempt.attempt)
            facts = {"loaded_digest": self.loaded(attempt), "at_s": self._parts.clock(), **changes}
            snapshots.append(entered(structs.replace(attempt, seq=seq), following, **facts))
        self._parts.journal.append(*snapshots)
        for snapshot in snapshots:
            self._parts.publish(snapshot)
        return snapshots

    def loaded(self, attempt: Attempt) -> str:
        """Digest of what the attempt's arm serves now; empty for none."""
        return self._parts.activator.loaded(attempt.model, attempt.arm)

    def known_bad(self, attempt: Attempt) -> Refusal | None:
        """Why a bundle is not tried again on this device, or None."""
        if attempt.force or attempt.is_rollback:
            return None
        reason = self._parts.state.bad_reason(attempt.digest, self._contract(attempt.model))
        if reason is None:
            return None
        detail = f"this bundle failed on this device before ({reason}); trying it again needs force"
        return Refusal(reason="known_bad", detail=detail)

    def remember_bad(self, attempt: Attempt, reason: str) -> None:
        """The bundle failed here, under what its application accepts."""
        pair = BadPair(digest=attempt.digest, contract=self._contract(attempt.model), reason=reason)
        self._parts.state.remember_bad(pair)

    def _contract(self, model: str) -> str:
        return ",".join(self._parts.acquirer.facts.accepts.get(model, ()))


def _same(one: Attempt, other: Attempt) -> bool:
    return (one.deployment, one.attempt) == (other.deployment, other.attempt)
