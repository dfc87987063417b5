"""The search over numbers: it finds what is at fault without being told, with few probes."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.build.bisect.outcome import Outcome, compare, distance
from edgeship.build.bisect.search import Fails, Part, failing_step, smallest


def _chain(part: Collection[int]) -> Part:
    return frozenset(range(max(part) + 1))


@settings(derandomize=True, max_examples=200)
@given(st.integers(1, 200), st.data())
def test_one_operator_is_found_in_few_probes(count: int, data: st.DataObject) -> None:
    wrong = data.draw(st.integers(0, count - 1))
    fails = Fails(lambda part: wrong in part, lambda _part: True)
    assert smallest(count, fails, _chain) == {wrong}
    assert fails.probes <= math.ceil(math.log2(count + 1)) + 2


@settings(derandomize=True, max_examples=100)
@given(st.sets(st.integers(0, 39), min_size=1, max_size=5))
def test_operators_that_fail_only_together_are_all_found(wrong: set[int]) -> None:
    assert smallest(40, Fails(lambda part: wrong <= part, lambda _part: True), _chain) == wrong


@settings(derandomize=True, max_examples=100)
@given(st.sets(st.integers(0, 39), min_size=1, max_size=4))
def test_one_of_several_faults_is_found(wrong: set[int]) -> None:
    found = smallest(40, Fails(lambda part: bool(wrong & part), lambda _part: True), _chain)
    assert len(found) == 1
    assert found <= wrong


def test_parts_that_cannot_be_run_are_never_asked() -> None:
    def ask(part: Part) -> bool:
        assert _runs(part), "asked for a part that cannot be run"
        return 6 in part

    def _runs(part: Part) -> bool:
        return (5 in part) == (6 in part)  # 5 and 6 have no tensor between them

    assert smallest(12, Fails(ask, _runs), _chain) == {5, 6}


def test_a_fault_that_comes_and_goes_ends_at_a_step_where_it_comes() -> None:
    fails = Fails(lambda part: len(part) in {3, 4, 8, 9, 10}, lambda _part: True)
    shorter, longer = failing_step(10, fails)
    assert (shorter, longer) in {(2, 3), (7, 8)}


def test_probes_are_bounded() -> None:
    asked: list[Part] = []

    def ask(part: Part) -> bool:
        asked.append(part)
        return {3, 60} <= part

    found = smallest(64, Fails(ask, lambda _part: True, most=10), _chain)
    assert len(asked) == 10
    assert {3, 60} <= found


def test_distance_of_nothing_finite() -> None:
    minus_infinity = np.array([-np.inf, 2.0])
    assert distance(minus_infinity, minus_infinity) == 0.0
    assert distance(np.array([0.0, 2.0]), minus_infinity) == math.inf
    assert distance(np.zeros(3), np.zeros(3)) == 0.0
    assert distance(np.zeros((1, 3)), np.zeros(3)) == math.inf


def test_the_worst_output_speaks() -> None:
    wanted = {"a": np.ones(4), "b": np.ones(4)}
    found = compare({"a": np.full(4, 1.5), "b": np.full(4, 1.1)}, wanted, 0.001)
    assert (found.kind, found.tensor, found.relative_rms) == ("diverges", "a", 0.5)
    assert compare({"a": np.ones(4)}, wanted, 0.001).tensor == "b"


def test_another_failure_is_not_the_one_that_is_looked_for() -> None:
    diverges, refused = Outcome(kind="diverges"), Outcome(kind="refused", stage="run")
    assert not diverges.same_failure(refused)
    assert Outcome(kind="refused", stage="load").same_failure(refused)
    assert not Outcome(kind="refused", stage="conversion").same_failure(refused)
    assert not Outcome(kind="agrees").same_failure(Outcome(kind="agrees"))
