"""What ships beside a quantized variant: its full precision, for devices on which the variant is not right. Pure.

Source: docs/adr/0023-full-precision-as-the-last-resort.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeship.build.decide import Assessed, Decision, limits_of
from edgeship.build.options import BuildOptions
from edgeship_agent.contract.manifest import FULL_PRECISION

SHIPS: Final = "holds to every rule; ships for devices on which the chosen variant fails its golden inputs"


def fallback_of(decision: Decision, one: Assessed | None, options: BuildOptions) -> Assessed | None:
    """The full precision that ships beside a candidate, or None.

    None where the candidate is full precision itself, where full precision of its runtime does not hold to every rule,
    where the two of them exceed the size budget, where no agent runs that could fall back, or where the options want
    none.

    Args:
        decision: of the candidate's target.
        one: the candidate that ships, or may ship; None for no candidate.
        options: of the build.
    """
    if one is None or not options.fp32_fallback or not decision.target.agent:
        return None
    spare = f"{one.target.id}/{one.entry.name}/{FULL_PRECISION}"
    found = next((each for each in decision.assessed if each.judged.label == spare), None)
    if found is None or found is one or found.judged.verdict != "pass":
        return None
    together = one.built.artifact.size_bytes + found.built.artifact.size_bytes
    return None if 0 < (limits_of(options, decision.target).size_bytes or 0) < together else found


def shipped(decisions: Sequence[Decision], options: BuildOptions) -> list[Assessed]:
    """What a bundle holds, each chosen variant before its fallback: a device takes the first that it can run."""
    pairs = ((decision.shipped, fallback_of(decision, decision.shipped, options)) for decision in decisions)
    return [each for pair in pairs for each in pair if each is not None]
