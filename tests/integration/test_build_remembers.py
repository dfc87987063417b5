"""Builds that go on from what earlier ones have worked out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgeship.build.cache.store import damaged, entries
from tests import models

TARGET = """
id = "{name}"
extends = "{base}"
title = "test"
[measure]
warm_up = 2
min_queries = 50
min_seconds = 0.0
"""
#: What a build that finds everything needs none of.
HEAVY = ("onnxruntime", "openvino", "nncf", "ai_edge_litert", "ai_edge_quantizer", "onnx.reference", "scipy", "httpx")
#: What it starts would load them unseen.
PROGRAM = """
import sys
started = []
def notice(event, given):
    if event == "subprocess.Popen":
        started.append(" ".join(map(str, given[1])))
sys.addaudithook(notice)
from edgeship.cli.main import main
try:
    main()
finally:
    sys.stderr.write("loaded: " + " ".join(name for name in {heavy!r} if name in sys.modules) + "\\n")
    sys.stderr.write("".join(f"started: {{each}}\\n" for each in started))
"""


class Workspace:
    """A small model, its data, two targets and a cache of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.model = models.classifier(folder / "net.onnx")
        session = onnxruntime.InferenceSession(str(self.model))
        for name, count, seed in (("calibration", 80, 1), ("evaluation", 400, 2)):
            x = models.inputs(count, seed=seed)
            np.savez(folder / f"{name}.npz", x=x, y=session.run(None, {"x": x})[0].argmax(1))
        for name, base in (("ort", "x86-64-server"), ("ov", "intel-nuc"), ("tfl", "x86-64-litert")):
            (folder / f"{name}.toml").write_text(TARGET.format(name=name, base=base))

    def command(self, output: str, *options: str, targets: tuple[str, ...] = ("ort", "ov")) -> list[str]:
        command = [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), "build", str(self.model), "--effort", "quick"]
        for name in targets:
            command += ["-t", str(self.folder / f"{name}.toml")]
        for name in ("calibration", "evaluation"):
            command += [f"--{name}", str(self.folder / f"{name}.npz")]
        return [*command, "--key", str(self.folder / "author.key"), "-o", str(self.folder / output), "--json", *options]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "EDGESHIP_CACHE": str(self.cache)}

    def build(self, output: str, *options: str) -> tuple[dict[str, Any], str]:
        done = subprocess.run(self.command(output, *options), capture_output=True, text=True, env=self.environment,
                              timeout=280, check=False)  # fmt: skip
        assert done.returncode in (0, 3, 4), done.stderr
        return json.loads(done.stdout), done.stderr


def loaded(said: str) -> list[str]:
    """What the process that watched and the one that worked have loaded."""
    lines = [line for line in said.splitlines() if line.startswith("loaded:")]
    assert len(lines) == 2
    return [name for line in lines for name in line.split()[1:]]


def started(said: str) -> list[str]:
    """The commands that they have started, but for those that ask Git which commit this is."""
    commands = [line.removeprefix("started: ") for line in said.splitlines() if line.startswith("started: ")]
    return [each for each in commands if not each.startswith("git ")]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("work"))
    made.first, _ = made.build("first", "--max-drop", "0.2")  # type: ignore[attr-defined]
    return made


def test_a_changed_budget_selects_again_and_builds_nothing(work: Workspace) -> None:
    first = work.first  # type: ignore[attr-defined]
    assert first["cache"]["found"] == 0 and first["cache"]["made"] > 20
    again, said = work.build("again", "--size-bytes", "9000000", "--max-drop", "0.2")
    assert (again["cache"]["made"], again["verdict"]) == (0, "pass")
    assert loaded(said) == started(said) == []
    other, said = work.build("other", "--max-drop", "0.15")
    assert (other["cache"]["made"], other["verdict"]) == (0, "pass")
    assert loaded(said) == started(said) == []
    assert other["cache"]["saved_s"] > 0
    # figures are the very same, latencies too
    for document in (again, other):
        for one, before in zip(document["variants"], first["variants"], strict=True):
            same = ("relative_rms", "latency_p50_ms", "latency_p99_ms", "size_bytes", "metric", "scheme", "notes")
            assert {key: one[key] for key in same} == {key: before[key] for key in same}


def test_a_warm_build_needs_no_converter(work: Workspace, tmp_path: Path) -> None:
    def build(output: str, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(work.command(output, *options, targets=("tfl",)), capture_output=True, text=True,
                              env=environment, timeout=280, check=False)  # fmt: skip

    cold = build("converted", work.environment, "--max-drop", "0.2", "--yes")
    assert cold.returncode == 0, cold.stderr
    without = {**work.environment, "XDG_CACHE_HOME": str(tmp_path)}  # no toolchain is installed there
    warm = build("warm-converted", without, "--max-drop", "0.15", "--size-bytes", "9000000")
    assert warm.returncode == 0, warm.stderr
    assert json.loads(warm.stdout)["cache"]["made"] == 0
    # how LiteRT splits a file is asked of LiteRT, once
    assert any(each.endswith("model.tflite") for each in started(cold.stderr))
    assert loaded(warm.stderr) == started(warm.stderr) == []
    cold_ones, warm_ones = (json.loads(one.stdout)["variants"] for one in (cold, warm))
    assert [each["relative_rms"] for each in cold_ones] == [each["relative_rms"] for each in warm_ones]
    # what must be converted anew says which converter is missing, before any work is done
    other = tmp_path / "other.npz"
    np.savez(other, x=models.inputs(80, seed=9))
    fresh = build("fresh", without, "--calibration", str(other))
    assert (fresh.returncode, "edgeship toolchains install onnx2tf" in fresh.stderr) == (2, True)
    assert not (work.folder / "fresh").exists()


def test_several_processes_give_the_same_bundle(work: Workspace, tmp_path: Path) -> None:
    environment = {**work.environment, "EDGESHIP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(work.command("jobs", "--jobs", "2", "--max-drop", "0.2"), capture_output=True, text=True,
                          env=environment, timeout=280, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    document, first = json.loads(done.stdout), work.first  # type: ignore[attr-defined]
    assert document["bundle_digest"] == first["bundle_digest"]
    # all was made by processes of this build, and each line was shown once
    assert (document["cache"]["found"], document["cache"]["made"]) == (0, first["cache"]["made"])
    assert done.stderr.count("✔ read") == 1
    assert done.stderr.count("✔ chosen") == 2


def test_an_interrupt_ends_all_processes_at_once(work: Workspace, tmp_path: Path) -> None:
    environment = {**work.environment, "EDGESHIP_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(work.command("interrupted", "--jobs", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=environment, start_new_session=True, text=True) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "read" in line:
                break
        while len(children_of(process.pid)) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    assert not [each.name for each in work.folder.iterdir() if "interrupted" in each.name]


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_warm_and_cold_give_the_same_bundle(work: Workspace) -> None:
    first = work.first  # type: ignore[attr-defined]
    warm, _ = work.build("warm", "--max-drop", "0.2")
    cold, _ = work.build("cold", "--no-cache", "--max-drop", "0.2")
    assert cold["cache"] == {"found": 0, "made": 0, "saved_s": 0.0}
    chosen = [(each["scheme"], each["chosen"]) for each in cold["variants"]]
    assert chosen == [(each["scheme"], each["chosen"]) for each in first["variants"]]
    assert warm["bundle_digest"] == first["bundle_digest"] == cold["bundle_digest"]


def test_other_data_is_another_build(work: Workspace) -> None:
    x = models.inputs(80, seed=9)
    other = work.folder / "other.npz"
    np.savez(other, x=x)
    document, _ = work.build("data", "--calibration", str(other))
    assert document["cache"]["made"] > 20


def test_damage_is_told_and_mended(work: Workspace) -> None:
    files = [file for each in entries(work.cache) for file in (each.folder / "files").rglob("*.onnx")]
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    document, said = work.build("mended", "--max-drop", "0.2")
    assert document["bundle_digest"] == work.first["bundle_digest"]  # type: ignore[attr-defined]
    assert "is damaged; removed, and made again" in said
    document, _ = work.build("after", "--max-drop", "0.2")
    assert document["cache"]["made"] == 0
    # those that no build asked for are found by the command
    command = [sys.executable, "-m", "edgeship", "cache", "check", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=work.environment, check=False)
    assert done.returncode == (1 if json.loads(done.stdout)["damaged"] else 0)
    assert damaged(work.cache) == []


def test_the_commands_say_what_is_kept_and_why(work: Workspace) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgeship", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=work.environment, check=False)

    listed = json.loads(run("cache", "list", "--json").stdout)
    assert {"source", "convert", "quantize", "trial", "verify", "latency"} <= set(listed["passes"])
    assert "trial" in run("cache", "list").stdout
    explained = json.loads(run("explain", "cache/source", "--json").stdout)
    assert any(each["field"] == "samples" for each in explained["differences"])
    assert "samples: " in run("explain", "cache/source").stdout
    unknown = run("explain", "cache/nothing")
    assert (unknown.returncode, "expected" in unknown.stderr) == (2, True)
    assert run("cache", "clear", "nothing").returncode == 2
    assert run("cache", "clear", "latency").returncode == 0
    document, _ = work.build("measured", "--max-drop", "0.2")
    assert document["cache"]["made"] == 2


def killed_after(work: Workspace, pause_s: float, number: int) -> bool:
    """Start a build and kill it with everything that it started; whether it was still at it."""
    with subprocess.Popen(work.command(f"killed{number}"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=work.environment, start_new_session=True) as process:  # fmt: skip
        time.sleep(pause_s)
        alive = process.poll() is None
        if alive:
            os.killpg(process.pid, signal.SIGKILL)
    return alive


@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_kill_9_loses_nothing_that_was_finished(tmp_path: Path, moments: int) -> None:
    work, rng = Workspace(tmp_path), random.Random(moments)
    kept = 0
    for number in range(moments):
        still = killed_after(work, rng.uniform(2.0, 6.0), number)
        now = len(entries(work.cache))
        assert now >= kept
        assert damaged(work.cache) == []
        kept = now
        if not still:
            break
    assert kept > 0
    document, _ = work.build("end")
    assert document["cache"]["found"] >= kept - 1
    assert document["verdict"] == "pass"
    assert not [each for each in tmp_path.iterdir() if each.name.startswith("killed") and (each / "bundle").exists()
                and not (each / "build.json").exists()]  # fmt: skip
