"""Which arm gets what part of a model's traffic: pure, from the goal."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from edgeship_agent.contract.goal import ArmGoal, ModelGoal

#: The arm that answers what no other arm answers; the only one of a model that is not under a test.
MAIN_ARM: Final = "main"
#: The version that is tried on a share of the traffic.
CHALLENGER_ARM: Final = "b"
#: The version that runs beside the main arm, its answers thrown away.
SHADOW_ARM: Final = "shadow"
_ROUNDING: Final = 1e-6


class Traffic(Struct, frozen=True, kw_only=True):
    """What an arm gets; fields as in :class:`ArmGoal`. Of the main arm it says nothing: it gets the rest."""

    share: float = 1.0
    mirror: float = 0.0
    cpu_ratio: float = 0.25
    memory_bytes: int = 0


def arms_of(goal: ModelGoal) -> tuple[tuple[str, ArmGoal], ...]:
    """The arms of a goal with their names on the device, the main arm first.

    Returns:
        Empty for a goal that this agent cannot follow: several challengers or shadows, or shares that are none.

    >>> new, old = ArmGoal(version="2", digest="b", size_bytes=1, share=0.1), ArmGoal(version="1", digest="a",
    ...     size_bytes=1, share=0.9)
    >>> [name for name, _ in arms_of(ModelGoal(model="m", arms=(old, new), deployment="r1"))]
    ['main', 'b']
    >>> arms_of(ModelGoal(model="m", arms=(old, old), deployment="r1"))
    ()
    """
    main, *others = goal.arms
    named = [(MAIN_ARM, main)] + [(CHALLENGER_ARM if arm.share else SHADOW_ARM, arm) for arm in others]
    in_range = all(0.0 <= part <= 1.0 for arm in goal.arms for part in (arm.share, arm.mirror, arm.cpu_ratio))
    shares = sum(arm.share for arm in goal.arms)
    distinct = len({name for name, _ in named}) == len(named) == len({arm.digest for arm in goal.arms})
    if not (in_range and main.share > 0 and abs(shares - 1.0) < _ROUNDING and distinct):
        return ()
    return tuple(named)


def traffic_of(arm: ArmGoal) -> Traffic:
    """What an arm of a goal gets."""
    return Traffic(share=arm.share, mirror=arm.mirror, cpu_ratio=arm.cpu_ratio, memory_bytes=arm.memory_bytes)
