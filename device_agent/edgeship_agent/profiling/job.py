"""One profile job: fetch by digest, measure in children, put the figures together, leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import ContractError, EdgeshipError, TransferError
from edgeship_agent.contract.profiling import (
    MAX_PLAN_BYTES,
    ProfileOrder,
    ProfilePlan,
    ProfileResult,
    TaskResult,
    check_plan,
    plan_files,
)
from edgeship_agent.contract.wire import read_json
from edgeship_agent.profiling import answers
from edgeship_agent.profiling.strain import Strain, StrainWatch
from edgeship_agent.runtime import isa, runtime_version
from edgeship_agent.update.download import Blob, BlobStore
from edgeship_agent.update.launcher import Launcher

_MODULE: Final = "edgeship_agent.profiling.measuring"
_RUNTIMES: Final = ("litert", "onnxruntime", "openvino")
#: Room that stays free on the disk beside the job's files.
_RESERVE_BYTES: Final = 64 * 1024 * 1024
_LOOK_S: Final = 0.1
#: Attempts at each download, and the pause before the next.
_ATTEMPTS: Final = 3
_RETRY_S: Final = 2.0
_TAIL_BYTES: Final = 4096


class Fetch(Protocol):
    """Downloads a blob into a store."""

    def fetch(self, blob: Blob, should_stop: Callable[[], bool]) -> Path: ...  # noqa: D102


class Canceled(EdgeshipError):
    """Somebody took the order back."""


class Suffered(EdgeshipError):
    """Applications of this device did not get their answers in time while the job ran."""


class Child(Struct, frozen=True, kw_only=True):
    """A measuring process that ended; a negative ``code`` is the signal that killed it."""

    code: int
    said: str


Tell = Callable[[str, int, int], None]


class Job:
    """Runs one order to its end.

    Args:
        order: as it was let in.
        store: of this job alone; removed by the caller.
        folder: for the children; likewise.
        fetch: downloads into the store.
        launcher: starts children; they die with the thread that calls :meth:`run`.
        tell: told a label and how much of it is done.
    """

    def __init__(
        self, order: ProfileOrder, store: BlobStore, folder: Path, fetch: Fetch, launcher: Launcher, tell: Tell
    ) -> None:  # fmt: skip
        self._order = order
        self._store = store
        self._folder = folder
        self._fetch = fetch
        self._launcher = launcher
        self._tell = tell
        self._is_canceled = threading.Event()
        self._watch = StrainWatch()
        self._suffering = ""
        self._end_s = 0.0

    def cancel(self) -> None:
        """End it; from any thread."""
        self._is_canceled.set()

    def watch(self, strain: Strain) -> None:
        """How applications fare now: the job ends where they suffer from it."""
        self._suffering = self._suffering or self._watch.look(strain)

    def prepare(self) -> ProfilePlan:
        """Download everything, and lay it out for the children.

        Raises:
            Canceled: the order was taken back.
            Suffered: applications did.
            ContractError: the plan cannot be followed.
            TransferError: a download failed, or there is no room.
        """
        order = self._order
        if not 0 < order.plan_size_bytes <= MAX_PLAN_BYTES:
            raise ContractError("plan of this size", key="plan", expected=f"≤ {MAX_PLAN_BYTES}",
                                got=order.plan_size_bytes)  # fmt: skip
        data = self._get(Blob(digest=order.plan_digest, size_bytes=order.plan_size_bytes)).read_bytes()
        plan = read_json(data, ProfilePlan, file="plan")
        check_plan(plan)
        self._end_s = time.monotonic() + plan.timeout_s
        files = plan_files(plan)
        needed = sum(file.size_bytes for file in files) + _RESERVE_BYTES
        if self._store.free_bytes() < needed:
            raise TransferError(f"no room on this device: {needed} bytes are needed", retryable=False)
        for done, file in enumerate(files, 1):
            self._get(Blob(digest=file.digest, size_bytes=file.size_bytes))
            self._tell("download", done, len(files))
        self._lay_out(plan, data)
        return plan

    def measure(self, plan: ProfilePlan) -> ProfileResult:
        """Every task in a process of its own, then those that run in turn in one.

        Raises:
            Canceled: the order was taken back.
            Suffered: applications did.
            TransferError: it took longer than the plan allows.
            ContractError: a child left something unreadable.
        """
        found = {index: self._outputs(plan, index) for index in range(len(plan.tasks))}
        running = [index for index, result in found.items() if not result.error]
        times = self._times(plan, running) if running else None
        for index in running:
            label = plan.tasks[index].label
            if isinstance(times, answers.Times):
                found[index] = msgspec.structs.replace(found[index], latency=times.latencies.get(label))
            else:
                found[index] = TaskResult(label=label, error=str(times))
        noticed: dict[str, Any] = {}
        if isinstance(times, answers.Times):
            noticed = {"throttling": times.throttling, "first": times.first, "last": times.last}
        return msgspec.structs.replace(
            ProfileResult(
                arch=isa.architecture(),
                isa=isa.isa_class(),
                cpu=isa.cpu_name(),
                runtimes={name: version for name in _RUNTIMES if (version := runtime_version(name))},
                tasks=tuple(found.values()),
            ),
            **noticed,
        )

    def _get(self, blob: Blob) -> Path:
        for attempt in range(1, _ATTEMPTS + 1):
            self._check()
            if self._store.has(blob):
                break
            try:
                self._fetch.fetch(blob, self._should_stop)
            except TransferError as error:
                self._check()
                if not error.retryable or attempt == _ATTEMPTS:
                    raise
                self._is_canceled.wait(_RETRY_S)
        return self._store.path(blob.digest)

    def _should_stop(self) -> bool:
        is_late = self._end_s > 0 and time.monotonic() > self._end_s
        return self._is_canceled.is_set() or bool(self._suffering) or is_late

    def _check(self) -> None:
        if self._is_canceled.is_set():
            raise Canceled("the order was taken back")
        if self._suffering:
            raise Suffered(self._suffering, next_step="ask again when the device has less to do")
        if self._should_stop():
            raise TransferError("it took longer than the job allows", retryable=False)

    def _lay_out(self, plan: ProfilePlan, data: bytes) -> None:
        self._folder.mkdir(parents=True)
        (self._folder / answers.PLAN_FILE).write_bytes(data)
        os.link(self._store.path(plan.inputs.digest), self._folder / answers.INPUTS_FILE)
        for index, task in enumerate(plan.tasks):
            place = self._folder / answers.TASKS_FOLDER / str(index)
            place.mkdir(parents=True)
            for file in task.files:
                os.link(self._store.path(file.digest), place / file.name)
            if task.expected is not None:
                os.link(self._store.path(task.expected.digest), place / answers.EXPECTED_FILE)

    def _outputs(self, plan: ProfilePlan, index: int) -> TaskResult:
        label = plan.tasks[index].label
        child = self._run("outputs", index)
        if child.code:
            return TaskResult(label=label, error=_why(child, plan))
        path = self._folder / answers.TASKS_FOLDER / str(index) / answers.OUTPUTS_FILE
        answer = read_json(path.read_bytes(), answers.Outputs, file=path.name)
        return TaskResult(label=label, peak_memory_bytes=answer.peak_memory_bytes, parity=answer.parity)

    def _times(self, plan: ProfilePlan, indices: Sequence[int]) -> answers.Times | str:
        child = self._run("times", *indices)
        if child.code:
            return _why(child, plan)
        path = self._folder / answers.TIMES_FILE
        return read_json(path.read_bytes(), answers.Times, file=path.name)

    def _run(self, command: str, *indices: int) -> Child:
        """A child to its end; killed where the order is taken back, applications suffer or the time is over."""
        self._check()
        said = self._folder / "said"
        with said.open("wb") as errors:
            process = subprocess.Popen(
                self._launcher.command(_MODULE, [command, str(self._folder), *map(str, indices)]),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self._folder)},
            )  # fmt: skip
        assert process.stdout is not None
        listener = threading.Thread(target=self._listen, args=(process.stdout,), name="profile lines", daemon=True)
        listener.start()
        try:
            while process.poll() is None:
                self._check()
                self._is_canceled.wait(_LOOK_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            listener.join(1.0)
            process.stdout.close()
        return Child(code=process.returncode, said=said.read_bytes()[-_TAIL_BYTES:].decode(errors="replace"))

    def _listen(self, stream: IO[bytes]) -> None:
        for line in stream:
            try:
                message = msgspec.json.decode(line, type=dict[str, int | str])
                self._tell(str(message["label"]), int(message["done"]), int(message["total"]))
            except (msgspec.MsgspecError, KeyError, ValueError):
                continue  # what a runtime prints


def _why(child: Child, plan: ProfilePlan) -> str:
    if child.code < 0:
        name = signal.Signals(-child.code).name
        limit = f"; the job allows {plan.memory_bytes} bytes of memory" if plan.memory_bytes else ""
        return f"the runtime died of {name}{limit}"
    lines = [line.strip() for line in child.said.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with {child.code}"


def clear(folder: Path) -> None:
    """Remove a job's folder; what cannot be removed is said, and tried again by the next job."""
    if not folder.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        sys.stderr.write(f"cannot be removed: {folder}\n")
