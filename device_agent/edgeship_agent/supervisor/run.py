"""Puts an agent together and runs it: ``edgeship-agent run``."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgeship_agent.config import AgentConfig
from edgeship_agent.contract.errors import ConfigError, ContractError, EdgeshipError
from edgeship_agent.link.address import Backoff, parse_address
from edgeship_agent.link.paho import PahoLink
from edgeship_agent.runtime.installed import installed_version
from edgeship_agent.runtime.isa import fingerprint
from edgeship_agent.runtime.memory import settle, share_one_heap
from edgeship_agent.serving.control import WorkerSettings
from edgeship_agent.supervisor.agent import Agent, AgentParts, Inbox, StopRequest, WorkerChanged, clock_quality
from edgeship_agent.supervisor.facts import gather_facts
from edgeship_agent.supervisor.goal_desk import GoalDesk
from edgeship_agent.supervisor.lasting import check_lasting
from edgeship_agent.supervisor.log import Log
from edgeship_agent.supervisor.membership import keep_renewing, tls_of
from edgeship_agent.supervisor.metered import is_metered
from edgeship_agent.supervisor.notify import Notifier, notifier_of_process
from edgeship_agent.supervisor.places import Places, lock_state
from edgeship_agent.supervisor.profiling import ProfileDoor
from edgeship_agent.supervisor.sensors import read_conditions
from edgeship_agent.supervisor.start import slots_to_serve
from edgeship_agent.supervisor.status import StatusFile
from edgeship_agent.supervisor.workers import WorkerPool
from edgeship_agent.telemetry.outbox import Outbox
from edgeship_agent.telemetry.waiting import WaitingWindows
from edgeship_agent.update.acquire import Acquirer
from edgeship_agent.update.activation import Activator
from edgeship_agent.update.conditions import Conditions, why_not
from edgeship_agent.update.download import BlobStore, Downloader, Limits
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.parts import Pace, Parts
from edgeship_agent.update.slots import Slots
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import TrustedSource, read_public_key, reference_time
from edgeship_agent.update.updater import Updater

if TYPE_CHECKING:
    from edgeship_agent.supervisor.http_door import HttpDoor

#: Pause after an unforeseen error of the updater (a full disk, say); serving and telemetry go on meanwhile.
_UPDATER_PAUSE_S: Final = 10.0
#: How long the updater gets to reach a safe point when the agent is stopped; the journal knows the rest.
_UPDATER_STOP_S: Final = 2.0
_INTERRUPTED: Final = 130


def run_agent(config: AgentConfig) -> int:
    """Run until a signal asks for the end; the exit code.

    Raises:
        ConfigError: a file of the configuration cannot be used, or another agent uses the state directory.
        ContractError: a file of the state directory is damaged or newer than this agent.
    """
    share_one_heap()
    if not config.allow_volatile_state:
        check_lasting(config.state_dir)
    places = Places(config.state_dir)
    places.make()
    lock = lock_state(places, "edgeship-agent status --config FILE shows its process id")
    log, inbox = Log(), Inbox()
    notifier = notifier_of_process(time.monotonic)
    door = _open_door(config, places, log)
    agent, updater = _assemble(config, places, inbox, log, notifier)
    for number, exit_code in ((signal.SIGTERM, 0), (signal.SIGINT, _INTERRUPTED)):
        signal.signal(number, lambda *_, code=exit_code: inbox.put(StopRequest(code)))
    is_idle = threading.Event()
    threading.Thread(target=_keep_updating, args=(updater, log, is_idle), name="updater", daemon=True).start()
    threading.Thread(target=keep_renewing, args=(config, log), name="renewal", daemon=True).start()
    settle()
    if places.is_read_only:
        detail = "the last committed model is served from it; no update is taken, windows wait in memory"
        log("read_only_disk", state_dir=config.state_dir, socket=places.socket, detail=detail)
    log("started", device=config.device_id, pid=os.getpid(), state_dir=config.state_dir)
    try:
        return agent.run()
    finally:
        if door is not None:
            door.close()
        updater.stop()
        is_idle.wait(_UPDATER_STOP_S)
        agent.close()
        places.withdraw()
        log("stopped", device=config.device_id)
        os.close(lock)


def _open_door(config: AgentConfig, places: Places, log: Log) -> HttpDoor | None:
    """HTTP, where the configuration asks for it: its modules are loaded by nobody else."""
    if not config.serving.http:
        return None
    from edgeship_agent.supervisor.http_door import HttpDoor

    return HttpDoor(config.serving.http, places, log)


def _worker_settings(config: AgentConfig, state: StateFile) -> WorkerSettings:
    return WorkerSettings(
        threads=config.serving.threads,
        spin_us=config.serving.spin_us,
        window_s=config.telemetry.window_s,
        window_inferences=config.telemetry.window_inferences,
        remembered_predictions=config.telemetry.remembered_predictions,
        clock_quality=clock_quality(time.time(), state.now.time_floor_s),
    )


def _assemble(config: AgentConfig, places: Places, inbox: Inbox, log: Log, notifier: Notifier) -> tuple[Agent, Updater]:
    public_key = read_public_key(config.goal_key)
    if not config.root.is_file():
        raise ConfigError("cannot be read", file=config.root, key="root", next_step=_COPY_ROOT)
    state, slots, store = StateFile(places.state), Slots(places.slots), BlobStore(places.store)
    journal = _open_journal(places, slots, log)
    outbox = _open_outbox(config, places, log)
    launcher, boot_id = Launcher(config.launcher), secrets.token_hex(8)
    settings = _worker_settings(config, state)
    pool = WorkerPool(places, launcher, settings, boot_id, inbox.put, lambda *change: inbox.put(WorkerChanged(*change)))
    activator = Activator(slots, pool, launcher, fingerprint, time.monotonic)
    places.publish()
    for slot in slots_to_serve(slots, activator, log):
        pool.begin(slot)
    updater = _make_updater(config, places, _UpdaterGround(state, journal, slots, store, activator, launcher), inbox)
    desk = GoalDesk(config.device_id, public_key, state, time.time)
    remembered = desk.remembered()
    if remembered is not None:
        updater.submit(remembered)
    agent_version = installed_version("edgeship-agent") or "unknown"
    fixed = {
        "device_id": config.device_id,
        "target": config.target,
        "agent_version": agent_version,
        "boot_id": boot_id,
        "socket": str(places.socket),
    }
    link = _make_link(config, state)
    parts = AgentParts(
        config=config,
        boot_id=boot_id,
        agent_version=agent_version,
        inbox=inbox,
        state=state,
        journal=journal,
        slots=slots,
        outbox=WaitingWindows(outbox, _unclean_ends(state, journal, log)),
        pool=pool,
        updater=updater,
        link=link,
        desk=desk,
        profiler=ProfileDoor(config, places.profiling, state, public_key, link.publish, log),
        status=StatusFile(places.live_status, fixed, time.time),
        log=log,
        notify=notifier,
    )
    try:
        journal.mark("start")
    except OSError as error:
        log("disk_failed", detail=str(error))  # the model serves on; updates wait until the disk takes records
    return Agent(parts), updater


def _open_journal(places: Places, slots: Slots, log: Log) -> Journal:
    """The journal, the last one that is opened: its first record makes the others' names certain.

    Who wrote it last decides what the slots go by.
    """
    journal = Journal(places.journal)
    if journal.set_aside is not None or journal.not_understood:
        log("journal_of_a_newer_agent", set_aside=journal.set_aside or "", not_understood=journal.not_understood)
    slots.settle(was_older=journal.was_older)
    return journal


def _unclean_ends(state: StateFile, journal: Journal, log: Log) -> int:
    """How often the agent ended by a power cut or a kill, the last time included."""
    if journal.stopped_cleanly:
        return state.now.unclean_ends
    count = state.now.unclean_ends + 1
    log("unclean_end", count=count, detail="windows of the last flush interval that the server did not have are lost")
    with contextlib.suppress(OSError):  # said above; the model serves on
        state.change(unclean_ends=count)
    return count


def _open_outbox(config: AgentConfig, places: Places, log: Log) -> Outbox:
    """The outbox on the disk; in memory until the next start where the disk does not take it."""
    try:
        outbox = Outbox(places.outbox, config.telemetry.outbox_bytes)
    except ContractError:
        raise
    except EdgeshipError as error:
        log("outbox_in_memory", detail=error.sentence())
        return Outbox(Path(":memory:"), config.telemetry.outbox_bytes)
    if outbox.set_aside is not None:
        log("outbox_damaged", set_aside=outbox.set_aside, detail="waiting windows and counters are lost")
    return outbox


@dataclass(frozen=True)
class _UpdaterGround:
    """What the updater shares with the rest of the agent."""

    state: StateFile
    journal: Journal
    slots: Slots
    store: BlobStore
    activator: Activator
    launcher: Launcher


def _make_updater(config: AgentConfig, places: Places, ground: _UpdaterGround, inbox: Inbox) -> Updater:
    store = ground.store
    acquirer = Acquirer(
        store,
        Downloader(
            config.update.mirror or config.server_url,
            store,
            time.monotonic,
            Limits(max_bytes_per_s=config.update.max_bytes_per_s),
            tls=tls_of(config, ground.state),
        ),
        TrustedSource(config.root, places.trust, config.server_url, ground.launcher, config.credentials),
        lambda: gather_facts(config),
    )
    policy, state = config.update.policy(), ground.state

    def conditions() -> Conditions:
        metered = None if policy.may_be_metered else is_metered(config.update.metered_command)
        return read_conditions(reference_time(time.time(), state.now.time_floor_s), is_metered=metered)

    pace = Pace(attempts=config.update.attempts, retry_s=config.update.retry_s, retry_max_s=config.update.retry_max_s)
    return Updater(
        Parts(
            journal=ground.journal,
            slots=ground.slots,
            store=store,
            state=ground.state,
            acquirer=acquirer,
            activator=ground.activator,
            publish=inbox.put,
            pace=pace,
            why_wait=lambda: why_not(policy, conditions()),
        )
    )


def _make_link(config: AgentConfig, state: StateFile) -> PahoLink:
    backoff = Backoff(start_s=config.link.reconnect_start_s, max_s=config.link.reconnect_max_s)
    address = parse_address(config.broker_url)
    rng = random.SystemRandom()
    return PahoLink(address, config.device_id, state.next_session, backoff, rng, tls_of(config, state))


def _keep_updating(updater: Updater, log: Log, is_idle: threading.Event) -> None:
    """The updater's thread: an unforeseen error ends neither serving nor telemetry.

    It lives as long as the process: Linux ends a child with the *thread* that started it, and workers shall outlive the
    updater by their last windows.
    """
    while not updater.is_stopped:
        try:
            updater.run()
        except Exception as error:  # noqa: BLE001 (the outermost loop of this thread)
            log("updater_failed", detail=f"{type(error).__name__}: {error}", again_in_s=_UPDATER_PAUSE_S)
            time.sleep(_UPDATER_PAUSE_S)
    is_idle.set()
    threading.Event().wait()


_COPY_ROOT: Final = "copy DATA/trust/root.json of the server to this path"
