"""k of n looks open an alarm; it closes at half of that and does not flicker."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.drift import AlarmState, next_alarm
from edgeship_agent.contract.errors import ConfigError


def run(looks, k, n):
    state, events = AlarmState(), []
    for index, look in enumerate(looks):
        state, event = next_alarm(state, look, k, n)
        if event:
            events.append((index, event))
    return state, events


def test_one_hot_look_opens_nothing():
    assert run([True, False, False, False, True], 2, 3)[1] == []


def test_it_opens_at_k_and_closes_below_half():
    looks = [True] * 3 + [False] * 4
    assert run(looks, 3, 4)[1] == [(2, "open"), (5, "close")]


def test_it_does_not_flicker_at_the_limit():
    state, events = run([True, True, False] * 20, 2, 3)
    assert events == [(1, "open")]
    assert state.open


@settings(derandomize=True, max_examples=200)
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.integers(0, 5))
def test_events_alternate_and_follow_the_counts(looks, k, more):
    n = k + more
    state, events = run(looks, k, n)
    assert [event for _, event in events] == ["open", "close"] * (len(events) // 2) + ["open"] * (len(events) % 2)
    assert state.recent == tuple(looks[-n:])
    assert state.hot_windows == sum(state.recent)
    for index, event in events:
        hot = sum(looks[max(0, index + 1 - n) : index + 1])
        assert hot >= k if event == "open" else 2 * hot < k


@pytest.mark.parametrize(("k", "n"), [(0, 3), (4, 3), (1, 0)])
def test_a_rule_that_never_or_always_fires_is_refused(k, n):
    with pytest.raises(ConfigError):
        next_alarm(AlarmState(), True, k, n)
