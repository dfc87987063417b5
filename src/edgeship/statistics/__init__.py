"""Intervals for shares and their differences: what turns a measured number into a claim. Pure, no numpy."""

from edgeship.statistics.disagreements import Disagreements, disagreement_drop, disagreements_needed
from edgeship.statistics.intervals import (
    Change,
    Difference,
    Interval,
    clopper_pearson,
    newcombe_independent,
    newcombe_paired,
    rule_of_three,
    samples_needed,
    samples_needed_by_width,
    wilson,
)
from edgeship.statistics.multiplicity import FAMILY_ERROR, confidence_of_look

__all__ = [
    "FAMILY_ERROR",
    "Change",
    "Difference",
    "Disagreements",
    "Interval",
    "clopper_pearson",
    "confidence_of_look",
    "disagreement_drop",
    "disagreements_needed",
    "newcombe_independent",
    "newcombe_paired",
    "rule_of_three",
    "samples_needed",
    "samples_needed_by_width",
    "wilson",
]
