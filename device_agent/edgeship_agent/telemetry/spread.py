"""Large outputs of numbers, kept as the two figures that their signals are.

A detector's boxes and scores are a hundred kilobytes a call. Kept until a block of calls is measured they would fill
whatever memory a block may take with two of them; measured at once they leave two numbers behind.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeship_agent.processing.arrays import Array
from edgeship_agent.telemetry.signals import Columns, mean_and_std, output_signal_names

#: Smaller outputs are kept as they are, since a block of them is measured faster than each alone.
SMALLEST_BYTES: Final = 1 << 13


def is_spread(array: Array) -> bool:
    """Whether an output is measured at once: large, and of floats whose sum a double holds.

    >>> is_spread(np.zeros((1, 4420, 4), np.float32)), is_spread(np.zeros((1, 10), np.float32))
    (True, False)
    """
    return array.nbytes >= SMALLEST_BYTES and array.dtype in {np.dtype(np.float32), np.dtype(np.float16)}


class SpreadColumn:
    """Mean and standard deviation of one output of the calls of a block, and whether it was finite in every call.

    Args:
        tensor: name of the output.
        array: one call's, for its shape.
        calls: of a block.

    >>> column = SpreadColumn("y", np.zeros((1, 4), np.float32), calls=2)
    >>> column.look(0, np.array([[1, 2, 3, 6]], np.float32)), column.put(0, np.array([[1, 2, 3, 6]], np.float32))
    (True, None)
    >>> column.finite(1).tolist(), [values.tolist() for values in column.columns(1).values()]
    ([True], [[3.0], [1.8708286933869707]])
    """

    def __init__(self, tensor: str, array: Array, calls: int) -> None:
        self.name = tensor
        self._shape, self._dtype = array.shape, array.dtype
        self._numbers = np.zeros((1, array.size))
        self._scratch = np.zeros((1, array.size))
        self._is_finite = np.zeros(array.size, bool)
        self._finite = np.zeros(calls, bool)
        self._names = output_signal_names(tensor)
        self._figures = np.zeros((len(self._names), calls))

    def look(self, index: int, array: Array) -> bool:
        """Note whether one call's output is finite; returns whether it has the column's shape and type."""
        if array.shape != self._shape or array.dtype != self._dtype:
            return False
        self._finite[index] = np.isfinite(array.reshape(-1), out=self._is_finite).all()
        return True

    def put(self, index: int, array: Array) -> None:
        """Measure one call's output, of which :meth:`look` took the shape."""
        np.copyto(self._numbers, array.reshape(1, -1))
        with np.errstate(all="ignore"):  # what is not finite is counted as missing; it needs no warning
            mean, std = mean_and_std(self._numbers, self._scratch)
        self._figures[:, index] = mean[0], std[0]

    def finite(self, calls: int) -> Array:
        """In which of the first calls every number was finite; lent."""
        return self._finite[:calls]

    def columns(self, calls: int) -> Columns:
        """Signals of the first calls that were measured; lent."""
        return {name: self._figures[index, :calls] for index, name in enumerate(self._names)}
