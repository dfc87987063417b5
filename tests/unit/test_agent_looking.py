"""When to look and when to sleep: the decision alone, and a loop that keeps to it."""

from __future__ import annotations

import random
import socket
import threading
import time

import pytest

from edgeship_agent.config import ServingConfig
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.control import WorkerSettings
from edgeship_agent.serving.looking import LONGEST_LOOK_US, Look, usable_cores
from edgeship_agent.serving.loop import Loop


def looked_us(waits_us: list[float], longest_us: float = 200.0, late_us: float = 50.0) -> tuple[float, int]:
    """Time that was looked away, and how many waits were looked through; who sleeps wakes late."""
    look, total, caught = Look(longest_us, cores=2), 0.0, 0
    for wait_us in waits_us:
        look_us = look.look_ns / 1000.0
        total += min(look_us, wait_us)
        caught += wait_us <= look_us
        look.on_wait(round((wait_us if wait_us <= look_us else wait_us + late_us) * 1000.0))
    return total, caught


def test_one_setting_on_both_sides():
    assert ServingConfig().spin_us == WorkerSettings().spin_us == LONGEST_LOOK_US


def test_steady_short_waits_are_looked_through_but_for_the_first():
    assert looked_us([60.0] * 1000)[1] == 998


def test_what_never_comes_soon_is_never_looked_for():
    assert looked_us([5000.0] * 1000) == (0.0, 0)
    assert looked_us([8000.0, 5000.0] * 500) == (0.0, 0)


def test_random_sparse_traffic_costs_next_to_nothing():
    generator = random.Random(3)
    waits_us = [generator.expovariate(1.0 / 5000.0) for _ in range(20_000)]  # 200 requests a second
    assert looked_us(waits_us)[0] / len(waits_us) < 0.5, "µs of every wait"


def test_waits_a_little_longer_than_a_look_back_off():
    lost_us, caught = looked_us([260.0] * 10_000)  # asleep they look as if they had been worth it
    assert (caught, lost_us / 10_000 < 4.0) == (0, True)


def test_one_long_wait_among_short_ones_costs_little():
    waits_us = ([50.0] * 99 + [3000.0]) * 100
    assert looked_us(waits_us)[1] > 0.94 * len(waits_us)


@pytest.mark.parametrize(("longest_us", "cores"), [(0.0, 8), (200.0, 1)])
def test_nobody_looks_without_a_core_to_spare_or_leave(longest_us, cores):
    look = Look(longest_us, cores)
    for _ in range(100):
        look.on_outcome(paid=True)
    assert (look.longest_ns, look.look_ns) == (0, 0)


def test_an_application_that_pauses_starts_anew():
    look = Look(200.0, cores=2)
    for _ in range(10):
        look.on_pause(100_000)
        look.on_outcome(paid=True)
    assert look.look_ns
    for _ in range(10):
        look.on_pause(5_000_000)
        assert not look.look_ns
        look.on_outcome(paid=True)


@pytest.mark.skipif(usable_cores() < 2, reason="one core: nobody looks")
def test_spare_work_is_done_between_looks_and_its_failure_ends_nothing(capsys):
    spare: list[int] = []

    def work() -> bool:
        spare.append(1)
        if len(spare) == 2:
            raise RuntimeError("of no consequence")
        return len(spare) % 3 > 0

    loop, (ours, theirs) = Loop(200_000.0, work), socket.socketpair()
    came = bytearray()

    def read() -> None:
        came.extend(ours.recv(1))
        if len(came) == 20:
            loop.stop()

    loop.add_reader(ours, read)
    asks = threading.Thread(target=lambda: [(time.sleep(0.002), theirs.send(b"x")) for _ in range(20)])
    asks.start()
    loop.run()
    asks.join()
    assert (len(came), len(spare) > 3) == (20, True)
    assert "of no consequence" in capsys.readouterr().err
    loop.close()
    ours.close()
    theirs.close()


@pytest.mark.skipif(usable_cores() < 2, reason="one core: nobody looks")
def test_a_client_looks_by_default_and_not_where_it_was_told_so():
    assert Client("nowhere")._look.longest_ns == LONGEST_LOOK_US * 1000
    assert Client("nowhere", spin_us=0)._look.longest_ns == 0
