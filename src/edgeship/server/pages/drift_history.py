"""Drift over time: windows sorted into columns of time, each compared with the bundle's baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from msgspec import Struct
from sqlalchemy import Connection

from edgeship.drift import SignalDistance, compare_windows, worst
from edgeship.server.pages.words import clock_text
from edgeship.server.profiles import Profiles
from edgeship.server.store import windows
from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import Profile

MOST_COLUMNS: Final = 12
_WINDOWS: Final = 60


class Span(Struct, frozen=True, kw_only=True):
    """A stretch of time that is cut into columns.

    Attributes:
        start_s, end_s: seconds since the epoch.
        count: how many columns.
    """

    start_s: float
    end_s: float
    count: int = MOST_COLUMNS

    def column(self, at_s: float) -> int:
        """Which column a time falls into.

        >>> [Span(start_s=0.0, end_s=12.0).column(at_s) for at_s in (0.0, 5.5, 12.0)]
        [0, 5, 11]
        """
        width_s = max(self.end_s - self.start_s, 1e-9) / self.count
        return max(0, min(self.count - 1, int((at_s - self.start_s) / width_s)))

    def labels(self) -> list[str]:
        """Start of every column, as a time of day (UTC)."""
        width_s = (self.end_s - self.start_s) / self.count
        return [clock_text(self.start_s + index * width_s) for index in range(self.count)]


class History(Struct, frozen=True, kw_only=True):
    """Newest windows of one device and version, over one profile.

    Attributes:
        windows: oldest first.
        profile: None where the bundle's baseline is not among the blobs.
    """

    device_id: str
    model: str
    version: str
    windows: list[Window]
    profile: Profile | None


@cache
def profiles_in(blobs: Path) -> Profiles:
    """The baselines among some blobs, read once."""
    return Profiles(blobs)


def read_history(connection: Connection, blobs: Path, key: tuple[str, str, str], *, limit: int = _WINDOWS) -> History:
    """A device's newest windows of one version; where the profile changed, only those over the newest one.

    Args:
        connection: of any transaction.
        blobs: folder of the blobs.
        key: device id, model, version.
        limit: at most so many windows.
    """
    found = windows.newest(connection, key, limit)
    newest_hash = found[-1].profile_hash if found else ""
    profile = profiles_in(blobs).find(newest_hash) if newest_hash else None
    kept = [window for window in found if window.profile_hash == newest_hash]
    return History(device_id=key[0], model=key[1], version=key[2], windows=kept, profile=profile)


def span_of(histories: Sequence[History]) -> Span | None:
    """The time that some histories cover together, None where there is no window."""
    times = [(window.started_at_s, window.ended_at_s) for history in histories for window in history.windows]
    if not times:
        return None
    most = max(len(history.windows) for history in histories)
    start_s, end_s = min(start for start, _ in times), max(end for _, end in times)
    return Span(start_s=start_s, end_s=end_s, count=min(MOST_COLUMNS, most))


def columns_of(history: History, span: Span) -> list[tuple[SignalDistance, ...]]:
    """One comparison with the baseline per column; empty where there was no window."""
    sorted_windows: list[list[Window]] = [[] for _ in range(span.count)]
    for window in history.windows:
        sorted_windows[span.column((window.started_at_s + window.ended_at_s) / 2.0)].append(window)
    profile = history.profile
    if profile is None:
        return [() for _ in sorted_windows]
    return [compare_seen(profile, part) for part in sorted_windows]


def compare_seen(profile: Profile, seen: Sequence[Window]) -> tuple[SignalDistance, ...]:
    """Distances of some windows from the baseline; empty for none, and where a device sent bins that do not fit."""
    if not seen:
        return ()
    try:
        return compare_windows(profile, seen)
    except ContractError:
        return ()


def worst_by_column(
    columns: Sequence[Sequence[SignalDistance]], family: str | None = None
) -> list[SignalDistance | None]:
    """The worst signal of every column."""
    return [worst(column, family) for column in columns]


def by_signal(columns: Sequence[Sequence[SignalDistance]]) -> dict[str, list[SignalDistance | None]]:
    """Signal → its distance per column, None where there was no data."""
    names = {distance.signal for column in columns for distance in column}
    found: dict[str, list[SignalDistance | None]] = {name: [] for name in sorted(names)}
    for column in columns:
        known: Mapping[str, SignalDistance] = {distance.signal: distance for distance in column}
        for name, values in found.items():
            distance = known.get(name)
            values.append(None if distance is None or distance.state.value == "no_data" else distance)
    return found
