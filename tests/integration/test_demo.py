"""The demo as a whole: real builds, real processes, and kill -9 of each kind of process while it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import openvino
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgeship.demo.building import VERSIONS, build, write_data
from tests.programs import require_program

# run with --dist loadfile: one worker plays all demos, one after the other, for they measure real traffic
pytestmark = pytest.mark.timeout(600)

DEMO_TIMEOUT_S = 420


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's three builds, made once."""
    folder = tmp_path_factory.mktemp("builds")
    write_data(folder / "data")
    for version in VERSIONS:
        build(version, folder / "data", folder / version, folder / "build.log")
    return folder


class RunningDemo:
    """A demo process whose events are read as they come."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgeship", "demo", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.pids: set[int] = set()
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_lines, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            self.pids |= {entry["pid"] for entry in event.get("processes", [])}
            self.events.append(event)

    def _read_lines(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def roles(self) -> dict[str, int]:
        """The newest role → pid."""
        newest = next((e for e in reversed(self.events) if e["event"] == "processes"), {"processes": []})
        return {entry["role"]: entry["pid"] for entry in newest["processes"]}

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = DEMO_TIMEOUT_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, "the demo ended early:\n" + "\n".join(self.lines)
            assert time.monotonic() < deadline_s, "waited too long:\n" + "\n".join(self.lines)
            time.sleep(0.1)

    def said(self, words: str) -> bool:
        return any(words in line for line in list(self.lines))

    def result(self) -> dict[str, Any]:
        self.process.wait(DEMO_TIMEOUT_S)
        for reader in self._readers:
            reader.join(10)
        assert self.events, "\n".join(self.lines)
        assert self.events[-1]["event"] == "result", "\n".join(self.lines)
        return self.events[-1]

    def check_held(self) -> dict[str, Any]:
        result = self.result()
        missed = [claim["text"] for claim in result["claims"] if not claim["holds"]]
        assert result["ok"], "\n".join([*missed, "", *self.lines])
        assert not missed
        assert self.process.returncode == 0
        return result

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def left_over(self) -> list[int]:
        """Processes of the demo that still live, after a moment to end."""
        deadline_s = time.monotonic() + 15
        while time.monotonic() < deadline_s and any(_alive(pid) for pid in self.pids):
            time.sleep(0.2)
        return [pid for pid in self.pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def start_demo(bundles: Path) -> Iterator[Callable[..., RunningDemo]]:
    demos: list[RunningDemo] = []

    def start(*arguments: str) -> RunningDemo:
        demos.append(RunningDemo("--skip-timing", "--bundles", str(bundles), *arguments))
        return demos[-1]

    yield start
    for demo in demos:
        demo.close()


def test_the_bundle_opens_with_skopeo_and_its_int8_files_in_the_plain_runtimes(bundles: Path, tmp_path: Path) -> None:
    bundle = bundles / "v2" / "bundle"
    skopeo = require_program("skopeo")
    raw = subprocess.run([skopeo, "inspect", "--raw", f"oci:{bundle}"], capture_output=True, check=True)
    assert len(json.loads(raw.stdout)["manifests"]) >= 3
    copy = ["copy", "--quiet", "--all", f"oci:{bundle}", f"oci:{tmp_path / 'copy'}"]
    subprocess.run([skopeo, *copy], capture_output=True, check=True)
    openers: dict[str, Callable[[Path], Any]] = {
        "x86-64-server": lambda folder: onnxruntime.InferenceSession(next(folder.rglob("*.onnx"))),
        "intel-nuc": lambda folder: openvino.Core().compile_model(next(folder.rglob("*.xml")), "CPU"),
        "x86-64-litert": lambda folder: Interpreter(str(next(folder.rglob("*.tflite")))).allocate_tensors(),
    }
    for target, open_plainly in openers.items():
        command = [sys.executable, "-m", "edgeship", "export", str(bundle), "-t", target, "-o", str(tmp_path / target)]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        open_plainly(tmp_path / target)


def test_every_claim_holds_and_no_process_is_left(start_demo: Callable[..., RunningDemo]) -> None:
    demo = start_demo("--exit")
    result = demo.check_held()
    claims = {claim["id"]: claim for claim in result["claims"]}
    assert result["schema_version"] == 1
    assert claims["runtimes"]["value"] == ["litert", "onnxruntime", "openvino"]
    for runtime in claims["runtimes"]["value"]:
        assert claims[f"accuracy.v2.{runtime}"]["n"] == 900
        assert claims[f"relative_rms.v2.{runtime}"]["value"] <= 0.05
    assert claims["windows_lost"]["value"] == claims["windows_counted_twice"]["value"] == 0
    assert claims["v2_committed"]["value"] == 6
    assert 1 <= claims["v3_blast_radius"]["n"] <= 3
    assert len(claims["drift_devices"]["value"]) == 2
    assert claims["v3_blocked"]["value"] == "blocked"
    roles = {entry["role"].split(":")[0] for e in demo.events if e["event"] == "processes" for entry in e["processes"]}
    assert roles == {"server", "broker", "agent", "worker"}
    assert not demo.left_over()


@pytest.mark.parametrize(
    ("role", "moment"),
    [("agent", "v2: a better model"), ("server", "v2: a better model"), ("broker", "v3: passed its build")],
)
def test_kill_9_is_survived(start_demo: Callable[..., RunningDemo], role: str, moment: str) -> None:
    demo = start_demo("--exit")
    demo.wait_for(lambda: demo.said(moment) and any(name.startswith(role) for name in demo.roles()))
    time.sleep(2.0)  # in the middle of the act
    victim = next(pid for name, pid in sorted(demo.roles().items()) if name.startswith(role))
    os.kill(victim, signal.SIGKILL)
    demo.check_held()
    assert not _alive(victim)
    assert not demo.left_over()


def test_ctrl_c_leaves_no_process(start_demo: Callable[..., RunningDemo]) -> None:
    demo = start_demo()
    demo.wait_for(lambda: sum(name.startswith("worker") for name in demo.roles()) >= 3)
    demo.process.send_signal(signal.SIGINT)
    demo.process.wait(60)
    assert demo.process.returncode == 130
    assert not demo.left_over()


@pytest.mark.slow
@pytest.mark.parametrize("role", ["agent", "worker", "server", "broker"])
@pytest.mark.parametrize("moment", ["v1: to every device", "drift: real corruptions", "v3: passed its build"])
def test_kill_9_at_other_moments(start_demo: Callable[..., RunningDemo], role: str, moment: str) -> None:
    demo = start_demo("--exit")
    demo.wait_for(lambda: demo.said(moment) and any(name.startswith(role) for name in demo.roles()))
    time.sleep(3.0)
    victim = next(pid for name, pid in sorted(demo.roles().items(), reverse=True) if name.startswith(role))
    os.kill(victim, signal.SIGKILL)
    demo.check_held()
    assert not demo.left_over()


@pytest.mark.slow
def test_two_demos_at_once(start_demo: Callable[..., RunningDemo]) -> None:
    first, second = start_demo("--exit"), start_demo("--exit")
    first.check_held()
    second.check_held()


@pytest.mark.slow
def test_ctrl_c_after_the_result_is_a_good_end(start_demo: Callable[..., RunningDemo]) -> None:
    demo = start_demo()
    demo.wait_for(lambda: demo.said("Ctrl-C ends the demo"))
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(60) == 0
    assert demo.events[-1]["event"] == "result"
    assert not demo.left_over()
