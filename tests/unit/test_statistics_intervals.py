"""Intervals against published tables and against their definitions."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.statistics import (
    clopper_pearson,
    newcombe_independent,
    newcombe_paired,
    rule_of_three,
    samples_needed,
    wilson,
)
from edgeship_agent.contract.errors import InputError

# Newcombe (1998), Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, 857–872,
# table I: method 3 (score) and method 5 (exact).
SINGLE = [
    (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
    (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
    (0, 20, (0.0000, 0.1611), (0.0000, 0.1684)),
    (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
]

# Newcombe (1998), Interval estimation for the difference between independent proportions, Statistics in Medicine 17,
# 873–890, table II: method 10.
INDEPENDENT = [
    ((48, 80), (56, 70), 0.2000, 0.0524, 0.3339),
    ((3, 10), (9, 10), 0.6000, 0.1705, 0.8090),
    ((2, 7), (6, 7), 0.5714, 0.0582, 0.8062),
    ((0, 29), (5, 56), 0.0893, -0.0381, 0.1926),
    ((0, 20), (0, 10), 0.0000, -0.1611, 0.2775),
    ((0, 10), (10, 10), 1.0000, 0.6075, 1.0000),
    ((0, 20), (10, 10), 1.0000, 0.6791, 1.0000),
]

# Newcombe (1998), Improved confidence intervals for the difference between binomial proportions based on paired data,
# Statistics in Medicine 17, 2635–2650, table III: method 10. Cells: both, only first, only second, neither.
PAIRED = [
    ((36, 12, 2, 0), 0.2000, 0.0569, 0.3404),
    ((20, 12, 2, 16), 0.2000, 0.0562, 0.3292),
]


@pytest.mark.parametrize(("successes", "n", "score", "exact"), SINGLE)
def test_published_single_shares(successes, n, score, exact):
    interval = wilson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == score
    interval = clopper_pearson(successes, n)
    assert (round(interval.low, 4), round(interval.high, 4)) == exact


@pytest.mark.parametrize(("before", "after", "value", "low", "high"), INDEPENDENT)
def test_published_independent_differences(before, after, value, low, high):
    change = newcombe_independent(*before, *after)
    assert (change.change, change.low, change.high) == pytest.approx((value, low, high), abs=6e-5)


@pytest.mark.parametrize(("cells", "value", "low", "high"), PAIRED)
def test_published_paired_differences(cells, value, low, high):
    difference = newcombe_paired(*cells)
    assert (difference.drop, difference.low, difference.high) == pytest.approx((value, low, high), abs=6e-5)


@settings(derandomize=True, max_examples=100)
@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_score_interval_solves_its_equation(share):
    """The ends are where |p̂ − p| is z standard errors *of p*: the definition, not the formula."""
    successes, n = share
    interval = wilson(successes, n)
    assert 0.0 <= interval.low <= interval.high <= 1.0
    for end in (interval.low, interval.high):
        if 0.0 < end < 1.0:
            z = abs(successes / n - end) / math.sqrt(end * (1 - end) / n)
            assert z == pytest.approx(1.959964, abs=1e-4)


@settings(derandomize=True, max_examples=60)
@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_exact_interval_has_its_tails(share):
    """At each end the binomial tail beyond what was seen is 2.5 %."""
    successes, n = share
    interval = clopper_pearson(successes, n)

    def tail(p, counts):
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)

    if successes > 0:
        assert tail(interval.low, range(successes, n + 1)) == pytest.approx(0.025, abs=1e-9)
    if successes < n:
        assert tail(interval.high, range(successes + 1)) == pytest.approx(0.025, abs=1e-9)


@settings(derandomize=True, max_examples=100)
@given(st.tuples(*[st.integers(0, 300)] * 4).filter(any))
def test_paired_interval_is_mirrored_and_holds_its_value(cells):
    both, lost, gained, neither = cells
    difference = newcombe_paired(both, lost, gained, neither)
    mirrored = newcombe_paired(both, gained, lost, neither)
    assert difference.low <= difference.drop <= difference.high
    assert (difference.low, difference.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-12)


def test_how_many_samples_prove_one_point():
    """With one lost answer and no error otherwise, a drop of at most 0.01 takes several hundred samples."""
    first = next(n for n in range(100, 900) if newcombe_paired(n - 1, 1, 0, 0).high <= 0.01)
    assert first == 563
    assert samples_needed(99, 1, 0, 0, limit=0.02) == next(
        n - 100 for n in range(100, 3000) if newcombe_paired(0.99 * n, 0.01 * n, 0, 0).high <= 0.02
    )


def test_samples_needed_decides_where_it_says():
    cells, more = (884, 8, 3, 5), samples_needed(884, 8, 3, 5, limit=0.01)
    scale = (900 + more) / 900
    assert newcombe_paired(*(cell * scale for cell in cells)).high <= 0.01
    before = (900 + more - 1) / 900
    assert newcombe_paired(*(cell * before for cell in cells)).high > 0.01
    assert samples_needed(500, 40, 0, 0, limit=0.01) == 0  # refuted: decided as well
    assert samples_needed(0, 0, 0, 0, limit=0.01) is None
    assert samples_needed(99, 1, 0, 0, limit=0.01) is None  # exactly at the limit: never


def test_nothing_seen_is_nothing_known():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)
    assert (clopper_pearson(0, 0).low, clopper_pearson(0, 0).high) == (0.0, 1.0)
    assert (newcombe_paired(0, 0, 0, 0).low, newcombe_paired(0, 0, 0, 0).high) == (-1.0, 1.0)
    assert rule_of_three(0) == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(5, 4),
        lambda: wilson(-1, 4),
        lambda: wilson(float("nan"), 4),
        lambda: wilson(1, 4, confidence=1.0),
        lambda: clopper_pearson(5, 4),
        lambda: newcombe_paired(1, -1, 0, 0),
        lambda: newcombe_independent(1, 0, 0, 4),
        lambda: rule_of_three(-1.0),
    ],
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(InputError):
        call()
