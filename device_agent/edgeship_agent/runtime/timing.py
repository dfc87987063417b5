"""How long inferences take: several artifacts in turn, so that they share the machine's good and bad moments.

The build measures with it on its own machine, over SSH on a device, and by profile jobs of enrolled devices.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Final, Protocol

from edgeship_agent.processing.arrays import Array

#: Queries of one artifact before the next one has its turn.
BLOCK: Final = 25
#: A slow artifact is measured no longer than this, in seconds, and says with how many queries.
MOST_S: Final = 20.0
#: Inputs that the queries go round.
_INPUTS: Final = 16

Inference = Callable[[Mapping[str, Array]], object]
#: Told how many of the wanted queries are done, and how many are wanted.
Counted = Callable[[int, int], None]


class Plan(Protocol):
    """How much is measured."""

    @property
    def warm_up(self) -> int:
        """Inferences before the clock starts."""

    @property
    def min_queries(self) -> int:
        """Inferences that are timed, at least."""

    @property
    def min_seconds(self) -> float:
        """Time that is measured, at least, in seconds."""


def time_in_turn(
    runs: Mapping[str, Inference],
    inputs: Sequence[Mapping[str, Array]],
    plan: Plan,
    on_count: Counted,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every artifact: warm-up, then blocks in turn until each has the plan's queries and seconds.

    Args:
        runs: label → one inference.
        inputs: of which the first few are used.
        plan: warm-up, fewest queries, fewest seconds; no artifact is measured for more than 20 s.
        on_count: called after every round.
        clock: in seconds.

    Returns:
        Label → time of every query in ms, in order.
    """
    few = inputs[:_INPUTS]
    for run in runs.values():
        for _, sample in zip(range(plan.warm_up), cycle(few), strict=False):
            run(sample)
    times: dict[str, list[float]] = {label: [] for label in runs}
    spent = dict.fromkeys(runs, 0.0)
    longest_s = max(MOST_S, plan.min_seconds)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while waiting := [label for label in runs if not _enough(times[label], spent[label], plan, longest_s)]:
            for label in waiting:
                block = _block(runs[label], few, clock)
                times[label] += block
                spent[label] += sum(block) / 1000.0
            on_count(sum(min(len(series), plan.min_queries) for series in times.values()), plan.min_queries * len(runs))
    finally:
        if collecting:
            gc.enable()
    return times


def _block(run: Inference, inputs: Sequence[Mapping[str, Array]], clock: Callable[[], float]) -> list[float]:
    times = []
    for _, sample in zip(range(BLOCK), cycle(inputs), strict=False):
        started = clock()
        run(sample)
        times.append((clock() - started) * 1000.0)
    return times


def _enough(times: Sequence[float], spent_s: float, plan: Plan, longest_s: float) -> bool:
    return spent_s >= longest_s or (len(times) >= plan.min_queries and spent_s >= plan.min_seconds)
