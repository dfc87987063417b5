"""What a bench hands back: candidates that were tried somewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from edgeship.build.candidates import Built
from edgeship.build.inputs import Inputs
from edgeship.build.measure import Latency
from edgeship.build.schema import MeasuredOn
from edgeship.targets import Measure


class Trial(Struct, frozen=True, kw_only=True):
    """One candidate, tried.

    Attributes:
        built: the candidate, compared with the source where it was tried.
        notes: what is worth knowing about the place.
    """

    built: Built
    latency: Latency
    notes: tuple[str, ...] = ()


class Trials(Struct, frozen=True, kw_only=True):
    """Several candidates, tried in one interleaved run.

    Attributes:
        tried: precision → trial.
        refused: precision → why it does not run there.
    """

    tried: Mapping[str, Trial]
    refused: Mapping[str, str]


class Bench(Protocol):
    """A place to try candidates."""

    @property
    def place(self) -> MeasuredOn:
        """What it is."""

    def try_all(self, label: str, variants: Mapping[str, Built], inputs: Inputs, plan: Measure, /) -> Trials:
        """Try candidates: precision → candidate; ``label`` is ``target/runtime``."""
