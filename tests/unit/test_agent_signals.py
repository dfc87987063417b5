"""Signals, profiles and their sketches."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.contract.oci import canonical_json
from edgeship_agent.contract.profile import Family, Profile
from edgeship_agent.contract.sketch import BinnedSketch, merge
from edgeship_agent.telemetry.signals import SignalAccumulator, make_profile, measure

RNG = np.random.default_rng(5)
SCORES = {"p": np.array([[0.7, 0.2, 0.1]], np.float32)}
CLASSIFIER = OutputContract()


def inputs_of(sample: np.ndarray) -> dict:
    return {name: v for name, v in measure({"x": sample}, SCORES, CLASSIFIER).items() if name.startswith("input/")}


def test_classification_signals():
    values = measure({}, SCORES, CLASSIFIER)
    assert values["output/class"] == 0
    assert values["output/confidence"] == pytest.approx(0.7)
    assert values["output/margin"] == pytest.approx(0.5)
    assert values["output/entropy"] == pytest.approx(-sum(p * math.log(p) for p in (0.7, 0.2, 0.1)), rel=1e-5)


def test_logits_are_read_through_the_contracts_softmax():
    values = measure({}, {"scores": np.array([[2.0, 2.0]])}, OutputContract(activation="softmax"))
    assert (values["output/confidence"], values["output/margin"]) == (0.5, 0.0)


def test_a_raw_output_has_mean_and_std():
    values = measure({}, {"y": np.array([[1.0, 3.0]]), "z": np.array([[5.0]])}, OutputContract(kind="raw"))
    assert values == {"output/y/mean": 2.0, "output/y/std": 1.0, "output/z/mean": 5.0, "output/z/std": 0.0}


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (1, 8, 8), (8, 8, 3), (3, 28, 28), (1, 1, 8, 8)])
def test_image_like_samples(shape):
    sample = RNG.integers(0, 256, shape, dtype=np.uint8)
    values = inputs_of(sample)
    assert list(values) == ["input/x/brightness", "input/x/contrast", "input/x/sharpness"]
    assert values["input/x/brightness"] == pytest.approx(sample.mean(), rel=1e-5)
    assert values["input/x/contrast"] == pytest.approx(sample.std(), rel=1e-5)


def test_sharpness_is_the_rms_of_neighbour_differences():
    sample = RNG.normal(size=(6, 5)).astype(np.float32)
    differences = np.concatenate([np.diff(sample, axis=0).ravel(), np.diff(sample, axis=1).ravel()])
    assert inputs_of(sample)["input/x/sharpness"] == pytest.approx(np.sqrt((differences**2).mean()), rel=1e-5)
    blurred = (sample[:-1] + sample[1:]) / 2
    assert inputs_of(blurred)["input/x/sharpness"] < inputs_of(sample)["input/x/sharpness"]


def test_large_images_are_sampled_and_give_nearly_the_same():
    sample = RNG.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    values = inputs_of(sample)
    assert values["input/x/brightness"] == pytest.approx(sample.mean(), abs=3)
    assert values["input/x/contrast"] == pytest.approx(sample.std(), abs=3)


def test_small_vectors_are_watched_feature_by_feature():
    assert inputs_of(np.array([1.5, -2.0], np.float32)) == {"input/x/0": 1.5, "input/x/1": -2.0}
    assert len(inputs_of(np.zeros(64))) == 64
    assert list(inputs_of(np.arange(65.0))) == ["input/x/mean", "input/x/std", "input/x/min", "input/x/max"]
    assert inputs_of(np.float32(3.0).reshape(())) == {"input/x/0": 3.0}
    assert inputs_of(np.zeros((0,))) == {}


def test_nan_makes_signals_nan_and_no_class():
    values = measure({"x": np.array([1.0, np.nan])}, {"p": np.array([[np.nan, 0.5]])}, CLASSIFIER)
    assert math.isnan(values["input/x/1"])
    assert "output/class" not in values
    assert math.isnan(values["output/confidence"])


def normal_values(n: int, seed: int = 0, shift: float = 0.0) -> list[dict]:
    return [{"input/x/0": float(v) + shift} for v in np.random.default_rng(seed).normal(size=n)]


def test_bins_of_a_profile_hold_equal_mass():
    profile = make_profile(normal_values(3200))
    signal = profile.signals[0]
    assert (signal.family, profile.sample_count) == (Family.INPUT, 3200)
    # 31 quantiles and the 0.5 % and 1 % tails on both sides; 0.1 % would need 10,000 samples
    assert len(signal.edges) == 31 + 4
    assert [signal.edges[i] for i in signal.tail_edges] == sorted({*signal.edges[:2], *signal.edges[-2:]})
    body = signal.reference.counts[3:-3]
    assert min(body) >= 98
    assert max(body) <= 102
    assert sum(signal.reference.counts) == 3200


@pytest.mark.parametrize(("n", "tails"), [(999, 0), (1000, 2), (2000, 4), (10_000, 6)])
def test_tail_edges_need_enough_reference_data(n, tails):
    assert len(make_profile(normal_values(n)).signals[0].tail_edges) == tails


def test_a_constant_signal_gets_a_bin_of_its_own():
    profile = make_profile([{"input/x/0": 3.0}] * 50)
    signal = profile.signals[0]
    assert signal.reference.counts == (0, 50, 0)
    accumulator = SignalAccumulator(profile)
    for v in (2.9, 3.0, 3.1, 4.0):
        accumulator.add({"input/x/0": v})
    assert accumulator.take()["input/x/0"].counts == (1, 1, 2)


def test_values_that_repeat_give_unique_ascending_edges():
    values = [{"input/x/0": float(v)} for v in [0] * 300 + [1] * 50 + list(np.linspace(2, 3, 100))]
    edges = make_profile(values).signals[0].edges
    assert list(edges) == sorted(set(edges))


def test_fixed_bins_of_the_output_signals():
    profile = make_profile(
        [
            {"output/class": i % 4, "output/confidence": 0.5, "output/entropy": 0.1, "output/margin": 0.2}
            for i in range(40)
        ]
    )
    assert len(profile.signal("output/confidence").edges) == 15
    assert profile.signal("output/entropy").edges[7] == pytest.approx(math.log(4) / 2, rel=1e-5)
    assert profile.signal("output/class").reference.counts == {0: 10, 1: 10, 2: 10, 3: 10}
    assert profile.signal("output/margin").family == Family.OUTPUT


def test_the_sums_give_back_mean_and_standard_deviation():
    values = normal_values(500, shift=40.0)
    signal = make_profile(values).signals[0]
    numbers = np.array([v["input/x/0"] for v in values])
    mean = signal.center + signal.unit * signal.reference.sum_fixed / 500
    square = signal.unit**2 * signal.reference.sum_square_fixed / 500
    assert mean == pytest.approx(numbers.mean(), abs=signal.unit)
    assert math.sqrt(square - (mean - signal.center) ** 2) == pytest.approx(numbers.std(), rel=1e-3)


def test_missing_values_are_counted_and_nothing_else():
    profile = make_profile(normal_values(100))
    accumulator = SignalAccumulator(profile)
    for values in ({"input/x/0": math.nan}, {"input/x/0": math.inf}, {}, {"input/x/0": 0.0, "unknown": 1.0}):
        accumulator.add(values)
    sketch = accumulator.take()["input/x/0"]
    assert (sketch.missing_count, sketch.total) == (3, 1)


def test_numpy_numbers_do_not_leak_into_sketches():
    profile = make_profile(normal_values(100))
    accumulator = SignalAccumulator(profile)
    accumulator.add({"input/x/0": np.float32(0.5)})
    sketch = accumulator.take()["input/x/0"]
    assert {type(n) for n in (*sketch.counts, sketch.sum_fixed, sketch.sum_square_fixed)} == {int}
    msgspec.msgpack.encode(sketch)


def test_extreme_values_are_clipped_in_the_sums():
    profile = make_profile(normal_values(100))
    accumulator = SignalAccumulator(profile)
    accumulator.add({"input/x/0": 1e300})
    assert accumulator.take()["input/x/0"].sum_fixed == 1 << 20


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=600), st.integers(0, 600))
@settings(derandomize=True, max_examples=40, deadline=None)
def test_counting_in_parts_is_counting_at_once(numbers, cut):
    profile = make_profile(normal_values(200))
    values = [{"input/x/0": number} for number in numbers]

    def sketch(part: list) -> BinnedSketch:
        accumulator = SignalAccumulator(profile)
        for value in part:
            accumulator.add(value)
        return accumulator.take().get("input/x/0", BinnedSketch(counts=(0,) * (len(profile.signals[0].edges) + 1)))

    assert merge(sketch(values[:cut]), sketch(values[cut:])) == sketch(values)


def test_a_profile_survives_the_bundle():
    profile = make_profile([{"output/class": i % 11, "input/x/0": float(i)} for i in range(64)])
    assert msgspec.json.decode(canonical_json(profile), type=Profile) == profile


def test_no_reference_data_is_refused():
    with pytest.raises(InputError, match="no reference data"):
        make_profile([])
