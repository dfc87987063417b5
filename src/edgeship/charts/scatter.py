"""Variants against each other: what a smaller or faster one costs in accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeship.charts.figures import Unit, format_interval, format_value
from edgeship.charts.frame import FIRST, SECOND, figure, legend, line, number_table, percent, swatch, text
from edgeship.charts.markup import Markup, element, fragment

_PLOT_PX: Final = 240


@dataclass(frozen=True, kw_only=True)
class ScatterPoint:
    """One variant.

    Attributes:
        label: its name; ``mark`` is what stands beside its point.
        x: size or latency.
        y: accuracy or drop, with its interval ``low``…``high`` where known.
        chosen: the one that was chosen: filled and larger, others are hollow.
    """

    label: str
    mark: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows and in which unit."""

    name: str
    unit: Unit = ""


def scatter_plot(title: str, finding: str, points: Sequence[ScatterPoint], *, x_axis: Axis, y_axis: Axis) -> Markup:
    """Points with vertical 95 % intervals; the chosen ones filled, the others hollow, each marked with its letter.

    >>> point = ScatterPoint(label="int8", mark="a", x=1e6, y=0.97, chosen=True)
    >>> size, top1 = Axis(name="size", unit="bytes"), Axis(name="top-1", unit="fraction")
    >>> "chosen" in scatter_plot("Size and accuracy", "int8 is chosen.", [point], x_axis=size, y_axis=top1)
    True
    """
    height = _PLOT_PX + 40
    if not points:
        shapes = text("no data", "50%", _PLOT_PX / 2, anchor="middle", class_="es-muted")
    else:
        x_range = _range([point.x for point in points], floor=0.0)
        y_range = _range([value for point in points for value in (point.y, point.low, point.high) if value is not None])
        shapes = fragment(
            _grid(y_range, y_axis),
            _x_labels(x_range, x_axis),
            [_point(point, x_range, y_range) for point in points],
        )
    entries = [(swatch(FIRST), "chosen (filled)"), (swatch(SECOND, hollow=True), "not chosen (hollow)")]
    return figure(title, finding, height, shapes, _table(title, points, x_axis, y_axis), legend=legend(entries))


def _range(values: Sequence[float], *, floor: float | None = None) -> tuple[float, float]:
    low, high = (min(values) if floor is None else floor), max(values)
    margin = 0.08 * (high - low) or abs(high) * 0.05 or 1.0
    return (low - margin if floor is None else floor, high + margin)


def _share(value: float, bounds: tuple[float, float]) -> float:
    return (value - bounds[0]) / (bounds[1] - bounds[0])


def _grid(bounds: tuple[float, float], axis: Axis) -> Markup:
    shapes: list[Markup] = []
    for value in ticks(*bounds):
        y = _PLOT_PX * (1 - _share(value, bounds))
        shapes += [
            line(0, y, "100%", y, "es-grid"),
            text(format_value(value, axis.unit), 0, y - 3, class_="es-muted"),
        ]
    return fragment(shapes, text(axis.name, "100%", 12, anchor="end", class_="es-muted"))


def _x_labels(bounds: tuple[float, float], axis: Axis) -> Markup:
    return fragment(
        line(0, _PLOT_PX, "100%", _PLOT_PX, "es-axis"),
        [
            text(format_value(value, axis.unit), _x(value, bounds), _PLOT_PX + 16, anchor="middle", class_="es-muted")
            for value in ticks(*bounds)
        ],
        text(axis.name, "100%", _PLOT_PX + 34, anchor="end", class_="es-muted"),
    )


def _x(value: float, bounds: tuple[float, float]) -> str:
    return percent(0.16 + 0.76 * _share(value, bounds))


def _point(point: ScatterPoint, x_range: tuple[float, float], y_range: tuple[float, float]) -> Markup:
    x, y = _x(point.x, x_range), _PLOT_PX * (1 - _share(point.y, y_range))
    colour, kind = (FIRST, "es-a") if point.chosen else (SECOND, "es-b")
    whisker = None
    if point.low is not None and point.high is not None:
        ends = [_PLOT_PX * (1 - _share(value, y_range)) for value in (point.low, point.high)]
        whisker = element(
            "line", x1=x, y1=ends[0], x2=x, y2=ends[1], stroke=colour, stroke_width=2, class_=f"{kind}-line"
        )
    fill = {"fill": colour} if point.chosen else {"fill": "none"}
    return fragment(
        whisker,
        element(
            "circle",
            cx=x,
            cy=y,
            r=7 if point.chosen else 5,
            **fill,
            stroke=colour,
            stroke_width=2,
            class_=f"{kind}-fill" if point.chosen else f"{kind}-line",
        ),
        element("svg", text(point.mark, 11, 16, class_="es-strong"), x=x, y=y - 12, overflow="visible"),
    )


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between two ends: steps of 1, 2, 2.5 or 5 times a power of ten.

    >>> ticks(0.0, 1.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _table(title: str, points: Sequence[ScatterPoint], x_axis: Axis, y_axis: Axis) -> Markup:
    rows = [
        (
            f"{point.mark} {point.label}",
            format_value(point.x, x_axis.unit),
            format_value(point.y, y_axis.unit),
            format_interval(point.low, point.high, y_axis.unit).removeprefix("95 % ") or "none",
            "chosen" if point.chosen else "not chosen",
        )
        for point in points
    ]
    return number_table(title, ("variant", x_axis.name, y_axis.name, "95 % interval", ""), rows)
