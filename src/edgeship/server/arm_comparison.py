"""A release beside the version that it shares the traffic with: the same time, the same devices, one row per figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from msgspec import Struct
from sqlalchemy import Connection, func, select

from edgeship.server.rollout_evidence import latency_p99_ms
from edgeship.server.store import labels, schema, windows
from edgeship.server.store.labels import Labelled, OutcomeSums
from edgeship.server.store.rollouts import Member, Rollout
from edgeship.server.version_table import shadow_of
from edgeship.statistics import newcombe_independent

_TABLE: Final = schema.windows
_MOST_WINDOWS: Final = 500
#: Two-sided 95 % quantile of the normal distribution.
_Z95: Final = 1.959964


class Compared(Struct, frozen=True, kw_only=True):
    """One figure of two versions.

    Attributes:
        name: ``accuracy``, ``failed_ratio``, ``latency_p99_ms``, a business figure's, or of a shadow ``disagreement``
            and ``relative_rms``.
        unit: ``fraction``, ``ms``, or empty for a business figure.
        before, after: of the version from before and of the release; None where there is no data.
        change, low, high: after − before with its 95 % interval; None where it has none.
        n_before, n_after: labelled predictions, calls, or predictions with the figure.
    """

    name: str
    unit: Literal["", "fraction", "ms"]
    before: float | None = None
    after: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    n_before: int = 0
    n_after: int = 0


class _Calls(Struct, frozen=True, kw_only=True):
    answered: int = 0
    failures: int = 0
    latency_p99_ms: float | None = None


def compare_arms(connection: Connection, rollout: Rollout, members: Sequence[Member]) -> list[Compared]:
    """Figures of a release and of the versions that it runs beside, over the rollout's devices since it began.

    Requests are drawn to a version by their key, on each device, so calls are compared and not devices. Labels count
    where the prediction was made since then, for both alike: an old label tells of another time.
    """
    before = sorted({known.previous_version for known in members if known.activated_at_s is not None})
    ids = [known.device_id for known in members if known.activated_at_s is not None]
    since_s = rollout.created_at_s
    noted = labels.by_version(connection, rollout.model, device_ids=ids, predicted_since_s=since_s)
    figures = labels.outcomes(connection, rollout.model, device_ids=ids, since_s=since_s)
    olds = [_calls(connection, rollout, version, ids) for version in before]
    old = _Calls(
        answered=sum(each.answered for each in olds),
        failures=sum(each.failures for each in olds),
        latency_p99_ms=max((each.latency_p99_ms for each in olds if each.latency_p99_ms is not None), default=None),
    )
    new = _calls(connection, rollout, rollout.version, ids)
    compared = [
        accuracy_of([noted.get(version, Labelled()) for version in before], noted.get(rollout.version, Labelled())),
        _failed(old, new),
        _latency(old, new),
    ]
    for name in sorted({sums.name for sums in figures}):
        mine = [sums for sums in figures if sums.name == name]
        compared.append(
            outcome_change(
                name,
                [sums for sums in mine if sums.version in before],
                [sums for sums in mine if sums.version == rollout.version],
            )
        )
    return compared + (_as_shadow(connection, rollout) if rollout.mirror else [])


def _as_shadow(connection: Connection, rollout: Rollout) -> list[Compared]:
    """How often the same input gave another class, and how far the outputs were apart: paired, so of the release."""
    seen = shadow_of(labels.shadow_sums(connection, rollout.model, rollout.version, rollout.created_at_s))
    if seen is None or not seen.n:
        return [Compared(name="disagreement", unit="fraction")]
    disagreement = Compared(
        name="disagreement",
        unit="fraction",
        before=0.0,
        after=seen.disagreement,
        change=seen.disagreement,
        low=seen.low,
        high=seen.high,
        n_before=seen.n,
        n_after=seen.n,
    )
    return [disagreement, Compared(name="relative_rms", unit="", after=seen.relative_rms, n_after=seen.n)]


def accuracy_of(before: Sequence[Labelled], after: Labelled) -> Compared:
    """Accuracy by labels.

    >>> found = accuracy_of([Labelled(labelled=900, correct=810)], Labelled(labelled=100, correct=80))
    >>> round(found.change, 3), round(found.low, 3), round(found.high, 3)
    (-0.1, -0.191, -0.03)
    """
    labelled, correct = sum(each.labelled for each in before), sum(each.correct for each in before)
    return _shares("accuracy", correct, labelled, after.correct, after.labelled)


def outcome_change(name: str, before: Sequence[OutcomeSums], after: Sequence[OutcomeSums]) -> Compared:
    """Means of a business figure, with the normal interval of their difference (unequal variances).

    Source: B. L. Welch (1947), Biometrika 34; the normal quantile instead of Student's, so thirty of each are wanted.

    >>> old = OutcomeSums(version="1", name="minutes", count=100, total=200.0, square_total=500.0)
    >>> new = OutcomeSums(version="2", name="minutes", count=100, total=300.0, square_total=1000.0)
    >>> found = outcome_change("minutes", [old], [new])
    >>> found.before, found.after, found.change, round(found.low, 3)
    (2.0, 3.0, 1.0, 0.721)
    """
    (n_before, mean_before, error_before), (n_after, mean_after, error_after) = _mean(before), _mean(after)
    plain = Compared(name=name, unit="", before=mean_before, after=mean_after, n_before=n_before, n_after=n_after)
    if mean_before is None or mean_after is None or min(n_before, n_after) < 2:
        return plain
    change, half = mean_after - mean_before, _Z95 * math.hypot(error_before, error_after)
    return Compared(
        name=name,
        unit="",
        before=mean_before,
        after=mean_after,
        change=change,
        low=change - half,
        high=change + half,
        n_before=n_before,
        n_after=n_after,
    )


def _mean(sums: Sequence[OutcomeSums]) -> tuple[int, float | None, float]:
    """Count, mean and standard error of the mean."""
    n = sum(each.count for each in sums)
    if not n:
        return 0, None, 0.0
    mean = sum(each.total for each in sums) / n
    variance = max(sum(each.square_total for each in sums) / n - mean * mean, 0.0) * n / max(n - 1, 1)
    return n, mean, math.sqrt(variance / n)


def _failed(old: _Calls, new: _Calls) -> Compared:
    calls_before, calls_after = old.answered + old.failures, new.answered + new.failures
    return _shares("failed_ratio", old.failures, calls_before, new.failures, calls_after)


def _latency(old: _Calls, new: _Calls) -> Compared:
    """p99 of both: figures without an interval, since calls of one device are not independent in time."""
    return Compared(
        name="latency_p99_ms",
        unit="ms",
        before=old.latency_p99_ms,
        after=new.latency_p99_ms,
        n_before=old.answered,
        n_after=new.answered,
    )


def _shares(name: str, hits_before: int, n_before: int, hits_after: int, n_after: int) -> Compared:
    before = hits_before / n_before if n_before else None
    after = hits_after / n_after if n_after else None
    if before is None or after is None:
        return Compared(name=name, unit="fraction", before=before, after=after, n_before=n_before, n_after=n_after)
    change = newcombe_independent(hits_before, n_before, hits_after, n_after)
    return Compared(
        name=name,
        unit="fraction",
        before=before,
        after=after,
        change=change.change,
        low=change.low,
        high=change.high,
        n_before=n_before,
        n_after=n_after,
    )


def _calls(connection: Connection, rollout: Rollout, version: str, device_ids: Sequence[str]) -> _Calls:
    where = (
        _TABLE.c.device_id.in_(device_ids),
        _TABLE.c.model == rollout.model,
        _TABLE.c.version == version,
        _TABLE.c.received_at_s >= rollout.created_at_s,
    )
    sums = [func.coalesce(func.sum(_TABLE.c[name]), 0) for name in ("inferences", "failures")]
    answered, failures = connection.execute(select(*sums).where(*where)).one()
    newest = select(_TABLE.c.payload).where(*where).order_by(_TABLE.c.received_at_s.desc()).limit(_MOST_WINDOWS)
    recent = (windows.decode(payload) for payload in connection.execute(newest).scalars())
    return _Calls(answered=int(answered), failures=int(failures), latency_p99_ms=latency_p99_ms(recent))
