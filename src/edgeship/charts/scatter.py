"""Variants against each other: what a smaller or faster one costs in accuracy, and which none of them beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeship.charts.figures import Unit, format_interval, format_value
from edgeship.charts.frame import FIRST, SECOND, figure, legend, line, number_table, percent, stretched, text
from edgeship.charts.markup import Attribute, Markup, element, fragment
from edgeship.charts.placing import Spot, offsets

_PLOT_PX: Final = 260
_LEFT: Final = 0.16
_WIDTH: Final = 0.74
_GAP_PX: Final = 11
#: Values that reach further apart than this are drawn on a logarithmic axis.
_LOG_RATIO: Final = 20.0
_TIE: Final = "≈"


@dataclass(frozen=True, kw_only=True)
class ScatterPoint:
    """One variant.

    Attributes:
        label: its name; ``mark`` is what stands beside its point.
        x: size or latency, more than 0.
        y: accuracy, with its interval ``low``…``high`` where known.
        chosen: the one that ships.
        holds: whether it holds to every rule; hollow where it does not, or where that is not known (None).
        front: none is better in both: joined by a line.
        tie: its interval overlaps with that of the most accurate one.
        reason: why it was chosen or refused, for the table.
    """

    label: str
    mark: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    chosen: bool = False
    holds: bool | None = None
    front: bool = False
    tie: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows and in which unit."""

    name: str
    unit: Unit = ""


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """From values to places.

    Attributes:
        logarithmic: whether equal ratios are equal distances along x.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool

    def across(self, value: float) -> float:
        """Share of the width."""
        if self.logarithmic:
            return _LEFT + _WIDTH * _share(math.log10(value), (math.log10(self.x[0]), math.log10(self.x[1])))
        return _LEFT + _WIDTH * _share(value, self.x)

    def down(self, value: float) -> float:
        """From the top, in px."""
        return _PLOT_PX * (1 - _share(value, self.y))


def scatter_plot(title: str, finding: str, points: Sequence[ScatterPoint], *, x_axis: Axis, y_axis: Axis) -> Markup:
    """Points with vertical 95 % intervals; the front joined by a line, those refused hollow, each with its letter.

    >>> point = ScatterPoint(label="int8", mark="a", x=1e6, y=0.97, chosen=True, front=True)
    >>> size, top1 = Axis(name="size", unit="bytes"), Axis(name="top-1", unit="fraction")
    >>> "chosen" in scatter_plot("Size and accuracy", "int8 is chosen.", [point], x_axis=size, y_axis=top1)
    True
    """
    height = _PLOT_PX + 40
    if not points:
        shapes = text("no data", "50%", _PLOT_PX / 2, anchor="middle", class_="es-muted")
    else:
        scale = _scale_of(points)
        ordered = sorted(points, key=lambda point: (not point.chosen, not point.front, point.mark))
        spots = [Spot(x=scale.across(each.x), y=scale.down(each.y), text=_word(each)) for each in ordered]
        moves = offsets(spots, _PLOT_PX, _GAP_PX)
        shapes = fragment(
            _grid(scale.y, y_axis),
            _x_labels(scale, x_axis, y_axis),
            _front(points, scale),
            [_whisker(point, scale) for point in ordered],
            [_point(point, scale) for point in reversed(ordered)],
            [_name(spot, move) for spot, move in zip(spots, moves, strict=True)],
        )
    return figure(title, finding, height, shapes, _table(title, points, x_axis, y_axis), legend=_legend(points))


def _word(point: ScatterPoint) -> str:
    return point.mark + (_TIE if point.tie else "")


def _scale_of(points: Sequence[ScatterPoint]) -> _Scale:
    sizes = [point.x for point in points]
    logarithmic = max(sizes) > _LOG_RATIO * min(sizes)
    x_range = (min(sizes) / 1.3, max(sizes) * 1.3) if logarithmic else _range(sizes, floor=0.0)
    heights = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    return _Scale(x=x_range, y=_range(heights), logarithmic=logarithmic)


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
    return fragment(shapes)


def _x_labels(scale: _Scale, axis: Axis, y_axis: Axis) -> Markup:
    places = powers(*scale.x) if scale.logarithmic else ticks(*scale.x)
    name = f"{axis.name}, logarithmic" if scale.logarithmic else axis.name
    return fragment(
        line(0, _PLOT_PX, "100%", _PLOT_PX, "es-axis"),
        [
            text(format_value(value, axis.unit), percent(scale.across(value)), _PLOT_PX + 16, anchor="middle",
                 class_="es-muted")
            for value in places
        ],
        text(f"↑ {y_axis.name}", 0, _PLOT_PX + 34, class_="es-muted"),
        text(f"{name} →", "100%", _PLOT_PX + 34, anchor="end", class_="es-muted"),
    )  # fmt: skip


def _front(points: Sequence[ScatterPoint], scale: _Scale) -> Markup | None:
    """A staircase through the front: what lies on its bad side is beaten by a corner of it."""
    corners = sorted((scale.across(each.x), scale.down(each.y)) for each in points if each.front)
    if len(corners) < 2:
        return None
    steps = [corners[0]]
    for x, y in corners[1:]:
        steps += [(x, steps[-1][1]), (x, y)]
    drawn = " ".join(f"{1000 * x:.1f},{1000 * y / _PLOT_PX:.1f}" for x, y in steps)
    return stretched(_PLOT_PX, element("polyline", points=drawn, fill="none", stroke=FIRST, stroke_width=1.5,
                                       vector_effect="non-scaling-stroke", class_="es-a-line"))  # fmt: skip


def _kind(point: ScatterPoint) -> tuple[str, str]:
    """Colour and class."""
    return (FIRST, "es-a") if point.chosen or point.holds else (SECOND, "es-b")


def _whisker(point: ScatterPoint, scale: _Scale) -> Markup | None:
    if point.low is None or point.high is None:
        return None
    x, (colour, kind) = percent(scale.across(point.x)), _kind(point)
    ends = [scale.down(value) for value in (point.low, point.high)]
    dashes = None if point.chosen or point.holds else "4 3"
    return element("line", x1=x, y1=ends[0], x2=x, y2=ends[1], stroke=colour, stroke_width=1.5, stroke_dasharray=dashes,
                   class_=f"{kind}-line")  # fmt: skip


def _point(point: ScatterPoint, scale: _Scale) -> Markup:
    x, y = percent(scale.across(point.x)), scale.down(point.y)
    colour, kind = _kind(point)
    ring: dict[str, Attribute] = {"cx": x, "cy": y, "stroke": colour, "stroke_width": 2}
    if not (point.chosen or point.holds):
        return element("circle", r=5, fill="#fff", class_=f"es-hollow {kind}-line", **ring)
    dot = element("circle", r=5, fill=colour, class_=f"{kind}-fill", **ring)
    return fragment(element("circle", r=9, fill="none", class_=f"{kind}-line", **ring), dot) if point.chosen else dot


def _name(spot: Spot, move: float) -> Markup:
    leader = element("line", x1=4, y1=20, x2=_GAP_PX, y2=20 + move, stroke="#555", class_="es-grid") if move else None
    word = text(spot.text, _GAP_PX, 25 + move, class_="es-strong es-halo")
    return element("svg", leader, word, x=percent(spot.x), y=spot.y - 20, overflow="visible")


def _legend(points: Sequence[ScatterPoint]) -> Markup:
    entries = [(_sample(chosen=True), "chosen (ringed)")]
    if any(point.holds for point in points):
        entries.append((_sample(), "holds to every rule (filled)"))
    hollow = {False: "refused or not proven (hollow)", None: "not chosen (hollow)"}
    entries += [(_sample(hollow=True), word) for state, word in hollow.items()
                if any(point.holds is state and not point.chosen for point in points)]  # fmt: skip
    if any(point.front for point in points):
        stroke = element("line", x1=0, y1=7, x2=20, y2=7, stroke=FIRST, stroke_width=2, class_="es-a-line")
        entries.append(
            (element("svg", stroke, width=20, height=14, aria_hidden="true"), "Pareto front: none is better in both")
        )
    if any(point.tie for point in points):
        entries.append((element("strong", _TIE), "tie with the most accurate: the intervals overlap"))
    return legend(entries)


def _sample(*, chosen: bool = False, hollow: bool = False) -> Markup:
    colour, kind = (SECOND, "es-b") if hollow else (FIRST, "es-a")
    place: dict[str, Attribute] = {"cx": 10, "cy": 10, "stroke": colour, "stroke_width": 2}
    fill = "#fff" if hollow else colour
    ring = element("circle", r=8, fill="none", class_=f"{kind}-line", **place) if chosen else None
    dot = element("circle", r=4, fill=fill, class_=f"es-hollow {kind}-line" if hollow else f"{kind}-fill", **place)
    return element("svg", ring, dot, width=20, height=20, aria_hidden="true")


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


def powers(low: float, high: float) -> list[float]:
    """Powers of ten between two positive ends, and three times each where they are few.

    >>> powers(0.03, 20.0), powers(0.04, 2.0)
    ([0.1, 1.0, 10.0], [0.1, 0.3, 1.0])
    """
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high) + 1e-9) + 1)
    found = [float(f"{factor}e{exponent}") for exponent in exponents for factor in (1, 3)]
    inside = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    tens = [value for value in inside if f"{value:e}".startswith("1")]
    return tens if len(tens) > 2 else inside


def _table(title: str, points: Sequence[ScatterPoint], x_axis: Axis, y_axis: Axis) -> Markup:
    fronts, reasons = any(point.front for point in points), any(point.reason for point in points)
    rows = [
        (
            f"{point.mark} {point.label}",
            format_value(point.x, x_axis.unit),
            format_value(point.y, y_axis.unit),
            format_interval(point.low, point.high, y_axis.unit).removeprefix("95 % ") or "none",
            " · ".join(_words(point)),
            *([("on it" if point.front else "no")] if fronts else []),
            *([point.reason] if reasons else []),
        )
        for point in points
    ]
    more = [*(["front"] if fronts else []), *(["why"] if reasons else [])]
    return number_table(title, ("variant", x_axis.name, y_axis.name, "95 % interval", "", *more), rows)


def _words(point: ScatterPoint) -> list[str]:
    state = {True: "not chosen, holds", False: "refused or not proven", None: "not chosen"}[point.holds]
    return ["chosen" if point.chosen else state, *(["tie with the most accurate"] if point.tie else [])]
