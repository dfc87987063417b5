"""Where in the arena each tensor lies: TensorFlow Lite Micro's greedy plan, and what any plan needs at least. Pure.

Source: TensorFlow Lite Micro, ``GreedyMemoryPlanner``: the largest buffer first, each in the first gap between those
that live at the same time. Its order among buffers of one size matters for the total and is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

#: Alignment of every buffer in bytes. Source: TensorFlow Lite Micro, ``MicroArenaBufferAlignment()``.
ALIGNMENT_BYTES: Final = 16


class Buffer(Struct, frozen=True, kw_only=True):
    """Memory that is needed for a while.

    Attributes:
        name: of the tensor, for people.
        size_bytes: before alignment, above 0.
        first_use, last_use: steps of the schedule, both included.
    """

    name: str = ""
    size_bytes: int
    first_use: int
    last_use: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are alive in the same step."""
        return self.first_use <= other.last_use and other.first_use <= self.last_use


class Plan(Struct, frozen=True, kw_only=True):
    """Where each buffer lies.

    Attributes:
        offsets_bytes: of each buffer, in the order in which they were given.
        size_bytes: of the whole.
    """

    offsets_bytes: tuple[int, ...]
    size_bytes: int


def plan(buffers: Sequence[Buffer], *, alignment_bytes: int = ALIGNMENT_BYTES) -> Plan:
    """Place every buffer so that no two that are alive in the same step share a byte.

    >>> chain = [Buffer(size_bytes=32, first_use=0, last_use=1), Buffer(size_bytes=64, first_use=1, last_use=2),
    ...          Buffer(size_bytes=16, first_use=2, last_use=3)]
    >>> plan(chain)
    Plan(offsets_bytes=(64, 0, 64), size_bytes=96)
    """
    sizes = [aligned(buffer.size_bytes, alignment_bytes) for buffer in buffers]
    # the later of two buffers of one size is placed first
    order = sorted(range(len(buffers)), key=lambda index: (-sizes[index], -index))
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for index in order:
        neighbours = [other for other in placed if buffers[other].meets(buffers[index])]
        offsets[index] = _first_gap(sizes[index], neighbours, offsets, sizes)
        placed.insert(bisect_right(placed, offsets[index], key=lambda other: offsets[other]), index)
    whole = max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0)
    return Plan(offsets_bytes=tuple(offsets), size_bytes=whole)


def _first_gap(size: int, neighbours: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> int:
    """Lowest offset where ``size`` bytes are free between neighbours that are sorted by their offset."""
    free = 0
    for other in neighbours:
        if offsets[other] - free >= size:
            break
        free = max(free, offsets[other] + sizes[other])
    return free


def least_bytes(buffers: Sequence[Buffer], *, alignment_bytes: int = 1) -> int:
    """Largest sum of buffers that are alive in the same step: no plan can do with less.

    >>> least_bytes([Buffer(size_bytes=3, first_use=0, last_use=1), Buffer(size_bytes=5, first_use=1, last_use=2)])
    8
    """
    changes: dict[int, int] = {}
    for buffer in buffers:
        size = aligned(buffer.size_bytes, alignment_bytes)
        changes[buffer.first_use] = changes.get(buffer.first_use, 0) + size
        changes[buffer.last_use + 1] = changes.get(buffer.last_use + 1, 0) - size
    alive = most = 0
    for step in sorted(changes):
        alive += changes[step]
        most = max(most, alive)
    return most


def aligned(size_bytes: int, alignment_bytes: int = ALIGNMENT_BYTES) -> int:
    """The next multiple of the alignment.

    >>> aligned(17), aligned(16), aligned(0)
    (32, 16, 0)
    """
    return -(-size_bytes // alignment_bytes) * alignment_bytes
