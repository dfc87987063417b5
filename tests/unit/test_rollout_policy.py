"""Policies and stages as people write them: read when a rollout is created, or refused with the reason."""

import tomllib

import msgspec
import pytest

from edgeship.rollout import ThresholdPolicy, parse_policy, parse_stages
from edgeship_agent.contract.errors import ConfigError


def test_defaults_and_a_round_trip_through_json():
    policy = parse_policy({})
    assert policy == ThresholdPolicy()
    assert parse_policy(msgspec.to_builtins(policy)) == policy


def test_probation_may_be_a_table():
    policy = parse_policy(tomllib.loads("min_calls = 300\n[probation]\ninferences = 60\nduration_s = 1.0\n"))
    assert (policy.min_calls, policy.probation_inferences, policy.probation_s) == (300, 60, 1.0)
    assert policy.probation().inferences == 60


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"max_failed_rate": 0.1}, "max_failed_rate"),
        ({"max_failed_ratio": "0.1"}, "max_failed_ratio"),
        ({"max_failed_ratio": 1.5}, "max_failed_ratio"),
        ({"max_failed_ratio": -0.1}, "max_failed_ratio"),
        ({"max_drift": float("nan")}, "max_drift"),
        ({"soak_s": float("inf")}, "soak_s"),
        ({"min_windows": 0}, "min_windows"),
        ({"min_calls": 0}, "min_calls"),
        ({"name": "judge"}, "unknown policy"),
        ({"probation": 3}, "probation"),
        ({"probation": {"calls": 3}}, "probation.calls"),
        ({"probation": {"inferences": 3}, "probation_inferences": 4}, "same limit"),
    ],
)
def test_a_policy_that_would_not_judge_is_refused(document, words):
    with pytest.raises(ConfigError, match=words):
        parse_policy(document, file="policy.toml")


@pytest.mark.parametrize(
    ("text", "shares"), [("100%", (1.0,)), ("20%,100%", (0.2, 1.0)), (" 1% , 12.5%,100%", (0.01, 0.125, 1.0))]
)
def test_stages(text, shares):
    assert parse_stages(text) == shares


@pytest.mark.parametrize(
    "text",
    ["", "20%", "100%,20%", "20%,20%,100%", "0%,100%", "20,100", "a%,100%", "20%x,100%", "nan%,100%", "20%,101%"],
)
def test_stages_that_lead_nowhere_are_refused(text):
    with pytest.raises(ConfigError):
        parse_stages(text)


def test_the_deadline_is_never_before_the_soak():
    assert ThresholdPolicy(soak_s=10.0, offer_timeout_s=90.0).deadline_s == 100.0
    assert ThresholdPolicy(soak_s=100.0, judge_timeout_s=50.0).deadline_s == 100.0
