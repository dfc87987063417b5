"""Updates that wait: for an hour of the day, for power, for a cooler device; rollbacks never do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeship_agent.contract.oci import hex_of
from edgeship_agent.supervisor.sensors import read_conditions
from edgeship_agent.update import activation, preparing
from edgeship_agent.update.conditions import Conditions, Policy, why_not
from edgeship_agent.update.disk import Disk
from tests.agents import Depot, Release, model_goal, until
from tests.integration.test_agent_power_loss import AT_ONCE
from tests.power_device import Device, RememberingLauncher

CLOSED, OPEN = ("window", "it is noon"), ("", "")


@pytest.fixture
def depot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Depot]:
    monkeypatch.setattr(activation, "_POLL_S", 0.0)
    monkeypatch.setattr(preparing, "_LOOK_S", 0.01)
    depot = Depot(tmp_path / "depot")
    yield depot
    depot.close()


class Waiting:
    """Answers in turn, the last one for ever."""

    def __init__(self, *answers: tuple[str, str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> tuple[str, str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def device(depot: Depot, folder: Path, waiting: Waiting) -> Device:
    folder.mkdir(parents=True, exist_ok=True)
    keys = depot.root.parent
    return Device(folder, Disk(), RememberingLauncher(), depot, keys, set(), why_wait=waiting)


def asked_for_model(depot: Depot, release: Release) -> bool:
    return any(depot.model_blob(release) in path for path, _ in depot.requests)


def test_nothing_is_loaded_and_nothing_switched_before_the_time_has_come(depot: Depot, tmp_path: Path) -> None:
    release = depot.publish("1")

    class Watching(Waiting):
        def __call__(self) -> tuple[str, str]:
            answer = super().__call__()
            if self.asked <= 3:
                assert not asked_for_model(depot, release)
            return answer

    waiting = Watching(CLOSED, CLOSED, OPEN, CLOSED, CLOSED, CLOSED, OPEN)
    tested = device(depot, tmp_path / "device", waiting)
    tested.take(depot.goal(1, model_goal(release, "first", probation=AT_ONCE)))
    tested.off()
    assert tested.published == [
        "accepted", "precheck", "downloading", "verifying", "staged", "wait_window", "staged", "activating",
        "probation", "committed",
    ]  # fmt: skip


def test_a_rollback_and_what_is_forced_do_not_wait(depot: Depot, tmp_path: Path) -> None:
    waiting = Waiting(CLOSED)
    tested = device(depot, tmp_path / "device", waiting)
    first, second = depot.publish("1"), depot.publish("2", seed_scale=1.5)
    tested.take(depot.goal(1, model_goal(first, "first", probation=AT_ONCE, force=True)))
    tested.take(depot.goal(2, model_goal(second, "second", probation=AT_ONCE, force=True)))
    tested.take(depot.goal(3, model_goal(first, "third", probation=AT_ONCE, is_rollback=True)))
    tested.off()
    assert [attempt.state.value for attempt in tested.journal.attempts()] == ["committed"] * 3
    assert waiting.asked == 0


def test_a_metered_network_holds_up_loading_and_not_switching(depot: Depot, tmp_path: Path) -> None:
    release = depot.publish("1")
    metered = ("metered", "the network is metered")
    waiting = Waiting(metered, metered, OPEN, metered)
    tested = device(depot, tmp_path / "device", waiting)
    tested.take(depot.goal(1, model_goal(release, "first", probation=AT_ONCE)))
    tested.off()
    assert waiting.asked >= 4
    assert "wait_window" not in tested.published
    assert tested.published[-1] == "committed"


def test_the_price_of_a_byte_is_the_last_reason_of_all() -> None:
    metered = Conditions(minute=720, has_mains=False, battery_percent=5.0, is_metered=True)
    assert why_not(Policy(may_be_metered=False), metered)[0] == "metered"
    assert why_not(Policy(may_be_metered=False, min_battery_percent=50.0), metered)[0] == "power"
    assert why_not(Policy(), metered) == OPEN
    assert why_not(Policy(may_be_metered=False), Conditions(minute=720)) == OPEN


@pytest.mark.parametrize(
    ("phase", "wanted", "state"),
    [
        ("downloading", "what is served", "canceled"),
        ("downloading", "another", "superseded"),
        ("precheck", "what is served", "canceled"),
    ],
)
def test_a_silent_download_stops_at_once_when_the_server_takes_it_back(
    depot: Depot, tmp_path: Path, phase: str, wanted: str, state: str
) -> None:
    tested = device(depot, tmp_path / "device", Waiting(OPEN))
    first, second, third = (depot.publish(str(n), seed_scale=1.0 + n / 10) for n in (1, 2, 3))
    tested.take(depot.goal(1, model_goal(first, "first", probation=AT_ONCE)))
    manifest = hex_of(depot.index_of(second).manifests[0].digest)
    depot.stall_blob = depot.model_blob(second) if phase == "downloading" else manifest
    goal = tested.desk.receive(depot.goal(2, model_goal(second, "second", probation=AT_ONCE)))
    following = threading.Thread(target=lambda: (tested.updater.submit(goal), tested.updater.follow(goal)))
    following.start()
    until(lambda: any(depot.stall_blob in path for path, _ in depot.requests), 60.0, "the download")
    assert tested.published[-1] == phase
    release, name = (first, "back") if wanted == "what is served" else (third, "third")
    tested.updater.submit(tested.desk.receive(depot.goal(3, model_goal(release, name, probation=AT_ONCE))))
    following.join(10.0)  # the read alone would wait for twenty seconds
    assert not following.is_alive()
    assert tested.published[-1] == state
    assert tested.workers.loaded["digits", "main"] == first.digest
    tested.off()


def test_what_linux_tells(tmp_path: Path) -> None:
    assert read_conditions(0.0, tmp_path).battery_percent is None
    for name, files in {
        "power_supply/AC": {"type": "Mains", "online": "0"},
        "power_supply/BAT0": {"type": "Battery", "capacity": "35"},
        "power_supply/BAT1": {"type": "Battery", "capacity": "unknown"},
        "thermal/thermal_zone0": {"temp": "41000"},
        "thermal/thermal_zone1": {"temp": "83500"},
        "thermal/cooling_device0": {"temp": "99000"},
    }.items():
        (tmp_path / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / file).write_text(text + "\n")
    now = read_conditions(0.0, tmp_path)
    assert (now.has_mains, now.battery_percent, now.temperature_c) == (False, 35.0, 83.5)
    assert why_not(Policy(min_battery_percent=40, max_temperature_c=80), now)[0] == "power"
    assert why_not(Policy(max_temperature_c=80), now)[0] == "heat"
    assert why_not(Policy(min_battery_percent=30, max_temperature_c=90), now) == OPEN


@pytest.mark.parametrize(("minute", "waits"), [(0, False), (329, False), (330, True), (1319, True), (1320, False)])
def test_a_window_over_midnight(minute: int, waits: bool) -> None:
    assert bool(why_not(Policy(window=(1320, 330)), Conditions(minute=minute))[0]) is waits
