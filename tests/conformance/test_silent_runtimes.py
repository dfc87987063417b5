"""What runs models tells nobody of it: no file in the user's home, on a device and in a build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.slots import classifier_onnx

ON_A_DEVICE = """
from edgeship_agent.runtime import open_engine
open_engine("onnxruntime", Path(sys.argv[1]))
"""
IN_A_BUILD = """
import edgeship.build
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("code", [ON_A_DEVICE, IN_A_BUILD], ids=["device", "build"])
def test_onnx_runtime_leaves_nothing_in_the_home(code: str, tmp_path: Path) -> None:
    model = classifier_onnx(tmp_path / "model.onnx")
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    command = [sys.executable, "-c", "import sys; from pathlib import Path" + code, str(model)]
    done = subprocess.run(command, env={**kept, "HOME": str(home)}, capture_output=True, text=True, timeout=60,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []
