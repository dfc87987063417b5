"""What the supervisor needs from a link: open it, publish, close it. Everything else arrives as events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Union

from msgspec import Struct

from edgeship_agent.contract.topics import Topic


class Connected(Struct, frozen=True, kw_only=True):
    """The link is up and subscribed; ``session`` is the one that its will carries."""

    session: int


class Disconnected(Struct, frozen=True, kw_only=True):
    """The link is down; it is being built up again."""

    reason: str


class Received(Struct, frozen=True, kw_only=True):
    """A message for this device."""

    topic: Topic
    payload: bytes


LinkEvent = Union[Connected, Disconnected, Received]


class Link(Protocol):
    """A connection that comes back by itself. Nothing that is published while it is down is kept."""

    def open(self, on_event: Callable[[LinkEvent], None]) -> None:
        """Connect in the background; events come from another thread."""
        ...

    def publish(self, topic: Topic, payload: bytes) -> bool:
        """Hand a message over; False where the link is down, or takes no more for now."""
        ...

    def close(self) -> None:
        """Disconnect without a will and stay down."""
        ...
