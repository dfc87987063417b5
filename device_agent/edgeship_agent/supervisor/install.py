"""``edgeship-agent install``: the whole update procedure for a bundle that lies on this device, without any server."""

from __future__ import annotations

import os
import secrets
import threading
import time
from pathlib import Path
from typing import Final

from msgspec import structs

from edgeship_agent.config import AgentConfig
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.contract.goal import ArmGoal, ModelGoal, Probation
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.oci import hex_of
from edgeship_agent.runtime.isa import fingerprint
from edgeship_agent.serving.control import WorkerSettings
from edgeship_agent.supervisor.facts import gather_facts
from edgeship_agent.supervisor.lasting import check_lasting
from edgeship_agent.supervisor.log import Log
from edgeship_agent.supervisor.places import Places, lock_state
from edgeship_agent.supervisor.start import slots_to_serve
from edgeship_agent.supervisor.workers import WorkerPool
from edgeship_agent.update.acquire import Acquirer
from edgeship_agent.update.activation import Activator
from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.carried import CarriedBundle
from edgeship_agent.update.download import BlobStore
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.slots import Slots
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import read_public_key
from edgeship_agent.update.updater import Pace, Parts, Updater

#: Golden inputs that the live worker answers before an installed bundle is committed.
REPLAYED: Final = 20
_TICK_S: Final = 0.2
#: Exit code of each end; what the device must not run or could not keep is a gate that was missed.
EXIT_CODES: Final[dict[UpdateState, int]] = {
    UpdateState.COMMITTED: 0,
    UpdateState.ROLLED_BACK: 3,
    UpdateState.REJECTED: 3,
}


def install_bundle(config: AgentConfig, bundle: Path, author_key: Path | None, *, force: bool = False) -> Attempt:
    """Install a bundle: precheck, golden inputs, activation, a short probation; committed or rolled back at the end.

    Args:
        config: of this device.
        bundle: folder of the bundle.
        author_key: whose bundles are taken; ``None`` for the one of the configuration.
        force: try a bundle again that failed on this device before.

    Returns:
        The ended attempt.

    Raises:
        ConfigError: no author key, no bundle, or an agent runs with this state directory.
        ContractError: a document of the bundle cannot be read.
        VerificationError: the author did not sign it, or it was changed.
    """
    key_path = author_key or config.author_key
    if key_path is None:
        raise ConfigError(
            "nothing says whose bundles this device takes",
            key="author_key",
            expected="the path of a file with the author's public key, 64 hexadecimal digits",
            next_step="edgeship verify BUNDLE shows the key; write it to a file and name that with --author-key FILE",
        )
    key = read_public_key(key_path, "author_key")
    _become_owner(config.state_dir)
    if not config.allow_volatile_state:
        check_lasting(config.state_dir)
    places = Places(config.state_dir)
    places.make()
    lock = lock_state(places, "stop the agent first: systemctl stop edgeship-agent")
    try:
        return _install(config, places, bundle, key, force=force)
    finally:
        places.withdraw()
        os.close(lock)


def _become_owner(state_dir: Path) -> None:
    """Packages are installed by root: what root would leave in the state directory its agent could not change later."""
    if os.geteuid() != 0 or not state_dir.is_dir():
        return
    owner = state_dir.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _install(config: AgentConfig, places: Places, bundle: Path, key: bytes, *, force: bool) -> Attempt:
    log, launcher = Log(), Launcher(config.launcher)
    state, slots, store = StateFile(places.state), Slots(places.slots), BlobStore(places.store)
    carried = CarriedBundle(bundle, key, store)
    journal = Journal(places.journal)
    settings = WorkerSettings(
        threads=config.serving.threads,
        window_s=config.telemetry.window_s,
        window_inferences=config.telemetry.window_inferences,
        remembered_predictions=config.telemetry.remembered_predictions,
        clock_quality="unverified",
    )
    pool = WorkerPool(places, launcher, settings, secrets.token_hex(8), lambda _: None, lambda *_: None)
    activator = Activator(slots, pool, launcher, fingerprint, time.monotonic)
    updater = Updater(
        Parts(
            journal=journal,
            slots=slots,
            store=store,
            state=state,
            acquirer=Acquirer(store, carried, carried, lambda: gather_facts(config)),
            activator=activator,
            publish=lambda attempt: log("update", **_said(attempt)),
            pace=Pace(attempts=2, retry_s=0.0),
        )
    )
    journal.mark("start")
    ended = threading.Event()
    watch = threading.Thread(target=_keep_alive, args=(pool, ended), daemon=True)
    try:
        for slot in slots_to_serve(slots, activator, log):
            pool.begin(slot)
        watch.start()
        updater.resume()
        attempt = updater.bring(_goal(carried, journal, force=force))
    finally:
        ended.set()
        pool.stop()
        journal.mark("clean_stop")
        journal.close()
    return attempt


def _keep_alive(pool: WorkerPool, ended: threading.Event) -> None:
    """Start workers that died again, as the agent's loop does."""
    while not ended.wait(_TICK_S):
        pool.tick(time.monotonic())


def _goal(carried: CarriedBundle, journal: Journal, *, force: bool) -> ModelGoal:
    """What a server would have asked for; every installation is an attempt of its own."""
    deployment = f"install-{hex_of(carried.digest)[:12]}"
    earlier = [attempt.attempt for attempt in journal.attempts() if attempt.deployment == deployment]
    return ModelGoal(
        model=carried.name,
        arms=(ArmGoal(version=carried.version, digest=carried.digest, size_bytes=carried.size_bytes),),
        deployment=deployment,
        attempt=max(earlier, default=0) + 1,
        force=force,
        # no traffic comes while the agent is away: golden inputs through the live worker stand in for it at once
        probation=Probation(inferences=REPLAYED, duration_s=0.0, deadline_s=0.0),
    )


def _said(attempt: Attempt) -> dict[str, str]:
    said = structs.asdict(attempt)
    return {name: str(getattr(said[name], "value", said[name])) for name in ("model", "version", "state", "reason")}
