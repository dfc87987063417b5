"""Releases over real HTTP: the command line uploads, devices download in pieces, the real TUF client believes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from tuf.ngclient import Updater

from edgeship.bundle import Bundle
from edgeship.server.app import create_app
from edgeship.server.tuf_repository import target_path
from tests import bundles
from tests.fleets import MODEL, Fleet, bundle_draft, open_fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with open_fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def url(fleet: Fleet) -> Iterator[str]:
    config = uvicorn.Config(create_app(fleet.context), host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        pass
    [socket] = server.servers[0].sockets
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def edgeship(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGESHIP_SERVER": url, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "edgeship", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def written(folder: Path, version: str) -> Path:
    return bundles.written(folder, name=f"{version}/bundle", content=bundle_draft(version)).directory


def test_add_uploads_once_and_ships_build_and_report(tmp_path: Path, url: str) -> None:
    bundle = written(tmp_path, "1.0")
    (bundle.parent / "build.json").write_text('{"schema_version":1}')
    (bundle.parent / "report.html").write_text("<h1>ü</h1>")
    first = edgeship(url, "releases", "add", str(bundle.parent), "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert (document["created"], document["version"], document["state"]) == (True, "1.0", "available")
    assert "next: edgeship rollouts create digits 1.0" in first.stderr
    again = edgeship(url, "releases", "add", str(bundle))
    assert again.returncode == 0, again.stderr
    assert "0 of" in again.stderr
    assert "known" in again.stderr
    assert httpx.get(f"{url}/api/v1/releases/{MODEL}/1.0/build.json").json() == {"schema_version": 1}
    report = httpx.get(f"{url}/api/v1/releases/{MODEL}/1.0/report.html")
    assert report.text == "<h1>ü</h1>"
    assert "sandbox" in report.headers["content-security-policy"]
    shown = edgeship(url, "releases", "show", MODEL, "1.0")
    assert shown.returncode == 0, shown.stderr
    assert "x86-64-litert/litert/int8" in shown.stdout
    assert "97.0%" in shown.stdout


def test_one_flipped_byte_registers_nothing(tmp_path: Path, url: str) -> None:
    bundle = written(tmp_path, "1.0")
    model = Bundle.open(bundle).manifest.variants[0].files[0]
    path = bundle / "blobs" / "sha256" / model.digest.removeprefix("sha256:")
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    outcome = edgeship(url, "releases", "add", str(bundle))
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: ")
    assert "altered" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert httpx.get(f"{url}/api/v1/releases").json()["releases"] == []


def test_the_server_believes_nothing_either(tmp_path: Path, fleet: Fleet) -> None:
    bundle = Bundle.open(written(tmp_path, "1.0"))
    digest = next(iter(bundle.descriptors())).digest
    wrong = fleet.http.put(f"/api/v1/blobs/{digest}", content=b"something else")
    assert wrong.status_code == 422
    assert "does not match its digest" in wrong.json()["error"]
    assert fleet.http.head(f"/api/v1/blobs/{digest}").status_code == 404
    assert list((fleet.context.blobs / "sha256").iterdir()) == []
    body = {"digest": bundle.digest, "author_key": bundle.author_key, "signature": "00"}
    missing = fleet.http.post("/api/v1/releases", json=body)
    assert "blob was not uploaded" in missing.json()["error"]
    forged = fleet.upload(bundle, signature="00" * 64)
    assert "signature does not fit" in forged.json()["error"]
    last = list(bundle.descriptors())[-1]
    (fleet.context.blobs / "sha256" / last.digest.removeprefix("sha256:")).unlink()
    body["signature"] = bundle.entry.annotations["dev.edgeship.author-signature"]
    partial = fleet.http.post("/api/v1/releases", json=body)
    assert "blob was not uploaded" in partial.json()["error"]
    assert fleet.http.get("/api/v1/releases").json()["releases"] == []
    assert fleet.upload(bundle).status_code == 201


def test_a_version_never_changes_and_another_author_is_refused(tmp_path: Path, url: str) -> None:
    assert edgeship(url, "releases", "add", str(written(tmp_path, "1.0"))).returncode == 0
    draft = bundle_draft("other content")
    import msgspec

    changed = bundles.written(tmp_path, name="changed", content=msgspec.structs.replace(draft, version="1.0"))
    outcome = edgeship(url, "releases", "add", str(changed.directory))
    assert outcome.returncode == 1
    assert "this version exists with another content" in outcome.stderr
    assert "next: " in outcome.stderr
    (tmp_path / "stranger").mkdir()
    outcome = edgeship(url, "releases", "add", str(written(tmp_path / "stranger", "2.0")))
    assert outcome.returncode == 1
    assert "author key that this model does not trust" in outcome.stderr
    listed = httpx.get(f"{url}/api/v1/releases").json()["releases"]
    assert [release["version"] for release in listed] == ["1.0"]


def test_blobs_come_whole_in_pieces_or_described(fleet: Fleet, url: str) -> None:
    bundle = fleet.add_release("1.0")
    file = bundle.manifest.variants[0].files[0]
    data = bundle.blob(file.digest)
    path = f"{url}/blobs/sha256/{file.digest.removeprefix('sha256:')}"
    whole = httpx.get(path)
    assert whole.content == data
    assert "immutable" in whole.headers["cache-control"]
    assert whole.headers["content-length"] == str(len(data))
    described = httpx.head(path)
    assert described.content == b""
    assert described.headers["content-length"] == str(len(data))
    assert described.headers["accept-ranges"] == "bytes"
    for header, first, last in (("bytes=5-9", 5, 9), ("bytes=5-", 5, len(data) - 1), ("bytes=-7", -7, -1)):
        part = httpx.get(path, headers={"range": header})
        assert part.status_code == 206
        assert part.content == (data[first : last + 1] if last != -1 else data[first:])
        assert part.headers["content-range"].endswith(f"/{len(data)}")
    assert httpx.get(path, headers={"range": f"bytes={len(data)}-"}).status_code == 416
    stale = httpx.get(path, headers={"range": "bytes=5-", "if-range": '"other"'})
    assert (stale.status_code, stale.content) == (200, data)
    assert httpx.get(f"{url}/blobs/sha256/{'0' * 64}").status_code == 404
    assert httpx.get(f"{url}/blobs/sha256/..%2f..%2fkeys%2fgoal.pem").status_code in (404, 422)


def test_the_real_tuf_client_believes_the_server(tmp_path: Path, fleet: Fleet, url: str) -> None:
    import time

    fleet.clock.now_s = time.time()
    first = fleet.add_release("1.0")

    def client() -> Updater:
        (tmp_path / "device").mkdir(exist_ok=True)
        (tmp_path / "targets").mkdir(exist_ok=True)
        root = (fleet.context.data / "trust" / "root.json").read_bytes()
        metadata, targets = f"{url}/tuf/metadata/", f"{url}/tuf/targets/"
        return Updater(str(tmp_path / "device"), metadata, str(tmp_path / "targets"), targets, bootstrap=root)

    updater = client()
    info = updater.get_targetinfo(target_path(first.digest))
    assert info is not None
    assert Path(updater.download_target(info)).read_bytes() == first.index_bytes
    second = fleet.add_release("2.0")
    updater = client()
    for bundle in (first, second):
        info = updater.get_targetinfo(target_path(bundle.digest))
        assert info is not None
        assert info.length == len(bundle.index_bytes)
    assert httpx.get(f"{url}/tuf/metadata/..%2f..%2fkeys%2froot.pem").status_code == 404


def test_the_command_line_speaks_of_rollouts(fleet: Fleet, url: str) -> None:
    empty = edgeship(url, "rollouts", "list")
    assert empty.returncode == 0
    fleet.add_devices()
    fleet.add_release("1.0")
    planned = edgeship(url, "rollouts", "create", MODEL, "1.0", "--dry-run", "--filter", "site=a")
    assert planned.returncode == 0, planned.stderr
    assert "litert-0" in planned.stdout
    bad = edgeship(url, "rollouts", "create", MODEL, "1.0", "--max-drift", "7")
    assert bad.returncode == 2
    assert "max_drift: limit out of range" in bad.stderr
    options = ("--seed", "7", "--soak-s", "3", "--min-windows", "2", "--min-calls", "100")
    created = edgeship(url, "rollouts", "create", MODEL, "1.0", *options, "--json")
    assert json.loads(created.stdout)["id"] == "r1"
    paused = edgeship(url, "rollouts", "pause", "r1", "--reason", "lunch")
    assert paused.returncode == 0, paused.stderr
    assert "? PAUSED" in paused.stdout
    assert edgeship(url, "rollouts", "status", "r1", "--watch").returncode == 4
    assert edgeship(url, "rollouts", "resume", "r1").returncode == 0
    fleet.run("r1", ["completed"])
    watched = edgeship(url, "rollouts", "status", "r1", "--watch")
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.splitlines()[0].startswith("r1 digits 1.0   ✔ COMPLETED")
    assert watched.stdout.splitlines()[1].startswith("20 % ✔ ── 100 % ✔")
    explained = edgeship(url, "explain", "rollout/r1")
    assert explained.returncode == 0, explained.stderr
    assert "the identical verdict" in explained.stdout
    assert edgeship(url, "explain", "rollout/r9").returncode == 2
    illegal = edgeship(url, "rollouts", "resume", "r1")
    assert illegal.returncode == 1
    assert "a rollout that is completed cannot resume" in illegal.stderr
    listed = edgeship(url, "rollouts", "list")
    assert "✔ COMPLETED" in listed.stdout


def test_no_server_is_an_error_in_words() -> None:
    outcome = edgeship("http://127.0.0.1:9", "rollouts", "list")
    assert outcome.returncode == 1
    assert "the server cannot be reached" in outcome.stderr
