"""Figures that pages compute: latency curves, columns of time, bins of histograms, static files."""

from __future__ import annotations

import hashlib

from edgeship.charts import STYLESHEET
from edgeship.drift import DriftState, SignalDistance
from edgeship.server.pages.assets import asset_url, read_asset
from edgeship.server.pages.devices import latency_curve
from edgeship.server.pages.drift import histogram_bins
from edgeship.server.pages.drift_history import Span, by_signal, compare_seen, worst_by_column
from edgeship.server.pages.words import rows_table, subject_link
from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import Family, Profile, SignalProfile
from edgeship_agent.contract.sketch import BinnedSketch, CategorySketch, ExponentialSketch, Sketch, exponential_of


def test_a_latency_curve_ends_at_one_and_is_in_milliseconds() -> None:
    curve = latency_curve("v1", exponential_of([1900.0] * 99 + [60_000.0]))
    assert curve.points[-1][1] == 1.0
    assert curve.quantile(0.5) == 2.048
    assert curve.n == 100
    assert latency_curve("v1", ExponentialSketch()).quantile(0.99) is None


def distance(signal: str, value: float, state: DriftState) -> SignalDistance:
    return SignalDistance(
        signal=signal,
        family="input",
        reference="baseline",
        statistic="js_distance",
        value=value,
        low=value,
        high=value,
        n=100,
        m=900,
        warn=0.05,
        alert=0.1,
        state=state,
    )


def test_a_column_without_windows_is_no_data_for_every_signal() -> None:
    columns = [(distance("a", 0.2, DriftState.ALERT), distance("b", 0.0, DriftState.NO_DATA)), ()]
    found = by_signal(columns)
    assert [None if entry is None else entry.value for entry in found["a"]] == [0.2, None]
    assert found["b"] == [None, None]
    assert [entry is None for entry in worst_by_column(columns)] == [False, True]


def test_times_fall_into_columns_and_the_ends_stay_inside() -> None:
    span = Span(start_s=0.0, end_s=10.0, count=5)
    assert [span.column(at_s) for at_s in (-1.0, 0.0, 3.9, 10.0, 11.0)] == [0, 0, 1, 4, 4]
    assert span.labels()[:2] == ["00:00:00", "00:00:02"]
    assert Span(start_s=5.0, end_s=5.0).column(5.0) == 0


def test_classes_have_their_labels_and_unknown_ones_their_number() -> None:
    signal = SignalProfile(name="output/class", family=Family.OUTPUT, reference=CategorySketch(counts={0: 5, 1: 5}))
    bins = histogram_bins(signal, CategorySketch(counts={1: 2, 7: 1}), ("cat", "dog"))
    assert bins == (["cat", "dog", "7"], [5, 5, 0], [0, 2, 1])
    assert histogram_bins(signal, None, ())[2] == [0, 0]


def test_htmx_is_vendored_as_published_with_its_licence() -> None:
    # sha256 of dist/htmx.min.js in the package htmx.org 2.0.11
    published = "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
    assert hashlib.sha256(read_asset("htmx.js")).hexdigest() == published
    assert b"Zero-Clause BSD" in read_asset("htmx-LICENSE.txt")


def test_the_stylesheet_holds_the_charts_and_names_nothing_foreign() -> None:
    css = read_asset("edgeship.css").decode()
    assert css.startswith(STYLESHEET)
    assert "url(" not in css
    assert "@import" not in css
    assert asset_url("edgeship.css").startswith("/static/edgeship.css?v=")


def test_tables_say_when_they_are_empty_and_escape_what_they_hold() -> None:
    assert "nobody" in rows_table("Devices", ("a", "b"), [], empty="nobody")
    table = rows_table("Devices", ("a", "b"), [("<script>", "<b>")])
    assert "<script>" not in table
    assert "&lt;b&gt;" in table


def test_a_subject_leads_to_its_page_and_an_unknown_one_stays_text() -> None:
    assert 'href="/releases/digits/v1"' in subject_link("release/digits/v1")
    assert 'href="/rollouts/r1"' in subject_link("rollout/r1")
    assert subject_link("server") == "server"
    assert subject_link("<b>/x") == "&lt;b&gt;/x"


def test_bins_that_do_not_fit_are_no_data_and_break_no_page() -> None:
    reference = BinnedSketch(counts=(100, 100))
    signal = SignalProfile(name="input/x/mean", family=Family.INPUT, edges=(0.5,), reference=reference)
    profile = Profile(sample_count=200, signals=(signal,))
    fitting = window(BinnedSketch(counts=(50, 50)))
    assert [found.signal for found in compare_seen(profile, [fitting])] == ["input/x/mean"]
    assert compare_seen(profile, [window(BinnedSketch(counts=(1, 2, 3)))]) == ()
    assert compare_seen(profile, [window(CategorySketch(counts={0: 9}))]) == ()
    assert compare_seen(profile, []) == ()


def window(sketch: Sketch) -> Window:
    return Window(
        boot_id="b",
        seq=1,
        model="m",
        version="v",
        arm="main",
        digest="sha256:0",
        variant="a/b/c",
        profile_hash="0",
        started_at_s=0.0,
        ended_at_s=1.0,
        clock_quality="unknown",
        inferences=100,
        failures=0,
        deadline_misses=0,
        shed=0,
        crashes=0,
        latency_us=ExponentialSketch(),
        signals={"input/x/mean": sketch},
    )
