"""Whether a model that is on probation may stay: pure, from what was counted since it was activated."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from edgeship_agent.contract.goal import Probation
from edgeship_agent.update.machine import MAX_PROBATION_CRASHES


class Observation(Struct, frozen=True, kw_only=True):
    """What a model did since it was activated on this device.

    Attributes:
        inferences: answered calls.
        failures: calls that ended in an error.
        crashes: deaths of the worker or the agent that were not asked for.
        latency_p99_ms: over all calls since activation; None where nothing was answered.
        hard_stops: reasons for which one occurrence suffices.
    """

    inferences: int = 0
    failures: int = 0
    crashes: int = 0
    latency_p99_ms: float | None = None
    hard_stops: tuple[str, ...] = ()


class Outcome(str, Enum):
    """What to do next with a model on probation."""

    WAIT = "wait"
    COMMIT = "commit"
    REPLAY = "replay"  # traffic was short until the deadline
    FAIL = "fail"


class ProbationVerdict(Struct, frozen=True, kw_only=True):
    """An outcome with its reason (a code) and detail (a sentence)."""

    outcome: Outcome
    reason: str = ""
    detail: str = ""


def judge_probation(probation: Probation, seen: Observation, elapsed_s: float) -> ProbationVerdict:
    """Judge a model by its probation, failure before success.

    A share of failed calls is judged early only where it cannot come right any more; a latency once enough calls
    were answered.

    Args:
        probation: the limits.
        seen: counted since activation.
        elapsed_s: since activation, on a monotonic clock.

    >>> judge_probation(Probation(inferences=10, duration_s=1), Observation(inferences=10), 2.0).outcome.value
    'commit'
    >>> judge_probation(Probation(duration_s=1, deadline_s=5), Observation(inferences=2), 6.0).outcome.value
    'replay'
    """
    failure = _failure(probation, seen)
    if failure is not None:
        return failure
    enough = seen.inferences >= probation.inferences
    if enough and elapsed_s >= probation.duration_s:
        return ProbationVerdict(outcome=Outcome.COMMIT)
    if not enough and elapsed_s >= max(probation.deadline_s, probation.duration_s):
        return ProbationVerdict(outcome=Outcome.REPLAY)
    return ProbationVerdict(outcome=Outcome.WAIT)


def _failure(probation: Probation, seen: Observation) -> ProbationVerdict | None:
    if seen.hard_stops:
        return _fail(seen.hard_stops[0], f"hard stop: {', '.join(seen.hard_stops)}")
    if seen.crashes >= MAX_PROBATION_CRASHES:
        return _fail("crash_loop", f"{seen.crashes} crashes in probation, limit {MAX_PROBATION_CRASHES - 1}")
    calls = seen.inferences + seen.failures
    if seen.failures > probation.max_failed_ratio * max(calls, probation.inferences):
        limit = f"{probation.max_failed_ratio:.2%}"
        return _fail("failed_calls", f"{seen.failures} of {calls} calls failed, limit {limit}")
    limit_ms, p99_ms = probation.latency_p99_ms, seen.latency_p99_ms
    if limit_ms > 0 and p99_ms is not None and seen.inferences >= probation.inferences and p99_ms > limit_ms:
        return _fail("latency", f"p99 {p99_ms:.2f} ms over {seen.inferences} calls, limit {limit_ms:.2f} ms")
    return None


def _fail(reason: str, detail: str) -> ProbationVerdict:
    return ProbationVerdict(outcome=Outcome.FAIL, reason=reason, detail=detail)
