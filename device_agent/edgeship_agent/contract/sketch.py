"""Sketches that merge exactly: integers only, so that addition is associative and commutative on every machine.

A sketch holds counts and fixed-point sums, never a float, a mean or an input. Adding is not idempotent, so a window
is keyed and its repeats are dropped before anything is merged (:class:`edgeship_agent.contract.messages.Window`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, Union

from msgspec import Struct

from edgeship_agent.contract.errors import ContractError

#: Resolution of exponential histograms: base 2^(1/8), at most 9 % wide. Source: OpenTelemetry metrics data model,
#: exponential histogram, scale 3.
EXPONENTIAL_SCALE: Final = 3
#: Range of scales. Source: OpenTelemetry SDK specification, base-2 exponential histogram (−10 … 20).
MIN_SCALE: Final = -10
MAX_SCALE: Final = 20
#: No bucket reaches beyond 2^±this: a double ends there, and a message may name any bucket.
MAX_EXPONENT: Final = 1023


#: Most entries of a sketch in a window: a server takes no more, and a batch of windows stays far below the longest
#: message.
MAX_SKETCH_ENTRIES: Final = 1024


class BinnedSketch(Struct, frozen=True, kw_only=True, array_like=True, tag="binned"):
    """Counts of a continuous signal over the edges that its profile fixes.

    Attributes:
        counts: ``len(edges) + 1`` counts; the first is below the lowest edge, the last at or above the highest.
        missing_count: values that were NaN, infinite or absent.
        sum_fixed: Σ of the values as integers, in units of ``SignalProfile.unit`` from ``SignalProfile.center``.
        sum_square_fixed: Σ of the squares of the same integers.
    """

    counts: tuple[int, ...]
    missing_count: int = 0
    sum_fixed: int = 0
    sum_square_fixed: int = 0

    @property
    def total(self) -> int:
        """How many values were counted, without the missing ones."""
        return sum(self.counts)


class CategorySketch(Struct, frozen=True, kw_only=True, array_like=True, tag="category"):
    """Counts of a class or category, sparse: index → count.

    Where there are more than :data:`MAX_SKETCH_ENTRIES` a window names the most frequent ones alone; its ``inferences``
    say how many calls there were.
    """

    counts: dict[int, int]

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts.values())


class ExponentialSketch(Struct, frozen=True, kw_only=True, array_like=True, tag="exponential"):
    """Histogram of positive values whose range nobody knows beforehand, such as a latency.

    Bucket ``i`` holds values in ``(base^i, base^(i+1)]`` with ``base = 2^(2^-scale)``.

    Attributes:
        counts: bucket index → count, sparse.
        zero_count: values ≤ 0.
        scale: resolution; merging brings both sides to the smaller one.

    Raises:
        ContractError: a scale or a bucket that no value can have; also when decoded.
    """

    counts: dict[int, int] = {}
    zero_count: int = 0
    scale: int = EXPONENTIAL_SCALE

    def __post_init__(self) -> None:
        if not MIN_SCALE <= self.scale <= MAX_SCALE:
            raise ContractError("scale out of range", expected=f"{MIN_SCALE} … {MAX_SCALE}", got=self.scale)
        furthest = MAX_EXPONENT * 2.0**self.scale
        if any(not -furthest <= index < furthest for index in self.counts):
            raise ContractError("bucket out of range", expected=f"within 2^±{MAX_EXPONENT}")

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts.values()) + self.zero_count


Sketch = Union[BinnedSketch, CategorySketch, ExponentialSketch]


def bucket_index(value: float, scale: int = EXPONENTIAL_SCALE) -> int:
    """The bucket of a positive value.

    >>> bucket_index(1.0), bucket_index(2.0), bucket_index(2.1)
    (-1, 7, 8)
    """
    return math.ceil(math.log2(value) * 2.0**scale) - 1


def bucket_bounds(index: int, scale: int = EXPONENTIAL_SCALE) -> tuple[float, float]:
    """Lower (exclusive) and upper (inclusive) bound of a bucket, in the unit of the values.

    >>> bucket_bounds(7)[1]
    2.0
    """
    step = 2.0**-scale
    return (2.0 ** (index * step), 2.0 ** ((index + 1) * step))


def exponential_of(values: Iterable[float]) -> ExponentialSketch:
    """Sketch some values.

    >>> exponential_of([1.5, 0.0, 1.5]).total
    3
    """
    counts: dict[int, int] = {}
    zero_count = 0
    for value in values:
        if value > 0.0:
            index = bucket_index(value)
            counts[index] = counts.get(index, 0) + 1
        else:
            zero_count += 1
    return ExponentialSketch(counts=counts, zero_count=zero_count)


def quantile(sketch: ExponentialSketch, share: float) -> float | None:
    """The value below which ``share`` (0–1) of the values lie: the upper bound of its bucket, so never too low.

    Returns:
        The bound in the unit of the values, 0.0 for the zero bucket, or None where nothing was counted.

    >>> quantile(exponential_of([1.9] * 99 + [100.0]), 0.5)
    2.0
    >>> quantile(ExponentialSketch(), 0.5) is None
    True
    """
    if sketch.total == 0:
        return None
    rank = max(1, math.ceil(share * sketch.total))
    seen = sketch.zero_count
    if seen >= rank:
        return 0.0
    for index in sorted(sketch.counts):
        seen += sketch.counts[index]
        if seen >= rank:
            return bucket_bounds(index, sketch.scale)[1]
    raise AssertionError("a rank within the total always falls into a bucket")


def most_frequent(sketch: CategorySketch, limit: int = MAX_SKETCH_ENTRIES) -> CategorySketch:
    """The sketch without its rarest categories, where it has more than ``limit``; of equally rare ones the first stay.

    >>> most_frequent(CategorySketch(counts={0: 1, 4: 7, 5: 1, 9: 2}), 3).counts
    {0: 1, 4: 7, 9: 2}
    """
    if len(sketch.counts) <= limit:
        return sketch
    ranked = sorted(sketch.counts, key=lambda index: (-sketch.counts[index], index))
    return CategorySketch(counts={index: sketch.counts[index] for index in sorted(ranked[:limit])})


def downscale(sketch: ExponentialSketch, scale: int) -> ExponentialSketch:
    """Bring an exponential sketch to a coarser scale: exact, since 2^k neighbours fall into one bucket."""
    shift = sketch.scale - scale
    if shift < 0:
        raise ContractError("a sketch cannot be made finer", key="scale", expected=f"≤ {sketch.scale}", got=scale)
    counts: dict[int, int] = {}
    for index, count in sketch.counts.items():
        coarse = index >> shift
        counts[coarse] = counts.get(coarse, 0) + count
    return ExponentialSketch(counts=counts, zero_count=sketch.zero_count, scale=scale)


def merge(left: Sketch, right: Sketch) -> Sketch:
    """Add two sketches of the same signal.

    Raises:
        ContractError: they are of different kinds or have different bins.

    >>> merge(CategorySketch(counts={0: 1}), CategorySketch(counts={0: 2, 3: 1})).counts
    {0: 3, 3: 1}
    """
    if isinstance(left, BinnedSketch) and isinstance(right, BinnedSketch):
        return _merge_binned(left, right)
    if isinstance(left, CategorySketch) and isinstance(right, CategorySketch):
        return CategorySketch(counts=_add(left.counts, right.counts))
    if isinstance(left, ExponentialSketch) and isinstance(right, ExponentialSketch):
        scale = min(left.scale, right.scale)
        left, right = downscale(left, scale), downscale(right, scale)
        return ExponentialSketch(
            counts=_add(left.counts, right.counts), zero_count=left.zero_count + right.zero_count, scale=scale
        )
    raise ContractError("sketches of different kinds", expected=type(left).__name__, got=type(right).__name__)


def _merge_binned(left: BinnedSketch, right: BinnedSketch) -> BinnedSketch:
    if len(left.counts) != len(right.counts):
        raise ContractError("sketches with different bins", expected=len(left.counts), got=len(right.counts))
    return BinnedSketch(
        counts=tuple(a + b for a, b in zip(left.counts, right.counts, strict=True)),
        missing_count=left.missing_count + right.missing_count,
        sum_fixed=left.sum_fixed + right.sum_fixed,
        sum_square_fixed=left.sum_square_fixed + right.sum_square_fixed,
    )


def _add(left: dict[int, int], right: dict[int, int]) -> dict[int, int]:
    counts = dict(left)
    for index, count in right.items():
        counts[index] = counts.get(index, 0) + count
    return dict(sorted(counts.items()))
