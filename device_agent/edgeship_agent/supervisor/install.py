"""``edgeship-agent install``: the whole update procedure for a bundle that lies on this device, without any server."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import structs

from edgeship_agent.config import AgentConfig
from edgeship_agent.contract.errors import ConfigError, EdgeshipError
from edgeship_agent.contract.goal import ArmGoal, ModelGoal, Probation
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.oci import digest_of, hex_of
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
from edgeship_agent.update.carried import CarriedBundle, CarriedBundles
from edgeship_agent.update.download import BlobStore
from edgeship_agent.update.joint import RELEASE_MEMBER
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.launcher import Launcher
from edgeship_agent.update.parts import Pace, Parts
from edgeship_agent.update.slots import Slots
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.trust import read_public_key
from edgeship_agent.update.updater import Updater

#: Golden inputs that the live worker answers before an installed bundle is committed.
REPLAYED: Final = 20
_TICK_S: Final = 0.2
#: Exit code of each end; what the device must not run or could not keep is a gate that was missed.
_EXIT_CODES: Final[dict[UpdateState, int]] = {
    UpdateState.COMMITTED: 0,
    UpdateState.ROLLED_BACK: 3,
    UpdateState.REJECTED: 3,
}


def install_bundles(
    config: AgentConfig, bundles: Sequence[Path], author_key: Path | None, *, force: bool = False
) -> list[Attempt]:
    """Install bundles as one release: precheck, golden inputs, activation, a short probation, all of them or none.

    Args:
        config: of this device.
        bundles: their folders, each of another model.
        author_key: whose bundles are taken; ``None`` for the one of the configuration.
        force: try a bundle again that failed on this device before.

    Returns:
        The ended attempt of each.

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
        return _install(config, places, bundles, key, force=force)
    finally:
        places.withdraw()
        os.close(lock)


def exit_code_of(ends: Sequence[Attempt]) -> int:
    """The exit code of an installation: what a model ended with because of another one of its release counts there."""
    own = [end for end in ends if end.state is UpdateState.INCONSISTENT or end.reason != RELEASE_MEMBER]
    codes = {_EXIT_CODES.get(end.state, EdgeshipError.exit_code) for end in own or ends}
    return EdgeshipError.exit_code if EdgeshipError.exit_code in codes else max(codes)


def _become_owner(state_dir: Path) -> None:
    """Packages are installed by root: what root would leave in the state directory its agent could not change later."""
    if os.geteuid() != 0 or not state_dir.is_dir():
        return
    owner = state_dir.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def _install(config: AgentConfig, places: Places, bundles: Sequence[Path], key: bytes, *, force: bool) -> list[Attempt]:
    log, launcher = Log(), Launcher(config.launcher)
    state, slots, store = StateFile(places.state), Slots(places.slots), BlobStore(places.store)
    carried = CarriedBundles([CarriedBundle(bundle, key, store) for bundle in bundles])
    journal = Journal(places.journal)
    slots.settle(was_older=journal.was_older)
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
        ends = updater.bring(_goals(carried.bundles, journal, force=force))
    finally:
        ended.set()
        pool.stop()
        journal.mark("clean_stop")
        journal.close()
    return ends


def _keep_alive(pool: WorkerPool, ended: threading.Event) -> None:
    """Start workers that died again, as the agent's loop does."""
    while not ended.wait(_TICK_S):
        pool.tick(time.monotonic())


def _goals(bundles: Sequence[CarriedBundle], journal: Journal, *, force: bool) -> list[ModelGoal]:
    """What a server would have asked for; every installation is an attempt of its own."""
    names = "".join(sorted(bundle.digest for bundle in bundles))
    deployment = f"install-{hex_of(bundles[0].digest if len(bundles) == 1 else digest_of(names.encode()))[:12]}"
    earlier = [attempt.attempt for attempt in journal.attempts() if attempt.deployment == deployment]
    return [
        ModelGoal(
            model=bundle.name,
            arms=(ArmGoal(version=bundle.version, digest=bundle.digest, size_bytes=bundle.size_bytes),),
            deployment=deployment,
            attempt=max(earlier, default=0) + 1,
            force=force,
            # no traffic comes while the agent is away: golden inputs through the live worker stand in for it at once
            probation=Probation(inferences=REPLAYED, duration_s=0.0, deadline_s=0.0),
            release=deployment if len(bundles) > 1 else "",
        )
        for bundle in bundles
    ]


def _said(attempt: Attempt) -> dict[str, str]:
    said = structs.asdict(attempt)
    return {name: str(getattr(said[name], "value", said[name])) for name in ("model", "version", "state", "reason")}
