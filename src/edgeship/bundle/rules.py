"""Working out a rule again from the evidence that was stored with its answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from edgeship.statistics import Disagreements, disagreement_drop, newcombe_paired

_COUNTS = ("both", "only_source", "only_variant", "neither")


class JudgedRule(Protocol):
    """A rule with its answer and evidence: a gate of build.json, or a rule of a certificate."""

    @property
    def id(self) -> str:
        """Name of the rule."""

    @property
    def rule(self) -> str:
        """In words; ``≥`` in it where the value must not lie below the limit."""

    @property
    def value(self) -> float | None:
        """What was measured."""

    @property
    def limit(self) -> float | None:
        """What it may be."""

    @property
    def low(self) -> float | None:
        """Lower end of the value's interval."""

    @property
    def high(self) -> float | None:
        """Upper end of it."""

    @property
    def holds(self) -> bool | None:
        """The answer."""

    @property
    def evidence(self) -> Mapping[str, float]:
        """What the value was computed from."""


def follows(rule: JudgedRule) -> bool:
    """Whether the stored evidence still gives the stored figures and answer."""
    if rule.value is None or rule.limit is None:
        return rule.holds is not True
    if rule.id == "class_recall":
        return _class(rule, rule.value, rule.limit)
    if "confidence" in rule.evidence or "both" in rule.evidence:
        return _metric(rule, rule.limit)
    if rule.holds is None:
        return True  # undecided by rule (measured elsewhere), not by its value
    kept = rule.value >= rule.limit if "≥" in rule.rule else rule.value <= rule.limit
    others = [value for name, value in rule.evidence.items() if rule.id == "relative_rms" and name]
    return (kept and all(0.0 <= value <= rule.limit for value in others)) is rule.holds


def _metric(rule: JudgedRule, limit: float) -> bool:
    """From counts, where there are some; a resampled interval is taken as it was found."""
    stored, confidence = rule.evidence, rule.evidence.get("confidence", 0.95)
    low, high = rule.low, rule.high
    if low is None or high is None:
        return False
    if "both" in stored:
        both, lost, won, neither = (stored[name] for name in _COUNTS)
        if "unlabelled" in stored:
            counts = Disagreements(samples=stored["unlabelled"], found=stored["disagreements"], both=both,
                                   only_reference=lost, only_candidate=won, neither=neither)  # fmt: skip
            found = disagreement_drop(counts, confidence)
        else:
            found = newcombe_paired(both, lost, won, neither, confidence)
        if (found.drop, found.low, found.high) != (rule.value, low, high):
            return False
    return (True if high <= limit else False if low > limit else None) is rule.holds


def _class(rule: JudgedRule, value: float, limit: float) -> bool:
    """Of the class that is lost most, or least kept."""
    if "both" not in rule.evidence:
        return rule.holds is True
    both, lost, won, neither = (rule.evidence[name] for name in _COUNTS)
    found = newcombe_paired(both, lost, won, neither, 1.0 - 0.05 / rule.evidence["found_classes"])
    return found.drop == value and (found.low <= limit) is rule.holds
