"""A bundle as a Debian package and as a Mender artifact: what they hold, and that they really install."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edgeship.bundle import Bundle
from tests.agents import TARGET, make_bundle
from tests.integration.test_agent_carried import Bench
from tests.programs import require_program


def export(bundle: Path, carrier: str, output: Path, target: str = TARGET) -> tuple[int, list[Path], str]:
    command = [sys.executable, "-W", "error", "-m", "edgeship", "export", str(bundle), "-t", target]
    done = run([*command, "--as", carrier, "-o", str(output), "--json"])
    files = [Path(file) for file in json.loads(done.stdout)["files"]] if done.returncode == 0 else []
    return done.returncode, files, done.stderr


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment}
    )


@pytest.mark.timeout(200)
def test_a_debian_package_installs_the_model(bench: Bench) -> None:
    dpkg_deb = require_program("dpkg-deb")
    code, (package,), _ = export(make_bundle(bench.folder, "1"), "deb", bench.folder / "packages")
    assert (code, package.name) == (0, "edgeship-model-digits_1_amd64.deb")
    fields = run([dpkg_deb, "--field", str(package)]).stdout
    assert "Package: edgeship-model-digits\nVersion: 1\nArchitecture: amd64\n" in fields
    assert run([dpkg_deb, "--info", str(package)]).returncode == 0
    contents = run([dpkg_deb, "--contents", str(package)]).stdout
    assert "./usr/share/edgeship/bundles/edgeship-model-digits/index.json" in contents

    good = dpkg(bench, package)
    assert good.returncode == 0, good.stdout + good.stderr
    assert bench.active() == "1"

    code, (broken,), _ = export(
        make_bundle(bench.folder, "2", seed_scale=1.5, golden_scale=3.0), "deb", bench.folder / "packages"
    )
    refused = dpkg(bench, broken)
    assert refused.returncode == 1
    assert "golden outputs" in refused.stdout
    assert bench.active() == "1"


def dpkg(bench: Bench, package: Path) -> subprocess.CompletedProcess[str]:
    """Install a package into a root of its own, its script with the real agent of this environment."""
    root = bench.folder / "root"
    for folder in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True, exist_ok=True)
    (root / "var/lib/dpkg/status").touch()
    command = [require_program("dpkg"), f"--root={root}", "--force-script-chrootless", "--force-not-root", "--install"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    return run([*command, str(package)], PATH=path, EDGESHIP_CONFIG=str(bench.config))


@pytest.mark.timeout(200)
def test_a_mender_artifact_is_of_format_3_and_its_module_installs_the_model(bench: Bench) -> None:
    bundle = make_bundle(bench.folder, "1")
    code, (artifact, module), _ = export(bundle, "mender", bench.folder / "out")
    assert code == 0
    with tarfile.open(artifact, "r:") as outer:
        names = outer.getnames()
        parts = {name: read(outer, name) for name in names}
    assert names == ["version", "manifest", "header.tar.gz", "data/0000.tar.gz"]
    assert json.loads(parts["version"]) == {"format": "mender", "version": 3}
    with tarfile.open(fileobj=io.BytesIO(parts["header.tar.gz"]), mode="r:gz") as header:
        assert header.getnames() == ["header-info", "headers/0000/type-info", "headers/0000/meta-data"]
        info, kind = json.loads(read(header, "header-info")), json.loads(read(header, "headers/0000/type-info"))
    assert info == {
        "payloads": [{"type": "edgeship-model"}],
        "artifact_provides": {"artifact_name": "digits-1"},
        "artifact_depends": {"device_type": [TARGET]},
    }
    assert kind["type"] == "edgeship-model"
    with tarfile.open(fileobj=io.BytesIO(parts["data/0000.tar.gz"]), mode="r:gz") as data:
        assert data.getnames() == ["bundle.tar"]
        payload = read(data, "bundle.tar")
    sums = dict(reversed(line.split("  ")) for line in parts["manifest"].decode().splitlines())
    assert sums == {
        "data/0000/bundle.tar": hashlib.sha256(payload).hexdigest(),
        "header.tar.gz": hashlib.sha256(parts["header.tar.gz"]).hexdigest(),
        "version": hashlib.sha256(parts["version"]).hexdigest(),
    }

    tree = bench.folder / "tree"
    for name in ("files", "tmp"):
        (tree / name).mkdir(parents=True)
    (tree / "files" / "bundle.tar").write_bytes(payload)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert run([str(module), "NeedsArtifactReboot", str(tree)]).stdout == "No\n"
    done = run([str(module), "ArtifactInstall", str(tree)], PATH=path, EDGESHIP_CONFIG=str(bench.config))
    assert done.returncode == 0, done.stderr
    assert bench.active() == "1"
    with tarfile.open(fileobj=io.BytesIO(payload)) as carried:
        carried.extractall(bench.folder / "carried", filter="data")
    assert Bundle.open(bench.folder / "carried").verify_signature()


def read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()


def test_the_same_bundle_gives_the_same_package(bench: Bench) -> None:
    bundle = make_bundle(bench.folder, "1")
    for carrier in ("deb", "mender"):
        first, second = (export(bundle, carrier, bench.folder / name)[1] for name in ("one", "two"))
        assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_a_target_that_the_bundle_has_not(bench: Bench) -> None:
    code, _, stderr = export(make_bundle(bench.folder, "1"), "deb", bench.folder / "out", target="toaster")
    assert code == 2
    assert "no variant for this target" in stderr
