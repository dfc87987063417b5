"""What the updater needs from the process around it: the workers, and somebody to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from edgeship_agent.contract.pointer import ArmKey
from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.probation import Observation
from edgeship_agent.update.slots import Slot


class Activation(Struct, frozen=True, kw_only=True):
    """Whether the workers of slots serve now; otherwise a code and a sentence.

    Attributes:
        model: the one at fault; empty where none is.
    """

    ok: bool
    reason: str = ""
    detail: str = ""
    model: str = ""


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

    def serve(self, slots: Mapping[ArmKey, Slot | None]) -> Activation:
        """Serve slots instead of what their arms serve now, all of them from one moment on; None serves nothing.

        Where one of them cannot be served, nothing changes. Idempotent.
        """
        ...

    def observe(self, model: str, arm: str) -> tuple[str, Observation]:
        """Digest of the bundle that is loaded now (empty for none), and what it did since its activation."""
        ...

    def replay(self, model: str, arm: str, inferences: int) -> ReplayOutcome:
        """Run the golden inputs through the live worker: all of them, and again until at least so many were run."""
        ...


#: Publishes the newest snapshot of an attempt; losing one does no harm, the next birth carries it again.
Publish = Callable[[Attempt], None]
