"""Comparing windows with a baseline: what is seen, what is not claimed, what is refused."""

import msgspec
import numpy as np
import pytest

from edgeship.drift import (
    DriftState,
    Limits,
    SignalDistance,
    compare,
    compare_windows,
    design_effects,
    merge_sketches,
    merge_windows,
    worst,
)
from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import Family, Profile, SignalProfile
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch, ExponentialSketch

EDGES = tuple(float(edge) for edge in np.linspace(-1.8, 1.8, 31))


def binned(values, missing=0):
    counts = np.bincount(np.searchsorted(EDGES, values, side="right"), minlength=len(EDGES) + 1)
    return BinnedSketch(counts=tuple(counts.tolist()), missing_count=missing)


def classes(values):
    return CategorySketch(counts={int(k): int(np.sum(values == k)) for k in np.unique(values)})


def profile_of(rng, m=1000):
    return Profile(
        sample_count=m,
        signals=(
            SignalProfile(
                name="input/x/brightness", family=Family.INPUT, edges=EDGES, reference=binned(rng.normal(size=m))
            ),
            SignalProfile(name="output/class", family=Family.OUTPUT, reference=classes(rng.integers(0, 10, m))),
        ),
    )


def seen(rng, n=300, mean=0.0, deviation=1.0, missing=0, labels=10):
    return {
        "input/x/brightness": binned(rng.normal(mean, deviation, n), missing),
        "output/class": classes(rng.integers(0, labels, n)),
    }


def window(signals, seq=1, profile_hash="a"):
    return Window(
        boot_id="b",
        seq=seq,
        model="m",
        version="v1",
        arm="main",
        digest="sha256:" + "0" * 64,
        variant="t/litert/int8",
        profile_hash=profile_hash,
        started_at_s=0.0,
        ended_at_s=1.0,
        clock_quality="synced",
        inferences=100,
        failures=0,
        deadline_misses=0,
        shed=0,
        crashes=0,
        latency_us=ExponentialSketch(),
        signals=signals,
    )


def states(distances):
    return [distance.state.value for distance in distances]


@pytest.mark.parametrize("n", [20, 60, 300, 1000])
def test_the_same_distribution_is_ok_at_every_size(n):
    rng = np.random.default_rng(n)
    profile = profile_of(rng)
    for _ in range(40):
        assert states(compare(profile, seen(rng, n))) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mean": 1.0}, ["alert", "ok"]),
        ({"deviation": 2.0}, ["alert", "ok"]),  # a change of variance alone
        ({"labels": 6}, ["ok", "alert"]),
        ({"missing": 200}, ["alert", "ok"]),
    ],
)
def test_real_changes_are_seen_at_300_samples(changes, expected):
    rng = np.random.default_rng(5)
    profile = profile_of(rng)
    for _ in range(20):
        assert states(compare(profile, seen(rng, **changes))) == expected


def test_a_tiny_shift_is_not_worth_an_alert_however_many_samples_prove_it():
    """KS p < 0.05 fires on 0.05 standard deviations at n = 200,000; the effect stays far below the limit."""
    rng = np.random.default_rng(2)
    profile = profile_of(rng, m=200_000)
    [distance, _] = compare(profile, seen(rng, n=200_000, mean=0.05))
    assert distance.state is DriftState.OK
    assert 0.0 < distance.low < distance.value < 0.05


def test_a_warning_comes_before_an_alert():
    rng = np.random.default_rng(3)
    profile = profile_of(rng, m=20_000)
    [warned, _] = compare(profile, seen(rng, n=20_000, mean=0.2))
    assert warned.state is DriftState.WARN
    assert warned.warn < warned.low <= warned.alert
    [alerted, _] = compare(profile, seen(rng, n=20_000, mean=0.2), limits=Limits(warn=0.02, alert=0.04))
    assert alerted.state is DriftState.ALERT


def test_no_samples_is_not_ok():
    rng = np.random.default_rng(4)
    profile = profile_of(rng)
    assert states(compare(profile, {})) == ["no_data", "no_data"]
    assert states(compare(profile, seen(rng, n=19))) == ["no_data", "no_data"]
    assert states(compare(profile, seen(rng), {})) == ["no_data", "no_data"]
    assert worst(compare(profile, {})) is None


def test_a_device_is_compared_with_its_own_reference():
    """Its camera is brighter than the training data and has always been."""
    rng = np.random.default_rng(6)
    profile = profile_of(rng)
    now, first = seen(rng, mean=0.8), seen(rng, n=600, mean=0.8)
    assert states(compare(profile, now)) == ["alert", "ok"]
    own = compare(profile, now, first, reference="device")
    assert states(own) == ["ok", "ok"]
    assert {distance.reference for distance in own} == {"device"}


def test_the_worst_signal_is_named():
    rng = np.random.default_rng(7)
    distances = compare(profile_of(rng), seen(rng, mean=2.0, labels=7))
    assert worst(distances).signal == "input/x/brightness"
    assert worst(distances, "output").signal == "output/class"
    assert worst(distances, "other") is None


def test_figures_go_through_json():
    rng = np.random.default_rng(8)
    distances = compare(profile_of(rng), seen(rng))
    stored = msgspec.json.encode(distances)
    assert msgspec.json.decode(stored, type=tuple[SignalDistance, ...]) == distances


def test_a_sketch_over_other_bins_is_refused():
    profile = profile_of(np.random.default_rng(9))
    for sketch in (BinnedSketch(counts=(1, 2)), CategorySketch(counts={1: 2}), ExponentialSketch()):
        with pytest.raises(ContractError, match="bins"):
            compare(profile, {"input/x/brightness": sketch})
    with pytest.raises(ContractError, match="classes"):
        compare(profile, {"output/class": BinnedSketch(counts=(1, 2))})


def test_windows_that_are_there_twice_count_once():
    rng = np.random.default_rng(10)
    first, second = window(seen(rng, 50), 1), window(seen(rng, 70), 2)
    merged = merge_windows([first, second, first])
    assert merged == merge_windows([second, first])
    assert merged["input/x/brightness"].total == 120
    assert merge_windows([]) == {}


def test_windows_over_different_profiles_are_never_merged():
    with pytest.raises(ContractError, match="different profiles"):
        merge_windows([window({}, 1, "a"), window({}, 2, "b")])


def test_a_signal_that_only_some_parts_have_is_kept():
    one, two = CategorySketch(counts={0: 1}), CategorySketch(counts={1: 1})
    assert merge_sketches([{"a": one}, {"a": one, "b": two}]) == {"a": CategorySketch(counts={0: 2}), "b": two}


def test_independent_samples_have_no_design_effect():
    rng = np.random.default_rng(11)
    effects = [design_effects([seen(rng, 100) for _ in range(5)])["input/x/brightness"] for _ in range(100)]
    assert np.mean(effects) < 1.25


@pytest.mark.parametrize("repeats", [3, 10])
def test_repeated_frames_are_told_by_their_design_effect(repeats):
    rng = np.random.default_rng(12)
    effects = []
    for _ in range(60):
        parts = [{"s": binned(np.repeat(rng.normal(size=120 // repeats), repeats))} for _ in range(6)]
        effects.append(design_effects(parts)["s"])
    assert np.mean(effects) == pytest.approx(repeats, rel=0.25)


def test_repeated_frames_are_no_evidence():
    rng = np.random.default_rng(13)
    profile = profile_of(rng)
    blind = careful = 0
    for _ in range(40):
        parts = []
        for seq in range(5):
            frames = np.repeat(rng.normal(size=20), 5)
            parts.append(window({"input/x/brightness": binned(frames)}, seq))
        blind += compare(profile, merge_windows(parts))[0].state is DriftState.ALERT
        careful += compare_windows(profile, parts)[0].state is DriftState.ALERT
    assert careful <= 1 < blind


def test_a_sudden_change_does_not_hide_itself():
    """One jump between two of five windows leaves the median of the pairs alone."""
    rng = np.random.default_rng(14)
    parts = [window(seen(rng, 100, mean=0.0 if seq < 2 else 2.5), seq) for seq in range(5)]
    assert compare_windows(profile_of(rng), [*parts, parts[0]])[0].state is DriftState.ALERT
