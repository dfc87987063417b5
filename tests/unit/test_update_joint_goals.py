"""A newer goal at every moment of an update of two models: they end alike, and nobody ever serves a mixed pair."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

from edgeship_agent.contract.errors import VerificationError
from edgeship_agent.contract.goal import GoalState, ModelGoal, Probation
from edgeship_agent.contract.messages import UpdateState
from edgeship_agent.contract.pointer import ArmKey, Pointer
from edgeship_agent.serving import golden
from edgeship_agent.serving.library import LocalModel
from edgeship_agent.update import activation
from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.disk import Disk, OpenFile
from edgeship_agent.update.launcher import Finished
from edgeship_agent.update.probation import Observation
from edgeship_agent.update.slots import Slots
from tests.agents import Depot, Release, joint_goals, model_goal, until
from tests.conformance.slots import images
from tests.power_device import Device, RememberingLauncher, content_of

S = UpdateState
MODELS: Final = ("ear", "eye")
PROBATION: Final = Probation(inferences=20, duration_s=3.0, deadline_s=60.0)
#: Snapshots that an update of two models is told in: both accepted, four each until both are staged, three for both.
MOMENTS: Final = 16
STAGED: Final = 10


class Died(Exception):
    """The agent ends here, whatever it was about to do."""


class NearLauncher(RememberingLauncher):
    """Makes the real golden check in this process, once for every content of a slot."""

    def run(self, module: str, arguments: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Finished:
        directory = Path(arguments[1])
        content = content_of(directory)
        if content not in self.known:
            output = msgspec.json.encode(golden.check_slot(directory))
            self.known[content] = Finished(return_code=0, output=output, errors=b"")
        return self.known[content]


class Told:
    """Hears of every step of an update, looks what is served, and does something at one of them."""

    def __init__(self) -> None:
        self.device: Device | None = None
        self.seen: list[frozenset[str]] = []
        self.at = 0
        self.action: Callable[[], None] = lambda: None

    def append(self, _: str) -> None:
        """Takes the place of the list in which a device notes what it published."""
        assert self.device is not None
        self.seen.append(frozenset(self.device.workers.loaded.values()))
        if len(self.seen) == self.at:
            self.action()

    def listen(self, at: int, action: Callable[[], None]) -> None:
        self.seen, self.at, self.action = [], at, action


class Bench:
    """A device on which version 1 of both models is committed."""

    def __init__(self, folder: Path) -> None:
        self.depot = Depot(folder / "depot")
        self.lines = {
            number: [self.depot.publish(number, model=model, seed_scale=sign * float(number))
                     for model, sign in zip(MODELS, (1.0, -1.0), strict=True)]
            for number in ("1", "2", "3")
        }  # fmt: skip
        self.generation = 0
        self.told = Told()
        self._folder, self._launcher = folder / "device", NearLauncher()
        self.device = self._switch_on()
        self.follow(self.joint("first", "1"))

    def _switch_on(self) -> Device:
        device = Device(self._folder, Disk(), self._launcher, self.depot, self.depot.root.parent, set())
        device.published = self.told  # type: ignore[assignment]
        self.told.device = device
        return device

    def switch_on_again(self) -> None:
        """As after the death of the process: what it had taken down goes on."""
        self.device.off()
        self.device = self._switch_on()
        remembered = self.device.desk.remembered()
        assert remembered is not None
        self.device.updater.submit(remembered)

    def joint(self, deployment: str, number: str, **changes: object) -> list[ModelGoal]:
        return joint_goals(deployment, *self.lines[number], **{"probation": PROBATION, **changes})

    def goal(self, models: list[ModelGoal]) -> GoalState:
        """The next goal, taken at the door but not followed yet."""
        self.generation += 1
        signed = self.depot.goal(self.generation, *models)
        goal = self.device.desk.receive(signed)
        assert isinstance(goal, GoalState), goal
        return goal

    def follow(self, models: list[ModelGoal]) -> None:
        goal = self.goal(models)
        self.device.updater.submit(goal)
        self.device.updater.follow(goal)

    def interrupt(self, first: list[ModelGoal], moment: int, second: list[ModelGoal]) -> None:
        """Follow a goal, have another one come in at a moment of it, and follow that one to its end."""
        goals = [self.goal(first)]

        def come_in() -> None:
            goals.append(self.goal(second))
            self.device.updater.submit(goals[-1])

        self.told.listen(moment, come_in)
        self.device.updater.submit(goals[0])
        self.device.updater.follow(goals[0])
        assert len(goals) == 2, f"there are only {len(self.told.seen)} moments"
        self.device.updater.follow(goals[1])

    def attempts(self, deployment: str) -> dict[str, Attempt]:
        return {each.model: each for each in self.device.journal.attempts() if each.deployment == deployment}

    def serves(self) -> dict[str, str]:
        """Model → version that answers."""
        versions = {each.digest: each.version for line in self.lines.values() for each in line}
        return {model: versions[digest] for (model, _), digest in self.device.workers.loaded.items()}

    def pairs(self, *numbers: str) -> set[frozenset[str]]:
        return {frozenset(each.digest for each in self.lines[number]) for number in numbers}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activation, "_POLL_S", 0.0005)
        patch.setattr(os, "fsync", lambda _: None)  # processes die here, the power stays
        bench = Bench(tmp_path_factory.mktemp("joint"))
        yield bench
        bench.device.off()
        bench.depot.close()


def alone(release: Release, deployment: str) -> ModelGoal:
    return model_goal(release, deployment, probation=PROBATION)


def ends(bench: Bench, deployment: str) -> set[tuple[UpdateState, str]]:
    """How both ended, and why: one pair where they ended alike."""
    found = bench.attempts(deployment)
    assert set(found) == set(MODELS)
    return {(each.state, each.reason) for each in found.values()}


@pytest.mark.parametrize(
    "moment", [1, 2, 3, 5, 6, 8, 9, STAGED, STAGED + 1, STAGED + 2, STAGED + 4, MOMENTS - 1, MOMENTS]
)
def test_a_newer_release_ends_both_or_neither(bench: Bench, moment: int) -> None:
    deployment = f"newer-{moment}"
    bench.interrupt(bench.joint(deployment, "2"), moment, bench.joint(f"{deployment}-3", "3"))
    expected = (S.SUPERSEDED, "superseded") if moment <= STAGED else (S.COMMITTED, "")
    assert ends(bench, deployment) == {expected}
    assert ends(bench, f"{deployment}-3") == {(S.COMMITTED, "")}
    assert bench.serves() == {"ear": "3", "eye": "3"}
    assert set(bench.told.seen) <= bench.pairs("1", "2", "3")
    bench.follow(bench.joint(f"{deployment}-1", "1"))


@pytest.mark.parametrize("moment", [1, 4, STAGED - 1, STAGED, STAGED + 1, MOMENTS - 2, MOMENTS])
def test_a_cancel_ends_both_alike(bench: Bench, moment: int) -> None:
    """The server asks for what was there before: nothing to do before the switch, a way back for both after it."""
    deployment = f"cancel-{moment}"
    bench.interrupt(bench.joint(deployment, "2"), moment, bench.joint(f"{deployment}-1", "1", is_rollback=True))
    expected = (S.CANCELED, "canceled") if moment <= STAGED else (S.ROLLED_BACK, "rollback_requested")
    assert ends(bench, deployment) == {expected if moment < MOMENTS else (S.COMMITTED, "")}
    reason = "already_running" if moment < MOMENTS else ""
    assert ends(bench, f"{deployment}-1") == {(S.COMMITTED, reason)}
    assert bench.serves() == {"ear": "1", "eye": "1"}
    assert set(bench.told.seen) <= bench.pairs("1", "2")


@pytest.mark.parametrize("moment", [2, 5, STAGED, STAGED + 2, MOMENTS - 2])
def test_a_goal_without_them_takes_both_away(bench: Bench, moment: int) -> None:
    deployment = f"without-{moment}"
    bench.interrupt(bench.joint(deployment, "2"), moment, [])
    expected = (S.SUPERSEDED, "superseded") if moment <= STAGED else (S.ROLLED_BACK, "rollback_requested")
    assert ends(bench, deployment) == {expected}
    assert bench.serves() == {}
    assert set(bench.told.seen) <= bench.pairs("1", "2")
    bench.follow(bench.joint(f"{deployment}-1", "1"))


@pytest.mark.parametrize("moment", [1, 4, 7, STAGED, STAGED + 1])
def test_another_version_of_one_of_them_is_another_release(bench: Bench, moment: int) -> None:
    """For ``eye`` the newer goal asks for what is served already, for ``ear`` it does not: both are superseded."""
    deployment = f"half-{moment}"
    (ear, _), (_, eye) = bench.lines["3"], bench.lines["1"]
    second = joint_goals(f"{deployment}-3", ear, eye, probation=PROBATION)
    bench.interrupt(bench.joint(deployment, "2"), moment, second)
    expected = (S.SUPERSEDED, "superseded") if moment <= STAGED else (S.COMMITTED, "")
    assert ends(bench, deployment) == {expected}
    assert bench.serves() == {"ear": "3", "eye": "1"}
    assert set(bench.told.seen) <= {*bench.pairs("1", "2"), frozenset({ear.digest, eye.digest})}
    bench.follow(bench.joint(f"{deployment}-1", "1"))


@pytest.mark.parametrize("moment", [1, 8, STAGED, STAGED + 1])
def test_what_stands_alone_now_begins_anew(bench: Bench, moment: int) -> None:
    """A rollout of ``ear`` alone takes it out of a release; of ``eye`` the same is asked for as before."""
    deployment = f"shrunk-{moment}"
    ear, eye = bench.lines["3"][0], bench.lines["2"][1]
    second = [alone(ear, f"{deployment}-3"), *joint_goals(deployment, eye, probation=PROBATION)]
    bench.interrupt(bench.joint(deployment, "2"), moment, second)
    found = bench.attempts(deployment)
    assert found["ear"].state is (S.SUPERSEDED if moment <= STAGED else S.COMMITTED)
    assert found["eye"].state is S.COMMITTED
    assert len(found["eye"].members) == (1 if moment <= STAGED else 2)
    assert bench.serves() == {"ear": "3", "eye": "2"}
    bench.follow(bench.joint(f"{deployment}-1", "1"))


@pytest.mark.parametrize("moment", [1, 5, STAGED, STAGED + 1, STAGED + 3])
def test_a_death_right_after_the_newer_goal_ends_both_alike(bench: Bench, moment: int) -> None:
    """The goal is on the disk, the end of the attempts is not."""
    deployment = f"dead-{moment}"
    goals = [bench.goal(bench.joint(deployment, "2"))]

    def die() -> None:
        goals.append(bench.goal(bench.joint(f"{deployment}-3", "3")))
        raise Died

    bench.told.listen(moment, die)
    bench.device.updater.submit(goals[0])
    with pytest.raises(Died):
        bench.device.updater.follow(goals[0])
    bench.switch_on_again()
    bench.device.updater.resume()
    bench.device.updater.follow(goals[1])
    expected = (S.SUPERSEDED, "superseded") if moment <= STAGED else (S.COMMITTED, "")
    assert ends(bench, deployment) == {expected}
    assert bench.serves() == {"ear": "3", "eye": "3"}
    assert set(bench.told.seen) <= bench.pairs("1", "2", "3")
    bench.follow(bench.joint(f"{deployment}-1", "1"))


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", ["2", ""], ids=["the journal is the first to be written", "the pointer is"])
def test_a_goal_that_a_full_disk_kept_from_its_end_is_followed_again(bench: Bench, number: str) -> None:
    """Taken down, nothing else: no server sends it again; the updater's thread begins anew after a pause."""
    deployment = f"full-{number}"
    updater = bench.device.updater
    updater.submit(bench.goal(bench.joint(deployment, number) if number else []))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenFile, "write", full_disk)
        with pytest.raises(OSError, match="No space"):
            updater.run()
    assert bench.serves() == {"ear": "1", "eye": "1"}
    thread = threading.Thread(target=updater.run, daemon=True)
    thread.start()
    try:
        until(lambda: bench.serves() == ({"ear": number, "eye": number} if number else {}), 30.0, "the goal")
        if number:
            until(lambda: ends(bench, deployment) == {(S.COMMITTED, "")}, 30.0, "its end")
    finally:
        updater.stop()
        thread.join(20)
        bench.switch_on_again()
        bench.follow(bench.joint(f"{deployment}-1", "1"))


def test_only_deaths_of_the_agent_count_as_crashes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, whatever disturbs the updater in the same life; a crash of the worker is counted once as well."""
    goal = bench.goal(bench.joint("disturbed", "2"))

    def die() -> None:
        raise Died

    bench.told.listen(MOMENTS - 2, die)
    bench.device.updater.submit(goal)
    with pytest.raises(Died):
        bench.device.updater.follow(goal)
    assert {each.state for each in bench.attempts("disturbed").values()} == {S.PROBATION}
    bench.switch_on_again()
    device = bench.device
    monkeypatch.setattr(device.workers, "replay", full_disk)
    for _ in range(4):
        with pytest.raises(OSError, match="No space"):
            device.updater.resume()
    assert [each.crashes for each in bench.attempts("disturbed").values()] == [1, 1]

    observe = device.workers.observe

    def crashed(model: str, arm: str) -> tuple[str, Observation]:
        digest, seen = observe(model, arm)
        return digest, msgspec.structs.replace(seen, crashes=1)

    monkeypatch.setattr(device.workers, "observe", crashed)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            device.updater.resume()
    monkeypatch.undo()
    monkeypatch.setattr(device.workers, "observe", crashed)
    device.updater.resume()
    assert ends(bench, "disturbed") == {(S.COMMITTED, "")}
    assert [each.crashes for each in bench.attempts("disturbed").values()] == [2, 2]
    monkeypatch.undo()
    device.updater.follow(goal)
    bench.follow(bench.joint("disturbed-1", "1"))


def test_memory_is_asked_for_both_before_either_is_loaded(bench: Bench) -> None:
    """Both workers start side by side, and the old ones serve until both are ready."""
    ear = bench.depot.publish("4", model="ear", seed_scale=4.0, min_memory_bytes=300)
    eye = bench.depot.publish("4", model="eye", seed_scale=-4.0, min_memory_bytes=500)
    bench.lines["4"] = [ear, eye]
    bench.device.memory_bytes = 799
    asked = len(bench.depot.requests)
    bench.follow(bench.joint("large", "4"))
    found = bench.attempts("large")
    assert (found["eye"].state, found["eye"].reason) == (S.REJECTED, "memory")
    assert "need 800 bytes of memory, 500 for this one and 300 for ear, 799 are available" in found["eye"].detail
    assert (found["ear"].state, found["ear"].reason) == (S.FAILED_CLEAN, "release_member")
    assert "eye 4 of the same release: memory: " in found["ear"].detail
    loaded = [path for path, _ in bench.depot.requests[asked:]]
    assert not any(bench.depot.model_blob(each) in path for each in (ear, eye) for path in loaded)
    assert bench.serves() == {"ear": "1", "eye": "1"}

    # a member that runs already starts nothing
    bench.device.memory_bytes = 500
    (old_ear, _) = bench.lines["1"]
    bench.follow(joint_goals("half large", old_ear, eye, probation=PROBATION))
    assert bench.serves() == {"ear": "1", "eye": "4"}
    # one whose bundle is on the disk already starts a worker all the same
    bench.follow(bench.joint("back from large", "1"))
    bench.device.memory_bytes = 799
    bench.follow(bench.joint("large again", "4", attempt=2))
    assert bench.attempts("large again")["ear"].reason == "memory"
    bench.device.memory_bytes = 800
    bench.follow(bench.joint("large at last", "4", attempt=3))
    assert bench.serves() == {"ear": "4", "eye": "4"}
    bench.device.memory_bytes = 0
    bench.follow(bench.joint("back at last", "1"))


def test_disk_is_asked_for_both_before_either_is_loaded(bench: Bench) -> None:
    """Enough for one after the other, as long as nothing of the first lies there."""
    bench.lines["5"] = [
        bench.depot.publish("5", model=model, seed_scale=scale) for model, scale in (("ear", 5.0), ("eye", -5.0))
    ]
    bench.device.disk_free_bytes = 20_000
    bench.follow(bench.joint("wide", "5"))
    found = bench.attempts("wide")
    assert (found["eye"].state, found["eye"].reason) == (S.REJECTED, "disk")
    assert "of them for ear" in found["eye"].detail
    assert found["ear"].state is S.FAILED_CLEAN
    bench.follow([alone(bench.lines["5"][0], "narrow"), alone(bench.lines["5"][1], "narrow")])
    assert bench.serves() == {"ear": "5", "eye": "5"}
    bench.device.disk_free_bytes = 1 << 40
    bench.follow(bench.joint("back from wide", "1"))


def test_models_in_an_application_are_exchanged_together(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's links change one after the other, its pointer at once: only what agrees with it is taken."""
    folders = [bench.device.root / "state" / "slots" / name / "main" for name in MODELS]
    models = [LocalModel.open(folder / "active") for folder in folders]

    def versions() -> list[str]:
        return [model.predict(images(1)[0]).version for model in models]

    def one_by_one(slots: Slots, pointer: Pointer, keys: Iterable[ArmKey]) -> None:
        for key in keys:
            between.append((LocalModel.refresh_together(models), versions()))
            keep_links(slots, pointer, [key])

    between: list[tuple[bool, list[str]]] = []
    keep_links = Slots._keep_links
    monkeypatch.setattr(Slots, "_keep_links", one_by_one)
    bench.follow(bench.joint("in process", "2"))
    assert between == [(False, ["1", "1"])] * 2
    assert LocalModel.refresh_together(models) is True
    assert versions() == ["2", "2"]
    assert LocalModel.refresh_together(models) is False

    bench.follow(bench.joint("in process 3", "3"))
    damaged = folders[1] / "active" / "files" / "model.onnx"
    kept = damaged.read_bytes()
    damaged.write_bytes(b"")
    with pytest.raises(VerificationError):
        LocalModel.refresh_together(models)
    assert versions() == ["2", "2"], "the first one was good, and is not taken alone"
    damaged.write_bytes(kept)
    assert LocalModel.refresh_together(models) is True
    assert versions() == ["3", "3"]

    bench.follow([alone(bench.lines["1"][0], "in process ear")])
    assert LocalModel.refresh_together(models) is False, "one of them is served no longer"
    assert versions() == ["3", "3"]
    bench.follow(bench.joint("in process 1", "1"))
    assert LocalModel.refresh_together(models) is True
    assert versions() == ["1", "1"]
    for model in models:
        model.close()
