"""``edgeship build --measure ssh://``: candidates answer on emulated aarch64 as they do here, on both runtimes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.arm64_root import Arm64Root, arm64_root
from tests.ssh_server import ssh_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
#: A Cortex-A72 as it is emulated, with one runtime.
TARGET = """\
schema_version = 1
id = "{name}"
title = "A Raspberry Pi 4 with {name} alone"
extends = "raspberry-pi-4"

[[runtime]]
name = "{name}"
version = ">=1"
threads = 1
int8 = "s8s8"

[measure]
runner = "local"
warm_up = 2
min_queries = 20
min_seconds = 0.0
"""
#: Float files compute the same numbers in another order; int8 may round an accumulator to the neighbouring step.
MOST = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.05}


def _python(arm: Arm64Root, folder: Path) -> Path:
    """A python3 that starts emulated, and names itself as its executable, so that its children are emulated too."""
    script = folder / "python3"
    emulator, *options = arm.prefix()
    shown = options.index("-E")
    command = shlex.join([emulator, *options[:shown]])
    script.write_text(f'#!/bin/sh\nexec {command} -E "PYTHONPATH=${{PYTHONPATH:+$PYTHONPATH:}}{arm.folder / "site"}" '
                      f'-0 {script} {arm.python} "$@"\n')  # fmt: skip
    script.chmod(0o755)
    return script


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_candidates_answer_there_as_here(runtime: str, tmp_path: Path) -> None:
    arm = arm64_root()
    model = models.classifier(tmp_path / "model.onnx")
    calibration, evaluation = tmp_path / "calibration.npz", tmp_path / "evaluation.npz"
    np.savez(calibration, x=models.inputs(60, seed=1))
    np.savez(evaluation, x=models.inputs(80, seed=2))
    target = tmp_path / f"{runtime}.toml"
    target.write_text(TARGET.format(name=runtime))
    with ssh_server(tmp_path / "server", python=_python(arm, tmp_path)) as server:
        done = subprocess.run(
            [sys.executable, "-m", "edgeship", "build", str(model), "-t", str(target), "--yes", "--effort", "quick",
             "--calibration", str(calibration), "--evaluation", str(evaluation), "-o", str(tmp_path / "build"),
             "--key", str(tmp_path / "key"), "--ssh-config", str(server.config), "--measure", server.address,
             "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode in {0, 4}, done.stderr
        assert server.leftovers == []
    variants = json.loads(done.stdout)["variants"]
    assert {each["precision"] for each in variants} >= {"fp32", "int8"}
    for each in variants:
        assert each["runtime"] == runtime
        assert (each["measured_on"]["arch"], each["measured_on"]["isa"]) == ("aarch64", "aarch64")
        assert each["on_target"] is True
        assert each["latency_queries"] >= 20
        (note,) = [note for note in each["notes"] if ": relative RMS" in note and "run on" in note]
        found = re.search(r"relative RMS ([0-9.e+-]+)", note)
        assert found is not None, note
        assert float(found.group(1)) <= MOST[each["precision"]], note
