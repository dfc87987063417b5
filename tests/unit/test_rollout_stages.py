"""Canaries: drawn at random within strata, the same for a seed, whoever was online first."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.rollout import Candidate, draw_stages, empty_stages
from edgeship_agent.contract.errors import ConfigError

FLEETS = st.lists(
    st.builds(
        Candidate,
        device_id=st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True),
        stratum=st.sampled_from(["a/litert", "b/onnxruntime", "c/openvino"]),
        eligible=st.sampled_from([True, True, True, False]),
    ),
    max_size=40,
    unique_by=lambda device: device.device_id,
)
SHARES = st.lists(st.floats(0.01, 0.99), max_size=3, unique=True).map(lambda shares: (*sorted(shares), 1.0))


def fleet(count, strata=3):
    return [Candidate(device_id=f"device-{i}", stratum=f"stratum-{i % strata}") for i in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_six_devices_of_three_runtimes_at_20_percent_give_one_of_each(seed):
    drawn = draw_stages(fleet(6), (0.2, 1.0), seed)
    canaries = [device for device in fleet(6) if drawn[device.device_id] == 0]
    assert sorted(device.stratum for device in canaries) == ["stratum-0", "stratum-1", "stratum-2"]


@settings(derandomize=True, max_examples=200)
@given(FLEETS, SHARES, st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_the_draw(devices, shares, seed, order):
    drawn = draw_stages(devices, shares, seed)
    shuffled = list(devices)
    order.shuffle(shuffled)
    assert draw_stages(shuffled, shares, seed) == drawn, "the order of the devices has no say"
    assert set(drawn) == {device.device_id for device in devices}
    last = len(shares) - 1
    assert all(0 <= stage <= last for stage in drawn.values())
    if last == 0:
        return
    assert all(drawn[device.device_id] == last for device in devices if not device.eligible)
    for stratum in {device.stratum for device in devices}:
        members = [device for device in devices if device.stratum == stratum]
        eligible = [device for device in members if device.eligible]
        for stage, share in enumerate(shares[:-1]):
            reached = sum(drawn[device.device_id] <= stage for device in members)
            assert reached == min(len(eligible), math.ceil(share * len(members) - 1e-9))
        assert not eligible or any(drawn[device.device_id] == 0 for device in eligible), "every stratum has a canary"


@settings(derandomize=True, max_examples=100)
@given(FLEETS, FLEETS, SHARES, st.integers(0, 1000))
def test_late_joiners_come_last_and_move_nobody(first, second, shares, seed):
    drawn = draw_stages(first, shares, seed)
    late = [device for device in second if device.device_id not in drawn]
    again = draw_stages([*first, *late], shares, seed, existing=drawn)
    assert {device_id: again[device_id] for device_id in drawn} == drawn
    assert all(again[device.device_id] == len(shares) - 1 for device in late)


def test_every_device_is_a_canary_about_as_often():
    times = Counter(
        device_id
        for seed in range(600)
        for device_id, stage in draw_stages(fleet(6), (0.2, 1.0), seed).items()
        if not stage
    )
    assert all(240 <= count <= 360 for count in times.values()), times  # half of 600, within 5 standard deviations


def test_a_device_under_suspicion_is_no_canary():
    devices = [
        Candidate(device_id="well", stratum="a"),
        Candidate(device_id="ill", stratum="a", eligible=False, reason="open incident"),
    ]
    for seed in range(50):
        assert draw_stages(devices, (0.5, 1.0), seed) == {"well": 0, "ill": 1}


def test_stages_without_a_device_are_named():
    drawn = draw_stages(fleet(6), (0.2, 0.5, 1.0), seed=1)
    assert empty_stages(drawn, 3) == (1,)


def test_a_stage_holds_its_share_exactly():
    drawn = draw_stages(fleet(30, strata=1), (0.1, 1.0), seed=1)
    assert sum(stage == 0 for stage in drawn.values()) == 3  # 0.1 × 30 is 3.0000000000000004


def test_impossible_draws_are_refused():
    with pytest.raises(ConfigError):
        draw_stages(fleet(2), (), seed=1)
    with pytest.raises(ConfigError):
        draw_stages([*fleet(2), *fleet(1)], (1.0,), seed=1)
