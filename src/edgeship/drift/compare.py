"""Compare what devices saw with what is normal, signal by signal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
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
    """

    warn: float = 0.05
    alert: float = 0.10


class SignalDistance(Struct, frozen=True, kw_only=True):
    """One signal of a device against one reference.

    Attributes:
        family: ``input`` or ``output``.
        reference: ``baseline`` (travels with the model) or ``device`` (its own accepted first windows).
        value: the distance, freed of the bias of small samples.
        low, high: interval that holds for all signals of the comparison at once (99 %).
        n, m: samples of the device and of the reference.
        warn, alert: limits; a state is reached when ``low`` exceeds its limit: effect *and* significance.
        also: other distances of the same histograms: ``ks_low``, ``ks_high``, ``psi`` (bias-free) or
            ``total_variation``; for the reader, not judged.
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


def compare(
    profile: Profile,
    sketches: Mapping[str, Sketch],
    reference_sketches: Mapping[str, Sketch] | None = None,
    *,
    reference: str = "baseline",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> tuple[SignalDistance, ...]:
    """Distance of every signal of a profile from its reference, in the order of the profile.

    Args:
        profile: of the variant that the sketches come from.
        sketches: signal → what a device saw (:func:`merge_windows`).
        reference_sketches: signal → what is normal; None for the profile's own baseline.
        reference: name of that reference in the result.
        limits: smallest effects.

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
    alpha = FAMILY_ERROR / 2.0 / max(1, len(profile.signals))
    results = []
    for signal in profile.signals:
        normal = signal.reference if reference_sketches is None else reference_sketches.get(signal.name)
        seen = sketches.get(signal.name)
        results.append(_distance_of(signal, seen, normal, _Rule(reference=reference, limits=limits, alpha=alpha)))
    return tuple(results)


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

    Raises:
        ContractError: the windows use different profiles, so their bins mean different things.
    """
    hashes = {window.profile_hash for window in windows}
    if len(hashes) > 1:
        raise ContractError("windows over different profiles", key="profile_hash", got=", ".join(sorted(hashes)))
    unique = {(window.boot_id, window.seq): window for window in windows}
    return merge_sketches(window.signals for window in unique.values())


_ORDER: Final = {state: rank for rank, state in enumerate(DriftState)}


class _Rule(Struct, frozen=True, kw_only=True):
    """What one comparison applies to each of its signals."""

    reference: str
    limits: Limits
    alpha: float


def _distance_of(signal: SignalProfile, seen: Sketch | None, normal: Sketch | None, rule: _Rule) -> SignalDistance:
    p, q = _aligned(signal, seen, normal)
    n, m = sum(p), sum(q)
    ordered = isinstance(signal.reference, BinnedSketch)
    value, interval = js_estimate(*thicken(p, q, ordered=ordered), rule.alpha)
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
    )


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
