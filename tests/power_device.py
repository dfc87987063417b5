"""A device without a process around it: the agent's own parts on a disk of choice, for tests that cut its power."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgeship_agent.contract.errors import EdgeshipError, TransferError, VerificationError
from edgeship_agent.contract.goal import GoalState
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.oci import hex_of
from edgeship_agent.contract.pointer import ArmKey, Pointer
from edgeship_agent.runtime import installed_runtimes
from edgeship_agent.runtime.isa import architecture, fingerprint
from edgeship_agent.supervisor.goal_desk import GoalDesk
from edgeship_agent.supervisor.start import slots_to_serve
from edgeship_agent.update import journal as journal_module
from edgeship_agent.update.acquire import Acquirer
from edgeship_agent.update.activation import Activator
from edgeship_agent.update.attempt import Attempt, Member
from edgeship_agent.update.disk import Disk, digest_of_file
from edgeship_agent.update.download import Blob, BlobStore, Downloader
from edgeship_agent.update.journal import Journal
from edgeship_agent.update.launcher import Finished, Launcher
from edgeship_agent.update.offer import DeviceFacts
from edgeship_agent.update.parts import Pace, Parts
from edgeship_agent.update.ports import Activation, ReplayOutcome
from edgeship_agent.update.probation import Observation
from edgeship_agent.update.slots import Slot, Slots, read_slot, verify_slot, verify_whole
from edgeship_agent.update.state import StateFile
from edgeship_agent.update.traffic import MAIN_ARM, Traffic, arms_of
from edgeship_agent.update.trust import TrustedSource, TrustRequest, fetch_verified, read_public_key
from edgeship_agent.update.updater import Updater
from tests.agents import DEVICE, TARGET, Depot
from tests.power_loss import RecordingDisk

NOWHERE = "http://127.0.0.1:9"
_RUNTIMES = installed_runtimes()
_FINGERPRINTS: dict[str, dict[str, str]] = {}


def known_fingerprint(runtime: str) -> dict[str, str]:
    """The real fingerprint of this machine, asked for once."""
    if runtime not in _FINGERPRINTS:
        _FINGERPRINTS[runtime] = fingerprint(runtime)
    return _FINGERPRINTS[runtime]


class RememberingLauncher(Launcher):
    """Makes the real golden check in a process of its own, once for every content of a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[bytes, Finished] = {}

    def run(self, module: str, arguments: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Finished:
        content = content_of(Path(arguments[1]))
        if content not in self.known:
            self.known[content] = super().run(module, arguments, stdin=stdin, timeout_s=timeout_s)
        return self.known[content]


def content_of(directory: Path) -> bytes:
    """What a slot holds, as a hash."""
    sha256 = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != "checked.json":
            sha256.update(f"{path.relative_to(directory)} {digest_of_file(path)}\n".encode())
    return sha256.digest()


class Serving:
    """Workers within this process: they load what hashes to what was signed, and answer as a healthy model does.

    Args:
        stops: digests of bundles that show a hard stop in the field.
    """

    def __init__(self, stops: set[str]) -> None:
        self.loaded: dict[tuple[str, str], str] = {}
        self._stops = stops

    def serve(self, slots: Mapping[ArmKey, Slot | None]) -> Activation:
        wanted = {key: slot for key, slot in slots.items() if slot is not None}
        for (model, _), slot in wanted.items():
            try:
                verify_slot(slot)
            except VerificationError as error:
                return Activation(ok=False, reason="load", detail=error.sentence(), model=model)
        for key in slots:
            self.loaded.pop(key, None)
        self.loaded.update({key: slot.info.digest for key, slot in wanted.items()})
        return Activation(ok=True)

    def observe(self, model: str, arm: str) -> tuple[str, Observation]:
        digest = self.loaded.get((model, arm), "")
        return digest, Observation(inferences=1000, hard_stops=("nan",) if digest in self._stops else ())

    def replay(self, model: str, arm: str, inferences: int) -> ReplayOutcome:
        return ReplayOutcome(answered=(model, arm) in self.loaded, passed=True, inferences=inferences)


class NearTrust(TrustedSource):
    """The real verification, in this process, so that its writes are recorded."""

    disk: Disk
    makes: Callable[[], float]

    def fetch_index(self, digest: str, size_bytes: int, output: Path, floor_s: float) -> None:
        request = TrustRequest(
            root=str(self._root),
            metadata_directory=str(self._directory),
            server_url=self._server_url,
            target=f"bundles/{hex_of(digest)}.json",
            size_bytes=size_bytes,
            output=str(output),
            floor_s=floor_s,
        )
        answer = fetch_verified(request, self.makes(), self.disk)
        if answer.kind != "ok":
            raise VerificationError(answer.detail)
        if isinstance(self.disk, RecordingDisk):
            self.disk.promise("blob", output.relative_to(self.disk.root).as_posix())


class NoTrust(TrustedSource):
    """The server is away."""

    def fetch_index(self, digest: str, size_bytes: int, output: Path, floor_s: float) -> None:
        raise TransferError("the server is away", retryable=True, file=self._server_url)


class PromisingJournal(Journal):
    """Says when a record is relied on."""

    def append(self, *attempts: Attempt) -> None:
        super().append(*attempts)
        if isinstance(self._disk, RecordingDisk):
            for attempt in attempts:
                self._disk.promise("attempt", attempt)

    def mark(self, name: str) -> None:
        super().mark(name)
        if isinstance(self._disk, RecordingDisk):
            self._disk.promise("mark", name)


class PromisingState(StateFile):
    """Says when a fact is relied on."""

    def _write(self, state: Any) -> Any:
        written = super()._write(state)
        if isinstance(self._disk, RecordingDisk):
            self._disk.promise("state", written)
        return written


class PromisingSlots(Slots):
    """Says what an arm may get from here on, what it gets for certain, and which arms may lose their model."""

    def switch(self, slots: Iterable[Slot], withdrawn: Iterable[ArmKey] = ()) -> None:
        leaving = list(withdrawn)
        if isinstance(self._disk, RecordingDisk):
            self._disk.promise("withdraw", [key_of(*key) for key in leaving])
        super().switch(slots, leaving)

    def set_traffic(self, model: str, arm: str, traffic: Traffic) -> None:
        self._say("change_traffic", model, arm, traffic)
        super().set_traffic(model, arm, traffic)
        self._say("traffic", model, arm, traffic)

    def _say(self, what: str, model: str, arm: str, traffic: Traffic) -> None:
        if isinstance(self._disk, RecordingDisk) and arm != MAIN_ARM:
            self._disk.promise(what, (key_of(model, arm), traffic))


class OlderSlots(PromisingSlots):
    """As an agent of the minor version before kept them: a link for each arm, and no pointer."""

    def settle(self, *, was_older: bool) -> None:
        pass

    def _pointer(self) -> Pointer:
        return self._of_links()

    def _write_pointer(self, pointer: Pointer) -> None:
        pass


@contextlib.contextmanager
def older_agent() -> Iterator[None]:
    """Devices that are switched on are of the minor version before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "slots_type", OlderSlots)
        patch.setattr(journal_module, "JOURNAL_MINOR", 0)
        yield


class PromisingDownloader(Downloader):
    """Says when a blob was paid for."""

    def fetch(self, blob: Blob, should_stop: Callable[[], bool] = lambda: False) -> Path:
        path = super().fetch(blob, should_stop)
        disk = self._store.disk
        if isinstance(disk, RecordingDisk):
            disk.promise("blob", path.relative_to(disk.root).as_posix())
        return path


@dataclass
class Device:
    """The state directory and everything that works in it, as ``edgeship-agent run`` puts it together."""

    root: Path
    disk: Disk
    launcher: RememberingLauncher
    depot: Depot | None
    keys: Path
    stops: set[str]
    compact_bytes: int = 1 << 20
    said: list[str] = field(default_factory=list)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)
    why_wait: Callable[[], tuple[str, str]] = lambda: ("", "")
    memory_bytes: int = 0
    disk_free_bytes: int = 1 << 40
    slots_type: ClassVar[type[PromisingSlots]] = PromisingSlots

    def __post_init__(self) -> None:
        state_dir = self.root / "state"
        self.disk.make_folders(state_dir)
        self.state = PromisingState(state_dir / "state.json", self.disk)
        self.slots = self.slots_type(state_dir / "slots", self.disk)
        self.store = BlobStore(state_dir / "store", self.disk)
        self.journal = PromisingJournal(state_dir / "journal.log", compact_bytes=self.compact_bytes, disk=self.disk)
        self.slots.settle(was_older=self.journal.was_older)
        self.workers = Serving(self.stops)
        self.activator = Activator(self.slots, self.workers, self.launcher, known_fingerprint, ticking())
        for slot in slots_to_serve(
            self.slots,
            self.activator,
            lambda event, **_: self.said.append(event) if event != "fingerprint_changed" else None,
        ):
            self.workers.serve({(slot.info.model, slot.info.arm): slot})
            self.traffic[key_of(slot.info.model, slot.info.arm)] = slot.traffic
        url = self.depot.url if self.depot else NOWHERE
        kind = NearTrust if self.depot else NoTrust
        trusted = kind(self.keys / "root.json", self.root.parent / "tuf", url, self.launcher)
        if isinstance(trusted, NearTrust):
            trusted.disk, trusted.makes = self.disk, lambda: 0.0
        downloader = PromisingDownloader(url, self.store, lambda: 0.0)
        self.updater = Updater(
            Parts(
                journal=self.journal,
                slots=self.slots,
                store=self.store,
                state=self.state,
                acquirer=Acquirer(self.store, downloader, trusted, self.facts),
                activator=self.activator,
                publish=lambda attempt: self.published.append(attempt.state.value),
                why_wait=self.why_wait,
                pace=Pace(attempts=1, retry_s=0.0),
                clock=lambda: 0.0,
                rng=random.Random(0),
            )
        )
        self.desk = GoalDesk(DEVICE, read_public_key(self.keys / "goal.pub"), self.state, lambda: 0.0)

    def facts(self) -> DeviceFacts:
        """What it is and has; a memory of 0 is one that nobody knows."""
        return DeviceFacts(
            target=TARGET,
            arch=architecture(),
            runtimes=_RUNTIMES,
            memory_bytes=self.memory_bytes,
            disk_free_bytes=self.disk_free_bytes,
            accepts={},
        )

    def take(self, goal: bytes) -> GoalState:
        """A goal comes in and is followed to its end."""
        taken = self.desk.receive(goal)
        assert isinstance(taken, GoalState), taken
        self.updater.submit(taken)
        self.updater.follow(taken)
        if isinstance(self.disk, RecordingDisk):
            named = {key_of(model.model, arm) for model in taken.models for arm, _ in arms_of(model)}
            self.disk.promise("followed", named)
        return taken

    def off(self) -> None:
        self.journal.close()


def key_of(model: str, arm: str) -> str:
    """What everything is kept by: the model, and an arm beside the main one."""
    return model if arm == MAIN_ARM else f"{model}/{arm}"


def ticking() -> Callable[[], float]:
    """A clock on which every look takes a second: nothing waits for ever."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


@dataclass(frozen=True)
class Found:
    """What a device that was switched on again has; ``problem`` is what kept it from starting."""

    problem: str = ""
    served: dict[str, str] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    whole: dict[str, frozenset[str]] = field(default_factory=dict)
    attempts: dict[Any, Attempt] = field(default_factory=dict)
    clean: bool = False
    state: Any = None
    blobs: frozenset[str] = frozenset()
    ends: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()
    older: dict[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()


def older_view(root: Path) -> dict[str, str]:
    """What an agent would serve that knows links alone, and nothing of the pointer."""
    found = {}
    for folder in (root / "state" / "slots").glob("*/*/"):
        link = folder / "active"
        names = [str(link.readlink())] if link.is_symlink() else []
        if names and folder.name == MAIN_ARM:
            names.append("a" if names[0] == "b" else "b")
        for slot in filter(None, (read_slot(folder / name) for name in names)):
            try:
                verify_slot(slot)
            except EdgeshipError:
                continue
            found[key_of(slot.info.model, slot.info.arm)] = slot.info.digest
            break
    return found


def switch_on(root: Path, launcher: RememberingLauncher, keys: Path, stops: set[str]) -> Found:
    """Boot from what a power cut left, without any network, look round, then finish what was interrupted."""
    older = older_view(root)
    try:
        device = Device(root, Disk(), launcher, None, keys, stops)
    except (EdgeshipError, OSError) as error:
        return Found(problem=f"does not start: {error}")
    served = {key_of(*arm): digest for arm, digest in device.workers.loaded.items()}
    whole: dict[str, set[str]] = {}
    for slot in device.slots.all():
        try:
            verify_whole(slot)
        except EdgeshipError:
            continue
        whole.setdefault(key_of(slot.info.model, slot.info.arm), set()).add(slot.info.digest)
    facts_before = {
        "served": served,
        "older": older,
        "traffic": dict(device.traffic),
        "whole": {model: frozenset(digests) for model, digests in whole.items()},
        "attempts": {attempt.key: attempt for attempt in device.journal.attempts()},
        "clean": device.journal.stopped_cleanly,
        "said": tuple(device.said),
        "state": device.state.now,
        "blobs": frozenset(
            f"state/store/blobs/sha256/{path.name}"
            for path in device.store.blobs.iterdir()
            if digest_of_file(path) == f"sha256:{path.name}"
        ),
    }
    try:
        device.updater.resume()
    except (EdgeshipError, OSError) as error:
        return Found(**{**facts_before, "problem": f"cannot go on: {error}"})
    finally:
        device.off()
    return Found(
        **facts_before,
        ends={key_of(*arm): digest for arm, digest in device.workers.loaded.items()},
        told={
            key_of(a.model, a.arm): a.digest if a.state is UpdateState.COMMITTED else a.previous_digest
            for a in device.journal.attempts()
        },
        unfinished=tuple(a.state.value for a in device.journal.attempts() if not a.state.is_terminal),
    )


@dataclass
class Promised:
    """What the code relied on at some moment, folded from the log."""

    attempts: dict[Any, Attempt] = field(default_factory=dict)
    clean: bool | None = None
    state: Any = None
    blobs: set[str] = field(default_factory=set)
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    settled: dict[str, str] = field(default_factory=dict)
    both: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    traffic: dict[str, tuple[Traffic, ...]] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    release: dict[str, tuple[str, str]] = field(default_factory=dict)

    def take(self, what: str, name: str, value: Any) -> None:
        """Fold one entry of the log in."""
        if what == "promise":
            getattr(self, f"_{name}")(value)
        elif what == "write" and name == "state/journal.log":
            self.clean = None  # the next mark may be there already
        elif what == "unlink":
            self.blobs.discard(name)

    def _withdraw(self, leaving: list[str]) -> None:
        for model in leaving:
            self.allowed[model] = (*self.allowed.get(model, ()), "")

    def _mark(self, value: str) -> None:
        self.clean = value == "clean_stop"

    def _state(self, value: Any) -> None:
        self.state = value

    def _new_journal(self, _: None) -> None:
        self.attempts, self.clean = {}, None

    def _blob(self, value: str) -> None:
        self.blobs.add(value)

    def _change_traffic(self, value: tuple[str, Traffic]) -> None:
        self.traffic[value[0]] = (*self.traffic.get(value[0], ()), value[1])

    def _traffic(self, value: tuple[str, Traffic]) -> None:
        self.traffic[value[0]] = (value[1],)

    def _followed(self, named: set[str]) -> None:
        for model in set(self.settled) - named:
            self.settled[model] = ""
            self.allowed[model] = ("",)
            self.both.pop(model, None)

    def _attempt(self, attempt: Attempt) -> None:
        self.attempts[attempt.key] = attempt
        self.clean = False
        model, new, old = key_of(attempt.model, attempt.arm), attempt.digest, attempt.previous_digest
        state = attempt.state
        if attempt.members != self.members or model not in [member.model for member in self.members]:
            self.members, self.release = attempt.members, {}
        self.release[model] = (old, new)
        settled = self.settled.setdefault(model, "")
        if state in (UpdateState.ACTIVATING, UpdateState.ROLLING_BACK):
            self.allowed[model] = (old, new)
            self.both.pop(model, None)
            self.rejected.pop(model, None)
        elif state in (UpdateState.PROBATION, UpdateState.COMMITTED):
            self.allowed[model] = (new,)
            self.both[model] = tuple(digest for digest in (old, new) if digest)
        elif state is UpdateState.ROLLED_BACK:
            self.allowed[model] = (old,)
            self.rejected[model] = new
        else:
            self.allowed.setdefault(model, (settled,))
        if state in (UpdateState.COMMITTED, UpdateState.ROLLED_BACK):
            self.settled[model] = new if state is UpdateState.COMMITTED else old

    def broken_by(self, found: Found) -> str:
        """The first promise that a device does not keep; empty for none."""
        if found.problem or found.said:
            return found.problem or f"a slot that a pointer names is not whole: {found.said}"
        problem = self._models_broken_by(found)
        if problem:
            return problem
        for model, digests in self.both.items():
            if not found.whole.get(model, frozenset()).issuperset(digests):
                return f"{model}: {digests} are not both whole"
        for model, digest in self.rejected.items():
            if digest in found.whole.get(model, frozenset()):
                return f"{model}: what failed is still in a slot"
        for arm, traffic in found.traffic.items():
            if arm in self.traffic and traffic not in self.traffic[arm]:
                return f"{arm}: gets {traffic}, not one of {self.traffic[arm]}"
        return self._records_broken_by(found)

    def _models_broken_by(self, found: Found) -> str:
        for model, allowed in self.allowed.items():
            if found.older.get(model, "") not in allowed:
                return f"{model}: an older agent would serve {found.older.get(model)}, not one of {allowed}"
            if found.served.get(model, "") not in allowed:
                return f"{model}: serves {found.served.get(model)}, not one of {allowed}"
            ends = found.ends.get(model, "")
            may_be_none = not self.settled[model] or "" in allowed
            if ends not in (found.told.get(model), found.served.get(model, "")) or not (ends or may_be_none):
                return f"{model}: ends with {ends}, its journal with {found.told.get(model)}"
        for what in (found.served, found.ends):
            sides = {(old, new).index(what.get(model, "")) for model, (old, new) in self.release.items() if old != new}
            if len(sides) > 1:
                return f"a release is mixed: {what}, of {self.release}"
        return ""

    def _records_broken_by(self, found: Found) -> str:
        for key, attempt in self.attempts.items():
            kept = found.attempts.get(key)
            if kept is None or (kept.seq, kept.transitions, kept.crashes) < (
                attempt.seq,
                attempt.transitions,
                attempt.crashes,
            ):
                return f"the journal forgot {attempt.state.value} of {attempt.deployment}"
        if self.clean is not None and found.clean is not self.clean:
            return "the journal forgot how the agent stopped"
        if self.state is not None and (
            found.state.session < self.state.session
            or found.state.goal_generation < self.state.goal_generation
            or found.state.time_floor_s < self.state.time_floor_s
            or len(found.state.bad_pairs) < len(self.state.bad_pairs)
            or found.state.unclean_ends < self.state.unclean_ends
        ):
            return "state.json forgot something"
        if not found.blobs.issuperset(self.blobs):
            return "a blob that was complete has to be downloaded again"
        return "" if not found.unfinished else f"goes on for ever in {found.unfinished}"
