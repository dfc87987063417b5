"""Latency of several artifacts, interleaved so that they share the machine's good and bad moments.

The very same module measures on a device over SSH: at run time it needs the standard library, numpy and msgspec alone.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from msgspec import Struct

if TYPE_CHECKING:
    from edgeship.build.backends.base import Samples
    from edgeship.build.progress import Progress
    from edgeship.build.verify import Run

#: Queries of one artifact before the next one has its turn.
BLOCK: Final = 25
#: A slow artifact is measured no longer than this, in seconds, and says with how many queries.
MOST_S: Final = 20.0
#: Inputs that the queries go round.
_INPUTS: Final = 16


class Plan(Protocol):
    """What a target's ``[measure]`` says."""

    @property
    def warm_up(self) -> int:
        """Inferences before the clock starts."""

    @property
    def min_queries(self) -> int:
        """Inferences that are timed, at least."""

    @property
    def min_seconds(self) -> float:
        """Time that is measured, at least, in seconds."""


class Latency(Struct, frozen=True, kw_only=True):
    """Times of one artifact.

    Attributes:
        times_ms: of every query, in order.
    """

    times_ms: tuple[float, ...]

    @property
    def p50_ms(self) -> float:
        """Median in ms."""
        return float(np.percentile(self.times_ms, 50))

    @property
    def p99_ms(self) -> float:
        """99th percentile in ms."""
        return float(np.percentile(self.times_ms, 99))


def measure(
    runs: Mapping[str, Run],
    inputs: Samples,
    plan: Plan,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Time every artifact: warm-up, then blocks in turn until each has the plan's queries and seconds.

    Args:
        runs: label → one inference on prepared inputs, bindings included.
        inputs: prepared inputs, of which the first few are used.
        plan: warm-up, fewest queries, fewest seconds.
        progress: told how far it is.
        clock: in seconds.
    """
    few = inputs[:_INPUTS]
    for run in runs.values():
        for _, sample in zip(range(plan.warm_up), cycle(few), strict=False):
            run(sample)
    times: dict[str, list[float]] = {label: [] for label in runs}
    spent = dict.fromkeys(runs, 0.0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while waiting := [label for label in runs if not _enough(times[label], spent[label], plan)]:
            for label in waiting:
                block = _block(runs[label], few, clock)
                times[label] += block
                spent[label] += sum(block) / 1000.0
            done = sum(min(len(series), plan.min_queries) for series in times.values())
            progress.count("measure", done, plan.min_queries * len(runs))
    finally:
        if collecting:
            gc.enable()
    return {label: Latency(times_ms=tuple(series)) for label, series in times.items()}


def _block(run: Run, inputs: Samples, clock: Callable[[], float]) -> list[float]:
    times = []
    for _, sample in zip(range(BLOCK), cycle(inputs), strict=False):
        started = clock()
        run(sample)
        times.append((clock() - started) * 1000.0)
    return times


def _enough(times: Sequence[float], spent_s: float, plan: Plan) -> bool:
    return spent_s >= MOST_S or (len(times) >= plan.min_queries and spent_s >= plan.min_seconds)
