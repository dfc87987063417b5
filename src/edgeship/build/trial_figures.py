"""What a search goes by: one figure of a candidate's comparison, and whether it is of use at all. Pure."""

from __future__ import annotations

import math

from edgeship.build.gate import DISTINCT_SHARE, GROUP_RMS
from edgeship.build.search.halving import Trial
from edgeship.build.verify import Comparison


def by_group(comparison: Comparison, *, classes: bool) -> bool:
    """Whether the first output has channel groups, each of which must be kept."""
    return comparison.grouped and not classes


def error_of(comparison: Comparison, *, grouped: bool) -> float:
    """The largest relative RMS of all outputs: each of them must lie within the limit.

    Of a first output with channel groups it is that of its groups, each measured by its own size; of classes, counts
    and flags the share of values that differ.
    """
    if comparison.first_is_exact:
        return max(comparison.exact.values())
    first = comparison.balanced_rms if grouped else comparison.relative_rms
    errors = [first, *comparison.other_outputs.values()]
    return max((math.inf if error is None else error) for error in errors)


def faulty(comparison: Comparison, *, classes: bool) -> bool:
    """Degenerate, or with a channel group that tells nothing any more."""
    few = DISTINCT_SHARE * comparison.distinct_reference if classes else min(2, comparison.distinct_reference)
    worst = comparison.worst_group
    lost = by_group(comparison, classes=classes) and (worst is None or worst > GROUP_RMS)
    return lost or comparison.distinct_predictions < math.floor(few)


def said(trial: Trial) -> str:
    """Of a trial, for people."""
    what = "relative RMS of channel groups" if trial.by_group else "relative RMS"
    shown = f"{what} {trial.error:.3g}" if math.isfinite(trial.error) else "not a number"
    return f"{shown}, degenerate" if trial.faulty else shown
