"""What is served for one model arm: its slot and worker, what is known of them, and what nobody was told yet."""

from __future__ import annotations

import time
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.oci import hex_of
from edgeship_agent.contract.sketch import ExponentialSketch
from edgeship_agent.serving.control import Counters, Open
from edgeship_agent.supervisor.worker_process import WorkerProcess
from edgeship_agent.update.slots import Slot

_RESTART_FIRST_S: Final = 0.2
_RESTART_MAX_S: Final = 30.0
#: A worker that lived this long starts its restart pauses afresh.
_HEALTHY_S: Final = 60.0
#: Hard stops that a device acts on by itself; the others are evidence for the server.
_OWN_HARD_STOPS: Final = frozenset({"nan_output"})
#: Workers whose predictions are told from those that nobody made.
MOST_LOST: Final = 32
#: A shadow held more memory than its goal allows.
SHADOW_MEMORY: Final = "shadow_memory"


class Tally(Struct, kw_only=True):
    """What a model did since its activation, over the lives of its workers."""

    inferences: int = 0
    failures: int = 0
    crashes: int = 0
    latency_p99_ms: float | None = None
    hard_stops: tuple[str, ...] = ()

    def add(self, counters: Counters | None) -> None:
        """Add what a worker counted."""
        if counters is None:
            return
        self.inferences += counters.inferences
        self.failures += counters.failures
        self.hard_stops = tuple(stop for stop in counters.hard_stops if stop in _OWN_HARD_STOPS) or self.hard_stops
        if counters.inferences:
            p99_ms = counters.latency_p99_ms
            self.latency_p99_ms = p99_ms if self.latency_p99_ms is None else max(self.latency_p99_ms, p99_ms)


class Untold(Struct, frozen=True, kw_only=True):
    """What happened to the model of a slot, and no window of a worker carries."""

    slot: Slot
    crashes: int = 0
    hard_stops: tuple[str, ...] = ()


class Arm:
    """What is served for one model arm. Its methods want the pool's lock."""

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self.worker: WorkerProcess | None = None
        self.past = Tally()
        self.unreported_crashes = 0  # of the model that the slot holds
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

    def take(self, slot: Slot, worker: WorkerProcess) -> list[Untold]:
        """Serve a slot with a worker that is ready, in place of another or of none.

        Returns:
            Crashes of the model before, which the windows of this one must not carry.
        """
        old = self.worker
        is_other = self.slot is not None and self.slot.info != slot.info
        untold = self.take_untold() if is_other else []
        self.slot = slot  # the same bundle may come with another part of the traffic
        if old is worker:
            return untold
        if old is not None:
            self.prefixes = (*self.prefixes, old.prediction_prefix)[-MOST_LOST:]
        self.past, self.worker = Tally(), worker
        self.restart_at_s, self.is_over_memory = None, False
        if is_other:
            self.restart_pause_s = _RESTART_FIRST_S  # grown by the crashes of another model
        self.is_held = worker.is_held
        return untold

    def take_untold(self) -> list[Untold]:
        """The crashes of its model that no window carries; they are told by who asks."""
        crashes, self.unreported_crashes = self.unreported_crashes, 0
        return [Untold(slot=self.slot, crashes=crashes)] if crashes and self.slot is not None else []

    def open(self) -> None:
        """Let applications in that wait at the door, of whichever worker is there by now."""
        if self.is_held and self.worker is not None:
            self.worker.send(Open())
        self.is_held = False

    def count_crash(self, worker: WorkerProcess, now_s: float) -> None:
        """Its worker died: count that, and what dies with it, and plan the restart."""
        self.past.add(worker.counters)
        worker.counters = None
        self.past.crashes += 1
        self.lost = (*self.lost, *self.prefixes, worker.prediction_prefix)[-MOST_LOST:]
        self.prefixes = ()
        self.unreported_crashes += 1
        self.crashed_at_s = now_s
        if self.started_at_s and now_s - self.started_at_s >= _HEALTHY_S:
            self.restart_pause_s = _RESTART_FIRST_S
        self.plan_restart(now_s)

    def plan_restart(self, now_s: float) -> None:
        """Start a worker after the pause; the next pause is longer."""
        self.restart_at_s = now_s + self.restart_pause_s
        self.restart_pause_s = min(self.restart_pause_s * 2, _RESTART_MAX_S)

    def is_too_large(self) -> bool:
        """Whether a shadow holds more memory than its goal allows; no other arm has a limit here."""
        if self.slot is None or self.worker is None or self.worker.counters is None or self.is_over_memory:
            return False
        limit_bytes = self.slot.traffic.memory_bytes
        return 0 < limit_bytes < self.worker.counters.memory_bytes

    def end_too_large(self) -> Untold:
        """End a shadow's worker for good.

        Returns:
            What there is to report: its slot, no crash, and the hard stop.
        """
        assert self.worker is not None and self.slot is not None
        self.is_over_memory = self.worker.is_retiring = True
        self.worker.is_ready = False
        self.worker.failure = "it holds more memory than a shadow may"
        self.past.hard_stops = (SHADOW_MEMORY,)
        self.worker.kill()
        return Untold(slot=self.slot, hard_stops=(SHADOW_MEMORY,))


def window_of(untold: Untold, boot_id: str, clock_quality: str) -> Window:
    """A window without calls, so that crashes become known where nothing was answered."""
    slot, now_s = untold.slot, time.time()
    return Window(
        boot_id=boot_id,
        seq=0,
        model=slot.info.model,
        version=slot.info.version,
        arm=slot.info.arm,
        digest=slot.info.digest,
        variant=slot.info.variant,
        profile_hash=_profile_hash(slot),
        started_at_s=now_s,
        ended_at_s=now_s,
        clock_quality=clock_quality,
        inferences=0,
        failures=0,
        deadline_misses=0,
        shed=0,
        crashes=untold.crashes,
        latency_us=ExponentialSketch(),
        signals={},
        hard_stops=untold.hard_stops,
    )


def _profile_hash(slot: Slot) -> str:
    try:
        profile = slot.variant().file("profile")
    except (ContractError, OSError):  # a damaged slot: its crashes are told all the same
        return ""
    return "" if profile is None else hex_of(profile.digest)
