"""What the marks of the charts say."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from edgeship.charts import HeatRow, IntervalRow, Segment, heat_map, histogram_pair, interval_plot, version_bar
from edgeship.charts.heatmap import worst_first


def row(holds: bool | None, value: float | None = 0.02) -> IntervalRow:
    return IntervalRow(label="failed share", value=value, low=0.01, high=0.09, limit=0.05, holds=holds, unit="fraction")


def test_only_an_undecided_interval_is_dashed_and_each_has_a_word() -> None:
    undecided, holding, over = (interval_plot("t", "f", [row(holds)]) for holds in (None, True, False))
    assert "stroke-dasharray" in undecided
    assert "◌ undecided" in undecided
    assert "stroke-dasharray" not in holding
    assert "✔ holds" in holding
    assert "✖ over the limit" in over


def circle_x(chart: str, index: int) -> float:
    circles = [node for node in ElementTree.fromstring(chart).iter() if node.tag.endswith("circle")]
    return float(circles[index].attrib["cx"].rstrip("%"))


def test_rows_of_different_units_share_one_limit_line() -> None:
    rows = [
        IntervalRow(label="share", value=0.05, limit=0.05, unit="fraction"),
        IntervalRow(label="latency", value=10.0, limit=10.0, unit="ms"),
        IntervalRow(label="worse", value=20.0, limit=10.0, unit="ms"),
    ]
    chart = interval_plot("t", "f", rows)
    assert circle_x(chart, 0) == circle_x(chart, 1) < circle_x(chart, 2)


def test_a_value_far_outside_is_marked_as_cut() -> None:
    chart = interval_plot("t", "f", [IntervalRow(label="a", value=100.0, limit=1.0, holds=False)])
    assert "»" in chart
    assert "100" in chart


def test_a_limit_of_zero_does_not_divide_by_zero() -> None:
    chart = interval_plot("t", "f", [IntervalRow(label="crashes", value=0.0, limit=0.0, holds=True, unit="count")])
    assert "0 · limit 0" in chart


def test_the_version_bar_shows_five_and_other_and_always_the_canary() -> None:
    parts = [Segment(label=f"v{i}", count=100 - i) for i in range(8)] + [Segment(label="new", count=1, canary=True)]
    chart = ElementTree.fromstring(version_bar("t", "f", parts))
    entries = ["".join(node.itertext()) for node in chart.findall(".//ul/li")]
    assert len(entries) == 6
    assert any("new 1" in entry and "canary" in entry for entry in entries)
    assert "other (v4, v5, v6, v7)" in entries[-1]


def test_the_heat_map_is_worst_first_and_marks_what_is_over_the_limit() -> None:
    rows = [
        HeatRow(label="calm", values=(0.01, 0.02), limit=0.1),
        HeatRow(label="silent", values=(None, None), limit=0.1),
        HeatRow(label="moved", values=(0.05, 0.1), limit=0.1),
    ]
    assert [entry.label for entry in worst_first(rows)] == ["moved", "calm", "silent"]
    drawing = heat_map("t", "f", rows, ["1", "2"]).split("<ul")[0]
    assert drawing.count("✖") == 1


def test_histograms_over_different_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="bins differ"):
        histogram_pair("t", "f", ["a", "b"], [1, 2], [1])
