"""Two models of one release on a real agent: they switch together, fail together and come back together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct, structs

from edgeship_agent.contract.messages import UpdateReport, UpdateState
from edgeship_agent.serving.client import Client, Prediction
from edgeship_agent.update.journal import Journal
from tests.agents import QUICK, SHORT, AgentProcess, Broker, Depot, Release, ServerSide, joint_goals, model_goal, until
from tests.conformance.slots import images

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("ear", "eye")


class Asked(Struct, frozen=True, kw_only=True):
    """One answer and when it was asked for."""

    model: str
    version: str
    asked_s: float


class Application:
    """Asks both models in turn, all the time, over one connection."""

    def __init__(self, agent: AgentProcess) -> None:
        self.answers: list[Asked] = []
        self.told: list[tuple[float, Prediction]] = []
        self.predictions: dict[str, Prediction] = {}
        self._agent = agent
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with Client(self._agent.socket, 30.0, lambda seen: self.told.append((time.monotonic(), seen))) as client:
            while not self._stopped.wait(0.002):
                for model in MODELS:
                    asked_s = time.monotonic()
                    answer = client.infer(images(1)[0], model=model)
                    assert answer.model == model
                    self.predictions[model] = answer
                    self.answers.append(Asked(model=model, version=answer.version, asked_s=asked_s))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(40)
        assert not self._thread.is_alive()


class World:
    """A device that has committed version 1 of both models, and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.depot = Depot(folder / "depot")
        self.broker = Broker(folder / "broker")
        self.server = ServerSide(self.broker.port)
        self.agent = AgentProcess(folder / "device", self.depot, self.broker.port)
        self.generation = 0
        self.first = self.publish("1", 1.0)
        self.bring("first", self.first)
        self.agent.start()
        assert self.states("first") == {"ear": "committed", "eye": "committed"}

    def publish(self, version: str, scale: float, **of_eye: float) -> list[Release]:
        """A version of both models; ``of_eye`` makes the second one of them a bad one."""
        return [
            self.depot.publish(version, model="ear", seed_scale=scale),
            self.depot.publish(version, model="eye", seed_scale=-scale, **of_eye),
        ]

    def bring(self, deployment: str, releases: list[Release], **changes: object) -> None:
        self.generation += 1
        goals = joint_goals(deployment, *releases, **{"probation": SHORT, **changes})
        self.server.send_goal(self.depot.goal(self.generation, *goals))

    def ends(self, deployment: str) -> dict[str, UpdateReport]:
        """How both ended."""

        def found() -> dict[str, UpdateReport] | None:
            ends = {r.model: r for r in self.server.reports(deployment) if r.state.is_terminal}
            return ends if set(ends) == set(MODELS) else None

        said = [(r.model, r.state.value) for r in self.server.reports(deployment)]
        return until(found, 90.0, f"both ends of {deployment}: {said}")

    def states(self, deployment: str) -> dict[str, str]:
        return {model: end.state.value for model, end in self.ends(deployment).items()}

    def versions(self) -> set[str]:
        """What both models answer with."""
        with self.agent.client() as client:
            return {client.infer(images(1)[0], model=model).version for model in MODELS}

    def close(self) -> None:
        self.agent.stop()
        self.server.close()
        self.broker.kill()
        self.depot.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("releases"))
    yield world
    world.close()


def mixed(applications: list[Application], old: str) -> list[Asked]:
    """Old answers to what was asked after any application had been told of the new release."""
    told_s = min(at_s for application in applications for at_s, _ in application.told)
    answers = [answer for application in applications for answer in application.answers]
    return [answer for answer in answers if answer.version == old and answer.asked_s > told_s]


def test_both_switch_at_once_and_applications_are_told_once(world: World) -> None:
    applications = [Application(world.agent) for _ in range(2)]
    try:
        until(lambda: all(len(application.answers) > 50 for application in applications), 30.0, "answers")
        second = world.publish("2", 1.5)
        world.bring("second", second, probation=QUICK)
        ends = world.ends("second")
        assert {end.state for end in ends.values()} == {UpdateState.COMMITTED}, ends
        assert not any(end.without_field_traffic for end in ends.values())
        for release in second:
            assert ends[release.model].loaded_digest == release.digest
        waited = [r.detail for r in world.server.reports("second") if r.state is UpdateState.STAGED]
        assert waited[0] == "waits for eye of the release line@second"
        counts = [len(application.answers) for application in applications]
        until(lambda: all(len(a.answers) > n + 20 for a, n in zip(applications, counts, strict=True)), 30.0, "answers")
        # a label finds its model, whichever worker takes it
        with world.agent.client() as client:
            for prediction in applications[0].predictions.values():
                assert client.label(prediction.prediction_id, 1)
    finally:
        for application in applications:
            application.stop()
    for application in applications:
        ((_, told),) = application.told
        assert dict(told.release_digests) == {release.model: release.digest for release in second}
        versions = [answer.version for answer in application.answers]
        assert versions == sorted(versions), "never back, never mixed"
    assert mixed(applications, "1") == []


def test_one_that_is_refused_keeps_both(world: World) -> None:
    before = world.versions()
    bad = world.publish("3", 2.0, golden_scale=5.0)
    world.bring("bad", bad)
    ends = world.ends("bad")
    assert (ends["eye"].state, ends["eye"].reason) == (UpdateState.REJECTED, "golden_mismatch")
    assert (ends["ear"].state, ends["ear"].reason) == (UpdateState.FAILED_CLEAN, "release_member")
    assert "eye 3 of the same release: golden_mismatch" in ends["ear"].detail
    assert world.versions() == before
    # what did not fail itself is good for the next release; one that runs already switches nothing
    third = world.depot.publish("4", model="eye", seed_scale=4.0)
    running = [release for release in (*world.first, *world.publish("2", 1.5)) if release.version in before]
    (ear,) = [release for release in running if release.model == "ear"]
    world.bring("half", [ear, third])
    ends = world.ends("half")
    assert (ends["ear"].state, ends["ear"].reason) == (UpdateState.COMMITTED, "already_running")
    assert ends["eye"].state is UpdateState.COMMITTED
    with world.agent.client() as client:
        assert client.infer(images(1)[0], model="eye").version == "4"
        assert client.infer(images(1)[0]).model == "ear", "the first by name, where none is named"


def test_arms_of_a_joint_release_are_refused(world: World) -> None:
    one, other = world.first
    goals = joint_goals("arms", one, other)
    arms = (*model_goal(one).arms, *model_goal(world.first[0]).arms)
    goals[0] = type(goals[0])(**{**{f: getattr(goals[0], f) for f in goals[0].__struct_fields__}, "arms": arms})
    world.generation += 1
    world.server.send_goal(world.depot.goal(world.generation, *goals))
    assert {(end.state, end.reason) for end in world.ends("arms").values()} == {
        (UpdateState.REJECTED, "arms_unsupported")
    }


def test_a_newer_goal_in_a_download_ends_both_at_once(world: World) -> None:
    """The one that is staged already and the one that is being loaded; of one the newer goal asks for what runs."""
    world.bring("base", world.first)
    assert world.states("base") == {"ear": "committed", "eye": "committed"}
    fifth = world.publish("5", 2.5)
    world.depot.stall_blob = world.depot.model_blob(fifth[1])
    try:
        world.bring("loading", fifth)
        until(lambda: any(world.depot.stall_blob in path for path, _ in world.depot.requests), 60.0, "the download")
        ear = world.depot.publish("6", model="ear", seed_scale=6.0)
        world.bring("newer", [ear, world.first[1]])
        assert {(end.state, end.reason) for end in world.ends("loading").values()} == {
            (UpdateState.SUPERSEDED, "superseded")
        }
    finally:
        world.depot.stall_blob = ""
    assert [r.state for r in world.server.reports("loading") if r.model == "ear"][-2:] == [
        UpdateState.STAGED,
        UpdateState.SUPERSEDED,
    ]
    assert world.states("newer") == {"ear": "committed", "eye": "committed"}
    with world.agent.client() as client:
        assert [client.infer(images(1)[0], model=model).version for model in MODELS] == ["6", "1"]


def test_a_cancel_in_probation_takes_both_back_at_once(world: World) -> None:
    world.bring("base again", world.first)
    assert world.states("base again") == {"ear": "committed", "eye": "committed"}
    application = Application(world.agent)
    try:
        long = structs.replace(SHORT, inferences=10**6, duration_s=600.0, deadline_s=600.0)
        world.bring("proving", world.publish("8", 4.5), probation=long)
        until(lambda: {a.version for a in application.answers[-4:]} == {"8"}, 60.0, "answers of the new release")
        until(lambda: world.server.states("proving").count("probation") == 2, 30.0, "the probation of both")
        world.bring("taken back", world.first, is_rollback=True)
        ends = world.ends("proving")
        assert {end.state for end in ends.values()} == {UpdateState.ROLLED_BACK}, ends
        assert "rollback_requested" in {end.reason for end in ends.values()}
        assert world.states("taken back") == {"ear": "committed", "eye": "committed"}
        count = len(application.answers)
        until(lambda: len(application.answers) > count + 20, 30.0, "answers")
    finally:
        application.stop()
    asked = [answer.version for answer in application.answers]
    changes = [version for version, before in zip(asked[1:], asked, strict=False) if version != before]
    assert changes == ["8", "1"], "there once, and back once, for both"


@pytest.mark.parametrize(
    ("write", "when"),
    [pytest.param("11", "after", marks=pytest.mark.slow), ("12", "before")],
    ids=["not switched", "switched"],
)
def test_a_kill_while_activating_comes_back_whole(world: World, write: str, when: str) -> None:
    """The 11th record is that of both that activate; the 12th, after the swap, that of both on probation."""
    assert world.agent.stop() == 0
    deployment, number = f"killed-{when}", 5.0 + int(write)
    world.bring(deployment, world.publish(f"7{when}", number))
    world.agent.module = "tests.killing_agent"
    world.agent.start(KILL_AT=write, KILL_WHEN=when, PYTHONPATH=str(ROOT))
    assert world.agent.process is not None
    assert world.agent.process.wait(90) == -9
    world.agent.module = "edgeship_agent.cli"
    journal = Journal(world.agent.state / "journal.log")
    journal.close()
    found = {a.model: a.state.value for a in journal.attempts() if a.deployment == deployment}
    assert found == {"ear": "activating", "eye": "activating"}
    world.agent.start()
    answered = world.versions()
    assert len(answered) == 1 or f"7{when}" not in answered, f"mixed: {answered}"
    assert world.states(deployment) == {"ear": "committed", "eye": "committed"}
    assert world.versions() == {f"7{when}"}


def answered(world: World) -> set[str]:
    """The release that answers: of ``ear``, ``eye`` and ``ear`` again, unless a switch came in between."""
    with world.agent.client() as client:
        while True:
            ear, eye, again = (client.infer(images(1)[0], model=model).version for model in ("ear", "eye", "ear"))
            if ear == again:
                return {ear, eye}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_kill_before_any_change_of_the_disk_leaves_one_release(world: World) -> None:
    """SIGKILL before every ninth change of the disk in an update of both: all or nothing of it is served afterwards."""
    for number, kill_at in enumerate(range(10, 1000, 9)):
        before = answered(world)
        assert world.agent.stop() == 0
        deployment = f"change-{kill_at}"
        world.bring(deployment, world.publish(f"9.{number}", 30.0 + number))
        world.agent.module = "tests.killing_disk"
        world.agent.start(KILL_AT=str(kill_at), PYTHONPATH=str(ROOT))
        process = world.agent.process
        assert process is not None

        def over(process=process, deployment=deployment) -> bool:
            ends = [report for report in world.server.reports(deployment) if report.state.is_terminal]
            return process.poll() is not None or len(ends) == 2

        until(over, 120.0, "the end of the process, or of the update")
        is_dead = process.poll() is not None
        if not is_dead:
            world.agent.kill()
        world.agent.module = "edgeship_agent.cli"
        world.agent.start()
        assert answered(world) in (before, {f"9.{number}"}), f"killed before change {kill_at}"
        assert world.states(deployment) == {"ear": "committed", "eye": "committed"}
        assert answered(world) == {f"9.{number}"}
        if not is_dead:
            assert kill_at > 100
            return
    pytest.fail("it was killed every time")
