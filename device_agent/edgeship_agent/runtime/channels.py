"""Channels of an output: where its values lie that mean the same kind of thing.

A tensor that joins ranges of different size (pixel boxes and scores) can lose the small one while relative RMS of the
whole looks perfect; so each channel is measured by its own size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

#: A channel, or a further output, that is off by more than this is lost. Source: the build's gate ``group_rms``.
LOST_RMS: Final = 0.5


def channel_axis(shape: Sequence[int]) -> int:
    """Which axis of an output holds its channels, counted from the end.

    Nothing in a file says so. Of three or four axes it is the one whose size no other axis has (height and width are
    often the same), the shortest of several: a detector has more boxes than columns. Else it is the last.

    Args:
        shape: [N, …], samples first.

    >>> [channel_axis(shape) for shape in ((8, 84, 8400), (8, 4420, 6), (8, 3, 32, 32), (8, 1, 640), (8, 10))]
    [-2, -1, -3, -1, -1]
    """
    sizes = list(shape[1:])
    if len(sizes) not in {2, 3}:
        return -1
    alone = [index for index, size in enumerate(sizes) if size > 1 and sizes.count(size) == 1]
    if not alone:
        return -1
    # of equally good ones the last: most formats put channels there
    return min(reversed(alone), key=lambda index: sizes[index]) - len(sizes)


class OutputError:
    """How far one output lies from what it should be, over samples that come one by one.

    Args:
        step: quantization step of the output; an error below it in every value is none.

    >>> error = OutputError()
    >>> golden = np.array([[[100.0, 0.1], [200.0, 0.2]]])
    >>> error.add(golden * np.array([1.0, 0.0]), golden)
    >>> error.relative_rms < 0.001, error.lost_channels, round(error.balanced_rms, 3)
    (True, (1,), 0.707)
    """

    def __init__(self, step: float = 0.0) -> None:
        self._step = step
        self._error = self._golden = 0.0
        self._errors = self._goldens = np.zeros(0)
        self._values = 0

    def add(self, got: Array, golden: Array) -> None:
        """Count one sample, [1, …] each, of the same shape."""
        squared_errors, squared_goldens = (got - golden) ** 2, golden**2
        self._error += float(squared_errors.sum())
        self._golden += float(squared_goldens.sum())
        if golden.ndim < 3:  # one value a channel: a class that is hardly ever seen is no loss
            return
        axis = channel_axis(golden.shape) % golden.ndim
        others = tuple(index for index in range(golden.ndim) if index != axis)
        if not self._values:
            self._errors, self._goldens = np.zeros((2, golden.shape[axis]))
        self._errors = self._errors + squared_errors.sum(axis=others)
        self._goldens = self._goldens + squared_goldens.sum(axis=others)
        self._values += golden.size // max(golden.shape[axis], 1)

    @property
    def relative_rms(self) -> float:
        """‖got − golden‖₂ ÷ ‖golden‖₂; infinite where only the golden output is zero."""
        if self._golden > 0.0:
            return math.sqrt(self._error / self._golden)
        return 0.0 if self._error == 0.0 else math.inf

    @property
    def lost_channels(self) -> tuple[int, ...]:
        """Channels whose own relative RMS is above :data:`LOST_RMS`, and whose error is no mere step."""
        is_off = self._errors > LOST_RMS**2 * self._goldens
        is_seen = self._errors > self._step**2 * self._values
        return tuple(np.flatnonzero(is_off & is_seen & (self._goldens > 0)).tolist())

    @property
    def balanced_rms(self) -> float:
        """Root of the mean square over channels, each measured by its own size."""
        known = self._goldens > 0
        return math.sqrt(float((self._errors[known] / self._goldens[known]).mean())) if known.any() else 0.0
