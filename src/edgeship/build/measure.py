"""Latency of several artifacts, interleaved so that they share the machine's good and bad moments.

The very same module measures on a device over SSH: at run time it needs the standard library, numpy, msgspec and the
agent's runtime code alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from edgeship_agent.runtime.timing import BLOCK, MOST_S, Plan, time_in_turn

if TYPE_CHECKING:
    from edgeship.build.backends.base import Samples
    from edgeship.build.progress import Progress
    from edgeship.build.verify import Run

__all__ = ["BLOCK", "MOST_S", "Latency", "Plan", "measure"]


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
    """Time every artifact; see :func:`edgeship_agent.runtime.timing.time_in_turn`.

    Args:
        runs: label → one inference on prepared inputs, bindings included.
        inputs: prepared inputs, of which the first few are used.
        plan: warm-up, fewest queries, fewest seconds.
        progress: told how far it is.
        clock: in seconds.
    """
    times = time_in_turn(runs, inputs, plan, lambda done, total: progress.count("measure", done, total), clock)
    return {label: Latency(times_ms=tuple(series)) for label, series in times.items()}
