"""What the field says of a version: accuracy by labels, business figures, a shadow beside the champion."""

from __future__ import annotations

from collections.abc import Sequence

from edgeship.charts import Child, element, format_interval, format_value, fragment
from edgeship.server.version_table import Observed, Outcome, Shadow


def field_cell(seen: Observed | None, outcomes: Sequence[Outcome], shadow: Shadow | None = None) -> Child:
    """One line each, for a cell of a table; says so where there is nothing."""
    lines = observed_lines(seen) + [outcome_words(outcome) for outcome in outcomes]
    if shadow is not None:
        lines += shadow_lines(shadow)
    return fragment(*(element("div", line) for line in lines)) if lines else "no labels"


def observed_lines(seen: Observed | None) -> list[str]:
    """Accuracy with interval, number and coverage; then the labels that found no prediction."""
    if seen is None:
        return []
    interval = format_interval(seen.low, seen.high, "fraction")
    accuracy, coverage = format_value(seen.accuracy, "fraction"), format_value(seen.coverage, "fraction")
    lines = [f"accuracy {accuracy} ({interval}, n = {seen.n:,}, {coverage} of calls labelled)"]
    if seen.unknown:
        lines.append(f"not counted: {seen.unknown:,} labels and outcomes whose prediction is not remembered")
    if seen.lost:
        lines.append(f"not counted: {seen.lost:,} labels and outcomes whose prediction died with a worker")
    return lines


def outcome_words(outcome: Outcome) -> str:
    """A business figure in the unit that ends its name.

    >>> outcome_words(Outcome(name="rework_minutes", mean=2.0, low=1.5, high=2.5, n=40))
    'rework minutes: mean 2 (95 % 1.5…2.5, n = 40)'
    """
    interval = format_interval(outcome.low, outcome.high)
    inside = ", ".join(part for part in (interval, f"n = {outcome.n:,}") if part)
    return f"{outcome.name.replace('_', ' ')}: mean {format_value(outcome.mean)} ({inside})"


def shadow_lines(shadow: Shadow) -> list[str]:
    """How a version did unseen, and what its budget left out."""
    interval = format_interval(shadow.low, shadow.high, "fraction")
    disagreement = format_value(shadow.disagreement, "fraction")
    rest = f"{shadow.failed:,} failed, {shadow.dropped:,} inputs over its budget"
    return [
        f"as a shadow: another class for {disagreement} of inputs ({interval}, n = {shadow.n:,})",
        f"as a shadow: relative RMS {format_value(shadow.relative_rms)}; {rest}",
    ]
