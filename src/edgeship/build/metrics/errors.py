"""Metrics of numbers against targets: RMSE, MAE and signal-to-noise ratio.

Errors have no largest value, so the imaginary sample of :mod:`edgeship.build.metrics.resampling` is the worst (for the
lower end: the best) that was seen: a sample beyond everything in the evaluation data is not guarded against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.metrics.paired import Outputs, Paired, first_of
from edgeship.build.metrics.resampling import Estimate, paired, resample
from edgeship_agent.contract.errors import InputError
from edgeship_agent.runtime.engine import Array

#: Two runtimes differ by so much of a value's size. Source: measured, .2e-6 to 1.4e-6 on float conversions.
_ROUNDING: Final = 1e-5
_Change = Callable[[Array, Array], Array]


class Errors(Struct, frozen=True, kw_only=True):
    """``rmse``, ``mae`` or ``snr`` of the first output against targets of its shape.

    The drop is the *relative* increase of RMSE or MAE (0.01: one per cent more error than the source), and the loss of
    SNR in dB. An answer that is no number counts as 0; the rule ``relative_rms`` refuses such a variant anyway.

    Attributes:
        targets: [N, elements].
    """

    name: str
    targets: Array

    def compare(self, reference: Outputs, candidate: Outputs) -> Paired:
        """See :class:`Metric`.

        Raises:
            InputError: the source makes no error beyond float rounding, so that there is nothing to relate to: its own
                answers were saved as the targets.
        """
        power = 1 if self.name == "mae" else 2
        before, after = (_errors(first_of(outputs), self.targets, power) for outputs in (reference, candidate))
        _check_error(self.name, float(before.mean()), float(np.mean(np.abs(self.targets) ** power)), power)
        signal = np.mean(np.abs(self.targets) ** 2, axis=1)
        value_of, change = _SHOWN[self.name]
        counts = np.ones(len(before))
        best, worst = int(np.argmin(after - before)), int(np.argmax(after - before))

        def statistic(weights: Array) -> Array:
            rows = []
            for imaginary in (best, worst):
                sums = [weights[:, :-1] @ each + weights[:, -1] * each[imaginary] for each in (before, after, signal)]
                rows.append((change(sums[0], sums[1]), value_of(sums[1], sums[2])))
            return np.stack([rows[0][0], rows[1][0], rows[0][1], rows[1][1]])

        means = [np.asarray(each.mean()) for each in (before, after, signal)]
        estimate = Estimate(
            source=float(value_of(means[0], means[2])), value=float(value_of(means[1], means[2])), n=len(before),
            drop=float(change(means[0], means[1])), unit="dB" if self.name == "snr" else "",
            drop_unit="dB" if self.name == "snr" else "fraction",
        )  # fmt: skip
        return paired(self.name, estimate, resample(counts, statistic))


def _check_error(name: str, error: float, size: float, power: int) -> None:
    if error > _ROUNDING**power * size:
        return
    raise InputError(f"the source's error is {error ** (1 / power):.2g} beside targets of {size ** (1 / power):.2g}: "
                     "they are its own answers, and no error is relative to that",
                     key="y", got=name, next_step="save measured targets as y, or choose --metric closeness, which "
                     "needs none")  # fmt: skip


def _errors(first: Array, targets: Array, power: int) -> Array:
    """Mean error of each sample: absolute, or squared."""
    said = np.nan_to_num(first.reshape(len(first), -1).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    mean: Array = np.mean(np.abs(said - targets) ** power, axis=1)
    return mean


def _decibels(signal: Array, noise: Array) -> Array:
    return 10.0 * np.log10(np.maximum(signal, 1e-300) / np.maximum(noise, 1e-300))


def _root(after: Array, signal: Array) -> Array:
    del signal
    root: Array = np.sqrt(after)
    return root


def _itself(after: Array, signal: Array) -> Array:
    del signal
    return after


def _noise(after: Array, signal: Array) -> Array:
    return _decibels(signal, after)


#: name → the value from error and signal, and the drop from the errors before and after.
_SHOWN: Final[dict[str, tuple[_Change, _Change]]] = {
    "rmse": (_root, lambda before, after: np.sqrt(after / before) - 1.0),
    "mae": (_itself, lambda before, after: after / before - 1.0),
    "snr": (_noise, lambda before, after: _decibels(after, before)),
}
