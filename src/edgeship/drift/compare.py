"""Compare what devices saw with what is normal, signal by signal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from statistics import median
from typing import Final

from msgspec import Struct, field

from edgeship.drift.distances import js_estimate, ks_bounds, psi, thicken, total_variation
from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import Profile, SignalProfile
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch, Sketch, merge

JS_DISTANCE: Final = "js_distance"
#: Chance that any one of a comparison's signals lies outside its interval: the intervals hold together.
FAMILY_ERROR: Final = 0.01
#: Below so many samples a side nothing is said. Windows of fewer are not sent alone either.
MIN_SAMPLES: Final = 20


class DriftState(StrEnum):
    """What a comparison says about a signal or a device; from bad to worse."""

    NO_DATA = "no_data"
    OK = "ok"
    WARN = "warn"
    ALERT = "alert"


class Limits(Struct, frozen=True, kw_only=True):
    """Smallest effects worth telling somebody about, as bias-free Jensen–Shannon distances, 0–1.

    0.1 is what a shift of a normal distribution by 0.24 standard deviations makes. Source: ADR 0005.

    Attributes:
        family_error: chance that any one of the signals lies outside its interval; less where several comparisons
            share it.
    """

    warn: float = 0.05
    alert: float = 0.10
    family_error: float = FAMILY_ERROR


class SignalDistance(Struct, frozen=True, kw_only=True):
    """One signal of a device against one reference.

    Attributes:
        family: ``input`` or ``output``.
        reference: ``baseline`` (travels with the model) or ``device`` (its own accepted first windows).
        value: the distance, freed of the bias of small samples.
        low, high: interval that holds for all signals of the comparison at once (99 %, nominal).
        n, m: samples of the device and of the reference.
        warn, alert: limits; a state is reached when ``low`` exceeds its limit: effect *and* significance.
        also: other distances of the same histograms: ``ks_low``, ``ks_high``, ``psi`` (bias-free) or
            ``total_variation``; for the reader, not judged.
        design_effect: how many of the device's samples say as much as one independent one (:func:`design_effects`).
    """

    signal: str
    family: str
    reference: str
    statistic: str
    value: float
    low: float
    high: float
    n: int
    m: int
    warn: float
    alert: float
    state: DriftState
    also: dict[str, float] = field(default_factory=dict)
    design_effect: float = 1.0


def compare(
    profile: Profile,
    sketches: Mapping[str, Sketch],
    reference_sketches: Mapping[str, Sketch] | None = None,
    *,
    reference: str = "baseline",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    dependence: Mapping[str, float] | None = None,
) -> tuple[SignalDistance, ...]:
    """Distance of every signal of a profile from its reference, in the order of the profile.

    Args:
        profile: of the variant that the sketches come from.
        sketches: signal → what a device saw (:func:`merge_windows`).
        reference_sketches: signal → what is normal; None for the profile's own baseline.
        reference: name of that reference in the result.
        limits: smallest effects.
        dependence: signal → design effect of the device's samples (:func:`design_effects`); 1 where not given. It
            holds for ``reference_sketches`` too: the same camera saw them.

    Raises:
        ContractError: a sketch is not over the profile's bins.

    >>> from edgeship_agent.contract.profile import Family
    >>> counts = BinnedSketch(counts=(100, 100, 100))
    >>> brightness = SignalProfile(name="input/x/brightness", family=Family.INPUT, edges=(0.3, 0.6), reference=counts)
    >>> profile = Profile(sample_count=300, signals=(brightness,))
    >>> [distance] = compare(profile, {"input/x/brightness": BinnedSketch(counts=(10, 40, 250))})
    >>> distance.state.value, round(distance.value, 2)
    ('alert', 0.46)
    """
    alpha = limits.family_error / 2.0 / max(1, len(profile.signals))
    results = []
    for signal in profile.signals:
        normal = signal.reference if reference_sketches is None else reference_sketches.get(signal.name)
        seen = sketches.get(signal.name)
        effect = max(1.0, (dependence or {}).get(signal.name, 1.0))
        rule = _Rule(
            reference=reference,
            limits=limits,
            alpha=alpha,
            design_effect=effect,
            reference_effect=1.0 if reference_sketches is None else effect,
        )
        results.append(_distance_of(signal, seen, normal, rule))
    return tuple(results)


def compare_windows(
    profile: Profile,
    windows: Sequence[Window],
    reference_sketches: Mapping[str, Sketch] | None = None,
    *,
    reference: str = "baseline",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> tuple[SignalDistance, ...]:
    """:func:`compare` for windows of one device in the order of time: merged, and with their dependence allowed for.

    Raises:
        ContractError: the windows use different profiles, or not this one's bins.
    """
    unique = _unique(windows)
    return compare(
        profile,
        merge_windows(unique),
        reference_sketches,
        reference=reference,
        limits=limits,
        dependence=design_effects([window.signals for window in unique]),
    )


def design_effects(windows: Sequence[Mapping[str, Sketch]]) -> dict[str, float]:
    """How far the samples of each signal are from being independent, from how much neighbouring windows differ.

    A camera that sends every frame three times, or looks at one scene for minutes, counts far more samples than it has
    seen things. Two windows next to each other then differ by more than chance: by about the design effect, by which
    the sample size is divided. The median over the pairs keeps one sudden change from hiding itself.

    Args:
        windows: signal → sketch, in the order of time.

    Returns:
        Signal → design effect, at least 1; signals without two windows are left out.

    Source: Rao and Scott (1981), The analysis of categorical data from complex sample surveys, JASA 76 (first-order
    correction); von Neumann (1941) for the differences of neighbours.

    >>> calm = {"s": BinnedSketch(counts=(52, 48))}
    >>> [round(effect, 1) for effect in design_effects([calm, {"s": BinnedSketch(counts=(20, 80))}]).values()]
    [22.2]
    """
    ratios: dict[str, list[float]] = {}
    for earlier, later in pairwise(windows):
        for name in earlier.keys() & later.keys():
            ratio = _heterogeneity(earlier[name], later[name])
            if ratio is not None:
                ratios.setdefault(name, []).append(ratio)
    return {name: max(1.0, median(found)) for name, found in sorted(ratios.items())}


def worst(distances: Iterable[SignalDistance], family: str | None = None) -> SignalDistance | None:
    """The signal to name first: the worst state, then what is proven most, then the largest distance.

    Args:
        distances: of one comparison.
        family: look at ``input`` or ``output`` signals alone.

    Returns:
        None where no signal had data.
    """
    compared = [
        distance
        for distance in distances
        if distance.state is not DriftState.NO_DATA and (family is None or distance.family == family)
    ]
    return max(compared, key=lambda d: (_ORDER[d.state], d.low, d.value), default=None)


def merge_sketches(parts: Iterable[Mapping[str, Sketch]]) -> dict[str, Sketch]:
    """Add sketches signal by signal; a signal that one part lacks is taken from the others.

    Raises:
        ContractError: sketches of one signal are of different kinds or have different bins.
    """
    merged: dict[str, Sketch] = {}
    for part in parts:
        for name, sketch in part.items():
            merged[name] = merge(merged[name], sketch) if name in merged else sketch
    return merged


def merge_windows(windows: Sequence[Window]) -> dict[str, Sketch]:
    """Add the signals of windows of one device; a window that is there twice counts once.

    Fit for a chart or a reference; to judge, use :func:`compare_windows`, which also sees how the windows depend.

    Raises:
        ContractError: the windows use different profiles, so their bins mean different things.
    """
    hashes = {window.profile_hash for window in windows}
    if len(hashes) > 1:
        raise ContractError("windows over different profiles", key="profile_hash", got=", ".join(sorted(hashes)))
    return merge_sketches(window.signals for window in _unique(windows))


_ORDER: Final = {state: rank for rank, state in enumerate(DriftState)}


class _Rule(Struct, frozen=True, kw_only=True):
    """What one comparison applies to each of its signals."""

    reference: str
    limits: Limits
    alpha: float
    design_effect: float
    reference_effect: float


def _distance_of(signal: SignalProfile, seen: Sketch | None, normal: Sketch | None, rule: _Rule) -> SignalDistance:
    p, q = _aligned(signal, seen, normal)
    n, m = sum(p), sum(q)
    ordered = isinstance(signal.reference, BinnedSketch)
    fewer_p = [count / rule.design_effect for count in p]
    fewer_q = [count / rule.reference_effect for count in q]
    value, interval = js_estimate(*thicken(fewer_p, fewer_q, ordered=ordered), rule.alpha)
    if min(n, m) < MIN_SAMPLES:
        state = DriftState.NO_DATA
    elif interval.low > rule.limits.alert:
        state = DriftState.ALERT
    else:
        state = DriftState.WARN if interval.low > rule.limits.warn else DriftState.OK
    return SignalDistance(
        signal=signal.name,
        family=signal.family.value,
        reference=rule.reference,
        statistic=JS_DISTANCE,
        value=value,
        low=interval.low,
        high=interval.high,
        n=n,
        m=m,
        warn=rule.limits.warn,
        alert=rule.limits.alert,
        state=state,
        also=_also(p, q, ordered=ordered),
        design_effect=rule.design_effect,
    )


def _unique(windows: Sequence[Window]) -> list[Window]:
    return list({(window.boot_id, window.seq): window for window in windows}.values())


def _heterogeneity(earlier: Sketch, later: Sketch) -> float | None:
    """χ² of two windows being of one distribution ÷ its degrees of freedom; None where they say nothing."""
    if isinstance(earlier, BinnedSketch) and isinstance(later, BinnedSketch):
        pairs = list(zip(earlier.counts, later.counts, strict=False))
    elif isinstance(earlier, CategorySketch) and isinstance(later, CategorySketch):
        pairs = [
            (earlier.counts.get(i, 0), later.counts.get(i, 0)) for i in earlier.counts.keys() | later.counts.keys()
        ]
    else:
        return None
    filled = [(a, b) for a, b in pairs if a + b > 0]
    n, m = sum(a for a, _ in filled), sum(b for _, b in filled)
    if min(n, m) < MIN_SAMPLES or len(filled) < 2:
        return None
    scale = math.sqrt(m / n)
    statistic = sum((a * scale - b / scale) ** 2 / (a + b) for a, b in filled)
    return statistic / (len(filled) - 1)


def _also(p: Sequence[int], q: Sequence[int], *, ordered: bool) -> dict[str, float]:
    if not ordered:
        return {"total_variation": total_variation(p, q)}
    ks = ks_bounds(p, q)
    return {"ks_low": ks.low, "ks_high": ks.high, "psi": psi(p, q)}


def _aligned(signal: SignalProfile, seen: Sketch | None, normal: Sketch | None) -> tuple[list[int], list[int]]:
    """Counts over the same bins; values that were missing are a bin of their own."""
    if isinstance(signal.reference, CategorySketch):
        left, right = _categories(signal, seen), _categories(signal, normal)
        classes = sorted(set(left) | set(right))
        return [left.get(index, 0) for index in classes], [right.get(index, 0) for index in classes]
    return _bins(signal, signal.reference, seen), _bins(signal, signal.reference, normal)


def _bins(signal: SignalProfile, shape: BinnedSketch, sketch: Sketch | None) -> list[int]:
    if sketch is None:
        return [0] * (len(shape.counts) + 1)
    if not isinstance(sketch, BinnedSketch) or len(sketch.counts) != len(shape.counts):
        raise ContractError("not over the bins of the profile", key=signal.name, expected=f"{len(shape.counts)} counts")
    return [*sketch.counts, sketch.missing_count]


def _categories(signal: SignalProfile, sketch: Sketch | None) -> dict[int, int]:
    if sketch is None:
        return {}
    if not isinstance(sketch, CategorySketch):
        raise ContractError("not a sketch of classes", key=signal.name, got=type(sketch).__name__)
    return sketch.counts
