"""Every chart escapes what it is given, is well-formed, and says in words what it shows."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from edgeship.charts import (
    STYLESHEET,
    SWATCHES,
    Axis,
    BandPoint,
    Curve,
    HeatRow,
    IntervalRow,
    Markup,
    Phase,
    ScatterPoint,
    Segment,
    difference_band,
    ecdf_plot,
    element,
    format_value,
    fragment,
    heat_map,
    histogram_pair,
    interval_plot,
    phase_rail,
    scatter_plot,
    sparkline,
    version_bar,
)

EVIL = "<script>alert('x')</script>\"&"


def every_chart(name: str) -> list[Markup]:
    size = Axis(name=name, unit="bytes")
    return [
        interval_plot(name, name, [IntervalRow(label=name, value=1.0, low=0.5, high=2.0, limit=1.5)]),
        phase_rail(name, name, [Phase(label=name, word=name, mark="failed", detail=name)]),
        version_bar(name, name, [Segment(label=f"{name}{i}", count=i, canary=i == 3, href=name) for i in range(8)]),
        heat_map(name, name, [HeatRow(label=name, values=(None, 0.2), limit=0.1, href=name)], [name, name]),
        histogram_pair(name, name, [name, name], [1, 2], [2, 1], names=(name, name)),
        ecdf_plot(name, name, [Curve(label=name, points=((1.0, 0.5), (2.0, 1.0)), n=2)], limit=3.0),
        scatter_plot(name, name, [ScatterPoint(label=name, mark=name, x=1.0, y=2.0)], x_axis=size, y_axis=size),
        difference_band(name, name, [BandPoint(label=name, value=0.1, low=0.0, high=0.2)], limit=0.1),
        sparkline(name, name, [1.0, 2.0]),
    ]


def every_empty_chart() -> list[Markup]:
    axis = Axis(name="size")
    return [
        interval_plot("t", "f", [IntervalRow(label="a", value=None, limit=1.0)]),
        version_bar("t", "f", []),
        heat_map("t", "f", [HeatRow(label="a", values=(None, None), limit=0.1)], ["1", "2"]),
        histogram_pair("t", "f", ["a"], [1], [0]),
        ecdf_plot("t", "f", [Curve(label="a", points=(), n=0)]),
        scatter_plot("t", "f", [], x_axis=axis, y_axis=axis),
        difference_band("t", "f", [BandPoint(label="1", value=None)]),
        sparkline("t", "f", [None, None]),
    ]


@pytest.mark.parametrize("chart", every_chart(EVIL), ids=range(9))
def test_every_string_is_escaped_and_the_markup_is_well_formed(chart: Markup) -> None:
    root = ElementTree.fromstring(chart)
    names = {node.tag.rpartition("}")[2] for node in root.iter()}
    assert "script" not in names
    assert EVIL in "".join(root.itertext())
    assert not any("style" in node.attrib for node in root.iter()), "inline styles break the content-security policy"
    assert not any(key.startswith("on") for node in root.iter() for key in node.attrib)


@pytest.mark.parametrize("chart", every_chart("latency"), ids=range(9))
def test_every_drawing_has_role_title_and_description(chart: Markup) -> None:
    root = ElementTree.fromstring(chart)
    drawings = [node for node in root.iter() if node.attrib.get("role") == "img"]
    assert len(drawings) == 1
    children = [child.tag.rpartition("}")[2] for child in drawings[0]]
    assert children[:2] == ["title", "desc"]
    assert drawings[0][1].text


@pytest.mark.parametrize("chart", every_chart("latency")[:-1], ids=range(8))
def test_every_chart_has_a_table_of_its_numbers(chart: Markup) -> None:
    root = ElementTree.fromstring(chart)
    assert root.find(".//details//table/tbody/tr/td") is not None


@pytest.mark.parametrize("chart", every_empty_chart(), ids=range(8))
def test_nothing_measured_is_no_data_and_never_zero(chart: Markup) -> None:
    assert "no data" in chart


def test_text_is_escaped_unless_it_is_markup() -> None:
    assert fragment("<b>", element("b", "<i>"), ["&"]) == "&lt;b&gt;<b>&lt;i&gt;</b>&amp;"


def test_not_a_number_is_no_data() -> None:
    assert format_value(float("nan"), "ms") == "no data"


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_marks_have_contrast_of_three_and_text_of_four_and_a_half(mode: int) -> None:
    blocks = STYLESHEET.split("prefers-color-scheme: dark")
    variables = dict(re.findall(r"--(es-[\w]+): (#[0-9A-Fa-f]{6})", blocks[mode].split(".es-chart")[0]))
    ground = variables["es-ground"]
    for name in ("es-a", "es-b", "es-nothing"):
        assert contrast(variables[name], ground) >= 2.95, name
    for name in ("es-ink", "es-muted"):
        assert contrast(variables[name], ground) >= 4.5, name
    for colour in SWATCHES:
        assert contrast(colour, ground) >= 3.0, colour
