"""Whether there is enough calibration data: the ranges that one half of it sets must hold for the other half. Pure.

A quantizer clips what lies outside the range that it saw. Two disjoint halves are two independent draws of the same
data: where they set different ranges, so would the field. Each tensor is judged by how far either half's values lie
outside the other's range, as a share of the range of all; half a calibration set is a harder test than the whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.schema import CalibrationReport
from edgeship_agent.runtime.engine import Array

#: A tensor whose range moves by more than this between the halves is not known: of 255 steps, 51 lie elsewhere.
STABLE_SHARE: Final = 0.2
#: Halves of fewer samples say nothing of ranges.
FEWEST_SAMPLES: Final = 20


class TensorRange(Struct, frozen=True, kw_only=True):
    """Smallest and largest value of one tensor in each sample.

    Attributes:
        low, high: [N].
    """

    name: str
    low: Array
    high: Array


class Stability(Struct, frozen=True, kw_only=True):
    """How far a tensor's range moves between two disjoint halves.

    Attributes:
        moved: share of the whole range by which one half lies outside the other's, at the worse end.
    """

    name: str
    moved: float


class Sufficiency(Struct, frozen=True, kw_only=True):
    """What the halves say of the calibration data.

    Attributes:
        samples: in both halves together.
        tensors: the one that moves most first.
    """

    samples: int
    tensors: tuple[Stability, ...]

    @property
    def moving(self) -> tuple[Stability, ...]:
        """Tensors whose range is not known."""
        return tuple(each for each in self.tensors if each.moved > STABLE_SHARE)

    def report(self) -> CalibrationReport:
        """For build.json."""
        worst = self.tensors[0] if self.tensors else Stability(name="", moved=0.0)
        return CalibrationReport(samples=self.samples, tensors=len(self.tensors), moving=len(self.moving),
                                 worst=worst.name, worst_moved=worst.moved)  # fmt: skip

    @property
    def note(self) -> str:
        """What is wrong, in one sentence; empty where nothing is."""
        if self.samples < 2 * FEWEST_SAMPLES:
            return (f"calibration: {self.samples} samples are too few to tell whether ranges are stable; "
                    f"give at least {2 * FEWEST_SAMPLES}, better some hundred")  # fmt: skip
        if not self.moving:
            return ""
        worst = self.moving[0]
        return (f"calibration: the ranges of {len(self.moving)} of {len(self.tensors)} tensors move by more than "
                f"{STABLE_SHARE:.0%} between two halves of it (most: {worst.name}, {worst.moved:.0%}); "
                "more samples, or ones more like the field's, would help")  # fmt: skip


def range_stability(ranges: Sequence[TensorRange]) -> Sufficiency:
    """Compare the samples at even with those at odd positions.

    Args:
        ranges: of every tensor, over the same samples.

    >>> steady = TensorRange(name="x", low=np.zeros(40), high=np.ones(40))
    >>> jumpy = TensorRange(name="y", low=np.zeros(40), high=np.where(np.arange(40) == 7, 9.0, 1.0))
    >>> found = range_stability([steady, jumpy])
    >>> [(each.name, round(each.moved, 2)) for each in found.tensors]
    [('y', 0.89), ('x', 0.0)]
    """
    found = [Stability(name=each.name, moved=_moved(each)) for each in ranges]
    samples = len(ranges[0].low) if ranges else 0
    return Sufficiency(samples=samples, tensors=tuple(sorted(found, key=lambda each: (-each.moved, each.name))))


def ranges_of(tensors: Mapping[str, Sequence[Array]]) -> list[TensorRange]:
    """Ranges of float tensors, sample by sample; integers have no range to find.

    Args:
        tensors: name → one array a sample.
    """
    return [
        TensorRange(
            name=name,
            low=np.asarray([array.min() for array in arrays], np.float64),
            high=np.asarray([array.max() for array in arrays], np.float64),
        )
        for name, arrays in tensors.items()
        if len(arrays) and all(array.size and array.dtype.kind == "f" for array in arrays)
    ]


def _moved(tensor: TensorRange) -> float:
    even, odd = slice(0, None, 2), slice(1, None, 2)
    if len(tensor.low) < 2:
        return 0.0
    span = float(tensor.high.max() - tensor.low.min())
    if not 0.0 < span < math.inf:  # infinities stand for "nothing here", such as in a mask
        return 0.0
    below = abs(float(tensor.low[even].min() - tensor.low[odd].min()))
    above = abs(float(tensor.high[even].max() - tensor.high[odd].max()))
    return max(below, above) / span
