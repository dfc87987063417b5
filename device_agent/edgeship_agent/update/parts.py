"""What the updater works with, put together by whoever runs it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeship_agent.update.acquire import Acquirer
from edgeship_agent.update.activation import Activator
from edgeship_agent.update.download import BlobStore
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.ports import Publish
from edgeship_agent.update.slots import Slots
from edgeship_agent.update.state import StateFile


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How patiently transfers are tried again.

    Attributes:
        attempts: tries of one transfer before the update fails.
        retry_s: pause after the first failure; doubles each time, with jitter, up to ``retry_max_s``.
    """

    attempts: int = 10
    retry_s: float = 1.0
    retry_max_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that the updater works with."""

    journal: Journal
    slots: Slots
    store: BlobStore
    state: StateFile
    acquirer: Acquirer
    activator: Activator
    publish: Publish
    pace: Pace = field(default_factory=Pace)
    why_wait: Callable[[], tuple[str, str]] = lambda: ("", "")
    clock: Callable[[], float] = time.time
    rng: random.Random = field(default_factory=random.Random)
