"""Which variants no other beats, and which the evaluation data cannot tell from the most accurate one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeship.build.schema import VariantReport


def front(variants: Sequence[VariantReport], cost: Callable[[VariantReport], float], *, timed: bool) -> set[int]:
    """Positions of variants that hold to every rule and of which none is at least as good in both and better in one.

    Args:
        variants: of all targets; where none holds to every rule, all of them count.
        cost: size or latency: less is better.
        timed: whether the cost is a time, which is compared only where it was measured at one place.
    """
    running = [index for index, each in enumerate(variants) if each.verdict == "pass"] or list(range(len(variants)))
    found = set()
    for index in running:
        one = variants[index]
        rivals = [variants[other] for other in running if other != index]
        if not any(_beats(other, one, cost) and (not timed or _place(other) == _place(one)) for other in rivals):
            found.add(index)
    return found


def most_accurate(variants: Sequence[VariantReport]) -> int:
    """Position of the variant that loses least; of equal ones the smallest."""
    return min(range(len(variants)), key=lambda index: (variants[index].metric.drop, variants[index].size_bytes))


def ties(variants: Sequence[VariantReport]) -> set[int]:
    """Positions of variants, the most accurate left out, whose interval of the metric overlaps with its interval."""
    if not variants:
        return set()
    first = most_accurate(variants)
    best = variants[first].metric
    return {
        index
        for index, each in enumerate(variants)
        if index != first and each.metric.low <= best.high and best.low <= each.metric.high
    }


def _beats(one: VariantReport, other: VariantReport, cost: Callable[[VariantReport], float]) -> bool:
    mine, its = (cost(one), one.metric.drop), (cost(other), other.metric.drop)
    return mine[0] <= its[0] and mine[1] <= its[1] and mine != its


def _place(variant: VariantReport) -> tuple[str, str, str]:
    return variant.measured_on.arch, variant.measured_on.cpu, variant.measured_on.device
