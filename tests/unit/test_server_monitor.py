"""Drift of a device: figures, incidents, and who has none."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert

from edgeship.server import presence
from edgeship.server.config import DriftConfig, ServerConfig
from edgeship.server.context import ServerContext, open_context
from edgeship.server.monitor import Monitor, drift_evidence
from edgeship.server.store import devices, drift, incidents, schema, windows
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import Family, Profile, SignalProfile
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch
from tests.device_link import batch, birth, running_arm, window

KEY = ("d", "digits", "v1")
SETTINGS = DriftConfig(
    recent_windows=3, reference_windows=3, reference_samples=300, min_samples=100, alarm_hot=2, alarm_of=3
)
PROFILE = Profile(
    sample_count=1000,
    signals=(
        SignalProfile(
            name="input/x/brightness",
            family=Family.INPUT,
            edges=(0.25, 0.5, 0.75),
            reference=BinnedSketch(counts=(250, 250, 250, 250)),
        ),
        SignalProfile(name="output/class", family=Family.OUTPUT, reference=CategorySketch(counts={0: 500, 1: 500})),
    ),
)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A server's parts over a fleet of one device, with its windows made here."""

    def __init__(self, context: ServerContext, clock: Clock) -> None:
        self.context = context
        self.clock = clock
        data = msgspec.json.encode(PROFILE)
        self.profile_hash = hashlib.sha256(data).hexdigest()
        (context.blobs / "sha256" / self.profile_hash).write_bytes(data)
        self.monitor = Monitor(context)
        self.rng = random.Random(1)
        self.seq = 0
        with context.write() as connection:
            devices.save_birth(connection, birth("d", running=(running_arm(),)), clock())

    def normal(self, **changes: Any) -> Window:
        return self.window((25, 25, 25, 25), {0: 50, 1: 50}, **changes)

    def dark(self, **changes: Any) -> Window:
        return self.window((70, 20, 5, 5), {0: 50, 1: 50}, **changes)

    def window(self, bins: tuple[int, ...], classes: dict[int, int], **changes: Any) -> Window:
        self.seq += 1
        signals = {
            "input/x/brightness": BinnedSketch(counts=bins),
            "output/class": CategorySketch(counts=classes),
        }
        values = {"profile_hash": self.profile_hash, "signals": signals, **changes}
        return window(self.seq, **values)

    def send(self, *sent: Window) -> None:
        """One window, one step of the monitor: as the evaluator would."""
        for one in sent:
            self.clock.now_s += 1.0
            with self.context.write() as connection:
                windows.store_batch(connection, batch("d", one), self.clock())
            self.monitor.touch(("d", one.model, one.version))
            self.monitor.step()

    def runs(self, version: str, state: str) -> None:
        with self.context.write() as connection:
            running = (running_arm(version, state),)
            presence.on_birth(self.context, connection, birth("d", running=running), retained=False)
        self.monitor.step()

    def open_incidents(self) -> list[str]:
        with self.context.read() as connection:
            return sorted(row.kind for row in incidents.list_incidents(connection, incidents.OPEN))

    def state(self) -> str:
        with self.context.read() as connection:
            row = drift.find_state(connection, KEY)
        return "" if row is None else str(row.state)


@pytest.fixture(params=[False, True], ids=["own-reference", "baseline-accepted"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    clock = Clock()
    config = ServerConfig(data=tmp_path / "data", drift=SETTINGS, accept_baseline=request.param)
    with open_context(config, clock=clock) as context:
        yield Bench(context, clock)


def test_steady_windows_open_nothing(bench: Bench) -> None:
    bench.send(*(bench.normal() for _ in range(10)))
    assert bench.state() == "ok"
    assert bench.open_incidents() == []


def test_a_change_opens_one_incident_and_its_end_closes_it(bench: Bench) -> None:
    bench.send(*(bench.normal() for _ in range(7)))
    bench.send(*(bench.dark() for _ in range(5)))
    assert bench.state() == "alert"
    assert bench.open_incidents() == ["data_drift"]
    with bench.context.read() as connection:
        [row] = incidents.list_incidents(connection)
        [decision] = incidents.decisions(connection, row.id)
    assert row.sentence.startswith("d: input/x/brightness is 0.")
    assert "limit 0.10" in row.sentence
    assert decision.evidence["distance"]["signal"] == "input/x/brightness"
    assert decision.evidence["windows"]
    bench.send(*(bench.normal() for _ in range(8)))
    assert bench.open_incidents() == []
    with bench.context.read() as connection:
        assert [line.kind for line in incidents.decisions(connection, row.id)] == ["incident_opened", "incident_closed"]


def test_predictions_that_change_are_another_incident(bench: Bench) -> None:
    bench.send(*(bench.normal() for _ in range(7)))
    bench.send(*(bench.window((25, 25, 25, 25), {0: 95, 1: 5}) for _ in range(5)))
    assert bench.open_incidents() == ["prediction_drift"]


def test_a_device_that_differs_from_training_on_day_one_is_no_incident_until_the_baseline_is_accepted(
    bench: Bench,
) -> None:
    bench.send(*(bench.dark() for _ in range(10)))
    accepted = bench.context.config.accept_baseline
    assert bench.open_incidents() == (["data_drift"] if accepted else [])
    with bench.context.read() as connection:
        row = drift.find_state(connection, KEY)
    assert row is not None
    assert {(line["reference"], line["state"]) for line in row.figures if line["signal"] == "input/x/brightness"} == {
        ("baseline", "alert"),
        ("device", "ok"),
    }


def test_a_version_in_a_rollout_opens_no_incident(bench: Bench) -> None:
    with bench.context.write() as connection:
        _rollout(connection, "running")
    bench.send(*(bench.normal() for _ in range(7)), *(bench.dark() for _ in range(6)))
    assert bench.state() == "alert"
    assert bench.open_incidents() == []


def test_after_the_rollout_the_version_is_watched(bench: Bench) -> None:
    with bench.context.write() as connection:
        _rollout(connection, "completed")
    bench.send(*(bench.normal() for _ in range(7)), *(bench.dark() for _ in range(6)))
    assert bench.open_incidents() == ["data_drift"]


def test_a_version_in_probation_opens_no_incident(bench: Bench) -> None:
    with bench.context.write() as connection:
        devices.save_birth(connection, birth("d", running=(running_arm(state="probation"),)), 1.0)
    bench.send(*(bench.normal() for _ in range(7)), *(bench.dark() for _ in range(6)))
    assert bench.open_incidents() == []


def test_an_incident_ends_when_the_device_runs_another_version(bench: Bench) -> None:
    bench.send(*(bench.normal() for _ in range(7)), *(bench.dark() for _ in range(6)))
    assert bench.open_incidents() == ["data_drift"]
    bench.runs("v2", "probation")
    assert bench.open_incidents() == ["data_drift"], "it may still go back"
    bench.runs("v2", "committed")
    assert bench.open_incidents() == []
    bench.runs("v1", "committed")
    bench.send(*(bench.dark() for _ in range(3)))
    assert bench.open_incidents() == ["data_drift"], "back again, and still dark"


def test_the_samples_beside_a_signal_are_its_own(bench: Bench) -> None:
    """Pictures are measured in a share of the calls: what 25 of 100 said is no evidence of 100."""
    sampled = [bench.window((17, 5, 2, 1), {0: 50, 1: 50}) for _ in range(3)]
    bench.send(*sampled)
    with bench.context.read() as connection:
        row = drift.find_state(connection, KEY)
    assert row is not None and row.worst_signal == "input/x/brightness"
    named = next(each for each in row.figures if each["signal"] == row.worst_signal)
    assert (row.sample_count, named["n"]) == (75, 75)


def test_few_samples_say_nothing(bench: Bench) -> None:
    bench.send(bench.normal(inferences=50))
    assert bench.state() == "no_data"


def test_windows_without_a_known_baseline_say_nothing(bench: Bench) -> None:
    bench.send(*(bench.normal(profile_hash="f" * 64) for _ in range(5)))
    assert bench.state() == "no_data"


@pytest.mark.parametrize("profile_hash", ["../../keys/goal.pem", "", "F" * 64, "\x00" * 64])
def test_a_profile_hash_is_never_a_path(bench: Bench, profile_hash: str) -> None:
    bench.send(*(bench.normal(profile_hash=profile_hash) for _ in range(4)))
    assert bench.state() == "no_data"


def test_windows_that_do_not_fit_their_baseline_say_nothing_and_stop_nothing(bench: Bench) -> None:
    bench.send(*(bench.window((1, 2), {0: 100}) for _ in range(4)))
    assert bench.state() == "no_data"


def test_failed_calls_and_dying_workers_are_incidents(bench: Bench) -> None:
    bench.send(bench.normal(failures=50))
    assert bench.open_incidents() == ["performance"]
    bench.send(bench.normal(crashes=1), bench.normal(crashes=2))
    assert bench.open_incidents() == ["infrastructure", "performance"]
    bench.send(*(bench.normal() for _ in range(4)))
    assert bench.open_incidents() == []


def test_one_failed_call_is_no_incident(bench: Bench) -> None:
    bench.send(bench.normal(failures=1, crashes=1))
    assert bench.open_incidents() == []


def test_inputs_that_break_the_schema_are_data_drift(bench: Bench) -> None:
    bench.send(*(bench.normal(schema_faults={"range": 40}) for _ in range(6)))
    assert bench.open_incidents() == ["data_drift"]
    with bench.context.read() as connection:
        [row] = incidents.list_incidents(connection)
    assert "inputs break the schema check 'range'" in row.sentence
    bench.send(*(bench.normal() for _ in range(8)))
    assert bench.open_incidents() == []


def test_a_broken_schema_alarms_before_there_is_any_reference(bench: Bench) -> None:
    bench.send(*(bench.normal(schema_faults={"missing": 90}, profile_hash="f" * 64) for _ in range(3)))
    assert bench.open_incidents() == ["data_drift"]


def test_the_gate_sees_only_windows_since_activation(bench: Bench) -> None:
    bench.send(*(bench.dark() for _ in range(3)))
    activated_s = bench.clock()
    bench.send(*(bench.normal() for _ in range(3)))
    with bench.context.read() as connection:
        before = drift_evidence(bench.context, connection, KEY, 0.0)
        since = drift_evidence(bench.context, connection, KEY, activated_s)
        nothing = drift_evidence(bench.context, connection, KEY, bench.clock())
    assert before.data is not None
    assert since.data is not None
    assert before.data.low > 0.1 > since.data.high
    assert (since.data.n, since.prediction is not None) == (300, True)
    assert nothing.data is None
    assert nothing.prediction is None


def _rollout(connection: Any, state: str) -> None:
    connection.execute(
        insert(schema.rollouts).values(
            id="r1",
            number=1,
            model="digits",
            version="v1",
            digest="sha256:" + "0" * 64,
            policy={},
            stages=[1.0],
            filter={},
            seed=1,
            state=state,
            stage_index=0,
            stage_states=["soaking"],
            stage_started_s=0.0,
            reason="",
            verdict=None,
            revision=1,
            created_at_s=0.0,
            updated_at_s=0.0,
            ended_at_s=None,
            parts=[{"model": "digits", "version": "v1", "digest": "sha256:" + "0" * 64}],
        )
    )
    connection.execute(
        insert(schema.rollout_devices).values(
            rollout_id="r1",
            device_id="d",
            stage_index=0,
            stratum="x",
            state="succeeded",
            substate="committed",
            reason="",
            attempt=1,
            previous_version="",
            previous_digest="",
            offered_at_s=0.0,
            activated_at_s=0.0,
            updated_at_s=0.0,
            without_field_traffic=False,
        )
    )
