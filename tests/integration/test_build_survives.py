"""Native code that crashes, hangs or takes all memory: the build outlives it, says what it was, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

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
#: Work under a supervisor, in a process without threads of its own.
WATCHED = """
import ctypes, os, subprocess, sys, time
from edgeship.build.survival import journal
from edgeship.build.survival.supervisor import Stopped, Supervisor, Terms
from edgeship_agent.contract.errors import ConversionError

def step(key, act):
    try:
        with journal.step(key, "quantization"), journal.at("runtime"):
            act()
    except ConversionError as error:
        print(f"{key}: {error.stage}: {error.message}: {error.passing}", flush=True)

def work():
    for key, act in (("first", lambda: None), ("bad", BAD), ("last", lambda: None)):
        step(key, act)
        print("after", key, flush=True)
    return 3

def segfault():
    ctypes.string_at(0)

def swallow():
    held = []
    while True:
        held.append(bytes(64 << 20))

def tell(sentence):
    print("told:", sentence, flush=True)

supervisor = Supervisor(tell, Terms(silence_s=1.0, memory_bytes=2 << 30))
"""


def watched(bad: str, end: str = "sys.exit(supervisor.run(work))") -> subprocess.CompletedProcess[str]:
    program = WATCHED + f"\ndef BAD():\n    {bad}\n\n{textwrap.dedent(end)}\n"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("segfault()", "it kills its process (signal 11): False"),
        ("os.abort()", "it kills its process (signal 6): False"),
        ("os._exit(0)", "it ends its process (exit code 0): False"),
        ("time.sleep(1000)", "it said nothing for 1 s: True"),
        ("os.kill(os.getpid(), 9)", "signal 9), as the system does where memory runs out: True"),
    ],
    ids=["segfault", "abort", "exit", "hang", "killed"],
)
def test_a_step_that_kills_its_process_is_refused_and_the_rest_is_done(bad: str, said: str) -> None:
    done = watched(bad)
    assert done.returncode == 3, done.stderr
    lines = done.stdout.splitlines()
    # the first try ended in the step; the second one left it out, with the stage that was the innermost
    assert lines[0] == "after first"
    assert lines[1].startswith("told: runtime error: ")
    assert lines[2:] == ["after first", lines[3], "after bad", "after last"]
    assert lines[3].startswith("bad: runtime: ") and lines[3].endswith(said)


def test_memory_without_end_is_refused_in_the_same_process() -> None:
    done = watched("swallow()")
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[1:3] == ["bad: runtime: it needs more memory than it may take: True", "after bad"]


def test_what_dies_outside_of_every_step_is_one_error() -> None:
    done = watched("pass", """
        def dies():
            os.abort()
        try:
            supervisor.run(dies)
        except ConversionError as error:
            print("error:", error.message)
        """)  # fmt: skip
    assert done.stdout == "error: it cannot go on: it kills its process (signal 6)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_work_and_leaves_nothing_running(tmp_path: Path, number: int) -> None:
    """Grandchildren too: a converter that would go on for minutes ends with the build that started it."""
    program = WATCHED + textwrap.dedent(f"""
        def BAD():
            process = subprocess.Popen(["sleep", "1000"])
            open({str(tmp_path / "pid")!r}, "w").write(str(process.pid))
            while True:
                journal.alive()
                time.sleep(0.1)
        try:
            sys.exit(supervisor.run(work))
        except Stopped as stopped:
            sys.exit(128 + stopped.number)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until_s = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < until_s
            time.sleep(0.05)
        grandchild = int((tmp_path / "pid").read_text())
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    with pytest.raises(ProcessLookupError):
        os.kill(grandchild, 0)


def test_the_work_ends_with_whoever_watches_it(tmp_path: Path) -> None:
    program = WATCHED + textwrap.dedent(f"""
        def BAD():
            open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
            while True:
                journal.alive()
                time.sleep(0.1)
        supervisor.run(work)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL) as process:
        until_s = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < until_s
            time.sleep(0.05)
        worker = Path("/proc") / (tmp_path / "pid").read_text() / "cmdline"
        assert worker.read_bytes()
        process.kill()
    while worker.exists() and worker.read_bytes():  # an ended process has no command line
        assert time.monotonic() < until_s
        time.sleep(0.05)


TURNS = """
import sys, time
from pathlib import Path
from edgeship.build.survival import turns
turns.take(Path(sys.argv[1]))
log = open(Path(sys.argv[1]) / "log", "a", buffering=1)
for step in range(30):
    kind = "measure" if step % 5 == int(sys.argv[2]) else "work"
    with turns.turn(measures=kind == "measure"):
        log.write(f"{time.monotonic_ns()} {kind} begin {sys.argv[2]}\\n")
        time.sleep(0.005)
        log.write(f"{time.monotonic_ns()} {kind} end {sys.argv[2]}\\n")
"""


def test_whoever_measures_is_alone(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", TURNS, str(tmp_path), str(each)]) for each in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    busy: set[tuple[str, str]] = set()
    together = 0
    for line in sorted((tmp_path / "log").read_text().splitlines(), key=lambda line: int(line.split()[0])):
        _, kind, what, who = line.split()
        if what == "begin":
            assert not busy or (kind == "work" and not any(each == "measure" for each, _ in busy)), line
            busy.add((kind, who))
        else:
            busy.remove((kind, who))
        together = max(together, len(busy))
    assert together > 1  # and the rest is done side by side


class Case:
    """A small classifier for two targets, and a build in which foreign code can be made to crash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = models.classifier(folder / "net.onnx")
        session = onnxruntime.InferenceSession(str(self.model))
        for name, count, seed in (("calibration", 80, 1), ("evaluation", 400, 2)):
            x = models.inputs(count, seed=seed)
            np.savez(folder / f"{name}.npz", x=x, y=session.run(None, {"x": x})[0].argmax(1))
        for name, base in (("ort", "x86-64-server"), ("ov", "intel-nuc")):
            (folder / f"{name}.toml").write_text(TARGET.format(name=name, base=base))

    def build(self, fault: str, *targets: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """``fault`` is code that runs before the command."""
        program = f"import ctypes, os, sys\n{textwrap.dedent(fault)}\nfrom edgeship.cli.main import main\nmain()\n"
        command = [sys.executable, "-c", program, "build", str(self.model), "--effort", "quick", "--max-drop", "0.2"]
        for name in targets:
            command += ["-t", str(self.folder / f"{name}.toml")]
        for name in ("calibration", "evaluation"):
            command += [f"--{name}", str(self.folder / f"{name}.npz")]
        command += ["--key", str(self.folder / "author.key"), "-o", str(self.folder / "out"), "--json", *options]
        environment = {**os.environ, "EDGESHIP_CACHE": str(self.folder / "cache"), "PYTHONPATH": str(self.folder)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


#: Where OpenVINO reads a model that nobody here made.
CONVERT = """
from edgeship.build.backends import open_vino
def convert(self, job, model):
    ctypes.string_at(0)
open_vino.OpenVinoBackend.convert = convert
"""
#: Where ONNX Runtime's quantizer works, in one of several schemes.
QUANTIZE = """
from edgeship.build.backends import onnx_runtime
whole = onnx_runtime._quantize
def quantize(prepared, scheme, model):
    os.abort() if scheme.estimator == "minmax" else whole(prepared, scheme, model)
onnx_runtime._quantize = quantize
"""


def test_a_converter_that_crashes_is_named_and_the_other_target_is_built(case: Case) -> None:
    done = case.build(CONVERT, "ort", "ov")
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    verdicts = {each["target"]: each for each in document["targets"]}
    assert (verdicts["ort"]["verdict"], verdicts["ov"]["verdict"]) == ("pass", "fail")
    assert "onnx as it is: conversion error: it kills its process (signal 11)" in verdicts["ov"]["reason"]
    assert done.stderr.count("✔ read") == 1  # what was shown is not shown again
    assert done.stderr.count("✖ crash") == 1
    assert "Traceback" not in done.stderr
    # the crash is known from now on: nothing dies any more
    again = case.build(CONVERT, "ov")
    assert (again.returncode, again.stdout) == (1, "")
    assert "✖ crash" not in again.stderr
    assert "conversion error: it kills its process (signal 11)" in again.stderr
    assert sorted(each.name for each in case.folder.glob(".out-*")) == []


def test_a_quantizer_that_crashes_costs_its_candidates_alone(case: Case) -> None:
    done = case.build(QUANTIZE, "ort")
    assert done.returncode in (0, 3, 4), done.stderr
    document = json.loads(done.stdout)
    died = [each for each in document["tried"] if "it kills its process (signal 6)" in each["reason"]]
    assert died and {each["stage"] for each in died} == {"quantization"}
    assert any(each["precision"] == "fp32" for each in document["variants"])


#: The second runtime's latency.
MEASURE = """
from edgeship.build import bench
whole, calls = bench.measure, []
def measure(*arguments):
    calls.append(1)
    return whole(*arguments) if len(calls) < 2 else os.abort()
bench.measure = measure
"""


def test_a_runtime_that_crashes_while_it_is_measured_costs_its_target_alone(case: Case) -> None:
    done = case.build(MEASURE, "ort", "ov")
    assert done.returncode == 3, done.stderr
    verdicts = {each["target"]: each for each in json.loads(done.stdout)["targets"]}
    assert (verdicts["ort"]["verdict"], verdicts["ov"]["verdict"]) == ("pass", "fail")
    assert "runtime error: it kills its process (signal 6)" in verdicts["ov"]["reason"]


def test_a_source_that_kills_its_reader_is_one_error(case: Case) -> None:
    done = case.build("from edgeship.build.sources import onnx\nonnx._check = lambda *_: os.abort()", "ort")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert f"error: {case.model}: conversion error: it kills its process (signal 6)" in done.stderr
    assert sorted(each.name for each in case.folder.iterdir() if "out" in each.name) == []


def test_a_metric_of_the_user_that_ends_the_process_is_one_error_and_leaves_nothing(case: Case) -> None:
    (case.folder / "rude.py").write_text("import os\n\ndef metric(*arguments, **named):\n    os._exit(0)\n")
    done = case.build("", "ort", options=("--metric", "rude:metric", "--task", "raw"))
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "it ends its process (exit code 0)" in done.stderr
    assert sorted(each.name for each in case.folder.iterdir() if "out" in each.name) == []


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("edgeship.build.inspection.inspect_path", ["inspect"]),
        ("edgeship.build.model_facts.facts_of", ["targets", "check"]),
    ],
    ids=["inspect", "targets-check"],
)
def test_a_look_into_a_file_that_crashes_is_one_error(case: Case, place: str, arguments: list[str]) -> None:
    module, _, function = place.rpartition(".")
    crash = f"importlib.import_module({module!r}).{function} = lambda *_, **__: ctypes.string_at(0)"
    fault = f"import importlib, ctypes, sys\n{crash}"
    more = ["-t", str(case.folder / "ort.toml")] if "check" in arguments else []
    program = f"{fault}\nfrom edgeship.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program, *arguments, str(case.model), *more], capture_output=True,
                          text=True, timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "it kills its process (signal 11)" in done.stderr
