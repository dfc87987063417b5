"""The drop from few labels: only samples on which reference and candidate disagree carry information about it.

Both models run on many samples that nobody has labelled. Where they give the same answer they are right or wrong
together, so the drop is P(disagree) × (share where the reference is right − share where the candidate is right, among
the disagreements). The first factor is counted, the second is estimated from a random sample of disagreements.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from edgeship.statistics.intervals import Difference, newcombe_paired, wilson
from edgeship_agent.contract.errors import InputError

_GRID: Final = 16  # steps in which a quarter of the ellipse is looked at before its peak is narrowed down
_NARROWINGS: Final = 40  # of the peak, by a third each time: to 1e-8 of the quarter, where it is flat to 1e-15


class Disagreements(Struct, frozen=True, kw_only=True):
    """What two models say of the same samples, and who was right where they differ.

    Attributes:
        samples: on which both ran, drawn from the field.
        found: of these, on which they disagree.
        both, only_reference, only_candidate, neither: who was right on a random sample of the disagreements, by its
            labels. Two different classes are never both right; two different top-5 lists may be.
    """

    samples: float
    found: float
    both: float = 0.0
    only_reference: float = 0.0
    only_candidate: float = 0.0
    neither: float = 0.0

    @property
    def labelled(self) -> float:
        """Disagreements that have a label."""
        return self.both + self.only_reference + self.only_candidate + self.neither


def disagreement_drop(counts: Disagreements, confidence: float = 0.95) -> Difference:
    """How much accuracy a candidate loses, from labels of disagreements alone.

    The score interval of P(disagree) and Newcombe's paired interval among the labelled disagreements are joined by the
    method of variance estimates recovery: the ends are the extreme products on the ellipse that has the two intervals'
    sides as its half-axes. Without any label the candidate may have lost, or won, all of them.

    Args:
        counts: see :class:`Disagreements`.
        confidence: two-sided, between 0 and 1.

    Raises:
        InputError: counts that cannot be.

    Source: R. G. Newcombe (2016), MOVER-R confidence intervals for ratios and products of two independently estimated
    quantities, Statistical Methods in Medical Research 25, 1774–1778; the coverage of this use of it is simulated in
    benchmarks/gate_simulation.py.

    >>> found = disagreement_drop(Disagreements(samples=20_000, found=1000, only_reference=150, only_candidate=130,
    ...                                         neither=60))
    >>> round(found.drop, 5), round(found.low, 5), round(found.high, 5)
    (0.00294, -0.00188, 0.00772)
    >>> disagreement_drop(Disagreements(samples=20_000, found=100)).high < 0.01
    True
    """
    _check(counts)
    share = counts.found / counts.samples
    shares = wilson(counts.found, counts.samples, confidence)
    if counts.labelled == 0:
        return Difference(drop=0.0, low=-shares.high, high=shares.high)
    among = newcombe_paired(
        counts.both, counts.only_reference, counts.only_candidate, counts.neither, confidence
    )  # fmt: skip
    up, down = shares.high - share, share - shares.low
    # more disagreements make a loss larger, and fewer of them a gain smaller
    high = _peak(share, up if among.high > 0.0 else -down, among.drop, among.high - among.drop)
    low = -_peak(share, up if among.low < 0.0 else -down, -among.drop, among.drop - among.low)
    return Difference(drop=share * among.drop, low=max(-1.0, low), high=min(1.0, high))


def disagreements_needed(counts: Disagreements, limit: float, confidence: float = 0.95) -> int | None:
    """How many *more* labels of disagreements would decide whether the drop keeps to ``limit``, at the rates seen.

    Args:
        counts: the labelled ones give the rates; where none is labelled, any rates will do and none can be foreseen.
        limit: largest drop that is accepted, as a fraction.
        confidence: two-sided, between 0 and 1.

    Returns:
        0 where it is decided already; None where not even labels of all that were found would decide, or where nothing
        is known of the rates.

    >>> seen = Disagreements(samples=20_000, found=1000, only_reference=38, only_candidate=32, neither=15)
    >>> disagreements_needed(seen, limit=0.01)
    97
    """
    _check(counts)

    def decided(total: float) -> bool:
        scale = total / counts.labelled if counts.labelled else 1.0
        scaled = Disagreements(
            samples=counts.samples, found=counts.found, both=counts.both * scale,
            only_reference=counts.only_reference * scale, only_candidate=counts.only_candidate * scale,
            neither=counts.neither * scale,
        )  # fmt: skip
        difference = disagreement_drop(scaled, confidence)
        return difference.high <= limit or difference.low > limit

    if decided(counts.labelled):
        return 0
    most = math.floor(counts.found)
    if not counts.labelled or not decided(most):
        return None
    low, high = math.floor(counts.labelled), most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return math.ceil(high - counts.labelled)


def _check(counts: Disagreements) -> None:
    parts = (counts.both, counts.only_reference, counts.only_candidate, counts.neither)
    if not counts.samples > 0 or not 0 <= counts.found <= counts.samples:
        raise InputError("not a count of disagreements", key="found", expected=f"0 … samples = {counts.samples:g}",
                         got=f"{counts.found:g}")  # fmt: skip
    # a hair above the whole is rounding of a scaled count
    if not all(part >= 0 for part in parts) or counts.labelled > counts.found * (1.0 + 1e-9):
        raise InputError(
            "not counts of labelled disagreements",
            key="labelled",
            expected=f"0 … {counts.found:g} in all",
            got=f"{counts.labelled:g}",
        )


def _peak(share: float, share_side: float, among: float, among_side: float) -> float:
    """Largest (share + share_side·cos t) × (among + among_side·sin t) over a quarter turn."""

    def product(turn: float) -> float:
        return (share + share_side * math.cos(turn)) * (among + among_side * math.sin(turn))

    step = math.pi / 2.0 / _GRID
    best = max(range(_GRID + 1), key=lambda index: product(index * step))
    low, high = max(0, best - 1) * step, min(_GRID, best + 1) * step
    for _ in range(_NARROWINGS):
        left, right = low + (high - low) / 3.0, high - (high - low) / 3.0
        low, high = (left, high) if product(left) < product(right) else (low, right)
    return product((low + high) / 2.0)
