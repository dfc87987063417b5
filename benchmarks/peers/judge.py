"""Whether one file is closer to the source than another: intervals over the same samples, ties are ties. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

#: Files whose sizes and medians differ by less than this are equally large and fast: two runs differ by so much, and a
#: quantizer that writes its settings into the file makes a small one larger by so much.
SAME_SIZE: Final = 1.1
SAME_TIME: Final = 1.15
#: How much closer ours is to be on half of the cells.
CLEARLY: Final = 0.8
SEED: Final = 7
RESAMPLES: Final = 2000
#: Queries that were timed one after the other before the next file had its turn.
TURN: Final = 25
_ENDS: Final = (2.5, 97.5)
#: Values that are resampled at once.
_BLOCK: Final = 250

Interval = tuple[float, float]


class Measured(Struct, frozen=True, kw_only=True):
    """One file on one cell's samples.

    Attributes:
        errors: of each sample, the squared error of the first output, summed.
        sizes: of each sample, the square of the source's first output, summed.
        times_ms: of every query, in order, in turns with the other files.
        size_bytes: of its files.
    """

    name: str
    errors: np.ndarray
    sizes: np.ndarray
    times_ms: Sequence[float]
    size_bytes: int

    @property
    def relative_rms(self) -> float:
        """Over all samples."""
        return float(np.sqrt(self.errors.sum() / self.sizes.sum()))

    @property
    def p50_ms(self) -> float:
        """Median in ms."""
        return float(np.median(self.times_ms))


def rms_interval(one: Measured) -> Interval:
    """95 % percentile bootstrap of a relative RMS over the samples."""
    errors, sizes = _resampled([one.errors, one.sizes])
    return _ends(np.sqrt(errors / sizes))


def ratio_interval(ours: Measured, peer: Measured) -> Interval:
    """95 % percentile bootstrap of ours ÷ theirs, each resample holding the same samples of both.

    >>> quiet = Measured(name="", errors=np.full(9, 1.0), sizes=np.full(9, 9.0), times_ms=[1.0], size_bytes=1)
    >>> loud = Measured(name="", errors=np.full(9, 4.0), sizes=np.full(9, 9.0), times_ms=[1.0], size_bytes=1)
    >>> ratio_interval(quiet, loud)
    (0.5, 0.5)
    """
    if not peer.errors.any():
        return (np.inf, np.inf) if ours.errors.any() else (1.0, 1.0)
    mine, theirs = _resampled([ours.errors, peer.errors])
    return _ends(np.sqrt(mine / np.maximum(theirs, np.finfo(np.float64).tiny)))


def time_ratio(one: Measured, other: Measured) -> tuple[float, Interval]:
    """The ratio of two medians over the turns that both had, and its 95 % percentile bootstrap over those turns."""
    turns = max(min(len(one.times_ms), len(other.times_ms)) // TURN, 1)
    first, second = (np.asarray(each.times_ms[: turns * TURN]).reshape(turns, -1) for each in (one, other))
    rng = np.random.default_rng(SEED)
    picked = rng.integers(0, turns, (RESAMPLES // 4, turns))
    ratios = [float(np.median(first[rows]) / np.median(second[rows])) for rows in picked]
    return float(np.median(first) / np.median(second)), _ends(np.asarray(ratios))


def is_rival(peer: Measured, ours: Measured) -> bool:
    """Whether a peer's file is at most as large and as slow as ours, within what two runs differ by."""
    return peer.size_bytes <= SAME_SIZE * ours.size_bytes and peer.p50_ms <= SAME_TIME * ours.p50_ms


def closest(peers: Sequence[Measured], ours: Measured, reference: Measured) -> Measured:
    """The best variant of any peer: the closest of those that are not slower than both ours and the float file.

    Picked on the very samples that judge, in the peers' favour. A file that is slower than the float one it was made
    from is nobody's best; where all are, they are compared all the same.
    """
    limit_ms = SAME_TIME * max(ours.p50_ms, reference.p50_ms)
    useful = [each for each in peers if each.p50_ms <= limit_ms] or list(peers)
    return min(useful, key=lambda each: each.relative_rms)


def clearly_closer(intervals: Mapping[str, Interval]) -> tuple[str, ...]:
    """Cells where ours is proven closer by a fifth.

    >>> clearly_closer({"a": (0.3, 0.5), "b": (0.7, 0.9)})
    ('a',)
    """
    return tuple(name for name, (_, high) in intervals.items() if high <= CLEARLY)


def _resampled(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sums of each column over the same resamples."""
    count = len(columns[0])
    rng = np.random.default_rng(SEED)
    sums: list[list[np.ndarray]] = [[] for _ in columns]
    for start in range(0, RESAMPLES, _BLOCK):
        picked = rng.integers(0, count, (min(_BLOCK, RESAMPLES - start), count))
        for column, found in zip(columns, sums, strict=True):
            found.append(column[picked].sum(axis=1))
    return [np.concatenate(found) for found in sums]


def _ends(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, _ENDS)
    return float(low), float(high)
