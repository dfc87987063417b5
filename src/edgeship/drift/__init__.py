"""Drift as pure functions: distances between sketches with what they prove, and when looks become an incident."""

from edgeship.drift.alarm import AlarmState, next_alarm
from edgeship.drift.compare import (
    FAMILY_ERROR,
    MIN_SAMPLES,
    DriftState,
    Limits,
    SignalDistance,
    compare,
    compare_windows,
    design_effects,
    merge_sketches,
    merge_windows,
    worst,
)
from edgeship.drift.distances import js_distance, js_estimate, ks_bounds, psi, thicken, total_variation

__all__ = [
    "FAMILY_ERROR",
    "MIN_SAMPLES",
    "AlarmState",
    "DriftState",
    "Limits",
    "SignalDistance",
    "compare",
    "compare_windows",
    "design_effects",
    "js_distance",
    "js_estimate",
    "ks_bounds",
    "merge_sketches",
    "merge_windows",
    "next_alarm",
    "psi",
    "thicken",
    "total_variation",
    "worst",
]
