"""Windows that wait for the server: the newest in memory, the others in the outbox on the disk.

Flash memory wears, and a window that is acknowledged within seconds need never touch it. So windows are kept in memory
and written together, once in a flush interval; those that were acknowledged meanwhile are only counted. What a power
cut (or a kill) may cost is what one flush interval made and the server had not acknowledged; how often the agent ended
in such a way is counted in ``unclean_ends``. A clean stop costs nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct, structs

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import OutboxCounters, Window
from edgeship_agent.telemetry.outbox import Outbox

#: Most bytes of windows in memory; more are written at once, and where the disk takes none the oldest are given up.
MOST_FRESH_BYTES: Final = 1 << 20
_encoder: Final = msgspec.msgpack.Encoder()


class _Fresh(Struct, frozen=True, kw_only=True):
    window: Window
    size_bytes: int


class WaitingWindows:
    """All windows that the server has not acknowledged, oldest first. Used by one thread.

    Args:
        outbox: those on the disk.
        unclean_ends: how often the agent ended without writing what it had in memory.
        most_fresh_bytes: of windows in memory.
    """

    def __init__(self, outbox: Outbox, unclean_ends: int = 0, most_fresh_bytes: int = MOST_FRESH_BYTES) -> None:
        self._outbox = outbox
        self._unclean_ends = unclean_ends
        self._most_fresh_bytes = most_fresh_bytes
        self._fresh: list[_Fresh] = []
        self._fresh_bytes = 0
        self._last: dict[str, int] = {}
        self._acknowledged = 0
        self._evicted = 0

    def add(self, window: Window) -> None:
        """Keep a numbered window; every number of a start of the agent is higher than the one before.

        Raises:
            ContractError: the window has no such number.
        """
        last = self.last_seq(window.boot_id)
        if window.seq <= last:
            raise ContractError("a window without a number of its own", key="seq", expected=f"> {last}", got=window.seq)
        size_bytes = len(_encoder.encode(window))
        self._fresh.append(_Fresh(window=window, size_bytes=size_bytes))
        self._fresh_bytes += size_bytes
        self._last[window.boot_id] = window.seq

    @property
    def is_full(self) -> bool:
        """Whether memory holds so much that it should be written now."""
        return self._fresh_bytes > self._most_fresh_bytes

    def flush(self) -> None:
        """Write what is in memory, counters included, in one transaction.

        Raises:
            EdgeshipError: the disk does not take it. It stays in memory, the oldest windows given up and counted where
                that is full.
        """
        if not (self._fresh or self._acknowledged or self._evicted):
            return
        try:
            self._outbox.store([fresh.window for fresh in self._fresh], self._acknowledged, self._evicted, self._last)
        finally:
            while self.is_full:
                self._fresh_bytes -= self._fresh.pop(0).size_bytes
                self._evicted += 1
        self._fresh, self._fresh_bytes, self._acknowledged, self._evicted = [], 0, 0, 0

    def pending(self, limit: int, *, boot_id: str) -> list[Window]:
        """The oldest waiting windows of one start of the agent, in the order in which they were added."""
        stored = self._outbox.pending(limit, boot_id=boot_id)
        fresh = [each.window for each in self._fresh if each.window.boot_id == boot_id]
        return [*stored, *fresh][:limit]

    def waiting_boots(self) -> list[str]:
        """Starts of the agent that still have waiting windows, the oldest first."""
        return list(dict.fromkeys([*self._outbox.waiting_boots(), *(each.window.boot_id for each in self._fresh)]))

    def acknowledge(self, boot_id: str, seq: int) -> int:
        """Drop every window of that start up to ``seq``; repeats do nothing.

        Returns:
            How many windows were dropped.

        Raises:
            ContractError: no window can have that number.
            EdgeshipError: the disk does not take it.
        """
        stored = self._outbox.acknowledge(boot_id, seq)
        kept = [each for each in self._fresh if each.window.boot_id != boot_id or each.window.seq > seq]
        dropped = len(self._fresh) - len(kept)
        self._fresh, self._fresh_bytes = kept, sum(each.size_bytes for each in kept)
        self._acknowledged += dropped
        return stored + dropped

    def counters(self) -> OutboxCounters:
        """What became of every window since the file was made."""
        stored = self._outbox.counters()
        return structs.replace(
            stored,
            created=stored.created + len(self._fresh) + self._acknowledged + self._evicted,
            acknowledged=stored.acknowledged + self._acknowledged,
            evicted=stored.evicted + self._evicted,
            waiting=stored.waiting + len(self._fresh),
            unclean_ends=self._unclean_ends,
        )

    def floor_seq(self, boot_id: str) -> int:
        """The lowest number of that start that can still arrive; 1 for a start that is not known."""
        waiting = self.pending(1, boot_id=boot_id)
        return waiting[0].seq if waiting else self.last_seq(boot_id) + 1

    def last_seq(self, boot_id: str) -> int:
        """The highest number given in that start; 0 for none."""
        return self._last.get(boot_id) or self._outbox.last_seq(boot_id)

    def close(self) -> None:
        """Write what is in memory and close the file.

        Raises:
            EdgeshipError: the disk does not take it.
        """
        try:
            self.flush()
        finally:
            self._outbox.close()
