"""The whole agent dies in an update, at any moment, of SIGKILL: it comes back serving a verified model, offline too."""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Iterator

import pytest

from tests.crash_ground import DEADLY, Bench

SEED = 20261126
QUICK_MOMENTS = 4
ALL_MOMENTS = 200
#: Sampled changes of the disk; all of them are tried in the long run.
QUICK_CHANGES = (31, 47)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("crashes"))
    yield bench
    bench.close()


def die_at_moments(bench: Bench, count: int, seed: int) -> collections.Counter[str]:
    """Kill as many updates at random moments; the states that they died in."""
    rng, longest_s = random.Random(seed), bench.duration_s() * 1.05
    states: collections.Counter[str] = collections.Counter()
    for number in range(count):
        release, deployment = (bench.good, bench.wrong)[number % 2], f"update-{number}"
        delay_s = rng.uniform(0.0, longest_s)
        bench.renew(release, deployment)
        bench.switch_on(online=True)
        time.sleep(delay_s)
        assert bench.agent.process is not None
        assert bench.agent.process.poll() is None, bench.agent.log.read_text()[-2000:]
        bench.agent.kill()
        if number % 3 == 0:
            bench.tear_journal()
        states[bench.state_of(deployment)] += 1
        version = bench.serves_offline()
        assert version in ("1", "2" if release is bench.good else "1"), f"seed {seed}, kill {number}: {version}"
        if number % 8 == 0:
            bench.finishes(release, deployment)
    return states


def die_at_change(bench: Bench, number: int, **environment: str) -> bool:
    """Let one update meet its end, or a full disk, at a change of the disk; whether it came to that."""
    deployment = f"change-{number}-{len(environment)}"
    bench.renew(bench.good, deployment)
    bench.switch_on(online=True, module=DEADLY, **environment)
    if bench.ran_through(deployment):
        bench.agent.kill()
        return False
    assert bench.agent.process is not None
    assert bench.agent.process.returncode == -9
    assert bench.serves_offline() in ("1", "2")
    bench.finishes(bench.good, deployment)
    return True


def test_some_random_moments(bench: Bench) -> None:
    assert die_at_moments(bench, QUICK_MOMENTS, SEED).total() == QUICK_MOMENTS


@pytest.mark.parametrize("number", QUICK_CHANGES)
def test_some_changes_of_the_disk(bench: Bench, number: int) -> None:
    assert die_at_change(bench, number, KILL_AT=str(number))


def test_a_disk_that_is_full_for_a_while(bench: Bench) -> None:
    assert full_from(bench, 30, changes=1)


def full_from(bench: Bench, number: int, changes: int) -> bool:
    """A disk that takes nothing for some changes: the agent lives, serves, and the update ends well or not at all."""
    deployment = f"full-{number}"
    bench.renew(bench.good, deployment)
    bench.switch_on(online=True, module=DEADLY, FULL_AT=str(number), FULL_FOR=str(changes))
    assert bench.ran_through(deployment, 90.0), bench.agent.log.read_text()[-2000:]
    assert bench.server.ended(deployment).loaded_digest in (bench.first.digest, bench.good.digest)
    log = bench.agent.log.read_text()
    assert "Traceback" not in log
    assert bench.agent.stop() == 0
    reached = int(bench.agent.log.read_text().rpartition("changes ")[2].split()[0]) > number
    assert bench.serves_offline() in ("1", "2")
    return reached


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_random_moments(bench: Bench) -> None:
    states = die_at_moments(bench, ALL_MOMENTS, SEED + 1)
    print(f"died in {dict(states)}")
    assert states.total() == ALL_MOMENTS
    assert len(states) >= 5, states


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_change_of_the_disk(bench: Bench) -> None:
    number = 1
    while die_at_change(bench, number, KILL_AT=str(number)):
        number += 1
    assert number > 50


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_full_disk_at_every_fourth_change(bench: Bench) -> None:
    number = 1
    while full_from(bench, number, changes=3):
        number += 4
    assert number > 50
