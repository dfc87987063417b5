"""The profile desk of an agent: one job at a time, on a thread of its own, told about as it goes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgeship_agent.contract.errors import ContractError, EdgeshipError, VerificationError
from edgeship_agent.contract.messages import PROTOCOL_VERSION
from edgeship_agent.contract.profiling import JobState, ProfileOrder, ProfileReport
from edgeship_agent.profiling.desk import OrderDesk
from edgeship_agent.profiling.job import Canceled, Fetch, Job, clear
from edgeship_agent.profiling.strain import Strain
from edgeship_agent.update.download import BlobStore
from edgeship_agent.update.launcher import Launcher

#: A count is passed on at most so often.
_COUNT_PAUSE_S: Final = 0.5
#: How long a job's last word is repeated while the link is down, and how often.
_LAST_WORD_S: Final = 120.0
_REPEAT_S: Final = 2.0
_MOST_DETAIL: Final = 1000
_REMEMBERED: Final = 32


class Profiler:
    """Takes orders from the link and works them off.

    Args:
        desk: says which orders count.
        folder: for the jobs' files; nothing of it outlives a job.
        open_fetch: makes what downloads into a job's store.
        launcher: starts the measuring children.
        publish: hands a report to the link; False where it is down. Called from several threads.
        log: writes a line.
    """

    def __init__(
        self,
        desk: OrderDesk,
        folder: Path,
        open_fetch: Callable[[BlobStore], Fetch],
        launcher: Launcher,
        publish: Callable[[ProfileReport], bool],
        log: Callable[..., None],
    ) -> None:  # fmt: skip
        self._desk = desk
        self._folder = folder
        self._open_fetch = open_fetch
        self._launcher = launcher
        self._publish = publish
        self._log = log
        self._lock = threading.Lock()
        self._orders: queue.SimpleQueue[ProfileOrder] = queue.SimpleQueue()
        self._current: ProfileOrder | None = None
        self._job: Job | None = None
        self._is_canceled = False
        self._last: dict[str, ProfileReport] = {}
        self._counted_s = 0.0
        clear(folder)  # what a crash or a power cut left
        self._thread = threading.Thread(target=self._run, name="profiling", daemon=True)

    def receive(self, payload: bytes) -> None:
        """An order came; what does not count is logged and not answered."""
        try:
            order = self._desk.receive(payload)
        except (VerificationError, ContractError) as error:
            self._log("order_refused", detail=error.sentence())
            return
        if order.cancel:
            self._cancel(order)
            return
        with self._lock:
            known = self._last.get(order.job_id)
            if known is None and self._current is None:
                self._current, self._is_canceled = order, False
        if known is not None:
            self._publish(known)  # the order was repeated: the server missed the answer
        elif self._current is order:
            self._say(order, JobState.ACCEPTED)
            self._orders.put(order)
            if not self._thread.is_alive():
                self._thread.start()
        else:
            self._say(order, JobState.REFUSED, detail="this device is busy with another profile job")

    def stop(self) -> None:
        """End the job at hand."""
        with self._lock:
            job, self._is_canceled = self._job, True
        if job is not None:
            job.cancel()

    def watch(self, look: Callable[[], Strain]) -> None:
        """Called again and again: lets the job at hand know how applications fare."""
        with self._lock:
            job = self._job
        if job is not None:
            job.watch(look())

    def _cancel(self, order: ProfileOrder) -> None:
        with self._lock:
            is_current = self._current is not None and self._current.job_id == order.job_id
            job = self._job if is_current else None
            self._is_canceled |= is_current
            known = self._last.get(order.job_id)
        if job is not None:
            job.cancel()
        elif not is_current:
            if known is not None:
                self._publish(known)
            else:
                self._say(order, JobState.CANCELED)

    def _run(self) -> None:
        """Lives as long as the process: Linux ends a child with the thread that started it."""
        while True:
            order = self._orders.get()
            try:
                self._work(order)
            except Exception as error:  # noqa: BLE001 (the outermost loop of this thread)
                self._end(order, JobState.FAILED, detail=f"{type(error).__name__}: {error}")

    def _work(self, order: ProfileOrder) -> None:
        clear(self._folder)
        store = BlobStore(self._folder / "store")
        job = Job(order, store, self._folder / "work", self._open_fetch(store), self._launcher,
                  lambda label, done, total: self._count(order, label, done, total))  # fmt: skip
        with self._lock:
            self._job = job
            if self._is_canceled:
                job.cancel()
        try:
            self._say(order, JobState.DOWNLOADING)
            plan = job.prepare()
            self._say(order, JobState.RUNNING)
            result = job.measure(plan)
        except Canceled:
            self._end(order, JobState.CANCELED)
        except ContractError as error:
            self._end(order, JobState.REFUSED, detail=error.sentence())
        except (EdgeshipError, OSError) as error:
            said = error.sentence() if isinstance(error, EdgeshipError) else str(error)
            self._end(order, JobState.FAILED, detail=said)
        else:
            self._end(order, JobState.DONE, result=msgspec.json.encode(result))

    def _end(self, order: ProfileOrder, state: JobState, *, detail: str = "", result: bytes = b"") -> None:
        clear(self._folder)
        with self._lock:
            self._current = self._job = None
        self._log("profile_job", job=order.job_id, state=state.value, detail=detail)
        until_s = time.monotonic() + _LAST_WORD_S
        while not self._say(order, state, detail=detail, result=result) and time.monotonic() < until_s:
            time.sleep(_REPEAT_S)

    def _count(self, order: ProfileOrder, label: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if now_s - self._counted_s < _COUNT_PAUSE_S:
            return
        self._counted_s = now_s
        report = self._report(order, JobState.DOWNLOADING if label == "download" else JobState.RUNNING)
        self._keep(msgspec.structs.replace(report, label=label[:200], done=done, total=total))

    def _say(self, order: ProfileOrder, state: JobState, *, detail: str = "", result: bytes = b"") -> bool:
        report = self._report(order, state)
        return self._keep(msgspec.structs.replace(report, detail=detail[:_MOST_DETAIL], result=result))

    def _report(self, order: ProfileOrder, state: JobState) -> ProfileReport:
        known = self._last.get(order.job_id)
        return ProfileReport(
            protocol_version=PROTOCOL_VERSION,
            device_id=order.device_id,
            job_id=order.job_id,
            seq=1 if known is None else known.seq + 1,
            state=state,
        )

    def _keep(self, report: ProfileReport) -> bool:
        with self._lock:
            known = self._last.get(report.job_id)
            if known is not None and known.state.is_terminal and known.state != report.state:
                return True  # a count that came late
            self._last[report.job_id] = report
            while len(self._last) > _REMEMBERED:
                del self._last[next(iter(self._last))]
        return self._publish(report)
