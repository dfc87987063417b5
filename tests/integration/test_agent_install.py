"""The installer, into a folder of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.console_blocks import ROOT

INSTALLER = ROOT / "device_agent" / "install.sh"


def install(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(INSTALLER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "--runtime: expected litert, onnxruntime, openvino or tflite, got ''"),
        (("--runtime", "tensorrt"), 2, "got 'tensorrt'"),
        (("--runtime",), 2, "--runtime needs a value"),
        (("--surprise",), 2, "unknown option --surprise"),
        (("--runtime", "litert", "--python", "/bin/false"), 2, "is not Python 3.10 or newer"),
    ],
)
def test_mistakes_change_nothing(tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str) -> None:
    done = install("--prefix", str(tmp_path / "agent"), "--no-service", *arguments)
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_installs_and_upgrades_in_place(tmp_path: Path) -> None:
    prefix = tmp_path / "agent"
    for _ in range(2):
        done = install("--runtime", "litert", "--prefix", str(prefix), "--no-service", timeout_s=300.0)
        assert done.returncode == 0, done.stderr
        assert prefix.is_symlink()
        # the environment before is gone, and the link leads to the only one there is
        assert {path.name for path in tmp_path.iterdir()} == {"agent", prefix.readlink().name}
        helped = subprocess.run(
            [prefix / "bin" / "edgeship-agent", "--help"], capture_output=True, text=True, check=True
        )
        assert "enroll" in helped.stdout
    # an environment that does not start never takes the place of one that does
    broken = tmp_path / "python"
    broken.write_text(f'#!/bin/sh\nif [ "$1" = -m ]; then exit 1; fi\nexec {prefix}/bin/python "$@"\n')
    broken.chmod(0o755)
    refused = install("--runtime", "litert", "--prefix", str(prefix), "--no-service", "--python", str(broken))
    assert refused.returncode != 0
    assert {path.name for path in tmp_path.iterdir()} == {"agent", "python", prefix.readlink().name}
    assert (
        subprocess.run([prefix / "bin" / "edgeship-agent", "--help"], capture_output=True, check=False).returncode == 0
    )
