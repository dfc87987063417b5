"""A release of several models: who decides on a device, one verdict, and no more false alarms than of one model."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.rollout import (
    RELEASE_MEMBER,
    DeviceEvidence,
    DeviceState,
    DriftFigure,
    ThresholdPolicy,
    deciding,
    judge,
)

POLICY = ThresholdPolicy(soak_s=60.0, judge_timeout_s=600.0)
ENDED = [state for state in DeviceState if not state.is_pending]
REASONS = ("", "golden_mismatch", RELEASE_MEMBER)


def part(model, device=0, **changes):
    fields = {
        "device_id": f"device-{device}",
        "stratum": "x86-64-server/onnxruntime",
        "state": DeviceState.SUCCEEDED,
        "windows": 5,
        "calls": 500,
        "calls_before": 500,
        "failures_before": 0,
        "prediction_drift": DriftFigure(
            signal="output/class", statistic="js_distance", value=0.02, low=0.0, high=0.05, n=400, proven=0.0
        ),
        "loaded_digest_matches": True,
        "model": model,
    }
    return DeviceEvidence(**(fields | changes))


def pair(device=0, **changes):
    """A detector as it should be, and a reader with changes."""
    return [part("detector", device), part("reader", device, **changes)]


def gate(verdict, gate_id, model=""):
    return next(result for result in verdict.gates if (result.id, result.model) == (gate_id, model))


def test_a_pair_that_holds_passes_and_says_so():
    verdict = judge(POLICY, pair() + pair(1), elapsed_s=100.0)
    assert verdict.kind == "promote"
    assert verdict.sentence == "Promoted: every gate holds on 2 devices for each of 2 models, 2000 calls, 0 failed"
    assert gate(verdict, "arrivals").n == 2


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"failures": 100}, "halt", "Halted: reader: failed calls 20.00%"),
        ({"calls": 10, "windows": 1}, "hold", "Waiting: reader: prediction drift"),
        ({"hard_stops": ("nan_output",)}, "halt", "Halted: hard stop: reader: nan output on device-0"),
        ({"crashes": 1}, "halt", "Halted: 1 worker crashes: 1 of reader on device-0"),
        ({"loaded_digest_matches": False}, "halt", "Halted: hard stop: reader: another digest is loaded on device-0"),
        ({"state": DeviceState.ROLLED_BACK, "reason": "crash_loop"}, "halt",
         "Halted: 1 of 2 devices reached failed: device-0 rolled back (reader: crash loop)"),
        ({"state": DeviceState.IN_PROGRESS}, "hold", "Waiting: 1 of 2 devices have not come to an end: device-0"),
        ({"without_field_traffic": True}, "hold", "Waiting: reader: device-0 was committed on golden inputs alone"),
    ],
)  # fmt: skip
def test_the_worst_model_decides_and_is_named(changes, kind, words):
    verdict = judge(POLICY, pair(**changes) + pair(1), elapsed_s=100.0)
    assert verdict.kind == kind
    assert verdict.sentence.startswith(words)
    assert judge(POLICY, [part("", 0, **changes), part("", 1)], elapsed_s=100.0).kind == kind, "as of one model"


def test_crashes_and_failed_devices_count_over_all_models():
    policy = ThresholdPolicy(soak_s=60.0, max_crashes=1, max_failed_devices=1)
    crashed = [part("detector", 0, crashes=1), part("reader", 0), part("detector", 1), part("reader", 1, crashes=1)]
    assert judge(policy, crashed, elapsed_s=100.0).sentence.startswith("Halted: 2 worker crashes: 1 of detector on")
    gone = {"state": DeviceState.FAILED, "reason": "download"}
    one_each = [part("detector", 0, **gone), part("reader", 0), part("detector", 1), part("reader", 1, **gone)]
    assert gate(judge(policy, one_each + pair(2), elapsed_s=100.0), "failed_devices").holds is False
    both = [part("detector", 0, **gone), part("reader", 0, **gone)]
    assert gate(judge(policy, both + pair(1), elapsed_s=100.0), "failed_devices").holds is True, "one device"


def test_a_sibling_that_only_followed_is_not_the_cause():
    followed = {"state": DeviceState.ROLLED_BACK, "reason": RELEASE_MEMBER}
    told = [part("detector", **followed), part("reader", state=DeviceState.ROLLED_BACK, reason="golden_mismatch")]
    assert "device-0 rolled back (reader: golden mismatch)" in judge(POLICY, told, elapsed_s=9.0).sentence
    silent = [part("detector", **followed), part("reader", state=DeviceState.IN_PROGRESS)]
    assert judge(POLICY, silent, elapsed_s=9.0).kind == "hold", "the sibling's word is still out"
    nobody = [part("detector", **followed), part("reader", **followed)]
    assert judge(POLICY, nobody, elapsed_s=9.0).kind == "halt", "and somebody must have been it"
    contradiction = [part("detector", **followed), part("reader")]
    assert judge(POLICY, contradiction, elapsed_s=9.0).kind == "halt"


@given(st.lists(st.tuples(st.sampled_from(list(DeviceState)), st.sampled_from(REASONS)), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_device_succeeds_only_when_every_model_did(stands):
    state = stands[deciding(stands)][0]
    if state is DeviceState.SUCCEEDED:
        assert all(each in (DeviceState.SUCCEEDED, DeviceState.ALREADY_RUNNING) for each, _ in stands)
    if any(each.is_failure and reason != RELEASE_MEMBER for each, reason in stands):
        assert state.is_failure
    assert deciding(stands[:1]) == 0


@given(st.lists(st.sampled_from([{}, {"failures": 20}, {"failures": 3}, {"calls": 20}]), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_company_never_makes_a_model_pass(found):
    """What does not pass alone does not pass with others beside it."""
    alone = [judge(POLICY, [part("", **changes)], elapsed_s=100.0).kind for changes in found]
    together = judge(POLICY, [part(f"m{i}", **changes) for i, changes in enumerate(found)], elapsed_s=100.0).kind
    if together == "promote":
        assert set(alone) == {"promote"}


def halted_shares(models, rounds=1500):
    """How often a fleet of one device is halted although nothing changed, by the rise of failed calls alone."""
    rng = random.Random(11)
    policy = ThresholdPolicy(soak_s=0.0, max_failed_increase=0.0, max_failed_ratio=1.0, max_drift=0.0)
    halted = 0
    for _ in range(rounds):
        counts = [[sum(rng.random() < 0.05 for _ in range(200)) for _ in range(2)] for _ in range(models)]
        evidence = [
            part(f"m{i}" if models > 1 else "", calls=200, failures=after, calls_before=200, failures_before=before)
            for i, (before, after) in enumerate(counts)
        ]
        halted += judge(policy, evidence, elapsed_s=1.0).kind == "halt"
    return halted / rounds


@pytest.mark.slow
def test_more_models_are_not_halted_more_often_by_chance():
    one, three = halted_shares(1), halted_shares(3)
    # 1,500 rounds each: the standard error of the difference is below 0.006
    assert three <= one + 0.012
    assert one < 0.05


def test_drift_breaks_the_gate_at_the_level_that_all_models_share():
    figure = DriftFigure(signal="output/class", statistic="js_distance", value=0.2, low=0.11, high=0.3, n=400)
    assert judge(POLICY, [part("", prediction_drift=figure)], elapsed_s=100.0).kind == "halt"
    shared = DriftFigure(
        signal="output/class", statistic="js_distance", value=0.2, low=0.11, high=0.3, n=400, proven=0.09
    )
    verdict = judge(POLICY, pair(prediction_drift=shared), elapsed_s=100.0)
    assert verdict.kind == "hold", "not proven for two, and not let through either"
    wide = DriftFigure(
        signal="output/class", statistic="js_distance", value=0.2, low=0.01, high=0.25, n=400, proven=-0.05
    )
    assert judge(POLICY, pair(prediction_drift=wide), elapsed_s=100.0).kind == "hold", "the wider end lets nothing pass"
