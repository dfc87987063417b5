"""Orders of profile jobs: who may give them, what they may ask for, what becomes of times."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgeship.server.trust import Trust
from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.goal import GoalState
from edgeship_agent.contract.manifest import Golden, MetricClaim, Variant
from edgeship_agent.contract.profiling import (
    MOST_TIMES,
    PlanFile,
    ProfileOrder,
    ProfilePlan,
    ProfileReport,
    ProfileTask,
    SignedOrder,
    check_plan,
)
from edgeship_agent.contract.topics import Kind
from edgeship_agent.contract.wire import encode
from edgeship_agent.profiling.desk import OrderDesk
from edgeship_agent.profiling.figures import latency_of
from edgeship_agent.profiling.measuring import read_conditions
from edgeship_agent.profiling.runner import Profiler
from edgeship_agent.update.launcher import Launcher

DIGEST = "sha256:" + "ab" * 32
ORDER = ProfileOrder(protocol_version=1, device_id="a", job_id="job1", issued_at_s=100.0, expires_at_s=200.0,
                     plan_digest=DIGEST, plan_size_bytes=10)  # fmt: skip
FILE = PlanFile(name="model.onnx", digest=DIGEST, size_bytes=10)
NOTHING = MetricClaim(name="", value=0.0, low=0.0, high=1.0, n=0, drop=0.0, drop_low=-1.0, drop_high=1.0)
VARIANT = Variant(target="", runtime="onnxruntime", precision="fp32", arch="", runtime_version="", runtime_range="",
                  min_memory_bytes=0, inputs=(), outputs=(), files=(), metric=NOTHING, relative_rms=0.0,
                  golden=Golden(relative_rms=0.0, isa_class="", other_isa_relative_rms=0.0))  # fmt: skip
TASK = ProfileTask(label="one", runtime="onnxruntime", threads=1, files=(FILE,), variant=VARIANT)
PLAN = ProfilePlan(tasks=(TASK,), inputs=PlanFile(name="inputs", digest=DIGEST, size_bytes=10))


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.open(tmp_path_factory.mktemp("trust"))


def sent(trust: Trust, **changes: Any) -> bytes:
    return encode(Kind.JOB, trust.sign_order(msgspec.structs.replace(ORDER, **changes)))


def test_an_order_of_the_fleets_key_for_this_device_is_let_in(trust: Trust) -> None:
    desk = OrderDesk("a", trust.goal_public, lambda: 150.0)
    assert desk.receive(sent(trust)) == ORDER
    assert desk.receive(sent(trust, cancel=True)).cancel


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"device_id": "b"}, "another device"), ({"expires_at_s": 150.0}, "expired"), ({"job_id": "../x"}, "id of a job")],
)
def test_other_orders_are_not(trust: Trust, changes: dict[str, Any], words: str) -> None:
    desk = OrderDesk("a", trust.goal_public, lambda: 150.0)
    with pytest.raises((VerificationError, ContractError), match=words):
        desk.receive(sent(trust, **changes))


def test_another_signature_is_not_taken(trust: Trust, tmp_path: Path) -> None:
    desk = OrderDesk("a", trust.goal_public, lambda: 150.0)
    with pytest.raises(VerificationError, match="another key"):
        desk.receive(sent(Trust.open(tmp_path)))
    signed = trust.sign_order(ORDER)
    altered = msgspec.structs.replace(signed, payload=signed.payload[:-1] + b"\xc3")
    with pytest.raises(VerificationError, match="signature"):
        desk.receive(encode(Kind.JOB, altered))
    with pytest.raises(ContractError):
        desk.receive(b"nonsense")


def test_a_goal_state_is_no_order(trust: Trust) -> None:
    """The same key signs both, each under a type of its own."""
    goal = trust.sign_goal(GoalState(protocol_version=1, device_id="a", generation=1, issued_at_s=1.0,
                                     expires_at_s=200.0, models=()))  # fmt: skip
    disguised = SignedOrder(protocol_version=1, payload=goal.payload, key_id=goal.key_id, signature=goal.signature)
    with pytest.raises(VerificationError, match="signature"):
        OrderDesk("a", trust.goal_public, lambda: 150.0).receive(encode(Kind.JOB, disguised))


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ()},
        {"tasks": (TASK, TASK)},
        {"tasks": tuple(msgspec.structs.replace(TASK, label=str(index)) for index in range(17))},
        {"tasks": (msgspec.structs.replace(TASK, files=()),)},
        {"tasks": (msgspec.structs.replace(TASK, files=(msgspec.structs.replace(FILE, name="../up"),)),)},
        {"tasks": (msgspec.structs.replace(TASK, threads=0),)},
        {"inputs": msgspec.structs.replace(FILE, digest="sha256:zz")},
        {"inputs": msgspec.structs.replace(FILE, size_bytes=1 << 40)},
        {"min_queries": 0},
        {"min_seconds": 1e9},
        {"timeout_s": 1e9},
        {"memory_bytes": -1},
        {"schema_version": 2},
    ],
)
def test_a_plan_that_asks_for_too_much_is_refused(changes: dict[str, Any]) -> None:
    check_plan(PLAN)
    with pytest.raises(ContractError):
        check_plan(msgspec.structs.replace(PLAN, **changes))


def test_a_million_times_fit_into_a_message() -> None:
    latency = latency_of([float(index % 100) for index in range(100_000)], tasks=1)
    assert latency.queries == 100_000
    assert MOST_TIMES // 2 < len(latency.times_ms) <= MOST_TIMES
    assert len(latency_of([1.2345678] * 100_000, tasks=16).times_ms) <= 3000


def test_conditions_are_the_highest(tmp_path: Path) -> None:
    for index, frequency in enumerate(("1500000", "1800000", "nonsense")):
        place = tmp_path / "cpu" / f"cpu{index}" / "cpufreq"
        place.mkdir(parents=True)
        (place / "scaling_cur_freq").write_text(frequency)
    (tmp_path / "thermal_zone0").mkdir()
    (tmp_path / "thermal_zone0" / "temp").write_text("61500\n")
    found = read_conditions(tmp_path / "cpu", tmp_path)
    assert (found.frequency_khz, found.temperature_c) == (1_800_000.0, 61.5)
    assert read_conditions(tmp_path / "none", tmp_path / "none").temperature_c == 0.0


class Unreachable:
    """A server that is gone."""

    def fetch(self, blob: Any, should_stop: Any) -> Path:
        raise OSError("no route")


def test_what_ends_is_told_and_a_repeated_order_is_answered_from_memory(trust: Trust, tmp_path: Path) -> None:
    said: list[ProfileReport] = []
    lines: list[dict[str, Any]] = []

    def publish(report: ProfileReport) -> bool:
        said.append(report)
        return True

    def log(event: str, **fields: Any) -> None:
        lines.append({"event": event, **fields})

    desk = OrderDesk("a", trust.goal_public, lambda: 150.0)
    profiler = Profiler(desk, tmp_path / "profiling", lambda _store: Unreachable(), Launcher(), publish, log)
    profiler.receive(sent(trust, device_id="b"))
    assert (said, lines[0]["event"]) == ([], "order_refused")
    profiler.receive(sent(trust, job_id="early", cancel=True))
    assert said[-1].state.value == "canceled"
    profiler.receive(sent(trust))
    end_s = time.monotonic() + 20.0
    while not said[-1].state.is_terminal or said[-1].job_id != "job1":
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert (said[-1].state.value, said[-1].detail) == ("failed", "no route")
    assert not (tmp_path / "profiling").exists()
    before = len(said)
    profiler.receive(sent(trust))
    assert said[before:] == [said[before - 1]]
