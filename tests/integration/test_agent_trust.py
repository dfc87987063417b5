"""The Update Framework's client on a device: clocks, tampering, replay; a real repository over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship_agent.contract.errors import TransferError, VerificationError
from edgeship_agent.contract.oci import hex_of
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.trust import TrustedSource, TrustRequest, fetch_verified
from tests.agents import Depot, Release

YEAR_S = 365.25 * 86400.0


@pytest.fixture
def depot(tmp_path: Path) -> Iterator[Depot]:
    depot = Depot(tmp_path / "depot")
    yield depot
    depot.close()


def request(depot: Depot, release: Release, folder: Path, *, floor_s: float = 0.0) -> TrustRequest:
    (folder / "tuf").mkdir(parents=True, exist_ok=True)
    return TrustRequest(
        root=str(depot.root),
        metadata_directory=str(folder / "tuf"),
        server_url=depot.url + "/",
        target=f"bundles/{hex_of(release.digest)}.json",
        size_bytes=release.size_bytes,
        output=str(folder / "index.json"),
        floor_s=floor_s,
    )


def test_a_clock_ten_years_behind_accepts_what_is_good_and_no_expired_metadata(tmp_path: Path) -> None:
    now_s = time.time()
    fresh = Depot(tmp_path / "fresh")
    release = fresh.publish("1")
    behind_s = now_s - 10 * YEAR_S
    assert fetch_verified(request(fresh, release, tmp_path / "a", floor_s=now_s), behind_s).kind == "ok"
    fresh.close()

    old = Depot(tmp_path / "old", clock=lambda: now_s - 2 * YEAR_S)
    release = old.publish("1")
    folder = tmp_path / "b"
    assert fetch_verified(request(old, release, folder), now_s).kind == "refused"
    answer = fetch_verified(request(old, release, folder, floor_s=now_s), behind_s)
    assert answer.kind == "refused"
    assert "expired" in answer.detail.lower()
    assert not (folder / "index.json").exists()
    old.close()


def test_without_a_floor_the_agents_own_age_is_one(tmp_path: Path) -> None:
    old = Depot(tmp_path / "old", clock=lambda: 1.5e9)
    release = old.publish("1")
    assert fetch_verified(request(old, release, tmp_path / "a"), 1.5e9).kind == "refused"
    old.close()


def test_a_clock_ahead_refuses_and_leaves_nothing_behind(depot: Depot, tmp_path: Path) -> None:
    release = depot.publish("1")
    now_s = time.time()
    asked = request(depot, release, tmp_path / "device")
    assert fetch_verified(asked, now_s + 10 * YEAR_S).kind == "refused"
    assert fetch_verified(asked, now_s).kind == "ok"


def test_the_child_process_fetches_and_refuses(depot: Depot, tmp_path: Path) -> None:
    release = depot.publish("1")
    source = TrustedSource(depot.root, tmp_path / "tuf", depot.url, Launcher())
    output = tmp_path / "index.json"
    source.fetch_index(release.digest, release.size_bytes, output, 0.0)
    assert output.read_bytes() == depot.targets[hex_of(release.digest)]

    with pytest.raises(VerificationError, match="signed length"):
        source.fetch_index(release.digest, release.size_bytes + 1, output, 0.0)
    with pytest.raises(VerificationError, match="has no"):
        source.fetch_index("sha256:" + "0" * 64, 10, output, 0.0)
    depot.targets[hex_of(release.digest)] = b"x" * release.size_bytes
    with pytest.raises(VerificationError):
        source.fetch_index(release.digest, release.size_bytes, output, 0.0)
    depot.close()
    with pytest.raises(TransferError):
        source.fetch_index(release.digest, release.size_bytes, output, 0.0)


def test_an_older_repository_is_refused_after_a_restart(depot: Depot, tmp_path: Path) -> None:
    release = depot.publish("1")
    saved = {path: path.read_bytes() for path in depot.trust.directory.iterdir()}
    second = depot.publish("2", seed_scale=1.5)
    folder = tmp_path / "device"
    assert fetch_verified(request(depot, second, folder), time.time()).kind == "ok"
    for path in depot.trust.directory.iterdir():
        path.unlink()
    for path, data in saved.items():
        path.write_bytes(data)
    answer = fetch_verified(request(depot, release, folder), time.time())
    assert answer.kind == "refused"
    assert "version" in answer.detail


def test_a_repository_of_strangers_is_refused(depot: Depot, tmp_path: Path) -> None:
    stranger = Depot(tmp_path / "stranger")
    release = stranger.publish("1")
    asked = request(depot, release, tmp_path / "device")
    answer = fetch_verified(TrustRequest(**{**_fields(asked), "server_url": stranger.url + "/"}), time.time())
    assert answer.kind == "refused"
    stranger.close()


def _fields(asked: TrustRequest) -> dict[str, object]:
    return {name: getattr(asked, name) for name in asked.__struct_fields__}
