"""The pool of workers: one per model arm, restarted when it dies, replaced without a gap."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import structs

from edgeship_agent.contract.messages import RunningArm, Window
from edgeship_agent.contract.pointer import ArmKey
from edgeship_agent.serving.control import Counters, HandOn, WorkerSettings
from edgeship_agent.supervisor.arm import MOST_LOST, Arm, Tally, Untold, window_of
from edgeship_agent.supervisor.places import SOCKET, Places
from edgeship_agent.supervisor.table import Entry, Table, is_nobody
from edgeship_agent.supervisor.worker_process import WorkerProcess
from edgeship_agent.update.disk import DISK
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.ports import Activation, ReplayOutcome
from edgeship_agent.update.probation import Observation
from edgeship_agent.update.slots import Slot
from edgeship_agent.update.traffic import SHADOW_ARM

_READY_TIMEOUT_S: Final = 120.0
_REPLAY_TIMEOUT_S: Final = 60.0


class WorkerPool:
    """Starts, replaces and restarts workers. May be used from several threads.

    Args:
        places: folders of the state directory.
        launcher: starts processes.
        settings: what every worker is told.
        boot_id: of this start of the agent.
        on_window: called with every window that a worker closed (from its reading thread).
        on_change: called when a worker became ready or died (from its reading thread), or cannot be started or reached;
            it must not wait.
    """

    def __init__(
        self,
        places: Places,
        launcher: Launcher,
        settings: WorkerSettings,
        boot_id: str,
        on_window: Callable[[Window], None],
        on_change: Callable[[str, str, str], None],
    ) -> None:
        self._places = places
        self._launcher = launcher
        self._settings = settings
        self._boot_id = boot_id
        self._on_window = on_window
        self._on_change = on_change
        self._lock = threading.RLock()
        self._arms: dict[tuple[str, str], Arm] = {}
        self._front: WorkerProcess | None = None  # where the one socket leads to
        self._is_reachable = True  # the one socket leads to the worker that it is meant to lead to
        self._numbers = itertools.count(1)
        self._stopping = False

    # -- the updater's port ------------------------------------------------------------------------------------------

    def serve(self, slots: Mapping[ArmKey, Slot | None]) -> Activation:
        """Serve slots instead of what is served now; the old workers answer until all the new ones are ready.

        Where several are replaced, applications wait at the doors of the new workers until every old one has given its
        last answer: nobody hears the new release of one model and then the old one of another.

        Raises:
            OSError: the system has no room for a worker, or the one socket cannot be led to it. The new workers are
                ended, and those that served go on.
        """
        wanted = {key: slot for key, slot in slots.items() if slot is not None}
        fresh: dict[ArmKey, WorkerProcess] = {}
        try:
            self._start_fresh(wanted, fresh)
            failed = _failed(fresh, _READY_TIMEOUT_S)
            if failed is None:
                for key in slots:
                    if key not in wanted:
                        self._withdraw(*key)  # first: what goes is never heard beside what comes
                failed = self._replace(wanted, fresh)
        except OSError:
            self._give_up(fresh)
            raise
        if failed is not None:
            self._give_up(fresh)
        return failed or Activation(ok=True)

    def _start_fresh(self, wanted: Mapping[ArmKey, Slot], fresh: dict[ArmKey, WorkerProcess]) -> None:
        """Find the worker of each slot: the one that serves it already, or a new one that is on its way."""
        with self._lock:
            serving = {key: self._arm(*key).worker for key, slot in wanted.items() if self._arm(*key).serves(slot)}
            is_held = len(wanted) - len(serving) > 1
            for key, slot in wanted.items():
                fresh[key] = serving.get(key) or self._spawn(slot, is_held=is_held)

    def _give_up(self, fresh: Mapping[ArmKey, WorkerProcess]) -> None:
        """End new workers, since one of them cannot serve; what served goes on, or is started again as planned."""
        for key, worker in fresh.items():
            with self._lock:
                if self._arm(*key).worker is worker:
                    continue
                worker.is_retiring = True
            worker.kill()

    def _replace(self, wanted: Mapping[ArmKey, Slot], fresh: Mapping[ArmKey, WorkerProcess]) -> Activation | None:
        """Let ready workers take over, all of them in one change of the table; none where one has died meanwhile.

        Raises:
            OSError: applications cannot be led to them; nothing has changed.
        """
        for key, old in self._leaving(fresh).items():
            fresh[key].send(old.recall())  # before anybody can ask the new one about them
        with self._lock:
            failed = _failed(fresh, 0.0)
            if failed is not None:
                return failed
            self._lead_to(self._table(wanted, fresh).front())
            leaving = self._leaving(fresh)
            untold = [each for key, worker in fresh.items() for each in self._arm(*key).take(wanted[key], worker)]
            self._route()
        self._tell(untold)
        _at_once([old.drain for old in leaving.values()])  # what they were still asked after they were recalled
        for key, old in leaving.items():
            fresh[key].send(HandOn(predictions=old.predictions, lost=self._arm(*key).lost))
        with self._lock:
            for key in fresh:
                self._arm(*key).open()
        _at_once([old.stop for old in leaving.values()])
        for key in fresh:
            self._on_change(*key, "serving")
        return None

    def _leaving(self, fresh: Mapping[ArmKey, WorkerProcess]) -> dict[ArmKey, WorkerProcess]:
        """The workers that are there now and make room for others."""
        with self._lock:
            before = {key: self._arm(*key).worker for key in fresh}
        return {key: old for key, old in before.items() if old is not None and old is not fresh[key]}

    def observe(self, model: str, arm: str) -> tuple[str, Observation]:
        """Digest that is loaded now and can be reached (empty for none), and what it did since its activation."""
        with self._lock:
            served = self._arm(model, arm)
            worker = served.worker
            total, digest = structs.replace(served.past), ""
            if worker is not None:
                total.add(worker.counters)
                digest = worker.slot.info.digest if worker.is_ready and self._is_reachable else ""
        return digest, Observation(
            inferences=total.inferences,
            failures=total.failures,
            crashes=total.crashes,
            latency_p99_ms=total.latency_p99_ms,
            hard_stops=total.hard_stops,
        )

    def replay(self, model: str, arm: str, inferences: int) -> ReplayOutcome:
        """Run the golden inputs through the live worker, at least so many."""
        with self._lock:
            worker = self._arm(model, arm).worker
        answer = worker.run_golden(inferences, _REPLAY_TIMEOUT_S) if worker is not None and worker.is_ready else None
        if answer is None:
            return ReplayOutcome(answered=False)
        return ReplayOutcome(
            answered=True,
            passed=answer.passed,
            relative_rms=answer.relative_rms,
            inferences=answer.inferences,
            detail=answer.reason,
        )

    # -- the supervisor's side ---------------------------------------------------------------------------------------

    def begin(self, slot: Slot) -> None:
        """Start serving a slot without waiting: what was active when the agent ended."""
        with self._lock:
            served = self._arm(slot.info.model, slot.info.arm)
            served.slot = slot
            self._start(served, time.monotonic())

    def tick(self, now_s: float) -> None:
        """Start workers again whose pause is over; end shadows that grew too large; report what no window carries."""
        untold: list[Untold] = []
        with self._lock:
            if not self._is_reachable:
                self._route()
            for served in self._arms.values():
                if served.is_too_large():
                    untold.append(served.end_too_large())
                    self._route()
                if served.restart_at_s is not None and now_s >= served.restart_at_s:
                    self._start(served, now_s)
                if now_s - served.crashed_at_s >= 2 * self._settings.window_s:
                    untold += served.take_untold()
        self._tell(untold)

    def _start(self, served: Arm, now_s: float) -> None:
        """Start the worker of an arm, or plan to where the system has no room for it now; the lock is held."""
        slot = served.slot
        if slot is None:
            return
        try:
            served.worker = self._spawn(slot, is_held=served.is_held)
        except OSError as error:
            served.plan_restart(now_s)
            self._on_change(slot.info.model, slot.info.arm, f"cannot be started ({error.strerror or error})")
            return
        served.restart_at_s = None

    def _tell(self, untold: Sequence[Untold]) -> None:
        """Report what no window of a worker carries."""
        for each in untold:
            self._on_window(window_of(each, self._boot_id, self._settings.clock_quality))
            if each.hard_stops:
                model, arm = each.slot.info.model, each.slot.info.arm
                self._on_change(model, arm, "ended: it holds more memory than a shadow may")

    def running(self, state_of: Callable[[Slot], tuple[str, str]]) -> tuple[RunningArm, ...]:
        """What is loaded now, and applications can reach.

        Args:
            state_of: gives (state, version that a rollback would go to) of a slot.
        """
        with self._lock:
            reachable = self._arms.values() if self._is_reachable else ()
            workers = [served.worker for served in reachable if served.worker is not None]
        arms = []
        for worker in workers:
            if not worker.is_ready:
                continue
            info = worker.slot.info
            state, retained_version = state_of(worker.slot)
            arms.append(
                RunningArm(
                    model=info.model,
                    arm=info.arm,
                    version=info.version,
                    digest=info.digest,
                    variant=info.variant,
                    state=state,
                    retained_version=retained_version,
                    fallback=worker.slot.stands_in_for,
                )
            )
        return tuple(arms)

    def counters(self) -> list[Counters]:
        """What the workers that serve now counted since each was started."""
        with self._lock:
            workers = [served.worker for served in self._arms.values() if served.worker is not None]
        return [worker.counters for worker in workers if worker.counters is not None]

    def processes(self) -> list[dict[str, object]]:
        """Model, arm, version and process id of every worker, for the status file."""
        with self._lock:
            workers = [served.worker for served in self._arms.values() if served.worker is not None]
            return [
                {
                    "model": worker.slot.info.model,
                    "arm": worker.slot.info.arm,
                    "version": worker.slot.info.version,
                    "pid": worker.pid,
                    "ready": worker.is_ready,
                }
                for worker in workers
            ]

    def stop(self) -> None:
        """End every worker; their last windows arrive before this returns."""
        with self._lock:
            self._stopping = True
            workers = [served.worker for served in self._arms.values() if served.worker is not None]
        _at_once([worker.stop for worker in workers])

    # -- from reading threads ----------------------------------------------------------------------------------------

    def worker_died(self, worker: WorkerProcess) -> None:
        """Count a death that was not asked for and plan the restart."""
        key = (worker.slot.info.model, worker.slot.info.arm)
        with self._lock:
            served = self._arm(*key)
            if worker.is_retiring or self._stopping or served.worker is not worker:
                return
            served.count_crash(worker, time.monotonic())
            self._route()
        self._on_change(*key, f"died ({worker.failure or worker.return_code})")

    def worker_ready(self, worker: WorkerProcess) -> None:
        """Let applications reach it, if it is the one that serves."""
        key = (worker.slot.info.model, worker.slot.info.arm)
        with self._lock:
            worker.is_ready = True
            served = self._arm(*key)
            is_current = served.worker is worker
            if is_current:
                worker.send(HandOn(predictions=(), lost=served.lost))
                served.started_at_s = time.monotonic()
                self._route()
        if is_current:
            self._on_change(*key, "serving")

    def window_closed(self, worker: WorkerProcess, window: Window) -> None:
        """Add the crashes of the time before, and hand it on."""
        with self._lock:
            served = self._arm(worker.slot.info.model, worker.slot.info.arm)
            crashes = 0
            if served.slot is not None and served.slot.info.digest == window.digest:
                crashes, served.unreported_crashes = served.unreported_crashes, 0
        self._on_window(structs.replace(window, crashes=window.crashes + crashes))

    # -- parts -------------------------------------------------------------------------------------------------------

    def _arm(self, model: str, arm: str) -> Arm:
        return self._arms.setdefault((model, arm), Arm())

    def _spawn(self, slot: Slot, *, is_held: bool = False) -> WorkerProcess:
        # named after this start: a worker of the start before may still be removing its own
        path = self._places.sockets / f"w-{self._boot_id[:8]}-{next(self._numbers)}.sock"
        worker = WorkerProcess(slot, path, self._boot_id, self)
        worker.is_held = is_held
        worker.start(self._launcher, structs.replace(self._settings, held=is_held))
        return worker

    def _route(self) -> None:
        """Let applications reach what is there, and tell every worker of the others; the lock is held.

        The one socket that applications open changes in one step. It leads to the first model by name, which passes on
        what is for another.
        """
        table = self._table()
        front = table.front()
        if front is None:
            return
        was_reachable, info = self._is_reachable, front.slot.info
        try:
            self._lead_to(front)
        except OSError as error:  # a full disk, say; the next tick tries again
            self._is_reachable = False
            if was_reachable:
                self._on_change(info.model, info.arm, f"cannot be reached ({error.strerror or error})")
        else:
            if not was_reachable:
                self._on_change(info.model, info.arm, "can be reached again")
        for key, worker in table.ready.items():
            split = table.split_for(key) if key[1] != SHADOW_ARM else None
            if split is not None and split != worker.split and (not is_nobody(split) or worker.split is not None):
                worker.split = split
                worker.send(split)

    def _lead_to(self, front: WorkerProcess | None) -> None:
        """Let the one socket lead to a worker.

        Raises:
            OSError: it leads where it did.
        """
        if front is not None and self._front is not front:
            DISK.point(self._places.sockets / SOCKET, front.socket_path.name, certain=False)
            self._front = front
        self._is_reachable = True

    def _table(
        self, wanted: Mapping[ArmKey, Slot] | None = None, fresh: Mapping[ArmKey, WorkerProcess] | None = None
    ) -> Table:
        """The table as it is, or as it will be once workers have taken over."""
        entries = {
            key: Entry(slot=served.slot, worker=served.worker, prefixes=served.prefixes)
            for key, served in self._arms.items()
            if served.slot is not None
        }
        for key, slot in (wanted or {}).items():
            entries[key] = Entry(slot=slot, worker=(fresh or {})[key], prefixes=self._arm(*key).prefixes)
        return Table(dict(sorted(entries.items())))

    def _withdraw(self, model: str, arm: str) -> None:
        with self._lock:
            leaving, front = self._arm(model, arm).worker, self._table().front_of(model)
        if leaving is not None and front is not None and front is not leaving:
            front.send(leaving.recall())  # not under the lock: the thread that hears the answer may wait for it
        with self._lock:
            served = self._arm(model, arm)
            untold = served.take_untold()
            worker, served.worker, served.slot = served.worker, None, None
            served.restart_at_s, served.past = None, Tally()
            self._route()  # nobody passes anything on to it any more
            front = self._table().front_of(model)
            heir = next((each for each in self._arms.values() if front is not None and each.worker is front), None)
            if worker is not None and heir is not None:
                heir.prefixes = (*heir.prefixes, *served.prefixes, worker.prediction_prefix)[-MOST_LOST:]
            served.prefixes = ()
        self._tell(untold)
        if worker is None:
            return
        worker.stop()
        if front is not None and front is not worker:
            front.send(HandOn(predictions=worker.predictions, lost=served.lost))
        self._on_change(model, arm, "serves no model")


def _failed(fresh: Mapping[ArmKey, WorkerProcess], timeout_s: float) -> Activation | None:
    """Why one of some workers cannot serve, once each had that long to become ready; None where all can."""
    for (model, _), worker in fresh.items():
        worker.ready.wait(timeout_s)
        if worker.exited.is_set() or not worker.is_ready:
            detail = worker.failure or f"the worker ended with {worker.return_code} before it served"
            return Activation(ok=False, reason="activation_failed", detail=detail, model=model)
    return None


def _at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Calls that wait, all at the same time."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
