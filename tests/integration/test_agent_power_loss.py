"""The power goes at any moment: every state that POSIX may leave is built, booted, and serves a verified model."""

from __future__ import annotations

import itertools
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeship_agent.contract.goal import ArmGoal, Probation
from edgeship_agent.update import activation
from tests.agents import Depot, Release, joint_goals, model_goal
from tests.power_device import Device, Found, Promised, RememberingLauncher, older_agent, switch_on
from tests.power_loss import Change, Count, CrashState, RecordingDisk, build, crash_states, kill_states

AT_ONCE = Probation(inferences=1, duration_s=0.0, deadline_s=60.0)
SEED = 20261125
#: Syncs whose absence is looked for in the short run; of a life whose code others have too, only what is new in it.
ONLY = {
    **dict.fromkeys(("updates", "beginnings", "arms"), ("",)),
    "joint": ("Slots._write_pointer", "Slots._keep_links", "Journal._write"),
}
LIVES = ["updates", "beginnings", "downgrade", "older", "arms", "joint"]


@dataclass
class Life:
    """A recorded life of a device."""

    log: list[Change]
    keys: Path
    stops: set[str]


class World:
    """A depot with releases, and lives that were recorded with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.depot = Depot(folder / "depot")
        self.launcher = RememberingLauncher()
        self.good, self.better = self.depot.publish("1"), self.depot.publish("2", seed_scale=1.5)
        self.wrong = self.depot.publish("3", seed_scale=2.0, golden_scale=3.0)
        self.failing = self.depot.publish("4", seed_scale=2.5)
        self.small = self.depot.publish("5", seed_scale=1.2, with_fallback=True)
        self.eyes = [self.depot.publish(str(n), model="eye", seed_scale=n) for n in (1, 2, 3)]
        self.ears = [self.depot.publish(str(n), model="ear", seed_scale=n + 3) for n in (1, 2, 3)]
        self.keys = self.depot.root.parent
        self.stops = {self.failing.digest, self.ears[2].digest}
        self._known: dict[bytes, Found] = {}

    def record(self, name: str, *, may_link: bool) -> tuple[RecordingDisk, Path]:
        root = self.folder / name / "device"
        root.mkdir(parents=True)
        return RecordingDisk(root, may_link=may_link), root

    def on(self, disk: RecordingDisk, **options: int) -> Device:
        device = Device(disk.root, disk, self.launcher, self.depot, self.keys, self.stops, **options)
        device.journal.mark("start")
        device.state.next_session()
        return device

    def goal(self, generation: int, release: Release | None, deployment: str = "", **changes: object) -> bytes:
        models = () if release is None else (model_goal(release, deployment, probation=AT_ONCE, **changes),)
        return self.depot.goal(generation, *models)

    def joint(self, generation: int, deployment: str, *releases: Release) -> bytes:
        """Models that switch together."""
        return self.depot.goal(generation, *joint_goals(deployment, *releases, probation=AT_ONCE))

    def arms(self, generation: int, deployment: str, beside: tuple[Release, float] | None, share: float = 1.0) -> bytes:
        """The better release as the main arm, and another beside it: with a part of the calls, or of their copies."""
        arms = [ArmGoal(version="2", digest=self.better.digest, size_bytes=self.better.size_bytes, share=share)]
        if beside is not None:
            release, mirror = beside
            arms.append(ArmGoal(version=release.version, digest=release.digest, size_bytes=release.size_bytes,
                                share=1.0 - share, mirror=mirror))  # fmt: skip
        model = model_goal(self.better, deployment, probation=AT_ONCE, arms=tuple(arms))
        return self.depot.goal(generation, model)

    def boot(self, state: CrashState) -> Found:
        """What a device finds; a state that was booted before is not booted again."""
        found = self._known.get(state.signature)
        if found is None:
            with tempfile.TemporaryDirectory(dir=_quick_folder()) as folder:
                build(state.tree, Path(folder) / "device")
                found = switch_on(Path(folder) / "device", self.launcher, self.keys, self.stops)
            self._known[state.signature] = found
        return found

    def close(self) -> None:
        self.depot.close()


def _quick_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    patch = pytest.MonkeyPatch()
    patch.setattr(activation, "_POLL_S", 0.0)
    world = World(tmp_path_factory.mktemp("power"))
    yield world
    world.close()
    patch.undo()


@pytest.fixture(scope="module")
def updates(world: World) -> Life:
    """Good, better, a clean stop, refused, rolled back, good again, and the fleet's rollback to better."""
    disk, _ = world.record("updates", may_link=True)
    device = world.on(disk)
    device.take(world.goal(1, world.good, "first"))
    device.take(world.goal(2, world.better, "second"))
    device.journal.mark("clean_stop")
    device.off()
    device = world.on(disk, compact_bytes=1)
    device.take(world.goal(3, world.wrong, "third"))
    device.take(world.goal(4, world.failing, "fourth"))
    device.take(world.goal(5, world.good, "fifth"))
    device.take(world.goal(6, world.better, "sixth", is_rollback=True))
    device.off()
    states = [attempt.state.value for attempt in device.journal.attempts()]
    assert states == ["committed", "committed", "rejected", "rolled_back", "committed", "committed"]
    return Life(disk.log, world.keys, world.stops)


@pytest.fixture(scope="module")
def beginnings(world: World) -> Life:
    """A first install that fails, one that holds, a model that is withdrawn; on a disk without hard links."""
    disk, _ = world.record("beginnings", may_link=False)
    device = world.on(disk)
    device.take(world.goal(1, world.failing, "first"))
    device.take(world.goal(2, world.good, "second"))
    device.take(world.goal(3, None))
    device.off()
    assert [attempt.state.value for attempt in device.journal.attempts()] == ["rolled_back", "committed"]
    return Life(disk.log, world.keys, world.stops)


@pytest.fixture(scope="module")
def downgrade(world: World) -> Life:
    """An agent that is older than the journal it finds: the models serve on, updates go on."""
    disk, root = world.record("downgrade", may_link=True)
    device = world.on(disk)
    device.take(world.goal(1, world.good, "first"))
    device.state.change(unclean_ends=1)  # moments at which the last record must still be there
    device.off()
    body = b'{"v":2,"kind":"start"}'
    disk.promise("new_journal", None)
    disk.write_atomic(root / "state" / "journal.log", b"%08x %s\n" % (zlib.crc32(body), body))
    device = world.on(disk)
    assert device.journal.set_aside is not None
    device.take(world.goal(2, world.better, "second"))
    device.off()
    return Life(disk.log, world.keys, world.stops)


@pytest.fixture(scope="module")
def older(world: World) -> Life:
    """An agent that knows links alone, then one with a pointer, the older one again, and the newer one once more."""
    disk, _ = world.record("older", may_link=True)
    with older_agent():
        device = world.on(disk)
        device.take(world.goal(1, world.good, "first"))
        device.off()
    device = world.on(disk)
    assert device.workers.loaded == {("digits", "main"): world.good.digest}
    device.take(world.goal(2, world.better, "second"))
    device.off()
    with older_agent():
        device = world.on(disk)
        assert device.workers.loaded == {("digits", "main"): world.better.digest}
        device.take(world.goal(3, world.small, "third"))
        device.off()
    device = world.on(disk)
    assert device.workers.loaded == {("digits", "main"): world.small.digest}
    device.take(world.goal(4, world.good, "fourth"))
    device.off()
    assert [attempt.state.value for attempt in device.journal.attempts()] == ["committed"] * 4
    return Life(disk.log, world.keys, world.stops)


@pytest.fixture(scope="module")
def arms(world: World) -> Life:
    """A challenger, its share changed, one that fails, its end; a shadow, its part changed, and its end."""
    disk, _ = world.record("arms", may_link=True)
    device = world.on(disk)
    device.take(world.arms(1, "first", None))
    device.take(world.arms(2, "second", (world.small, 0.0), 0.75))
    device.take(world.arms(3, "second", (world.small, 0.0), 0.5))
    device.journal.mark("clean_stop")  # so that a start that is forgotten is a lie
    device.state.change(unclean_ends=1)  # moments at which that record must still be there
    device.off()
    device = world.on(disk)
    assert device.traffic["digits/b"].share == 0.5
    device.take(world.arms(4, "fourth", (world.failing, 0.0), 0.75))
    device.take(world.arms(5, "fifth", None))
    device.take(world.arms(6, "sixth", (world.good, 0.5)))
    device.take(world.arms(7, "sixth", (world.good, 0.25)))
    device.take(world.arms(8, "eighth", None))
    device.off()
    ends = {(attempt.deployment, attempt.arm): attempt.state.value for attempt in device.journal.attempts()}
    new = {arm: end for arm, end in ends.items() if arm[1] != "main" or arm[0] == "first"}
    assert new == {
        ("first", "main"): "committed",
        ("second", "b"): "committed",
        ("fourth", "b"): "rolled_back",
        ("sixth", "shadow"): "committed",
    }
    return Life(disk.log, world.keys, world.stops)


@pytest.fixture(scope="module")
def joint(world: World) -> Life:
    """Two models of one release: they come, they are replaced, the next release fails with the second of them."""
    disk, _ = world.record("joint", may_link=True)
    device = world.on(disk)
    for number, deployment in enumerate(("first", "second", "third")):
        device.take(world.joint(number + 1, deployment, world.eyes[number], world.ears[number]))
    device.off()
    ends = {(attempt.deployment, attempt.model): attempt for attempt in device.journal.attempts()}
    assert [ends[name, "ear"].state.value for name in ("first", "second", "third")] == [
        "committed",
        "committed",
        "rolled_back",
    ]
    assert {(ends["third", model].state.value, ends["third", model].reason) for model in ("eye", "ear")} == {
        ("rolled_back", "release_member"),
        ("rolled_back", "nan"),
    }
    return Life(disk.log, world.keys, world.stops)


def broken(world: World, life: Life, states: Iterator[CrashState]) -> Iterator[str]:
    """What states break, each with its place in the log."""
    promised, folded = Promised(), 0
    for state in states:
        for change in life.log[folded : state.position]:
            promised.take(change.what, change.path, change.argument)
        folded = max(folded, state.position)
        problem = promised.broken_by(world.boot(state))
        if problem:
            yield f"{problem} [before change {state.position} of {len(life.log)}]"


def syncs(life: Life) -> dict[int, str]:
    """Where the log has a sync, and the code that asked for it."""
    own = Path(__file__).name
    made = {number: change.site for number, change in enumerate(life.log) if change.what == "sync"}
    wanted = {n: site for n, site in made.items() if not site.startswith(own) and not is_refused_later(life, n)}
    return {n: site for n, site in wanted.items() if not is_made_again(life, n, site)}


def is_made_again(life: Life, position: int, site: str) -> bool:
    """Whether the same folder is synced again before anything relies on it; elsewhere the same line is missed.

    So is what the pointer holds, where models are switched together.
    ``traffic.json`` syncs the folder of an arm beside the main one once more, and so does the slot of what failed when
    it is emptied right after a link went back. The folder of a model that is new is certain with the next model's, or
    with the pointer to it. Where there was no pointer before and there is one model, its link says what the first one
    would have said.
    """
    path = life.log[position].path
    if "_write_pointer" in site and not has_releases(life):
        before = (change.site for change in life.log[:position] if change.what == "sync" and change.path == path)
        return "(write)" in site or not any("_write_pointer" in each for each in before)
    if "_write_pointer" in site:
        return False
    if "Slots.stage make_folders" in site and path.endswith("/slots"):
        after = (change.site for change in life.log[position + 1 :] if change.what == "sync" and change.path == path)
        return not has_releases(life) or "make_folders" in next(after, "")
    if "_keep_links" in site:
        rest = itertools.takewhile(lambda change: change.what != "promise", life.log[position + 1 :])
        return any(change.what == "sync" and change.path == path for change in rest)
    return "install_staged" in site and not path.endswith("/main")


def has_releases(life: Life) -> bool:
    """Whether several models were switched at once: only then a pointer that cannot be read is no loss but a danger.

    Of one model the link says the same; the links of two may be half way.
    """
    return (
        len(
            {
                change.path.split("/")[2]
                for change in life.log
                if change.path.count("/") > 2 and "/slots/" in change.path
            }
        )
        > 1
    )


def is_refused_later(life: Life, position: int) -> bool:
    """Whether what was synced lies in a staging folder that never became a slot: its golden inputs failed."""
    staging, found, _ = life.log[position].path.partition("/staging")
    if not found:
        return False
    fates = (c.what for c in life.log[position:] if c.path == f"{staging}/staging" and c.what in ("rename", "unlink"))
    return next(fates, "unlink") == "unlink"


def check_every_state(world: World, life: Life, limit: int) -> Count:
    count = Count()
    problems = list(broken(world, life, crash_states(life.log, limit=limit, seed=SEED, count=count)))
    print(f"\n{count.built} of {count.possible:.3g} states at {count.points} points, {len(problems)} broken")
    assert not problems, "\n".join(problems[:20])
    return count


def unnoticed(world: World, life: Life, positions: list[int], limit: int) -> list[str]:
    """The syncs whose absence no state shows."""
    quiet = []
    for position in positions:
        states = crash_states(life.log, limit=limit, seed=SEED, count=Count(), dropped=position)
        if next(broken(world, life, states), None) is None:
            quiet.append(f"{position}: {life.log[position].site} {life.log[position].path}")
    return quiet


@pytest.mark.parametrize("name", LIVES)
def test_every_state_serves_a_verified_model(world: World, name: str, request: pytest.FixtureRequest) -> None:
    check_every_state(world, request.getfixturevalue(name), limit=2)


@pytest.mark.parametrize("name", ["updates", "beginnings", "arms", "joint"])
def test_no_sync_in_the_code_can_go(world: World, name: str, request: pytest.FixtureRequest) -> None:
    life: Life = request.getfixturevalue(name)
    last = {site: position for position, site in syncs(life).items() if any(part in site for part in ONLY[name])}
    quiet = unnoticed(world, life, sorted(last.values()), limit=40)
    assert not quiet, "\n".join(quiet)


@pytest.mark.parametrize("name", LIVES)
def test_a_kill_before_some_changes_leaves_a_verified_model(
    world: World, name: str, request: pytest.FixtureRequest
) -> None:
    life: Life = request.getfixturevalue(name)
    states = itertools.islice(kill_states(life.log), SEED % 13, None, 13)
    assert list(broken(world, life, states)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LIVES)
def test_a_kill_before_any_change_leaves_a_verified_model(
    world: World, name: str, request: pytest.FixtureRequest
) -> None:
    life: Life = request.getfixturevalue(name)
    assert list(broken(world, life, kill_states(life.log))) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LIVES)
def test_many_states_serve_a_verified_model(world: World, name: str, request: pytest.FixtureRequest) -> None:
    check_every_state(world, request.getfixturevalue(name), limit=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in LIVES if name != "older"])  # its first pointer says what links say
def test_no_sync_that_was_made_can_go(world: World, name: str, request: pytest.FixtureRequest) -> None:
    life: Life = request.getfixturevalue(name)
    quiet = unnoticed(world, life, sorted(syncs(life)), limit=100)
    print(f"\n{len(syncs(life))} syncs, {len(quiet)} not noticed")
    assert not quiet, "\n".join(quiet)
