"""The pool of workers, with real ones: what a crash is charged to, and what happens where one cannot be started."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from msgspec import structs

from edgeship_agent.contract.messages import RunningArm, Window
from edgeship_agent.contract.oci import canonical_json
from edgeship_agent.contract.wire import read_json
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.control import WorkerSettings
from edgeship_agent.supervisor.places import SOCKET, Places
from edgeship_agent.supervisor.worker_process import WorkerProcess
from edgeship_agent.supervisor.workers import WorkerPool
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.slots import SLOT_FILE, Slot, SlotInfo
from tests.agents import until
from tests.conformance.slots import classifier_onnx, images, make_slot

MAIN, SHADOW = ("digits", "main"), ("digits", "shadow")


class FewProcesses(Launcher):
    """A launcher of a system that has room for no more processes, as long as a test says so."""

    is_full = False

    def start(self, module: str, arguments: Sequence[str], *, pass_fds: Sequence[int] = ()):
        if self.is_full:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super().start(module, arguments, pass_fds=pass_fds)


class Ground(WorkerPool):
    """A pool that keeps what it was told and what it says."""

    def __init__(self, places: Places) -> None:
        self.windows: list[Window] = []
        self.said: list[tuple[str, str, str]] = []
        self.ready: list[WorkerProcess] = []
        self.launcher = FewProcesses()
        self.places = places
        self.socket = places.sockets / SOCKET
        super().__init__(
            places,
            self.launcher,
            WorkerSettings(window_s=600.0),
            "boot",
            self.windows.append,
            lambda *said: self.said.append(said),
        )

    def worker_ready(self, worker: WorkerProcess) -> None:
        super().worker_ready(worker)
        self.ready.append(worker)

    def up(self) -> tuple[RunningArm, ...]:
        return self.running(lambda _: ("committed", ""))

    def crashes(self) -> list[tuple[str, str, int]]:
        return [(window.version, window.arm, window.crashes) for window in self.windows if window.crashes]

    def crash(self) -> None:
        """Kill the newest worker, and see its death counted."""
        worker, before = self.ready[-1], len(self.said)
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: any("died" in said[2] for said in self.said[before:]), 20.0, "the death")

    def start_again(self, now_s: float) -> None:
        """Let the pause be over."""
        before = len(self.ready)
        self.tick(now_s)
        until(lambda: len(self.ready) > before, 60.0, "another worker")


class Versions:
    """Slots of one model under several names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = make_slot(folder / "made", classifier_onnx(folder / "m.onnx"))

    def slot(self, version: str, arm: str = "main") -> Slot:
        directory = self._folder / f"{version}-{arm}"
        known = read_json((self._made / SLOT_FILE).read_bytes(), SlotInfo, file=SLOT_FILE)
        info = structs.replace(known, version=version, digest=f"sha256:{version:0>64}", arm=arm)
        if not directory.exists():
            shutil.copytree(self._made, directory)
            manifest = directory / "edgeship.json"
            data = manifest.read_bytes().replace(b'"version":"1"', f'"version":"{version}"'.encode())
            manifest.write_bytes(data)
            (directory / SLOT_FILE).write_bytes(canonical_json(info))
        return Slot(directory=directory, info=info)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def pool() -> Iterator[Ground]:
    with tempfile.TemporaryDirectory() as near:  # short: sockets lie in it
        places = Places(Path(near) / "s")
        places.make()
        pool = Ground(places)
        yield pool
        pool.stop()
        places.withdraw()


def answered_by(pool: Ground) -> str:
    with Client(pool.socket, timeout_s=10.0) as client:
        return client.infer(images(1)[0]).version


def test_a_crash_is_charged_to_the_version_that_crashed(pool: Ground, versions: Versions) -> None:
    first, second = versions.slot("1"), versions.slot("2")
    assert pool.serve({MAIN: first}).ok
    pool.crash()
    pool.start_again(time.monotonic() + 60)
    assert pool.crashes() == [], "it waits for a window that can carry it"
    assert pool.serve({MAIN: second}).ok
    assert pool.crashes() == [("1", "main", 1)]
    with Client(pool.socket) as client:
        for sample in images(25):
            client.infer(sample)
    pool.crash()
    pool.start_again(time.monotonic() + 60)
    pool.crash()
    assert pool.serve({MAIN: first}).ok, "rolled back"
    assert pool.crashes() == [("1", "main", 1), ("2", "main", 2)]
    assert {window.profile_hash != "" for window in pool.windows if window.crashes} == {True}
    with Client(pool.socket) as client:
        for sample in images(25):
            client.infer(sample)
    pool.stop()
    assert sum(window.inferences for window in pool.windows if window.version == "1") == 25
    assert pool.crashes() == [("1", "main", 1), ("2", "main", 2)], "none is told twice, or of another"


def test_the_same_bundle_carries_its_crash_itself(pool: Ground, versions: Versions) -> None:
    first = versions.slot("1")
    assert pool.serve({MAIN: first}).ok
    pool.crash()
    assert pool.serve({MAIN: first}).ok, "asked for again while its worker is away"
    assert pool.crashes() == []
    with Client(pool.socket) as client:
        for sample in images(25):
            client.infer(sample)
    pool.stop()
    assert [(window.inferences, window.crashes) for window in pool.windows] == [(25, 1)]


def test_a_model_does_not_wait_for_the_crashes_of_the_one_before(pool: Ground, versions: Versions) -> None:
    assert pool.serve({MAIN: versions.slot("1")}).ok
    for _ in range(4):
        pool.crash()
        pool.start_again(time.monotonic() + 60)
    assert pool.serve({MAIN: versions.slot("2")}).ok
    pool.crash()
    pool.start_again(time.monotonic() + 1)


def test_an_arm_that_is_withdrawn_leaves_no_crash_to_the_next(pool: Ground, versions: Versions) -> None:
    assert pool.serve({MAIN: versions.slot("1"), SHADOW: versions.slot("2", "shadow")}).ok
    shadow = next(worker for worker in pool.ready if worker.slot.info.arm == "shadow")
    os.kill(shadow.pid, signal.SIGKILL)
    until(lambda: any("died" in said[2] for said in pool.said), 20.0, "the death")
    assert pool.serve({SHADOW: None}).ok
    assert pool.crashes() == [("2", "shadow", 1)]
    assert pool.serve({SHADOW: versions.slot("1", "shadow")}).ok, "the next candidate, days later"
    pool.tick(time.monotonic() + 1e6)
    assert pool.crashes() == [("2", "shadow", 1)]


def test_a_worker_that_cannot_be_started_is_started_later(pool: Ground, versions: Versions) -> None:
    first = versions.slot("1")
    pool.launcher.is_full = True
    pool.begin(first)
    pool.launcher.is_full = False
    pool.start_again(time.monotonic() + 60)
    pool.crash()
    pool.launcher.is_full = True
    now_s = time.monotonic() + 60
    pool.tick(now_s)
    assert any("cannot be started" in said[2] for said in pool.said)
    assert pool.up() == ()
    told = len(pool.said)
    pool.tick(now_s + 0.01)
    assert len(pool.said) == told, "the pause comes first"
    pool.launcher.is_full = False
    pool.start_again(now_s + 60)
    until(lambda: [arm.version for arm in pool.up()] == ["1"], 20.0, "the model again")
    assert answered_by(pool) == "1"


def test_an_update_that_finds_no_room_for_its_worker_leaves_nothing_behind(pool: Ground, versions: Versions) -> None:
    assert pool.serve({MAIN: versions.slot("1")}).ok
    pool.launcher.is_full = True
    with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
        pool.serve({MAIN: versions.slot("2")})
    assert answered_by(pool) == "1"


def test_a_worker_without_a_thread_is_no_worker(
    pool: Ground, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker = WorkerProcess(versions.slot("1"), pool.places.sockets / "w.sock", "boot", pool)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_room)
        with pytest.raises(OSError, match="thread"):
            worker.start(pool.launcher, WorkerSettings())
    assert worker.return_code is not None, "its process was ended"


def test_a_new_worker_that_dies_at_once_replaces_nobody(
    pool: Ground, versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pool.serve({MAIN: versions.slot("1")}).ok
    recall = WorkerProcess.recall

    def slow_recall(old: WorkerProcess):
        new = pool.ready[-1]
        os.kill(new.pid, signal.SIGKILL)
        assert new.exited.wait(20.0)
        return recall(old)

    monkeypatch.setattr(WorkerProcess, "recall", slow_recall)
    activation = pool.serve({MAIN: versions.slot("2")})
    assert (activation.ok, activation.reason, activation.model) == (False, "activation_failed", "digits")
    assert [arm.version for arm in pool.up()] == ["1"]
    assert answered_by(pool) == "1"
    assert pool.crashes() == []
    monkeypatch.undo()
    assert pool.serve({MAIN: versions.slot("2")}).ok
    assert answered_by(pool) == "2"


def test_what_applications_cannot_reach_does_not_take_over(pool: Ground, versions: Versions) -> None:
    assert pool.serve({MAIN: versions.slot("1")}).ok
    hindrance = pool.socket.with_name(f".{SOCKET}.new")
    hindrance.mkdir()  # a disk that takes no other link
    with pytest.raises(OSError, match=hindrance.name):
        pool.serve({MAIN: versions.slot("2")})
    assert [arm.version for arm in pool.up()] == ["1"]
    assert answered_by(pool) == "1"
    hindrance.rmdir()
    assert pool.serve({MAIN: versions.slot("2")}).ok
    assert answered_by(pool) == "2"


def test_a_link_that_could_not_be_changed_is_changed_later(pool: Ground, versions: Versions) -> None:
    assert pool.serve({MAIN: versions.slot("1")}).ok
    hindrance = pool.socket.with_name(f".{SOCKET}.new")
    hindrance.mkdir()
    pool.crash()
    pool.start_again(time.monotonic() + 60)  # ready, and nobody can reach it
    pool.tick(time.monotonic())
    assert pool.up() == ()
    assert pool.observe(*MAIN)[0] == ""
    assert [said for said in pool.said if "cannot be reached" in said[2]][1:] == [], "told once"
    hindrance.rmdir()
    pool.tick(time.monotonic())
    assert [arm.version for arm in pool.up()] == ["1"]
    assert pool.observe(*MAIN)[0] == versions.slot("1").info.digest
    assert answered_by(pool) == "1"
