"""Ranges of activations: exact ends, percentiles as numpy has them, and the least squared error."""

from __future__ import annotations

import numpy as np
import pytest

from edgeship.build.search.ranges import Statistics, TensorStatistics, with_zero


def _seen(*samples: np.ndarray) -> TensorStatistics:
    tensor = TensorStatistics()
    for sample in samples:
        tensor.add(sample.astype(np.float32))
    return tensor


def test_minimum_and_maximum_are_exact_whatever_the_order() -> None:
    rng = np.random.default_rng(1)
    samples = [rng.normal(0, scale, 300_000) for scale in (0.01, 5.0, 1.0)]
    whole = np.concatenate(samples).astype(np.float32)
    tensor = _seen(*samples)
    assert tensor.range("minmax") == (float(whole.min()), float(whole.max()))
    assert _seen(*reversed(samples)).range("minmax") == tensor.range("minmax")


@pytest.mark.parametrize(("name", "kept"), [("p99.9", 99.9), ("p99.99", 99.99)])
def test_percentiles_are_those_of_the_values(name: str, kept: float) -> None:
    rng = np.random.default_rng(2)
    samples = [rng.standard_t(3, 16_000) for _ in range(20)]
    low, high = _seen(*samples).range(name)
    values = np.concatenate(samples)
    cut = (1.0 - kept / 100.0) / 2.0
    for outside in ((values < low).mean(), (values > high).mean()):
        # the bin that the percentile falls in is kept whole
        assert 0.6 * cut <= outside <= cut + 1e-9


def test_a_range_of_positive_values_begins_at_its_smallest() -> None:
    rng = np.random.default_rng(3)
    tensor = _seen(*(np.maximum(rng.normal(0, 1, 5000), 0.0) for _ in range(5)))
    for estimator in ("minmax", "p99.99", "mse", "mean", "average"):
        assert tensor.range(estimator)[0] == 0.0


def test_the_least_squared_error_gives_up_an_outlier() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(0, 1, 16_000)
    values[0] = 9.0
    tensor = _seen(values)
    true, chosen = tensor.range("minmax"), tensor.range("mse")
    assert chosen[1] < true[1]

    def error(bounds: tuple[float, float]) -> float:
        low, high = with_zero(bounds)
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        held = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
        return float(((held - values) ** 2).sum())

    assert error(chosen) < error(true)
    better = tensor.sqnr_db(chosen)
    worse = tensor.sqnr_db(true)
    assert better is not None
    assert worse is not None
    assert better > worse


def test_clipping_estimators_clip() -> None:
    samples = [np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([0.0, 10.0])]
    tensor = _seen(*samples)
    assert tensor.range("mean") == (0.0, pytest.approx(4.0))
    assert tensor.range("average") == (0.0, pytest.approx(0.95 + 0.05 * 10.0))


@pytest.mark.parametrize("values", [np.zeros(5), np.array([np.nan, np.inf]), np.array([])])
def test_nothing_to_see_is_no_error(values: np.ndarray) -> None:
    tensor = _seen(values)
    for estimator in ("minmax", "p99.99", "mse", "mean"):
        assert tensor.range(estimator) == (0.0, 0.0)


def test_values_that_are_not_finite_count_for_nothing() -> None:
    assert _seen(np.array([1.0, np.nan, -2.0, np.inf])).range("minmax") == (-2.0, 1.0)


def test_every_tensor_has_statistics_and_a_shape() -> None:
    seen = Statistics()
    seen.add({"a": np.ones((1, 2, 3), np.float32), "b": np.zeros((1, 4), np.float32)})
    assert seen.shapes == {"a": (1, 2, 3), "b": (1, 4)}
    assert seen.ranges("minmax")["a"] == (1.0, 1.0)
