"""Saturation of two 8-bit products in 16 bits, against the instruction's definition."""

from __future__ import annotations

import numpy as np
import pytest

from edgeship.build.search.saturation import could_saturate, unsigned


def _pairs_saturate(weights: np.ndarray, rows: np.ndarray) -> bool:
    """Neighbours two by two, as ``vpmaddubsw`` adds them."""
    for row in rows:
        sums = (weights * row).reshape(len(weights), -1, 2).sum(axis=2)
        if sums.max() > 32767 or sums.min() < -32768:
            return True
    return False


@pytest.mark.parametrize("seed", range(20))
def test_where_it_is_called_safe_no_order_of_the_inputs_saturates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = np.clip(rng.normal(0, rng.uniform(15, 60), (6, 16)), -127, 127).astype(np.int32)
    rows = np.clip(rng.normal(90, 60, (30, 16)), 0, 255).astype(np.int32)
    safe = not could_saturate(weights, rows)
    orders = [rng.permutation(16) for _ in range(40)]
    seen = any(_pairs_saturate(weights[:, order], rows[:, order]) for order in orders)
    assert not (safe and seen)


def test_both_answers_occur() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (30, 16))
    assert could_saturate(rng.integers(-127, 128, (6, 16)), rows)
    assert not could_saturate(rng.integers(-64, 65, (6, 16)), rows), "7 bits never saturate"


def test_negative_sums_saturate_too() -> None:
    assert could_saturate(np.array([[-127, -127, 0]]), np.array([[255, 255, 0]]))


def test_a_range_without_zero_still_holds_it() -> None:
    assert unsigned(np.array([0.0, 2.0]), (1.0, 2.0)).tolist() == [0, 255]
    assert unsigned(np.array([-1.0, 0.0, 1.0]), (-1.0, 1.0)).tolist() == [0, 128, 255]
    assert unsigned(np.zeros(2), (0.0, 0.0)).tolist() == [0, 0]
