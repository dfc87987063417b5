"""Live events inside the process: committed events on their way to the pages that are open now.

The events table is the truth; the bus only says that there is something new. A slow listener loses its oldest
entries and reads them from the table.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from msgspec import Struct

_BACKLOG: Final = 256


class Event(Struct, frozen=True, kw_only=True):
    """One line of the audit: what happened to what, when.

    Attributes:
        at_s: seconds since the epoch, UTC.
        subject: ``device/<id>``, ``rollout/<id>``, ``release/<model>/<version>`` or ``server``.
    """

    id: int
    at_s: float
    kind: str
    subject: str
    sentence: str
    data: dict[str, Any]


class Subscription:
    """One listener's backlog.

    Args:
        wake: called (from any thread) when there is something to take.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._backlog: deque[Event] = deque(maxlen=_BACKLOG)

    def put(self, event: Event) -> None:
        """Add an event; the oldest goes when the backlog is full."""
        self._backlog.append(event)
        self._wake()

    def take(self) -> list[Event]:
        """Everything since the last call."""
        taken: list[Event] = []
        while self._backlog:
            taken.append(self._backlog.popleft())
        return taken


class EventBus:
    """Hands every event to every listener, without ever waiting for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: set[Subscription] = set()

    def publish(self, event: Event) -> None:
        """Hand on an event."""
        with self._lock:
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            subscription.put(event)

    @contextmanager
    def subscribe(self, wake: Callable[[], None]) -> Iterator[Subscription]:
        """Listen for as long as the block lasts."""
        subscription = Subscription(wake)
        with self._lock:
            self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.discard(subscription)
