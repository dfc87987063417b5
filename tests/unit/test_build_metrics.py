"""Errors and predictions of a variant against its source."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeship.build import metrics
from edgeship.build.metrics import Cells
from edgeship.build.metrics.groups import Group, decoded_groups, group_errors
from edgeship_agent.processing.detection import Decoding


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
    boxes_and_scores = (Group(name="boxes", axis=-1, first=0, end=4), Group(name="scores", axis=-1, first=4, end=6))
    assert group_errors(candidate, source).worst[1] == pytest.approx(1.0)
    assert group_errors(candidate, source, boxes_and_scores).errors == {"boxes": 0.0, "scores": pytest.approx(1.0)}


def test_channels_are_found_where_they_stand_before_the_boxes() -> None:
    """As YOLO exports them, [4 + classes, boxes]: along the last axis every group holds pixels, and nothing shows."""
    rng = np.random.default_rng(0)
    source = np.concatenate([rng.uniform(0, 640, (20, 4, 50)), rng.uniform(0, 1, (20, 2, 50))], axis=1)
    candidate = source.copy()
    candidate[:, 4:] = 0.0
    lost = group_errors(candidate, source)
    assert lost.worst == ("channel 4", pytest.approx(1.0))
    assert lost.balanced == pytest.approx(np.sqrt(2 / 6))
    along_the_boxes = [Group(name=str(box), axis=-1, first=box, end=box + 1) for box in range(50)]
    worst = group_errors(candidate, source, along_the_boxes).worst[1]
    assert worst is not None
    assert worst < 0.01


def test_a_class_that_no_image_shows_is_no_lost_group() -> None:
    source = np.array([[[100.0, 200.0, 0.9, 1e-6]]] * 3)
    candidate = np.array([[[100.0, 200.0, 0.9, 0.0]]] * 3)
    decoding = Decoding(boxes="y", scores="y", box_columns=(0, 2), score_columns=(2, 4))
    assert group_errors(candidate, source).worst == ("channel 3", 1.0)
    worst = group_errors(candidate, source, decoded_groups(decoding, "y", source.shape)).worst[1]
    assert worst is not None
    assert worst < 1e-5


def test_a_group_that_is_not_finite_is_the_worst_and_a_channel_of_zeros_is_none() -> None:
    source = np.array([[1.0, 0.0, 3.0]])
    assert group_errors(np.array([[1.5, 0.1, np.nan]]), source).worst == ("channel 2", None)
    assert group_errors(np.array([[1.5, 0.1, np.nan]]), source).balanced is None
    assert group_errors(np.array([[1.5, 0.1, 3.0]]), source).worst == ("channel 0", 0.5)
    assert group_errors(source, source).balanced == 0.0


def test_large_outputs_are_compared_in_pieces_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    source = rng.normal(size=(50, 4, 6)).astype(np.float32)
    candidate = source + rng.normal(0, 0.1, source.shape).astype(np.float32)

    def figures() -> list[float | None]:
        groups = group_errors(candidate, source)
        return [metrics.relative_rms(candidate, source), metrics.cosine(candidate, source), *groups.errors.values()]

    whole = figures()
    monkeypatch.setattr("edgeship.build.metrics.fidelity._MOST_VALUES", 100)
    assert figures() == pytest.approx(whole, rel=1e-12)


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


def test_a_search_measures_each_channel_group_by_its_own_size() -> None:
    """Else it would take a file for the closest that has its boxes right and its scores gone."""
    from edgeship.build import trial_figures, verify

    rng = np.random.default_rng(2)
    source = np.concatenate([rng.uniform(0, 640, (40, 4, 30)), rng.uniform(0, 1, (40, 3, 30))], axis=1)
    coarse, dead = source.copy(), source.copy()
    coarse *= 1.05
    dead[:, 4:] *= 0.6
    decoding = Decoding(boxes="y", scores="y", score_columns=(4, 7), channels_first=True)
    truth = verify.Truth(outputs={"y": source}, labels=None, classes=False, metric="closeness", closeness_limit=0.1,
                         groups=decoded_groups(decoding, "y", source.shape))  # fmt: skip
    found = {name: verify.compare(truth, {"y": each}) for name, each in (("coarse", coarse), ("dead", dead))}
    errors = {name: trial_figures.error_of(each, grouped=True) for name, each in found.items()}
    assert errors["coarse"] == pytest.approx(0.05)
    assert errors["dead"] == pytest.approx(np.sqrt(0.4**2 / 2))
    whole = {name: trial_figures.error_of(each, grouped=False) for name, each in found.items()}
    assert whole["dead"] < 0.001 < whole["coarse"]


def test_a_map_of_classes_is_close_where_what_it_shows_is() -> None:
    """Half a percent of all pixels is a fifth of what is looked for: the background makes no map close."""
    source = np.zeros((4, 40, 40), np.int64)
    source[:, :10, :4] = 2
    variant = source.copy()
    variant[1, 9, :4] = 0  # 4 of 40
    variant[2, 8:10, :4] = 0  # 8 of 40
    variant[3] = 0
    paired = metrics.Closeness(limit=0.1).compare({"map": source}, {"map": variant})
    assert paired.cells is not None
    assert (paired.cells.both, paired.cells.only_reference) == (2, 2)
    single = metrics.Closeness(limit=0.1).compare({"c": np.array([1, 2, 3])}, {"c": np.array([1, 2, 4])})
    assert single.cells is not None
    assert (single.cells.both, single.cells.only_reference) == (2, 1)
