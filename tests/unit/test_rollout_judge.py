"""The canary judge: failure before success, and what is missing never promotes."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.rollout import (
    DeviceEvidence,
    DeviceState,
    DriftFigure,
    ThresholdPolicy,
    Verdict,
    judge,
    parse_policy,
)

POLICY = ThresholdPolicy(soak_s=60.0, judge_timeout_s=600.0)
STRATA = ("x86-64-server/onnxruntime", "intel-nuc/openvino", "x86-64-litert/litert")


def drift(value, low=None, high=None, n=400, signal="output/class"):
    return DriftFigure(
        signal=signal,
        statistic="js_distance",
        value=value,
        low=value * 0.8 if low is None else low,
        high=value * 1.2 if high is None else high,
        n=n,
    )


def good(index=0, **changes):
    fields = {
        "device_id": f"device-{index}",
        "stratum": STRATA[index % 3],
        "state": DeviceState.SUCCEEDED,
        "windows": 5,
        "calls": 500,
        "latency_p99_ms": 1.0,
        "latency_p99_before_ms": 1.0,
        "calls_before": 500,
        "failures_before": 0,
        "prediction_drift": drift(0.02, 0.0, 0.05),
        "data_drift": drift(0.02, 0.0, 0.05, signal="input/x/brightness"),
        "loaded_digest_matches": True,
    }
    return DeviceEvidence(**(fields | changes))


def three(**changes):
    """Three canaries of three strata; the changes are the first one's."""
    return [good(0, **changes), good(1), good(2)]


def gate(verdict, gate_id):
    return next(result for result in verdict.gates if result.id == gate_id)


def test_good_canaries_are_promoted_with_the_figures():
    verdict = judge(POLICY, three(), elapsed_s=60.0)
    assert verdict.kind.value == "promote"
    assert verdict.sentence == "Promoted: every gate holds on 3 devices, 1500 calls, 0 failed"
    assert all(result.holds for result in verdict.gates)


def test_nothing_is_promoted_before_the_soak_is_over():
    assert judge(POLICY, three(), elapsed_s=59.0).kind.value == "hold"
    assert judge(POLICY, three(), elapsed_s=math.nan).kind.value == "hold"


BROKEN = {
    "hard stop": ({"hard_stops": ("nan_output",)}, "hard_stops", "nan output on device-0"),
    "another digest": ({"loaded_digest_matches": False}, "hard_stops", "another digest"),
    "failed calls": ({"failures": 40}, "failed_calls", "8.00%"),
    "failed calls, few but proven": ({"calls": 20, "failures": 12}, "failed_calls", "60.00%"),
    "more failed calls than before": ({"failures": 20}, "failed_increase", "4.00%"),
    "crash": ({"crashes": 1}, "crashes", "1 on device-0"),
    "drift": ({"prediction_drift": drift(0.41, 0.35, 0.47)}, "prediction_drift", "0.41 (99 % 0.35…0.47, n = 400)"),
    "device failed": ({"state": DeviceState.FAILED, "reason": "golden_mismatch"}, "failed_devices", "golden mismatch"),
    "device rolled back": ({"state": DeviceState.ROLLED_BACK}, "failed_devices", "rolled back"),
    "device lost": ({"state": DeviceState.LOST_AFTER_ACTIVATE}, "failed_devices", "lost after activate"),
    "device timed out": ({"state": DeviceState.TIMED_OUT}, "failed_devices", "timed out"),
    "device regressed": ({"state": DeviceState.REGRESSED}, "failed_devices", "regressed"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("elapsed_s", [0.0, 60.0, 1e6])
def test_one_broken_gate_halts_at_any_time(case, elapsed_s):
    changes, gate_id, words = BROKEN[case]
    verdict = judge(POLICY, three(**changes), elapsed_s=elapsed_s)
    assert verdict.kind.value == "halt"
    assert gate(verdict, gate_id).holds is False
    assert "device-0" in gate(verdict, gate_id).devices
    assert words in gate(verdict, gate_id).sentence
    assert verdict.gates[0].holds is False


def test_failure_is_judged_before_success_and_before_missing_data():
    evidence = [good(0, crashes=1), good(1, windows=0, calls=0, prediction_drift=None), good(2)]
    assert judge(POLICY, evidence, elapsed_s=0.0).kind.value == "halt"


UNKNOWN = {
    "silent": {"windows": 0, "calls": 0, "prediction_drift": None, "latency_p99_ms": None},
    "few windows": {"windows": 2},
    "few calls": {"calls": 99},
    "golden inputs alone": {"without_field_traffic": True},
    "loaded digest unknown": {"loaded_digest_matches": None},
    "no drift figure": {"prediction_drift": None},
    "drift not decided": {"prediction_drift": drift(0.12, 0.05, 0.2)},
    "drift is not a number": {"prediction_drift": drift(math.nan, math.nan, math.nan)},
    "queued": {"state": DeviceState.QUEUED},
    "offered": {"state": DeviceState.OFFERED},
    "in progress": {"state": DeviceState.IN_PROGRESS},
    "refused": {"state": DeviceState.REJECTED, "reason": "memory"},
    "never reached, alone in its stratum": {"state": DeviceState.OFFLINE_UNREACHED, "windows": 0, "calls": 0},
    "canceled, alone in its stratum": {"state": DeviceState.CANCELED, "windows": 0, "calls": 0},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_missing_data_holds_then_pauses_and_never_promotes(case):
    evidence = three(**UNKNOWN[case])
    assert judge(POLICY, evidence, elapsed_s=599.0).kind.value == "hold"
    verdict = judge(POLICY, evidence, elapsed_s=600.0)
    assert verdict.kind.value == "pause"
    assert verdict.sentence.startswith("Paused undecided after 600 s: ")


@pytest.mark.parametrize(
    "state",
    [state for state in DeviceState if not state.is_pending and not state.is_failure and state.value != "succeeded"],
)
def test_a_stage_in_which_nothing_can_happen_pauses_at_once(state):
    evidence = [good(i, state=state, windows=0, calls=0, prediction_drift=None) for i in range(3)]
    verdict = judge(POLICY, evidence, elapsed_s=0.0)
    assert verdict.kind.value == "pause"
    assert "3 " + state.value.replace("_", " ") in verdict.sentence


def test_an_empty_stage_does_not_pass():
    assert judge(POLICY, [], elapsed_s=1e9).kind.value == "pause"


def test_silent_canaries_are_not_a_pass():
    evidence = [good(i, windows=0, calls=0, prediction_drift=None) for i in range(3)]
    assert judge(POLICY, evidence, elapsed_s=60.0).kind.value == "hold"
    assert judge(POLICY, evidence, elapsed_s=1e9).kind.value == "pause"


def test_a_device_that_was_never_reached_is_no_failure_where_its_stratum_is_covered():
    unreached = good(3, state=DeviceState.OFFLINE_UNREACHED, windows=0, calls=0, prediction_drift=None)
    verdict = judge(POLICY, [*three(), unreached], elapsed_s=60.0)
    assert verdict.kind.value == "promote"
    assert "1 not reached" in verdict.sentence


@pytest.mark.parametrize("state", [DeviceState.NO_VARIANT, DeviceState.ALREADY_RUNNING, DeviceState.REMOVED])
def test_a_stratum_that_the_release_does_not_concern_is_not_asked_for(state):
    evidence = [good(0, state=state, windows=0, calls=0, prediction_drift=None), good(1), good(2)]
    assert judge(POLICY, evidence, elapsed_s=60.0).kind.value == "promote"


def test_failed_devices_need_count_and_share():
    policy = msgspec.structs.replace(POLICY, max_failed_devices=1, max_failed_device_ratio=0.5)
    failed = {"state": DeviceState.FAILED, "windows": 0, "calls": 0, "prediction_drift": None}
    strata = {"stratum": STRATA[0]}
    fleet = [good(i, **strata) for i in range(4)]
    assert judge(policy, [*fleet, good(4, **strata, **failed)], elapsed_s=60.0).kind.value == "promote"
    two_of_six = [*fleet, *(good(i, **strata, **failed) for i in (4, 5))]
    assert judge(policy, two_of_six, elapsed_s=60.0).kind.value == "promote"
    three_of_four = [good(0, **strata), *(good(i, **strata, **failed) for i in (4, 5, 6))]
    assert judge(policy, three_of_four, elapsed_s=60.0).kind.value == "halt"


def test_one_broken_runtime_is_not_averaged_away():
    evidence = [good(i, failures=0, calls=100_000) for i in range(1, 10)]
    evidence.append(good(0, failures=60, calls=600))
    assert judge(POLICY, evidence, elapsed_s=60.0).kind.value == "halt"


# Three cases from Kayenta's tracker in which its judge said nothing was wrong.


def test_kayenta_few_events_against_none_before_do_not_pass_quietly():
    """{0, 1, 2, 1, 0, 0} against all zeros."""
    events = sum((0, 1, 2, 1, 0, 0))
    as_crashes = judge(POLICY, three(crashes=events), elapsed_s=60.0)
    assert as_crashes.kind.value == "halt"
    evidence = three(failures=events, windows=6, calls=600, calls_before=600)
    as_failed_calls = judge(POLICY, evidence, elapsed_s=60.0)
    assert as_failed_calls.kind.value == "hold"
    assert gate(as_failed_calls, "failed_increase").holds is None
    assert judge(POLICY, evidence, elapsed_s=600.0).kind.value == "pause"


def test_kayenta_most_values_a_hundredfold_do_not_pass_quietly():
    """Seven of ten values at 100 against all 1: the p99 of the windows is 100."""
    evidence = three(latency_p99_ms=100.0, latency_p99_before_ms=1.0, windows=10)
    for limits in ({"max_latency_ratio": 2.0}, {"latency_p99_ms": 10.0}):
        verdict = judge(msgspec.structs.replace(POLICY, **limits), evidence, elapsed_s=60.0)
        assert verdict.kind.value == "halt"
    unlimited = judge(POLICY, evidence, elapsed_s=60.0)
    assert "not judged: p99 1 → 100 ms (×100) on device-0, no latency limit is set" in unlimited.sentence


def test_kayenta_change_of_variance_alone_does_not_pass_quietly():
    """Same mean, wider: the distance of the distributions sees it where a mean does not."""
    evidence = three(prediction_drift=drift(0.3, 0.22, 0.38, signal="output/confidence"))
    verdict = judge(POLICY, evidence, elapsed_s=60.0)
    assert verdict.kind.value == "halt"
    assert "output/confidence" in verdict.sentence


def test_a_distance_that_chance_explains_does_not_hold_up_a_release():
    """300 samples against 300 in 32 bins give a distance of 0.17 now and then with nothing behind it: low is 0."""
    verdict = judge(POLICY, three(prediction_drift=drift(0.17, 0.0, 0.3)), elapsed_s=60.0)
    assert verdict.kind.value == "promote"
    assert "is not told from chance; the limit 0.1" in gate(verdict, "prediction_drift").sentence


def test_a_latency_limit_without_a_measurement_does_not_pass():
    policy = msgspec.structs.replace(POLICY, max_latency_ratio=2.0)
    evidence = three(latency_p99_before_ms=None)
    assert judge(policy, evidence, elapsed_s=60.0).kind.value == "hold"
    assert judge(policy, evidence, elapsed_s=600.0).kind.value == "pause"


def test_data_drift_is_a_gate_only_where_it_was_asked_for():
    evidence = three(data_drift=drift(0.6, 0.5, 0.7, signal="input/x/brightness"))
    assert judge(POLICY, evidence, elapsed_s=60.0).kind.value == "promote"
    asked = msgspec.structs.replace(POLICY, max_data_drift=0.2)
    assert judge(asked, evidence, elapsed_s=60.0).kind.value == "halt"


def test_a_verdict_is_stored_and_replayed_to_the_identical_bytes():
    evidence = three(prediction_drift=drift(0.41, 0.35, 0.47))
    verdict = judge(POLICY, evidence, elapsed_s=61.5)
    stored = msgspec.json.encode({"policy": POLICY, "evidence": evidence, "elapsed_s": 61.5, "verdict": verdict})
    document = msgspec.json.decode(stored)
    again = judge(
        parse_policy(document["policy"]),
        list(reversed(msgspec.convert(document["evidence"], list[DeviceEvidence]))),
        elapsed_s=document["elapsed_s"],
    )
    assert msgspec.json.encode(again) == msgspec.json.encode(verdict)
    assert msgspec.convert(document["verdict"], Verdict) == verdict


EVIDENCE = st.builds(
    DeviceEvidence,
    device_id=st.sampled_from([f"device-{i}" for i in range(8)]),
    stratum=st.sampled_from(STRATA),
    state=st.sampled_from(DeviceState),
    windows=st.integers(0, 6),
    calls=st.integers(0, 300),
    crashes=st.integers(0, 1),
    hard_stops=st.sampled_from([(), (), ("nan_output",)]),
    prediction_drift=st.none() | st.builds(drift, st.floats(0.0, 0.5)),
    latency_p99_ms=st.none() | st.floats(0.1, 10.0),
    without_field_traffic=st.booleans(),
    loaded_digest_matches=st.sampled_from([None, True, True, False]),
)


@settings(derandomize=True, max_examples=300)
@given(st.lists(EVIDENCE, max_size=6, unique_by=lambda d: d.device_id), st.floats(0.0, 2000.0))
def test_what_a_promotion_implies(evidence, elapsed_s):
    """Whatever the evidence: a promotion means data from every device that took it, and no broken gate."""
    verdict = judge(POLICY, evidence, elapsed_s=elapsed_s)
    if verdict.kind.value == "promote":
        took = [device for device in evidence if device.state is DeviceState.SUCCEEDED]
        assert took and elapsed_s >= POLICY.soak_s
        for device in took:
            assert device.calls >= POLICY.min_calls and device.windows >= POLICY.min_windows
            assert device.loaded_digest_matches and not device.without_field_traffic and not device.hard_stops
            assert device.prediction_drift is not None
            assert device.prediction_drift.value <= POLICY.max_drift or device.prediction_drift.low <= 0.0
        assert not any(device.crashes or device.state.is_pending or device.state.is_failure for device in evidence)
    if any(device.crashes or device.hard_stops or device.state.is_failure for device in evidence):
        assert verdict.kind.value == "halt"
    if verdict.kind.value == "hold":
        assert elapsed_s < POLICY.deadline_s


@pytest.mark.parametrize("value", [0.0, 0.05, 0.2])
def test_a_distance_that_the_data_could_not_have_told_is_no_pass(value: float) -> None:
    """A hundred calls cannot tell a drift of 0.4 from none: silence of so little data promotes nothing."""
    quiet = three(prediction_drift=drift(value, 0.0, 0.42))
    assert judge(POLICY, quiet, elapsed_s=60.0).kind.value == "hold"
    assert judge(POLICY, quiet, elapsed_s=1e6).kind.value == "pause"
