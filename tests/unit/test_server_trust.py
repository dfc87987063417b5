"""Keys, goal signatures and the update repository, read by the real client of The Update Framework."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tuf.ngclient import Updater

from edgeship.server.signing_keys import load_or_create, verify
from edgeship.server.trust import Trust
from edgeship.server.tuf_repository import VALIDITY_S, target_path
from edgeship_agent.contract.errors import VerificationError
from edgeship_agent.contract.goal import GOAL_PAYLOAD_TYPE, GoalState
from edgeship_agent.contract.oci import digest_of, hex_of, signed_bytes
from edgeship_agent.contract.wire import decode_goal

INDEX_1 = b'{"schemaVersion":2}'
INDEX_2 = b'{"schemaVersion":2,"manifests":[]}'


class Clock:
    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def clock() -> Clock:
    import time

    return Clock(time.time())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "data" / "tuf"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def client(tmp_path: Path, url: str, name: str = "device") -> Updater:
    directory = tmp_path / name
    directory.mkdir(exist_ok=True)
    (tmp_path / "targets").mkdir(exist_ok=True)
    root = (tmp_path / "data" / "trust" / "root.json").read_bytes()
    return Updater(str(directory), f"{url}/metadata/", str(tmp_path / "targets"), f"{url}/targets/", bootstrap=root)


def serve_target(tmp_path: Path, index: bytes) -> None:
    name = hex_of(digest_of(index))
    path = tmp_path / "data" / "tuf" / "targets" / "bundles" / f"{name}.{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(index)


def test_the_real_client_follows_releases_restarts_and_renewals(tmp_path: Path, served: str, clock: Clock) -> None:
    trust = Trust.open(tmp_path / "data", clock)
    first, second = digest_of(INDEX_1), digest_of(INDEX_2)
    trust.repository.add(first, INDEX_1)
    serve_target(tmp_path, INDEX_1)
    updater = client(tmp_path, served)
    info = updater.get_targetinfo(target_path(first))
    assert info is not None
    assert info.length == len(INDEX_1)
    assert Path(updater.download_target(info)).read_bytes() == INDEX_1
    assert updater.get_targetinfo(target_path(second)) is None

    trust = Trust.open(tmp_path / "data", clock)  # the server starts again
    trust.repository.add(second, INDEX_2)
    serve_target(tmp_path, INDEX_2)
    updater = client(tmp_path, served)
    for digest in (first, second):
        assert updater.get_targetinfo(target_path(digest)) is not None

    assert trust.repository.refresh() == ()
    clock.now_s += VALIDITY_S["timestamp"] * 0.3
    assert trust.repository.refresh() == ("timestamp",)
    assert client(tmp_path, served).get_targetinfo(target_path(first)) is not None

    clock.now_s += VALIDITY_S["root"] * 0.5
    assert trust.repository.refresh() == ("root", "snapshot", "targets", "timestamp")
    trust = Trust.open(tmp_path / "data", clock)
    assert client(tmp_path, served).get_targetinfo(target_path(second)) is not None
    assert client(tmp_path, served, "new device").get_targetinfo(target_path(second)) is not None


def test_adding_twice_makes_no_new_version(tmp_path: Path, clock: Clock) -> None:
    trust = Trust.open(tmp_path, clock)
    trust.repository.add(digest_of(INDEX_1), INDEX_1)
    before = (tmp_path / "tuf" / "metadata" / "timestamp.json").read_bytes()
    trust.repository.add(digest_of(INDEX_1), INDEX_1)
    assert (tmp_path / "tuf" / "metadata" / "timestamp.json").read_bytes() == before


def test_a_crash_between_targets_and_timestamp_leaves_the_old_view(tmp_path: Path, clock: Clock) -> None:
    trust = Trust.open(tmp_path, clock)
    metadata = tmp_path / "tuf" / "metadata"
    timestamp = (metadata / "timestamp.json").read_bytes()
    trust.repository.add(digest_of(INDEX_1), INDEX_1)
    (metadata / "timestamp.json").write_bytes(timestamp)  # the rename that never happened
    again = Trust.open(tmp_path, clock)
    assert not again.repository.has(digest_of(INDEX_1))
    again.repository.add(digest_of(INDEX_2), INDEX_2)
    assert Trust.open(tmp_path, clock).repository.has(digest_of(INDEX_2))


def test_keys_are_private_and_readable_keys_are_refused(tmp_path: Path, clock: Clock) -> None:
    Trust.open(tmp_path, clock)
    keys = sorted((tmp_path / "keys").iterdir())
    assert [key.name for key in keys] == ["goal.pem", "root.pem", "snapshot.pem", "targets.pem", "timestamp.pem"]
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
    (tmp_path / "keys" / "goal.pem").chmod(0o644)
    with pytest.raises(VerificationError, match="others may read"):
        Trust.open(tmp_path, clock)


def test_metadata_of_other_keys_is_refused(tmp_path: Path, clock: Clock) -> None:
    Trust.open(tmp_path, clock)
    (tmp_path / "keys" / "targets.pem").unlink()
    with pytest.raises(VerificationError, match="another targets key"):
        Trust.open(tmp_path, clock)


def test_damaged_key_and_metadata_are_named(tmp_path: Path, clock: Clock) -> None:
    Trust.open(tmp_path, clock)
    timestamp = tmp_path / "tuf" / "metadata" / "timestamp.json"
    timestamp.write_bytes(timestamp.read_bytes().replace(b'"version":1', b'"version":7'))
    with pytest.raises(VerificationError, match=r"timestamp\.json"):
        Trust.open(tmp_path, clock)
    (tmp_path / "broken.pem").write_text("not a key")
    (tmp_path / "broken.pem").chmod(0o600)
    with pytest.raises(VerificationError, match="not a private key"):
        load_or_create(tmp_path / "broken.pem")


def test_a_goal_is_signed_for_its_bytes_alone(tmp_path: Path, clock: Clock) -> None:
    trust = Trust.open(tmp_path, clock)
    goal = GoalState(
        protocol_version=1, device_id="press-07", generation=3, issued_at_s=1.0, expires_at_s=2.0, models=()
    )
    signed = trust.sign_goal(goal)
    public = (tmp_path / "trust" / "goal.pub").read_text().strip()
    assert decode_goal(signed.payload) == goal
    assert verify(public, signed.signature, signed_bytes(GOAL_PAYLOAD_TYPE, signed.payload))
    assert not verify(public, signed.signature, signed_bytes(GOAL_PAYLOAD_TYPE, signed.payload + b"\0"))
    assert not verify("zz", signed.signature, b"")
