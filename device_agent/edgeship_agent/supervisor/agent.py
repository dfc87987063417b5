"""The agent: one loop over what the link, the workers and the updater say; everything slow happens elsewhere."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edgeship_agent.config import AgentConfig
from edgeship_agent.contract.errors import ContractError, EdgeshipError
from edgeship_agent.contract.messages import (
    PROTOCOL_VERSION,
    Ack,
    Birth,
    Death,
    Heartbeat,
    OutboxCounters,
    RunningArm,
    UpdateReport,
    UpdateState,
    Window,
)
from edgeship_agent.contract.topics import Kind, Topic
from edgeship_agent.contract.wire import decode, encode
from edgeship_agent.link.port import Connected, Disconnected, Link, LinkEvent, Received
from edgeship_agent.runtime import installed_runtimes
from edgeship_agent.runtime.isa import architecture, isa_features
from edgeship_agent.runtime.memory import give_back
from edgeship_agent.supervisor.goal_desk import GoalDesk, RefusedGoal
from edgeship_agent.supervisor.notify import Notifier
from edgeship_agent.supervisor.profiling import ProfileDoor
from edgeship_agent.supervisor.relief import Relief
from edgeship_agent.supervisor.reports import ReportSender
from edgeship_agent.supervisor.sending import Pace, WindowSender
from edgeship_agent.supervisor.start import Say
from edgeship_agent.supervisor.status import StatusFile
from edgeship_agent.supervisor.workers import WorkerPool
from edgeship_agent.telemetry.waiting import WaitingWindows
from edgeship_agent.update.attempt import Attempt, report_of
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.slots import Slot, Slots
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import EARLIEST_S
from edgeship_agent.update.updater import Updater

_TICK_S: Final = 0.2
_STATUS_S: Final = 1.0
#: Counters of refused goal states go to the disk once in this time: a flood of them wears no flash memory.
_COUNTS_S: Final = 60.0
#: A disk that fails is told about once in this time.
_DISK_WORD_S: Final = 60.0
#: A goal state that a full disk did not take is tried again after this time: the server need not send it twice.
_GOAL_AGAIN_S: Final = 10.0
#: Reports that a birth carries, the newest of each attempt.
_BIRTH_REPORTS: Final = 32
_REFUSAL_REPORT_S: Final = 1.0
#: Reasons why there is no link that are remembered, so that each is logged once until there is one.
_MOST_REASONS: Final = 16
#: Deployment that reports about refused goal states carry: they belong to none.
REFUSED_GOAL: Final = "refused-goal"


@dataclass(frozen=True)
class StopRequest:
    """Somebody asked the agent to end."""

    exit_code: int


@dataclass(frozen=True)
class WorkerChanged:
    """A worker serves now, or has died."""

    model: str
    arm: str
    what: str


Happening = LinkEvent | Window | Attempt | WorkerChanged
Event = Happening | StopRequest
Inbox = queue.SimpleQueue[Event]


@dataclass(frozen=True, kw_only=True)
class AgentParts:
    """Everything that the agent stands on."""

    config: AgentConfig
    boot_id: str
    agent_version: str
    inbox: Inbox
    state: StateFile
    journal: Journal
    slots: Slots
    outbox: WaitingWindows
    pool: WorkerPool
    updater: Updater
    link: Link
    desk: GoalDesk
    status: StatusFile
    profiler: ProfileDoor
    log: Say
    notify: Notifier
    wall_clock: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic


class Agent:
    """Runs until it is asked to stop.

    Args:
        parts: its collaborators.
    """

    def __init__(self, parts: AgentParts) -> None:
        self._parts = parts
        config = parts.config
        pace = Pace(resend_s=config.telemetry.resend_s, flush_s=config.telemetry.flush_s)
        self._windows = WindowSender(parts.outbox, config.device_id, parts.boot_id, parts.link.publish, pace)
        self._reports = ReportSender(parts.link.publish, config.telemetry.resend_s)
        self._session = 0
        self._is_connected = False
        self._down_reasons: set[str] = set()
        self._started_s = parts.clock()
        self._heartbeat_due_s = 0.0
        self._status_due_s = self._counts_due_s = 0.0
        self._relief = Relief(self._started_s)
        self._refusal_due_s = 0.0
        self._disk_word_due_s = 0.0
        self._books = OutboxCounters()
        self._untaken_goal = b""
        self._goal_due_s = 0.0

    def run(self) -> int:
        """The loop; the exit code.

        An event that cannot be handled is told and costs nothing but itself: no message ends the serving.
        """
        parts = self._parts
        parts.link.open(parts.inbox.put)
        parts.notify.ready(f"device {parts.config.device_id}")
        while True:
            try:
                event = parts.inbox.get(timeout=_TICK_S)
            except queue.Empty:
                event = None
            if isinstance(event, StopRequest):
                parts.notify.stopping()
                return event.exit_code
            if event is not None:
                self._handle_safely(event)
            try:
                self._tick(parts.clock())
            except OSError as error:  # a full disk, say: the model serves on
                self._disk_failed(error)
            parts.notify.alive()

    def close(self) -> None:
        """End workers, keep their last windows, say goodbye."""
        parts = self._parts
        parts.profiler.stop()
        parts.pool.stop()
        while not parts.inbox.empty():
            event = parts.inbox.get()
            if isinstance(event, (Window, Attempt)):
                self._handle_safely(event)
        try:
            parts.journal.mark("clean_stop")
            parts.desk.save_counts()
        except OSError as error:
            self._disk_failed(error)
        if self._is_connected:
            death = Death(protocol_version=PROTOCOL_VERSION, device_id=parts.config.device_id, session=self._session)
            self._publish(Kind.DEATH, encode(Kind.DEATH, death))
        parts.link.close()
        self._is_connected = False
        try:
            self._write_status()
        except OSError as error:
            self._disk_failed(error)
        try:
            parts.outbox.close()
        except EdgeshipError as error:
            parts.log("windows_lost", detail=error.sentence())

    def _disk_failed(self, error: OSError | EdgeshipError) -> None:
        now_s = self._parts.clock()
        if now_s >= self._disk_word_due_s:
            self._disk_word_due_s = now_s + _DISK_WORD_S
            self._parts.log("disk_failed", detail=str(error))

    # -- events ------------------------------------------------------------------------------------------------------

    def _handle_safely(self, event: Happening) -> None:
        try:
            self._handle(event)
        except OSError as error:
            self._disk_failed(error)
        except Exception as error:  # noqa: BLE001 (the process's outermost loop)
            detail = f"{type(error).__name__}: {error}"
            self._parts.log("event_failed", kind=type(event).__name__, detail=detail, at=_place_of(error))

    def _handle(self, event: Happening) -> None:
        now_s = self._parts.clock()
        self._status_due_s = min(self._status_due_s, now_s + _TICK_S)
        if isinstance(event, WorkerChanged):
            self._parts.log("worker", model=event.model, arm=event.arm, state=event.what)
            self._status_due_s = self._heartbeat_due_s = now_s
        elif isinstance(event, Window):
            self._take_window(event, now_s)
        elif isinstance(event, Attempt):
            self._tell(event, now_s)
        elif isinstance(event, Connected):
            self._connected(event.session, now_s)
        elif isinstance(event, Disconnected):
            if self._is_connected or event.reason not in self._down_reasons:  # told once, not at every try
                self._parts.log("link_down", detail=event.reason)
            if len(self._down_reasons) < _MOST_REASONS:
                self._down_reasons.add(event.reason)
            self._is_connected = False
        else:
            self._received(event, now_s)

    def _take_window(self, window: Window, now_s: float) -> None:
        try:
            self._windows.add(window, now_s)
        except EdgeshipError as error:
            self._parts.log("window_lost", detail=error.sentence())

    def _tell(self, attempt: Attempt, now_s: float) -> None:
        if attempt.state.is_terminal:
            self._relief.work_ended(now_s)
        self._parts.log(
            "update",
            model=attempt.model,
            version=attempt.version,
            state=attempt.state.value,
            reason=attempt.reason,
            detail=attempt.detail,
            deployment=attempt.deployment,
            attempt=attempt.attempt,
        )
        self._reports.say(report_of(attempt, self._parts.config.device_id, self._session), now_s)

    def _connected(self, session: int, now_s: float) -> None:
        self._session, self._is_connected, self._down_reasons = session, True, set()
        self._parts.log("link_up", session=session)
        self._publish(Kind.BIRTH, encode(Kind.BIRTH, self._birth()))
        self._heartbeat_due_s = now_s + self._parts.config.telemetry.heartbeat_s
        try:
            self._windows.start_over(now_s)
        except EdgeshipError as error:
            self._disk_failed(error)

    def _received(self, event: Received, now_s: float) -> None:
        if event.topic.kind is Kind.GOAL:
            self._goal_came(event.payload, now_s)
            return
        if event.topic.kind is Kind.JOB:
            self._parts.profiler.receive(event.payload)
            return
        try:
            ack: Ack = decode(Kind.ACK, event.payload)
            self._windows.acknowledged(ack, now_s)
        except ContractError as error:
            self._parts.log("unreadable_message", kind="ack", detail=error.sentence())
        except EdgeshipError as error:  # the windows stay: the server acknowledges them again when they come again
            self._parts.log("windows_not_removed", detail=error.sentence())

    def _goal_came(self, payload: bytes, now_s: float) -> None:
        known = self._parts.state.now.goal_generation
        try:
            goal = self._parts.desk.receive(payload)
        except OSError as error:
            self._untaken_goal, self._goal_due_s = payload, now_s + _GOAL_AGAIN_S
            self._refused(self._parts.desk.refuse("disk", f"this device cannot take it down: {error.strerror}"), now_s)
            raise
        if isinstance(goal, RefusedGoal):
            self._refused(goal, now_s)
            return
        self._untaken_goal = b""
        if goal.generation > known:
            wanted = ", ".join(f"{model.model} {'/'.join(arm.version for arm in model.arms)}" for model in goal.models)
            self._parts.log("goal", generation=goal.generation, wants=wanted or "no model")
            self._heartbeat_due_s = now_s  # the server hears at once which generation was taken
        self._parts.updater.submit(goal)

    def _refused(self, refused: RefusedGoal, now_s: float) -> None:
        if now_s < self._refusal_due_s:
            return  # counted; a flood of them is not answered one by one
        self._refusal_due_s = now_s + _REFUSAL_REPORT_S
        self._parts.log("goal_refused", reason=refused.reason, detail=refused.detail, count=refused.count)
        report = UpdateReport(
            protocol_version=PROTOCOL_VERSION,
            device_id=self._parts.config.device_id,
            deployment=REFUSED_GOAL,
            attempt=0,
            seq=sum(self._parts.desk.refused().values()),
            model="",
            arm="",
            version="",
            digest="",
            state=UpdateState.REJECTED,
            reason=f"goal_{refused.reason}",
            detail=refused.detail,
            at_s=self._parts.wall_clock(),
            figures={"refused_goals": float(refused.count)},
            session=self._session,
        )
        self._publish(Kind.REPORT, encode(Kind.REPORT, report))

    # -- time --------------------------------------------------------------------------------------------------------

    def _tick(self, now_s: float) -> None:
        parts = self._parts
        parts.pool.tick(now_s)
        parts.profiler.watch(parts.pool.counters)
        self._tend_windows(now_s)
        if self._is_connected:
            self._reports.tick(now_s)
            if now_s >= self._heartbeat_due_s:
                self._heartbeat_due_s = now_s + parts.config.telemetry.heartbeat_s
                self._publish(Kind.HEARTBEAT, encode(Kind.HEARTBEAT, self._heartbeat(now_s)))
        if self._relief.is_due(now_s):
            give_back()
        if now_s >= self._status_due_s:
            self._status_due_s = now_s + _STATUS_S
            self._write_status()
        if now_s >= self._counts_due_s:
            self._counts_due_s = now_s + _COUNTS_S
            parts.desk.save_counts()
        if self._untaken_goal and now_s >= self._goal_due_s:
            payload, self._untaken_goal = self._untaken_goal, b""
            self._goal_came(payload, now_s)

    def _tend_windows(self, now_s: float) -> None:
        try:
            self._windows.keep(now_s)
        except EdgeshipError as error:
            self._parts.log("windows_in_memory", detail=error.sentence())
        try:
            if self._is_connected:
                self._windows.tick(now_s)
        except EdgeshipError as error:
            self._disk_failed(error)

    # -- what the device says of itself ------------------------------------------------------------------------------

    def _running(self) -> tuple[RunningArm, ...]:
        on_trial = {(attempt.model, attempt.arm, attempt.digest) for attempt in self._parts.journal.under_way()}

        def state_of(slot: Slot) -> tuple[str, str]:
            info = slot.info
            state = "probation" if (info.model, info.arm, info.digest) in on_trial else "committed"
            retained = self._parts.slots.retained(info.model, info.arm)
            return state, "" if retained is None else retained.info.version

        return self._parts.pool.running(state_of)

    def _birth(self) -> Birth:
        parts, config = self._parts, self._parts.config
        newest = parts.journal.newest(_BIRTH_REPORTS)
        return Birth(
            protocol_version=PROTOCOL_VERSION,
            device_id=config.device_id,
            session=self._session,
            sent_at_s=parts.wall_clock(),
            clock_quality=clock_quality(parts.wall_clock(), parts.state.now.time_floor_s),
            agent_version=parts.agent_version,
            target=config.target,
            arch=architecture(),
            isa=isa_features(),
            runtimes=installed_runtimes(),
            tags=config.tags,
            running=self._running(),
            last_reports=tuple(report_of(attempt, config.device_id, self._session) for attempt in newest),
            outbox=self._outbox_books(),
            goal_generation=parts.state.now.goal_generation,
            accepts={model: ",".join(hashes) for model, hashes in config.accepted().items()},
        )

    def _heartbeat(self, now_s: float) -> Heartbeat:
        return Heartbeat(
            protocol_version=PROTOCOL_VERSION,
            device_id=self._parts.config.device_id,
            session=self._session,
            uptime_s=now_s - self._started_s,
            running=self._running(),
            outbox=self._outbox_books(),
            goal_generation=self._parts.state.now.goal_generation,
        )

    def _write_status(self) -> None:
        parts = self._parts
        parts.status.write(
            connected=self._is_connected,
            session=self._session,
            uptime_s=parts.clock() - self._started_s,
            running=self._running(),
            workers=parts.pool.processes(),
            outbox=self._outbox_books(),
            attempts=parts.journal.newest(_BIRTH_REPORTS),
            goal_generation=parts.state.now.goal_generation,
            refused_goals=parts.desk.refused(),
        )

    def _outbox_books(self) -> OutboxCounters:
        """What became of the windows; what was known last where the disk does not say."""
        try:
            self._books = self._parts.outbox.counters()
        except EdgeshipError as error:
            self._disk_failed(error)
        return self._books

    def _publish(self, kind: Kind, payload: bytes) -> bool:
        return self._parts.link.publish(Topic(device_id=self._parts.config.device_id, kind=kind), payload)


def _place_of(error: Exception) -> str:
    """File and line where an error was raised, for the log."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def clock_quality(now_s: float, floor_s: float) -> str:
    """``behind`` where the wall clock shows a time that was signed to be past, ``unverified`` otherwise.

    >>> clock_quality(1e9, 0.0), clock_quality(4e9, 2e9)
    ('behind', 'unverified')
    """
    return "behind" if now_s < max(floor_s, EARLIEST_S) else "unverified"
