"""Figures of versions from the field, as words: accuracy by labels, business figures, shadows, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeship.cli import console


def observed(found: Mapping[str, Any] | None) -> str:
    """Accuracy by labels with its interval.

    >>> observed({"accuracy": 0.9, "low": 0.826, "high": 0.945, "n": 100, "coverage": 0.25})
    '90.0% (82.6…94.5%, n=100, 25% labelled)'
    >>> observed(None)
    'no labels'
    """
    if found is None:
        return "no labels"
    interval = f"{found['low']:.1%}"[:-1] + f"…{found['high']:.1%}"
    return f"{found['accuracy']:.1%} ({interval}, n={found['n']}, {found['coverage']:.0%} labelled)"


def print_field(versions: Sequence[Mapping[str, Any]]) -> None:
    """Business figures and shadows of every version that has some, one line each."""
    for row in versions:
        for outcome in row["outcomes"]:
            console.result(f"outcome     {row['version']} {outcome_words(outcome)}")
        if row["shadow"] is not None:
            console.result(f"shadow      {row['version']} {shadow_words(row['shadow'])}")


def outcome_words(outcome: Mapping[str, Any]) -> str:
    """A business figure: its mean with interval.

    >>> outcome_words({"name": "rework_minutes", "mean": 2.0, "low": 1.5, "high": 2.5, "n": 40})
    'rework_minutes: mean 2 (95 % 1.5…2.5, n=40)'
    """
    interval = "" if outcome["low"] is None else f"95 % {outcome['low']:.4g}…{outcome['high']:.4g}, "
    return f"{outcome['name']}: mean {outcome['mean']:.4g} ({interval}n={outcome['n']})"


def shadow_words(shadow: Mapping[str, Any]) -> str:
    """How a candidate did beside the champion.

    >>> seen = {"disagreement": 0.1, "low": 0.05, "high": 0.18, "n": 100, "relative_rms": 0.02, "failed": 0}
    >>> shadow_words({**seen, "dropped": 7})
    'disagreed on 10.0% (95 % 5.0…18.0%) of 100 inputs, relative RMS 0.02, 0 failed, 7 over the budget'
    """
    interval = f"95 % {shadow['low']:.1%}"[:-1] + f"…{shadow['high']:.1%}"
    return (
        f"disagreed on {shadow['disagreement']:.1%} ({interval}) of {shadow['n']} inputs, "
        f"relative RMS {shadow['relative_rms']:.3g}, {shadow['failed']} failed, {shadow['dropped']} over the budget"
    )


def comparison_words(compared: Mapping[str, Any]) -> str:
    """Two versions that shared the traffic, one figure.

    >>> comparison_words({"name": "accuracy", "before": 0.9, "after": 0.85, "change": -0.05, "low": -0.08,
    ...                   "high": -0.02, "n_before": 900, "n_after": 100, "unit": "fraction"})
    'accuracy 90.0%→85.0% (-5.0%, 95 % -8.0…-2.0%, n=900 and 100)'
    >>> comparison_words({"name": "accuracy", "before": None, "after": None, "change": None, "low": None,
    ...                   "high": None, "n_before": 0, "n_after": 0, "unit": "fraction"})
    'accuracy no data'
    >>> comparison_words({"name": "latency_p99_ms", "before": 2.0, "after": 3.25, "change": None, "unit": "ms"})
    'latency_p99_ms 2 ms→3.25 ms'
    """
    digits = "+.1%" if compared["unit"] == "fraction" else "+.4g"
    plain = digits[1:]
    if compared["change"] is None:
        values = [compared[side] for side in ("before", "after")]
        unit = compared["unit"].removeprefix("fraction")
        known = [f"{value:{plain}} {unit}".rstrip() for value in values if value is not None]
        return f"{compared['name']} {'→'.join(known) or 'no data'}"
    low = format(compared["low"], digits).removesuffix("%")
    return (
        f"{compared['name']} {compared['before']:{plain}}→{compared['after']:{plain}} ({compared['change']:{digits}}, "
        f"95 % {low}…{compared['high']:{digits}}, n={compared['n_before']} and {compared['n_after']})"
    )
