"""``targets check`` of what cannot be looked into as it is: converted by the build's routes, and remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeship.build import toolchains

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))
RESNET = TEST_DATA / "mlperf_tiny" / "ic_resnet8" / "pretrainedResnet.h5"


def check(model: Path, cache: Path, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeship", "targets", "check", str(model), "--json"]
    return subprocess.run([*command, *(word for each in targets for word in ("-t", each))], capture_output=True,
                          text=True, check=False, timeout=280,
                          env={**os.environ, "EDGESHIP_CACHE": str(cache), **environment})  # fmt: skip


@pytest.mark.skipif(not RESNET.is_file(), reason="no models of others")
def test_a_keras_file_is_converted_once_and_checked(tmp_path: Path) -> None:
    toolchains.install("tensorflow")
    targets = ("x86-64-server", "raspberry-pi-4")
    done = check(RESNET, tmp_path / "cache", *targets)
    assert done.returncode in {0, 3, 4}, done.stderr
    results = json.loads(done.stdout)["targets"]
    assert set(results) == set(targets)
    told = {name: {each["runtime"]: each["holds"] for each in found if each["id"] == "operators"}
            for name, found in results.items()}  # fmt: skip
    assert told == {"x86-64-server": {"onnxruntime": True}, "raspberry-pi-4": {"litert": True, "onnxruntime": True}}
    for way in ("tf2onnx", "TFLiteConverter"):
        assert done.stderr.count(f"what keras → {way} makes of it") == 1
    # again where no converter is
    again = check(RESNET, tmp_path / "cache", *targets, XDG_CACHE_HOME=str(tmp_path / "nowhere"))
    assert (again.returncode, again.stdout) == (done.returncode, done.stdout), again.stderr


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    model = tmp_path / "net.keras"
    model.write_bytes(b"PK\x03\x04 no archive")
    done = check(model, tmp_path / "cache", "x86-64-server", XDG_CACHE_HOME=str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
