"""The drift baseline that travels with a model: which signals to watch, over which bins, and what was normal."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch


class Family(str, Enum):
    """What a signal says something about."""

    INPUT = "input"
    OUTPUT = "output"


class SignalProfile(Struct, frozen=True, kw_only=True):
    """One signal of a model.

    Attributes:
        name: unique within the profile: ``input/<tensor>/<statistic>`` or ``output/<statistic>``.
        family: input (data drift) or output (prediction drift).
        edges: ascending bin edges of a continuous signal; empty for a category.
        center: what the fixed-point sums are counted from, in the unit of the signal.
        unit: size of one fixed-point step, in the unit of the signal; values are clipped at ±2^20 steps.
        reference: the sketch of the reference data, run through the very artifact that is shipped.
        tail_edges: indices into ``edges`` of the tail edges that the reference has enough data for.
    """

    name: str
    family: Family
    reference: BinnedSketch | CategorySketch
    edges: tuple[float, ...] = ()
    center: float = 0.0
    unit: float = 1.0
    tail_edges: tuple[int, ...] = ()


class Profile(Struct, frozen=True, kw_only=True):
    """Every signal of one variant; its hash is the sha256 of its bytes in the bundle.

    Attributes:
        sample_count: samples of reference data that it was made from.
    """

    schema_version: int = 1
    sample_count: int
    signals: tuple[SignalProfile, ...]

    def signal(self, name: str) -> SignalProfile | None:
        """The signal of that name, or None."""
        return next((signal for signal in self.signals if signal.name == name), None)
