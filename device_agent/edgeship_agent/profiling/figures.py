"""Times and conditions become figures. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgeship_agent.contract.profiling import MOST_TIMES, MOST_TIMES_OF_ALL, Conditions, TaskLatency, TaskParity
from edgeship_agent.processing.arrays import Array

#: The last quarter of the queries may be this much slower than the first before it is said.
_SLOWER: Final = 1.10
#: The clock may fall to this part of what it was.
_FREQUENCY_SHARE: Final = 0.90
#: The hottest sensor may rise by so much, in °C.
_WARMER_C: Final = 15.0
_DIGITS: Final = 5


def latency_of(times_ms: Sequence[float], tasks: int) -> TaskLatency:
    """Figures of one task's times.

    Args:
        times_ms: of every query, in order.
        tasks: of the whole job, which share the room that a message has.

    >>> latency = latency_of([1.0] * 99 + [9.0], tasks=1)
    >>> latency.queries, latency.p50_ms, latency.p999_ms > 8.0, len(latency.times_ms)
    (100, 1.0, True, 100)
    """
    times = np.asarray(times_ms, np.float64)
    p50, p90, p99, p999 = (float(value) for value in np.percentile(times, (50, 90, 99, 99.9)))
    quarter = max(1, len(times) // 4)
    step = max(1, math.ceil(len(times) / min(MOST_TIMES, MOST_TIMES_OF_ALL // tasks)))
    return TaskLatency(
        queries=len(times),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p999_ms=p999,
        mean_ms=float(times.mean()),
        first_quarter_p50_ms=float(np.median(times[:quarter])),
        last_quarter_p50_ms=float(np.median(times[-quarter:])),
        times_ms=tuple(float(f"{value:.{_DIGITS}g}") for value in times[::step]),
    )


def parity_of(
    got: Sequence[Mapping[str, Array]], wanted: Sequence[Mapping[str, Array]], first: str, tolerance: float
) -> TaskParity:
    """Outputs against the expected ones.

    Args:
        got: one mapping name → array per input, as the device gave them.
        wanted: likewise, as they should be.
        first: name of the output that is compared.
        tolerance: largest relative RMS.

    >>> one = [{"y": np.array([3.0, 4.0])}]
    >>> parity_of(one, one, "y", 0.0).passed, parity_of([{"y": np.array([3.0, 4.5])}], one, "y", 0.2).relative_rms
    (True, 0.1)
    """
    squared_error = squared = 0.0
    for answer, right in zip(got, wanted, strict=True):
        expected = np.asarray(right[first], np.float64).ravel()
        error = np.asarray(answer[first], np.float64).ravel() - expected
        squared_error += float(error @ error)
        squared += float(expected @ expected)
    relative_rms = math.sqrt(squared_error / squared) if squared > 0 else (0.0 if squared_error == 0 else math.inf)
    return TaskParity(
        passed=math.isfinite(relative_rms) and relative_rms <= tolerance,
        relative_rms=relative_rms if math.isfinite(relative_rms) else -1.0,
        tolerance=tolerance,
        samples=len(wanted),
    )


def throttling(latencies: Mapping[str, TaskLatency], first: Conditions, last: Conditions) -> tuple[str, ...]:
    """Reasons to believe that the processor was slowed down while it was measured, in words.

    >>> throttling({}, Conditions(frequency_khz=1.5e6), Conditions(frequency_khz=1.0e6))
    ('the processor ran at 1000 MHz in the end, 1500 MHz in the beginning',)
    >>> throttling({"a": latency_of([1.0] * 50 + [1.2] * 50, tasks=1)}, Conditions(), Conditions())
    ('a: its last quarter took 20 % longer than its first',)
    """
    reasons = [
        f"{label}: its last quarter took {each.last_quarter_p50_ms / each.first_quarter_p50_ms - 1:.0%} "
        "longer than its first".replace("%", " %")
        for label, each in latencies.items()
        if each.last_quarter_p50_ms > _SLOWER * each.first_quarter_p50_ms > 0
    ]
    if 0 < last.frequency_khz < _FREQUENCY_SHARE * first.frequency_khz:
        reasons.append(
            f"the processor ran at {last.frequency_khz / 1000:.0f} MHz in the end, "
            f"{first.frequency_khz / 1000:.0f} MHz in the beginning"
        )
    if first.temperature_c and last.temperature_c >= first.temperature_c + _WARMER_C:
        reasons.append(f"the hottest sensor rose from {first.temperature_c:.0f} to {last.temperature_c:.0f} °C")
    return tuple(reasons)
