"""Drift of one device and version: its newest windows merged, against the baseline and against its own first ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from sqlalchemy import Connection

from edgeship.drift import FAMILY_ERROR, DriftState, Limits, SignalDistance, compare_windows, merge_windows, worst
from edgeship.server.config import DriftConfig
from edgeship.server.profiles import Profiles
from edgeship.server.store import drift as store
from edgeship.server.store import labels, releases, windows
from edgeship.server.store.drift import ModelKey, Reference
from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import BundleManifest, MetricClaim
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import Family, Profile
from edgeship_agent.contract.wire import read_json

BASELINE: Final = "baseline"
DEVICE: Final = "device"
#: Fewer labels say nothing about accuracy; more than enough are not looked at: the newest count.
MIN_LABELS: Final = 30
_ENOUGH_LABELS: Final = 500
_MOST_LABEL_ROWS: Final = 200
#: The metric that labels can be compared with.
ACCURACY: Final = "top1"
#: A gate looks at the newest windows since activation, at most so many.
_MOST_EVIDENCE_WINDOWS: Final = 200


class FieldAccuracy(Struct, frozen=True, kw_only=True):
    """Accuracy of a version on a device by its newest labels, beside what the build proved.

    Attributes:
        baseline, baseline_n: of the variant that the device runs, on the build's evaluation data.
        windows: (boot id, seq) of the windows that reported the labels.
        recalls: (class, right, labelled).
    """

    labelled: int
    correct: int
    baseline: float
    baseline_n: int
    windows: tuple[tuple[str, int], ...]
    recalls: tuple[tuple[int, int, int], ...]

    def worst_recalls(self, most: int) -> list[tuple[int, int, int]]:
        """The classes that are found worst: (class, right, labelled)."""
        return sorted(self.recalls, key=lambda row: (row[1] / row[2], row[0]))[:most]


class Figures(Struct, frozen=True, kw_only=True):
    """What a look at one device and version found.

    Attributes:
        recent: the newest windows that were merged.
        samples: answered calls in them.
        distances: one per signal and reference.
        accepted: references whose distances may open an incident.
        reference: the device's own reference as it stands now; None without a profile.
        profile_hash: of the bins.
        missing: why nothing could be compared; empty where it could.
        accuracy: None where there are too few labels, or the build claimed no accuracy.
    """

    recent: tuple[Window, ...] = ()
    samples: int = 0
    distances: tuple[SignalDistance, ...] = ()
    accepted: tuple[str, ...] = ()
    reference: Reference | None = None
    profile_hash: str = ""
    missing: str = ""
    accuracy: FieldAccuracy | None = None

    def judged(self, family: Family | None = None) -> list[SignalDistance]:
        """Distances from accepted references that had data."""
        return [
            distance
            for distance in self.distances
            if distance.reference in self.accepted
            and distance.state is not DriftState.NO_DATA
            and (family is None or distance.family == family.value)
        ]

    def worst(self, family: Family | None = None) -> SignalDistance | None:
        """The signal to name first, among those that count; without an accepted reference among all."""
        return worst(self.judged(family)) or worst(self.distances, None if family is None else family.value)

    @property
    def state(self) -> DriftState:
        """Of the device and version as a whole."""
        named = worst(self.judged())
        return DriftState.NO_DATA if named is None else named.state


def look(
    connection: Connection, profiles: Profiles, key: ModelKey, settings: DriftConfig, *, accept_baseline: bool
) -> Figures:
    """Compare a device's newest windows of a version with what is normal.

    Args:
        connection: of any transaction; nothing is written.
        profiles: baselines by hash.
        key: device id, model, version.
        settings: how many windows and samples it takes.
        accept_baseline: the baseline may open incidents too, not only the device's own reference.
    """
    newest = windows.newest(connection, key, settings.recent_windows)
    if not newest:
        return Figures(missing="no windows")
    profile_hash = newest[-1].profile_hash
    recent = tuple(window for window in newest if window.profile_hash == profile_hash)
    samples = sum(window.inferences for window in recent)
    found = Figures(recent=recent, samples=samples, profile_hash=profile_hash)
    profile = profiles.find(profile_hash)
    if profile is None:
        return _without(found, "no release brought the baseline that this device measures against")
    try:
        reference = _reference(connection, key, profile_hash, settings)
        if samples < settings.min_samples:
            return _without(found, f"{samples} of {settings.min_samples} samples", reference)
        distances = compare_windows(profile, recent, reference=BASELINE)
        own = _against_own(connection, key, profile, found, reference)
    except ContractError as error:
        return _without(found, f"windows that do not fit their baseline: {error}")
    accepted = ((BASELINE,) if accept_baseline else ()) + ((DEVICE,) if own else ())
    return Figures(
        recent=recent,
        samples=samples,
        distances=(*distances, *own),
        accepted=accepted,
        reference=reference,
        profile_hash=profile_hash,
    )


def _without(found: Figures, missing: str, reference: Reference | None = None) -> Figures:
    return Figures(
        recent=found.recent,
        samples=found.samples,
        reference=reference,
        profile_hash=found.profile_hash,
        missing=missing,
    )


def _reference(connection: Connection, key: ModelKey, profile_hash: str, settings: DriftConfig) -> Reference:
    """The device's own reference, grown by what has arrived since, until it is complete."""
    known = store.find_reference(connection, key, profile_hash)
    if known is not None and known.complete:
        return known
    first: list[Window] = []
    samples = 0
    for window in windows.oldest(connection, key, _most_reference_windows(settings), profile_hash):
        if len(first) >= settings.reference_windows and samples >= settings.reference_samples:
            break
        first.append(window)
        samples += window.inferences
    complete = len(first) >= settings.reference_windows and samples >= settings.reference_samples
    return Reference(window_count=len(first), sample_count=samples, signals=merge_windows(first), complete=complete)


def _most_reference_windows(settings: DriftConfig) -> int:
    """Windows hold 20 inferences at least, so this many always hold the samples that a reference needs."""
    return settings.reference_windows + settings.reference_samples // 20 + 1


def _against_own(
    connection: Connection, key: ModelKey, profile: Profile, found: Figures, reference: Reference
) -> tuple[SignalDistance, ...]:
    """Distances from the device's own first windows, once there are enough windows that are not among them."""
    if not reference.complete:
        return ()
    later = windows.count_of(connection, key, found.profile_hash) - reference.window_count
    if later < len(found.recent):
        return ()
    return compare_windows(profile, found.recent, reference.signals, reference=DEVICE)


def baseline_distances(
    connection: Connection, profiles: Profiles, key: ModelKey, since_s: float, models: int = 1
) -> Sequence[SignalDistance]:
    """Distances from the baseline over every window of a version received since a time.

    Args:
        connection: of any transaction.
        profiles: where the baselines are.
        key: device id, model, version.
        since_s: only windows received since then.
        models: how many comparisons like this one share the error of one.

    Returns:
        Empty where there are no windows, no baseline, or windows that do not fit it.
    """
    found = windows.newest(connection, key, _MOST_EVIDENCE_WINDOWS, since_s=since_s)
    if not found:
        return ()
    profile_hash = found[-1].profile_hash
    profile = profiles.find(profile_hash)
    if profile is None:
        return ()
    same = [window for window in found if window.profile_hash == profile_hash]
    try:
        limits = Limits(family_error=FAMILY_ERROR / models)
        return compare_windows(profile, same, reference=BASELINE, limits=limits)
    except ContractError:
        return ()


def field_accuracy(connection: Connection, key: ModelKey, variant: str) -> FieldAccuracy | None:
    """Accuracy of a version on a device by its newest labels.

    Args:
        connection: of any transaction.
        key: device id, model, version.
        variant: the label of what the device runs: ``target/runtime/precision``.

    Returns:
        None where there are fewer than :data:`MIN_LABELS` labels, no release, or no claimed accuracy.
    """
    rows = labels.newest(connection, key, _MOST_LABEL_ROWS)
    taken = []
    labelled = 0
    for row in rows:
        taken.append(row)
        labelled += row.labelled
        if labelled >= _ENOUGH_LABELS:
            break
    claim = _claim(connection, key, variant) if labelled >= MIN_LABELS else None
    if claim is None:
        return None
    found: dict[int, tuple[int, int]] = {}
    for predicted, label, count in (cell for row in taken for cell in row.confusion):
        right, n = found.get(label, (0, 0))
        found[label] = (right + (count if predicted == label else 0), n + count)
    return FieldAccuracy(
        labelled=labelled,
        correct=sum(row.correct for row in taken),
        baseline=claim.value,
        baseline_n=claim.n,
        windows=tuple((row.boot_id, row.seq) for row in taken),
        recalls=tuple((label, right, n) for label, (right, n) in sorted(found.items())),
    )


def _claim(connection: Connection, key: ModelKey, variant: str) -> MetricClaim | None:
    _, model, version = key
    if releases.find(connection, model, version) is None:
        return None
    data = releases.read_files(connection, model, version).manifest
    for known in read_json(data, BundleManifest, file="edgeship.json").variants:
        if known.label == variant and known.metric.name == ACCURACY and known.metric.n > 0:
            return known.metric
    return None
