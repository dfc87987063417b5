"""What became of a part: it agrees with the source, or diverges, or is refused, or kills its process. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from msgspec import Struct

from edgeship.build.metrics import relative_rms
from edgeship_agent.runtime.engine import Array

Kind = Literal["agrees", "diverges", "refused", "killed"]


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a part.

    Attributes:
        stage: where it was refused: ``conversion``, ``load`` or ``run``.
        tensor: the output that is furthest from the source.
        relative_rms: of that output; None where it has no finite value.
        reason: in a sentence, for people.
        layout: the numbers are right, their places are not.
        plain_agrees: whether the runtime's reference kernels agree with the source; None where there are none.
    """

    kind: Kind
    stage: str = ""
    tensor: str = ""
    relative_rms: float | None = 0.0
    reason: str = ""
    layout: bool = False
    plain_agrees: bool | None = None

    def same_failure(self, other: Outcome) -> bool:
        """Whether this is the failure that is looked for, and not another one that a part has by itself.

        What a whole is refused for when it runs, a part may be refused for when it is loaded and its constants folded.
        """
        converts = "conversion" in {self.stage, other.stage}
        return self.kind == other.kind != "agrees" and (self.stage == other.stage or not converts)


def distance(got: Array, wanted: Array) -> float:
    """Relative RMS; infinite for another shape, or for NaN and infinity at other places than the source has them.

    >>> distance(np.array([np.inf, 1.0]), np.array([np.inf, 1.0])), distance(np.array([np.nan]), np.array([1.0]))
    (0.0, inf)
    """
    if got.shape != wanted.shape:
        return math.inf
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return math.inf
    a, b = a[finite], b[finite]
    if not b.any():
        return float(np.sqrt(np.mean((a - b) ** 2))) if a.size else 0.0
    error = relative_rms(a, b)
    return math.inf if error is None else error


def compare(got: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float) -> Outcome:
    """The worst output.

    Args:
        got: name → ``[samples, …]``.
        wanted: likewise, the source's.
        tolerance: largest relative RMS of an output that agrees.

    >>> compare({"y": np.ones(2)}, {"y": np.full(2, 2.0)}, 0.001).kind
    'diverges'
    """
    worst, tensor = -1.0, ""
    for name, array in wanted.items():
        error = distance(got[name], array) if name in got else math.inf
        if error > worst:
            worst, tensor = error, name
    rms = worst if math.isfinite(worst) else None
    if worst <= tolerance:
        return Outcome(kind="agrees", tensor=tensor, relative_rms=max(worst, 0.0))
    return Outcome(kind="diverges", tensor=tensor, relative_rms=rms, reason=_reason(got, wanted, tensor, rms))


def moved(got: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: float) -> bool:
    """Whether every output holds the source's numbers, at other places.

    >>> moved({"y": np.array([[1.0, 2.0]])}, {"y": np.array([[2.0, 1.0]])}, 0.001)
    True
    """
    return all(
        name in got
        and got[name].size == array.size
        and distance(np.sort(got[name].reshape(len(array), -1)), np.sort(array.reshape(len(array), -1))) <= tolerance
        for name, array in wanted.items()
    )


def _reason(got: Mapping[str, Array], wanted: Mapping[str, Array], tensor: str, rms: float | None) -> str:
    if tensor not in got:
        return f"{tensor} is not among its outputs, or is not a tensor of one size"
    if got[tensor].shape != wanted[tensor].shape:
        return f"{tensor} is {list(got[tensor].shape[1:])}, in the source {list(wanted[tensor].shape[1:])}"
    if rms is None:
        return f"{tensor} holds NaN or infinity"
    return f"{tensor} is {rms:.3g} relative RMS away"
