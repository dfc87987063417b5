"""Errors and predictions of a variant against its source."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeship.build import metrics
from edgeship.build.metrics import Cells


def test_relative_rms_is_the_norm_of_the_error_over_the_norm_of_the_source() -> None:
    source = np.array([3.0, 4.0])
    assert metrics.relative_rms(np.array([3.0, 4.5]), source) == pytest.approx(0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_relative_rms_of_something_that_is_no_number_is_none(bad: float) -> None:
    assert metrics.relative_rms(np.array([bad, 1.0]), np.array([1.0, 1.0])) is None
    assert metrics.sqnr_db(None) is None


def test_a_source_of_zeros_has_no_relative_error() -> None:
    assert metrics.relative_rms(np.zeros(3), np.zeros(3)) == 0.0
    assert metrics.relative_rms(np.ones(3), np.zeros(3)) is None


def test_a_lost_channel_group_shows_although_the_whole_looks_perfect() -> None:
    rng = np.random.default_rng(0)
    source = np.concatenate([rng.uniform(0, 640, (50, 20, 4)), rng.uniform(0, 1, (50, 20, 2))], axis=2)
    candidate = source.copy()
    candidate[:, :, 4:] = 0.0
    whole = metrics.relative_rms(candidate, source)
    assert whole is not None
    assert whole < 0.01
    assert metrics.worst_group(candidate, source) == pytest.approx(1.0)


def test_figures_agree_with_a_published_paired_interval() -> None:
    # Newcombe (1998), table II, first row: 36, 12, 2, 0 gives 0.2 (0.0569, 0.3404)
    figures = metrics.figures("top1", Cells(both=36, only_reference=12, only_candidate=2, neither=0))
    assert figures.value == pytest.approx(38 / 50)
    assert (figures.drop, figures.drop_low, figures.drop_high) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)


def test_cells_are_paired() -> None:
    counted = metrics.cells([True, True, False, False], [True, False, True, False])
    assert counted == Cells(both=1, only_reference=1, only_candidate=1, neither=1)
    assert counted.n == 4


def test_predictions_of_a_raw_output_are_its_numbers() -> None:
    first = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.5]])
    assert len(set(metrics.predictions(first, classes=False))) == 2
    assert set(metrics.predictions(first, classes=True)) == {1}
