"""When windows close, what they hold, and what must never be sent alone."""

from __future__ import annotations

from msgspec import structs

from edgeship.server.admission import check_window
from edgeship_agent.contract.sketch import MAX_SKETCH_ENTRIES, CategorySketch, exponential_of
from edgeship_agent.telemetry.signals import make_profile
from edgeship_agent.telemetry.window import Clock, WindowBuilder, WindowIdentity, WindowLimits, is_constant_class

IDENTITY = WindowIdentity(
    boot_id="b", model="m", version="1", arm="a", digest="d", variant="t/r/p", profile_hash="h", clock_quality="synced"
)
PROFILE = make_profile([{"output/class": i % 10, "input/x/0": float(i)} for i in range(100)])


def at(seconds: float) -> Clock:
    return Clock(monotonic_s=seconds, wall_s=1000.0 + seconds)


def builder(**limits) -> WindowBuilder:
    return WindowBuilder(IDENTITY, PROFILE, WindowLimits(**limits), at(0))


def answer(windows: WindowBuilder, n: int, *, top: int | None = None, **flags) -> None:
    for i in range(n):
        values = {"output/class": i % 10 if top is None else top, "input/x/0": float(i)}
        windows.answered(1500.0, values, **flags)


def test_a_window_closes_by_count():
    windows = builder(duration_s=1e9, inferences=50)
    answer(windows, 49)
    assert not windows.is_due(at(1))
    answer(windows, 1)
    assert windows.is_due(at(1))
    window = windows.close(at(2), {"memory_bytes": 1.0})
    assert (window.inferences, window.seq, window.boot_id, window.profile_hash) == (50, 0, "b", "h")
    assert (window.started_at_s, window.ended_at_s, window.clock_quality) == (1000.0, 1002.0, "synced")
    assert (window.latency_us.total, window.signals["input/x/0"].total) == (50, 50)
    assert window.gauges == {"memory_bytes": 1.0}
    assert windows.close(at(3), {}) is None


def test_a_window_of_very_many_classes_names_the_most_frequent_and_the_server_takes_it():
    windows = builder(inferences=10_000)
    for top in range(3000):
        answer(windows, 1, top=top)
    answer(windows, 50, top=2999)
    window = windows.close(at(1), {})
    counts = window.signals["output/class"].counts
    assert (len(counts), counts[2999], counts[1022], window.inferences) == (MAX_SKETCH_ENTRIES, 51, 1, 3050)
    check_window(structs.replace(window, seq=1))


def test_a_window_closes_by_time():
    windows = builder(duration_s=10, inferences=500)
    answer(windows, 20)
    assert not windows.is_due(at(9.9))
    assert windows.is_due(at(10))


def test_fewer_than_twenty_inferences_are_merged_into_the_next():
    windows = builder(duration_s=10, inferences=500)
    answer(windows, 19)
    assert not windows.is_due(at(1000))
    assert windows.close(at(1000), {}) is None
    answer(windows, 1)
    window = windows.close(at(1001), {})
    assert (window.inferences, window.started_at_s) == (20, 1000.0)


def test_a_limit_below_twenty_does_not_weaken_that():
    windows = builder(inferences=5)
    answer(windows, 19)
    assert not windows.is_due(at(0))


def test_failures_are_told_without_the_few_answers_around_them():
    windows = builder(duration_s=10, inferences=500)
    answer(windows, 5)
    windows.failed()
    windows.shed()
    windows.fault("type")
    assert not windows.is_due(at(9))
    assert windows.is_due(at(10))
    window = windows.close(at(10), {})
    assert (window.inferences, window.failures, window.shed, window.signals) == (0, 1, 1, {})
    assert (window.schema_faults, window.latency_us.total) == ({"type": 1}, 0)
    answer(windows, 15)
    window = windows.close(at(20), {})
    assert (window.inferences, window.failures, window.schema_faults) == (20, 0, {})


def test_failures_and_misses_of_a_full_window():
    windows = builder()
    answer(windows, 20, late=True)
    windows.failed()
    windows.fault("range")
    windows.fault("range")
    window = windows.close(at(1), {})
    assert (window.deadline_misses, window.failures, window.schema_faults) == (20, 1, {"range": 2})


def test_nan_output_is_a_hard_stop():
    windows = builder()
    answer(windows, 20)
    windows.answered(10.0, {}, nan_output=True)
    assert windows.close(at(1), {}).hard_stops == ("nan_output",)
    answer(windows, 20)
    assert windows.close(at(2), {}).hard_stops == ()


def test_constant_class_is_a_hard_stop_where_the_baseline_makes_it_impossible():
    windows = builder()
    answer(windows, 20, top=3)
    assert windows.close(at(1), {}).hard_stops == ("constant_class",)
    answer(windows, 19, top=3)
    answer(windows, 1, top=4)
    assert windows.close(at(2), {}).hard_stops == ()


def test_constant_class_needs_enough_calls_for_a_frequent_class():
    baseline = CategorySketch(counts={0: 95, 1: 5})
    assert not is_constant_class(CategorySketch(counts={0: 200}), baseline)
    assert is_constant_class(CategorySketch(counts={0: 400}), baseline)
    assert not is_constant_class(CategorySketch(counts={0: 400}), CategorySketch(counts={}))
    assert not is_constant_class(CategorySketch(counts={0: 10_000}), CategorySketch(counts={0: 50}))


def test_delays_of_a_stream_travel_without_answers_and_once():
    windows = builder(duration_s=10, inferences=500)
    windows.notes.stream_delays(exponential_of([12_000.0, 15_000.0]))
    windows.notes.stream_delays(exponential_of([12_000.0]))
    assert not windows.is_due(at(9))
    window = windows.close(at(10), {})
    assert (window.inferences, window.stream_delay_us) == (0, exponential_of([12_000.0, 12_000.0, 15_000.0]))
    answer(windows, 20)
    assert windows.close(at(20), {}).stream_delay_us is None
