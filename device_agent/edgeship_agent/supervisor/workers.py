"""The pool of workers: one per model arm, restarted when it dies, replaced without a gap."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct, structs

from edgeship_agent.contract.messages import RunningArm, Window
from edgeship_agent.contract.oci import hex_of
from edgeship_agent.contract.pointer import ArmKey
from edgeship_agent.contract.sketch import ExponentialSketch
from edgeship_agent.serving.control import Counters, HandOn, Open, WorkerSettings
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
_RESTART_FIRST_S: Final = 0.2
_RESTART_MAX_S: Final = 30.0
#: A worker that lived this long starts its restart pauses afresh.
_HEALTHY_S: Final = 60.0
#: Hard stops that a device acts on by itself; the others are evidence for the server.
_OWN_HARD_STOPS: Final = frozenset({"nan_output"})
#: Workers whose predictions are told from those that nobody made.
_MOST_LOST: Final = 32
#: A shadow held more memory than its goal allows.
SHADOW_MEMORY: Final = "shadow_memory"


class _Tally(Struct, kw_only=True):
    """What a model did since its activation, over the lives of its workers."""

    inferences: int = 0
    failures: int = 0
    crashes: int = 0
    latency_p99_ms: float | None = None
    hard_stops: tuple[str, ...] = ()

    def add(self, counters: Counters | None) -> None:
        if counters is None:
            return
        self.inferences += counters.inferences
        self.failures += counters.failures
        self.hard_stops = tuple(stop for stop in counters.hard_stops if stop in _OWN_HARD_STOPS) or self.hard_stops
        if counters.inferences:
            p99_ms = counters.latency_p99_ms
            self.latency_p99_ms = p99_ms if self.latency_p99_ms is None else max(self.latency_p99_ms, p99_ms)


class _Arm:
    """What is served for one model arm."""

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self.worker: WorkerProcess | None = None
        self.past = _Tally()
        self.unreported_crashes = 0
        self.crashed_at_s = 0.0
        self.started_at_s = 0.0
        self.restart_at_s: float | None = None
        self.restart_pause_s = _RESTART_FIRST_S
        self.prefixes: tuple[str, ...] = ()  # of all predictions that its worker and those before it remember
        self.lost: tuple[str, ...] = ()  # of those that died with a worker
        self.is_over_memory = False  # a shadow that was ended for that; another goal starts it again
        self.is_held = False  # its worker lets nobody in before others have given their last answers

    def serves(self, slot: Slot) -> bool:
        """Whether the worker that is there has this very bundle, and lives."""
        is_same = self.slot is not None and self.slot.info.digest == slot.info.digest
        return is_same and self.worker is not None and not self.worker.exited.is_set()

    def take(self, slot: Slot, worker: WorkerProcess) -> None:
        """Serve a slot with a worker that is ready, in place of another or of none."""
        old = self.worker
        self.slot = slot  # the same bundle may come with another part of the traffic
        if old is worker:
            return
        if old is not None:
            self.prefixes = (*self.prefixes, old.prediction_prefix)[-_MOST_LOST:]
        self.past, self.worker = _Tally(), worker
        self.restart_at_s, self.is_over_memory = None, False
        self.is_held = worker.is_held

    def open(self) -> None:
        """Let applications in that wait at the door, of whichever worker is there by now."""
        if self.is_held and self.worker is not None:
            self.worker.send(Open())
        self.is_held = False


class WorkerPool:
    """Starts, replaces and restarts workers. May be used from several threads.

    Args:
        places: folders of the state directory.
        launcher: starts processes.
        settings: what every worker is told.
        boot_id: of this start of the agent.
        on_window: called with every window that a worker closed (from its reading thread).
        on_change: called when a worker became ready or died (from its reading thread).
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
        self._arms: dict[tuple[str, str], _Arm] = {}
        self._front: WorkerProcess | None = None
        self._numbers = itertools.count(1)
        self._stopping = False

    # -- the updater's port ------------------------------------------------------------------------------------------

    def serve(self, slots: Mapping[ArmKey, Slot | None]) -> Activation:
        """Serve slots instead of what is served now; the old workers answer until all the new ones are ready.

        Where several are replaced, applications wait at the doors of the new workers until every old one has given its
        last answer: nobody hears the new release of one model and then the old one of another.
        """
        wanted = {key: slot for key, slot in slots.items() if slot is not None}
        fresh = self._fresh_workers(wanted)
        for (model, _), worker in fresh.items():
            worker.ready.wait(_READY_TIMEOUT_S)
            if not worker.is_ready:
                self._give_up(wanted, fresh)
                detail = worker.failure or f"the worker ended with {worker.return_code} before it was ready"
                return Activation(ok=False, reason="activation_failed", detail=detail, model=model)
        for key in slots:
            if key not in wanted:
                self._withdraw(*key)  # first: what goes is never heard beside what comes
        self._replace(wanted, fresh)
        return Activation(ok=True)

    def _fresh_workers(self, wanted: Mapping[ArmKey, Slot]) -> dict[ArmKey, WorkerProcess]:
        """The worker of each slot: the one that serves it already, or a new one that is on its way."""
        with self._lock:
            serving = {key: self._arm(*key).worker for key, slot in wanted.items() if self._arm(*key).serves(slot)}
            is_held = len(wanted) - len(serving) > 1
            return {key: serving.get(key) or self._spawn(slot, is_held=is_held) for key, slot in wanted.items()}

    def _give_up(self, wanted: Mapping[ArmKey, Slot], fresh: Mapping[ArmKey, WorkerProcess]) -> None:
        """End new workers, since one of them cannot serve; what served goes on."""
        for key, worker in fresh.items():
            with self._lock:
                is_serving = self._arm(*key).serves(wanted[key]) and worker.is_ready
            if not is_serving:
                worker.is_retiring = True
                worker.kill()

    def _replace(self, wanted: Mapping[ArmKey, Slot], fresh: Mapping[ArmKey, WorkerProcess]) -> None:
        """Let ready workers take over, all of them in one change of the table."""
        with self._lock:
            before = {key: self._arm(*key).worker for key in fresh}
        leaving = {key: old for key, old in before.items() if old is not None and old is not fresh[key]}
        for key, old in leaving.items():
            fresh[key].send(old.recall())  # before anybody can ask the new one about them
        with self._lock:
            for key, worker in fresh.items():
                self._arm(*key).take(wanted[key], worker)
            self._route()
        _at_once([old.drain for old in leaving.values()])  # what they were still asked after they were recalled
        for key, old in leaving.items():
            fresh[key].send(HandOn(predictions=old.predictions, lost=self._arm(*key).lost))
        with self._lock:
            for key in fresh:
                self._arm(*key).open()
        _at_once([old.stop for old in leaving.values()])
        for key in fresh:
            self._on_change(*key, "serving")

    def observe(self, model: str, arm: str) -> tuple[str, Observation]:
        """Digest that is loaded now (empty for none), and what it did since its activation."""
        with self._lock:
            served = self._arm(model, arm)
            worker = served.worker
            total = structs.replace(served.past)
            if worker is not None:
                total.add(worker.counters)
            digest = worker.slot.info.digest if worker is not None and worker.is_ready else ""
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
            served.worker = self._spawn(slot)

    def tick(self, now_s: float) -> None:
        """Start workers again whose pause is over; end shadows that grew too large; report what no window carries."""
        lonely: list[tuple[Slot, int, tuple[str, ...]]] = []
        with self._lock:
            for served in self._arms.values():
                if _is_too_large(served):
                    lonely.append(_end_too_large(served))
                    self._route()
                if served.restart_at_s is not None and now_s >= served.restart_at_s and served.slot is not None:
                    served.restart_at_s = None
                    served.worker = self._spawn(served.slot, is_held=served.is_held)
                waited_s = now_s - served.crashed_at_s
                if served.unreported_crashes and waited_s >= 2 * self._settings.window_s and served.slot is not None:
                    lonely.append((served.slot, served.unreported_crashes, ()))
                    served.unreported_crashes = 0
        for slot, crashes, stops in lonely:
            window = _crash_window(slot, crashes, self._boot_id, self._settings.clock_quality)
            self._on_window(structs.replace(window, hard_stops=stops))
            if stops:
                self._on_change(slot.info.model, slot.info.arm, "ended: it holds more memory than a shadow may")

    def running(self, state_of: Callable[[Slot], tuple[str, str]]) -> tuple[RunningArm, ...]:
        """What is loaded now.

        Args:
            state_of: gives (state, version that a rollback would go to) of a slot.
        """
        with self._lock:
            workers = [served.worker for served in self._arms.values() if served.worker is not None]
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
            now_s = time.monotonic()
            served.past.add(worker.counters)
            worker.counters = None
            served.past.crashes += 1
            served.lost = (*served.lost, *served.prefixes, worker.prediction_prefix)[-_MOST_LOST:]
            served.prefixes = ()
            served.unreported_crashes += 1
            served.crashed_at_s = now_s
            if served.started_at_s and now_s - served.started_at_s >= _HEALTHY_S:
                served.restart_pause_s = _RESTART_FIRST_S
            served.restart_at_s = now_s + served.restart_pause_s
            served.restart_pause_s = min(served.restart_pause_s * 2, _RESTART_MAX_S)
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

    def _arm(self, model: str, arm: str) -> _Arm:
        return self._arms.setdefault((model, arm), _Arm())

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
        if self._front is not front:
            self._front = front
            DISK.point(self._places.sockets / SOCKET, front.socket_path.name, certain=False)
        for key, worker in table.ready.items():
            split = table.split_for(key) if key[1] != SHADOW_ARM else None
            if split is not None and split != worker.split and (not is_nobody(split) or worker.split is not None):
                worker.split = split
                worker.send(split)

    def _table(self) -> Table:
        entries = {
            key: Entry(slot=served.slot, worker=served.worker, prefixes=served.prefixes)
            for key, served in sorted(self._arms.items())
            if served.slot is not None
        }
        return Table(entries)

    def _withdraw(self, model: str, arm: str) -> None:
        with self._lock:
            leaving, front = self._arm(model, arm).worker, self._table().front_of(model)
        if leaving is not None and front is not None and front is not leaving:
            front.send(leaving.recall())  # not under the lock: the thread that hears the answer may wait for it
        with self._lock:
            served = self._arm(model, arm)
            worker, served.worker, served.slot = served.worker, None, None
            served.restart_at_s, served.past = None, _Tally()
            self._route()  # nobody passes anything on to it any more
            front = self._table().front_of(model)
            heir = next((each for each in self._arms.values() if front is not None and each.worker is front), None)
            if worker is not None and heir is not None:
                heir.prefixes = (*heir.prefixes, *served.prefixes, worker.prediction_prefix)[-_MOST_LOST:]
            served.prefixes = ()
        if worker is None:
            return
        worker.stop()
        if front is not None and front is not worker:
            front.send(HandOn(predictions=worker.predictions, lost=served.lost))
        self._on_change(model, arm, "serves no model")


def _at_once(calls: Sequence[Callable[[], None]]) -> None:
    """Calls that wait, all at the same time."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _is_too_large(served: _Arm) -> bool:
    """Whether a shadow holds more memory than its goal allows; no other arm has a limit here."""
    if served.slot is None or served.worker is None or served.worker.counters is None or served.is_over_memory:
        return False
    limit_bytes = served.slot.traffic.memory_bytes
    return 0 < limit_bytes < served.worker.counters.memory_bytes


def _end_too_large(served: _Arm) -> tuple[Slot, int, tuple[str, ...]]:
    """End a shadow's worker for good; the lock is held.

    Returns:
        What there is to report: its slot, no crash, and the hard stop.
    """
    assert served.worker is not None and served.slot is not None
    served.is_over_memory = served.worker.is_retiring = True
    served.worker.is_ready = False
    served.worker.failure = "it holds more memory than a shadow may"
    served.past.hard_stops = (SHADOW_MEMORY,)
    served.worker.kill()
    return served.slot, 0, (SHADOW_MEMORY,)


def _crash_window(slot: Slot, crashes: int, boot_id: str, clock_quality: str) -> Window:
    """A window without calls, so that crashes become known where nothing was answered."""
    profile = slot.variant().file("profile")
    now_s = time.time()
    return Window(
        boot_id=boot_id,
        seq=0,
        model=slot.info.model,
        version=slot.info.version,
        arm=slot.info.arm,
        digest=slot.info.digest,
        variant=slot.info.variant,
        profile_hash="" if profile is None else hex_of(profile.digest),
        started_at_s=now_s,
        ended_at_s=now_s,
        clock_quality=clock_quality,
        inferences=0,
        failures=0,
        deadline_misses=0,
        shed=0,
        crashes=crashes,
        latency_us=ExponentialSketch(),
        signals={},
    )
