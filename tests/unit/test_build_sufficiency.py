"""Whether calibration data is enough, by its two halves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeship.build import activations, sources
from edgeship.build.sources import SourceRequest
from edgeship.build.sufficiency import FEWEST_SAMPLES, TensorRange, range_stability, ranges_of
from tests import models


def _range(high: np.ndarray) -> TensorRange:
    return TensorRange(name="t", low=np.zeros(len(high)), high=high)


def test_bounded_data_is_enough_and_rare_outliers_are_not() -> None:
    rng = np.random.default_rng(0)
    assert range_stability([_range(rng.uniform(0.9, 1.0, 100))]).note == ""
    outlier = rng.uniform(0.9, 1.0, 100)
    outlier[31] = 5.0
    found = range_stability([_range(outlier), _range(rng.uniform(0.9, 1.0, 100))])
    assert len(found.moving) == 1
    assert found.moving[0].moved == pytest.approx(0.8, abs=0.01)
    assert "1 of 2 tensors" in found.note


def test_a_few_samples_tell_nothing_however_steady() -> None:
    assert "too few" in range_stability([_range(np.ones(2 * FEWEST_SAMPLES - 1))]).note
    assert range_stability([_range(np.ones(2 * FEWEST_SAMPLES))]).note == ""


def test_more_of_heavy_tailed_data_moves_less() -> None:
    rng = np.random.default_rng(1)
    moved = [
        np.mean([range_stability([_range(rng.gamma(2.0, 1.0, n))]).tensors[0].moved for _ in range(200)])
        for n in (40, 400, 4_000)
    ]
    assert moved[0] > moved[1] > moved[2]


def test_infinite_values_have_no_range_that_moves() -> None:
    masked = TensorRange(name="mask", low=np.full(100, -np.inf), high=np.zeros(100))
    assert range_stability([masked]).moving == ()


def test_integers_have_no_range_to_find() -> None:
    assert ranges_of({"i": [np.arange(3)], "f": [np.ones(2)], "none": []})[0].name == "f"
    assert range_stability([]).note


def test_activations_of_an_onnx_model_are_looked_at(tmp_path: Path) -> None:
    source = sources.load(SourceRequest(text=str(models.classifier(tmp_path / "net.onnx"))))
    x = models.inputs(60, seed=1)
    x[7] *= 40.0  # one sample that no other half has seen the like of
    samples = [{"x": one[None]} for one in x]
    outputs = {
        "scores": np.concatenate([next(iter(each.values())) for each in models.answers(source, samples, tmp_path)])
    }
    found = activations.sufficiency(source, samples, outputs, tmp_path / "observed")
    assert {"x", "scores"} < {each.name for each in found.tensors}
    assert len(found.moving) > len(found.tensors) / 2
    calm = activations.sufficiency(source, samples[8:], {"scores": outputs["scores"][8:]}, tmp_path / "again")
    assert len(calm.moving) < len(found.moving)
