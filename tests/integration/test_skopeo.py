"""Bundles open in skopeo, a tool of others that reads OCI image layouts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from edgeship.bundle import Bundle
from edgeship_agent.contract import oci
from tests import bundles
from tests.programs import require_program


def skopeo(*arguments: str) -> str:
    command = [require_program("skopeo"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inspect_shows_the_signed_index(tmp_path: Path) -> None:
    bundle = bundles.written(tmp_path)
    raw = skopeo("inspect", "--raw", f"oci:{bundle.directory}")
    assert oci.digest_of(raw.encode()) == bundle.digest
    index = json.loads(raw)
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["arm64", "amd64", "amd64"]


def test_copy_keeps_every_blob_and_the_digest(tmp_path: Path) -> None:
    bundle = bundles.written(tmp_path)
    skopeo("copy", "--all", f"oci:{bundle.directory}", f"oci:{tmp_path / 'copy'}")
    # the copy's index.json is skopeo's own: it keeps the signed content, not the signature beside it
    copied = Bundle.open(tmp_path / "copy")
    assert copied.digest == bundle.digest
    assert copied.verify_digests() == Bundle.open(bundle.directory).verify_digests()
    assert copied.manifest == Bundle.open(bundle.directory).manifest
