"""What the updater needs from the process around it: the workers, and somebody to tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.probation import Observation
from edgeship_agent.update.slots import Slot


class Activation(Struct, frozen=True, kw_only=True):
    """Whether a slot's worker serves now; otherwise a code and a sentence."""

    ok: bool
    reason: str = ""
    detail: str = ""


class ReplayOutcome(Struct, frozen=True, kw_only=True):
    """Golden inputs, run through the live worker.

    Attributes:
        answered: False where no worker answered; then the rest says nothing.
        inferences: how many samples were run.
        detail: empty where passed, else one sentence.
    """

    answered: bool
    passed: bool = False
    relative_rms: float = 0.0
    inferences: int = 0
    detail: str = ""


class Workers(Protocol):
    """The inference workers of this device; every method may be called from the updater's thread."""

    def serve(self, model: str, arm: str, slot: Slot | None) -> Activation:
        """Serve a slot instead of what is served now, without a gap; None serves nothing. Idempotent."""
        ...

    def observe(self, model: str, arm: str) -> tuple[str, Observation]:
        """Digest of the bundle that is loaded now (empty for none), and what it did since its activation."""
        ...

    def replay(self, model: str, arm: str, inferences: int) -> ReplayOutcome:
        """Run the golden inputs through the live worker: all of them, and again until at least so many were run."""
        ...


#: Publishes the newest snapshot of an attempt; losing one does no harm, the next birth carries it again.
Publish = Callable[[Attempt], None]
