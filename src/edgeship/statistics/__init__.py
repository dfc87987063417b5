"""Intervals for shares and their differences: what turns a measured number into a claim. Pure, no numpy."""

from edgeship.statistics.intervals import (
    Change,
    Difference,
    Interval,
    clopper_pearson,
    newcombe_independent,
    newcombe_paired,
    rule_of_three,
    samples_needed,
    wilson,
)

__all__ = [
    "Change",
    "Difference",
    "Interval",
    "clopper_pearson",
    "newcombe_independent",
    "newcombe_paired",
    "rule_of_three",
    "samples_needed",
    "wilson",
]
