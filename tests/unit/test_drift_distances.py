"""Distances against other implementations and against what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2, ks_2samp

from edgeship.drift import js_distance, js_estimate, ks_bounds, psi, thicken, total_variation
from edgeship.drift.distances import _chi_square_quantile

COUNTS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=2, max_size=40).filter(
    lambda pairs: sum(a for a, _ in pairs) > 0 and sum(b for _, b in pairs) > 0
)


@settings(derandomize=True, max_examples=100)
@given(COUNTS)
def test_js_distance_is_scipys(pairs):
    p, q = zip(*pairs, strict=True)
    assert js_distance(p, q) == pytest.approx(jensenshannon(p, q, base=2), abs=1e-7)


@settings(derandomize=True, max_examples=100)
@given(COUNTS)
def test_estimates_are_symmetric_and_inside_their_interval(pairs):
    p, q = zip(*pairs, strict=True)
    value, interval = js_estimate(p, q, alpha=0.01)
    other, other_interval = js_estimate(q, p, alpha=0.01)
    assert 0.0 <= interval.low <= value <= interval.high <= 1.0
    assert (value, interval.low, interval.high) == pytest.approx((other, other_interval.low, other_interval.high))
    assert value <= js_distance(p, q) + 1e-12, "the bias is always upwards"


@settings(derandomize=True, max_examples=100)
@given(COUNTS)
def test_thin_bins_are_merged_without_losing_a_count_or_gaining_distance(pairs):
    p, q = zip(*pairs, strict=True)
    for ordered in (True, False):
        fewer_p, fewer_q = thicken(p, q, ordered=ordered)
        assert (sum(fewer_p), sum(fewer_q)) == (sum(p), sum(q))
        assert js_distance(fewer_p, fewer_q) <= js_distance(p, q) + 1e-9
        smaller = min(sum(p), sum(q)) / (sum(p) + sum(q))
        assert len(fewer_p) == 1 or all((a + b) * smaller >= 5 for a, b in zip(fewer_p, fewer_q, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_ks_bounds_hold_the_distance_of_the_values(seed):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(0.0, 1.0, 300), rng.normal(0.1 * seed, 1.0, 500)
    edges = np.quantile(right, np.linspace(0.0, 1.0, 33)[1:-1])
    p = np.bincount(np.searchsorted(edges, left, side="right"), minlength=32)
    q = np.bincount(np.searchsorted(edges, right, side="right"), minlength=32)
    bounds = ks_bounds(p.tolist(), q.tolist())
    assert bounds.low - 1e-12 <= ks_2samp(left, right).statistic <= bounds.high + 1e-12
    assert bounds.high - bounds.low < 0.15


def test_the_bias_is_taken_away():
    """The mean estimate of identical distributions is nothing like the mean of the usual one."""
    rng = np.random.default_rng(1)
    shares = np.full(32, 1 / 32)
    usual, ours = [], []
    for _ in range(200):
        p, q = rng.multinomial(300, shares).tolist(), rng.multinomial(300, shares).tolist()
        usual.append(js_distance(p, q))
        ours.append(js_estimate(*thicken(p, q), alpha=0.025)[0])
    assert np.mean(usual) == pytest.approx(0.19, abs=0.01)
    assert np.median(ours) < 0.05
    assert (
        abs(
            np.mean(
                [psi(rng.multinomial(300, shares).tolist(), rng.multinomial(300, shares).tolist()) for _ in range(200)]
            )
        )
        < 0.03
    )


@pytest.mark.parametrize(
    ("shift", "n", "m", "most_too_high"),
    [
        (0.0, 300, 1000, 0.0),
        (0.25, 300, 1000, 0.025),  # a true distance of 0.10: where an alert is decided
        (0.25, 1000, 800, 0.025),
        (0.5, 100, 800, 0.025),
        (1.0, 300, 800, 0.05),
        (2.0, 60, 300, 0.06),  # far beyond every limit the normal part is too narrow, and nothing hangs on it
    ],
)
def test_the_lower_end_keeps_its_promise(shift, n, m, most_too_high):
    """How often the lower end of a 95 % interval lies above the true distance of binned normal samples."""
    rng = np.random.default_rng(7)
    edges = np.quantile(rng.normal(size=200_000), np.linspace(0.0, 1.0, 17)[1:-1])

    def shares(mean):
        values = rng.normal(mean, 1.0, 400_000)
        return np.bincount(np.searchsorted(edges, values), minlength=16) / 400_000

    normal, shifted = shares(0.0), shares(shift)
    truth = jensenshannon(normal, shifted, base=2) if shift else 0.0
    too_high = too_low = 0
    for _ in range(400):
        p, q = rng.multinomial(n, shifted).tolist(), rng.multinomial(m, normal).tolist()
        interval = js_estimate(*thicken(p, q), alpha=0.025)[1]
        too_high += interval.low > truth
        too_low += interval.high < truth
    assert too_high <= 400 * most_too_high + 3 * np.sqrt(400 * most_too_high)  # three standard deviations
    assert too_low <= 400 * 0.04 + 3 * np.sqrt(400 * 0.04)


def test_total_variation():
    assert total_variation([1, 1], [1, 1]) == 0.0
    assert total_variation([3, 0], [0, 7]) == 1.0


def test_an_empty_side_proves_nothing():
    assert js_estimate([0, 0], [1, 2], alpha=0.01) == (0.0, ks_bounds([0, 0], [1, 2]))
    assert (ks_bounds([0], [1]).low, ks_bounds([0], [1]).high) == (0.0, 1.0)
    assert js_distance([0], [1]) == total_variation([0], [1]) == psi([0], [1]) == 0.0


def test_one_bin_is_no_distance():
    value, interval = js_estimate([30], [40], alpha=0.01)
    assert (value, interval.low, interval.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("degrees", [1, 2, 5, 15, 31])
@pytest.mark.parametrize("share", [0.9, 0.99, 0.9999])
def test_chi_square_quantiles(degrees, share):
    exact = chi2.ppf(share, degrees)
    assert 0.97 * exact <= _chi_square_quantile(share, degrees) <= 1.08 * exact  # if anything, too cautious
