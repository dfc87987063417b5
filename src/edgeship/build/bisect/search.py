"""The search itself, over numbers: where a prefix starts to fail, and the least that still does. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

Part = frozenset[int]
#: Probes of one search at most: a part that is still large by then is reported as it is.
MOST_PROBES: Final = 400


class Fails:
    """Whether parts fail, each asked once.

    Args:
        ask: runs a part; whether it fails as the whole does.
        testable: whether a part can be run by itself at all.
        most: probes at most; beyond them nothing fails any more, so that a search ends with what it has.
    """

    def __init__(self, ask: Callable[[Part], bool], testable: Callable[[Part], bool], most: int = MOST_PROBES) -> None:
        self._ask = ask
        self._testable = testable
        self._most = most
        self._known: dict[Part, bool] = {}

    @property
    def probes(self) -> int:
        """How many parts were run."""
        return len(self._known)

    def testable(self, part: Part) -> bool:
        """Whether a part can be run by itself."""
        return bool(part) and self._testable(part)

    def __call__(self, part: Part) -> bool:
        """Whether a part can be run and fails."""
        if part not in self._known:
            if len(self._known) >= self._most or not self.testable(part):
                return False
            self._known[part] = self._ask(part)
        return self._known[part]


def smallest(count: int, fails: Fails, ancestors: Callable[[Collection[int]], Part]) -> Part:
    """The smallest part of a failing graph that still fails: taking any one operator off makes it pass.

    First the shortest prefix whose last step makes it fail, then what can be taken off that from the front, then one
    by one. The search halves, so that it needs some log₂ of the operators where one of them is at fault. Where failure
    comes and goes along the order, it ends at one of the steps where it comes.

    Args:
        count: operators of the graph, which fails as a whole.
        fails: runs parts.
        ancestors: a part and all that it depends on.

    >>> chain = lambda part: frozenset(range(max(part) + 1))
    >>> sorted(smallest(40, Fails(lambda part: 17 in part, lambda part: True), chain))
    [17]
    >>> sorted(smallest(40, Fails(lambda part: {5, 17} <= part, lambda part: True), chain))
    [5, 17]
    """
    before, after = failing_step(count, fails)
    block = frozenset(range(before, after))
    if fails(block):
        return one_minimal(block, fails)
    needed = ancestors(block)
    failing = needed if fails(needed) else frozenset(range(after))
    return one_minimal(without_front(failing, block, fails), fails)


def failing_step(count: int, fails: Fails) -> tuple[int, int]:
    """Two lengths of prefixes next to each other, of those that can be run: the shorter passes, the longer fails."""
    ends = [0, *(end for end in range(1, count) if fails.testable(frozenset(range(end)))), count]
    low, high = 0, len(ends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if fails(frozenset(range(ends[middle]))):
            high = middle
        else:
            low = middle
    return ends[low], ends[high]


def without_front(part: Part, kept: Part, fails: Fails) -> Part:
    """A failing part less as many of its first operators as can go, ``kept`` never among them."""
    order: Sequence[int] = sorted(part)
    low, high = 0, len(part - kept)
    while high - low > 1:
        middle = (low + high) // 2
        if fails(frozenset(order[middle:])):
            low = middle
        else:
            high = middle
    return frozenset(order[low:])


def one_minimal(part: Part, fails: Fails) -> Part:
    """A failing part from which nothing more can be taken: first halves and quarters, then single operators.

    Source: A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002.
    """
    size = max(1, len(part) // 2)
    while len(part) > 1:
        order = sorted(part)
        for start in range(0, len(order), size):
            rest = part - frozenset(order[start : start + size])
            if rest and fails(rest):
                part = rest
                size = max(1, min(size, len(part) // 2))
                break
        else:
            if size == 1:
                break
            size = max(1, size // 2)
    return part
