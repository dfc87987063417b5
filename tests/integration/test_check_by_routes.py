"""``targets check`` of what cannot be looked into as it is: converted by the build's routes, and remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
RESNET = TEST_DATA / "mlperf_tiny" / "ic_resnet8" / "pretrainedResnet.h5"


def check(model: Path, cache: Path, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeship", "targets", "check", str(model), "--json"]
    return subprocess.run([*command, *(word for each in targets for word in ("-t", each))], capture_output=True,
                          text=True, check=False, timeout=280,
                          env={**os.environ, "EDGESHIP_CACHE": str(cache), **environment})  # fmt: skip


@pytest.mark.skipif(not RESNET.is_file(), reason="no models of others")
def test_a_keras_file_is_converted_once_and_checked(tmp_path: Path) -> None:
    targets = ("x86-64-server",)
    done = check(RESNET, tmp_path / "cache", *targets)
    if "edgeship toolchains install" in done.stderr:
        pytest.skip("the converter is not installed")
    assert done.returncode in {0, 3, 4}, done.stderr
    results = json.loads(done.stdout)["targets"]
    assert set(results) == set(targets)
    for found in results.values():
        assert any(each["id"] == "operators" and each["holds"] for each in found)
    assert "keras → tf2onnx" in done.stderr
    # again where no converter is
    again = check(RESNET, tmp_path / "cache", *targets, XDG_CACHE_HOME=str(tmp_path / "nowhere"))
    assert (again.returncode, again.stdout) == (done.returncode, done.stdout), again.stderr


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    model = tmp_path / "net.keras"
    model.write_bytes(b"PK\x03\x04 no archive")
    done = check(model, tmp_path / "cache", "x86-64-server", XDG_CACHE_HOME=str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
