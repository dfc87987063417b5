"""Lines: latency as a cumulative distribution, a difference over time with its band, and a small trend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeship.charts.figures import Unit, format_value
from edgeship.charts.frame import FIRST, SECOND, figure, legend, line, number_table, percent, stretched, swatch, text
from edgeship.charts.markup import Markup, element, fragment

_PLOT_PX: Final = 170
_QUANTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
_STYLES: Final = ((FIRST, "es-a-line", None, "solid"), (SECOND, "es-b-line", "7 4", "dashed"))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A cumulative distribution.

    Attributes:
        label: whose it is.
        points: (value > 0, share ≤ value), both ascending; empty for no data.
        n: how many values.
        end: where its axis may end, so that a few outliers do not squeeze the rest; None for the largest value.
        beyond: how many values lie further out.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    n: int
    end: float | None = None
    beyond: int = 0

    def quantile(self, share: float) -> float | None:
        """The smallest known value that holds at least ``share`` of the distribution, None for no data."""
        return next((value for value, reached in self.points if reached >= share - 1e-12), None)


@dataclass(frozen=True, kw_only=True)
class BandPoint:
    """A difference at one time, with its 95 % interval; all None where there was no data."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None


def ecdf_plot(
    title: str, finding: str, curves: Sequence[Curve], *, unit: Unit = "ms", limit: float | None = None
) -> Markup:
    """At most two cumulative distributions over a logarithmic axis, with ticks at p50, p95 and p99.

    >>> "p99" in ecdf_plot("Latency", "p99 is 4 ms.", [Curve(label="1.3", points=((2.0, 0.5), (4.0, 1.0)), n=10)])
    True
    """
    shown = [curve for curve in curves[:2] if curve.points]
    height = _PLOT_PX + 22
    end = max((curve.end or curve.points[-1][0] for curve in shown), default=0.0)
    values = [min(value, end) for curve in shown for value, _ in curve.points] + ([limit] if limit else [])
    if not shown:
        shapes = text("no data", "50%", _PLOT_PX / 2, anchor="middle", class_="es-muted")
    else:
        bounds = (min(values) / 1.15, max(values) * 1.15)
        shapes = fragment(
            [_share_line(share, name) for share, name in _QUANTILES],
            stretched(_PLOT_PX, [_steps(curve, bounds, _STYLES[i]) for i, curve in enumerate(shown)]),
            _limit_line(limit, bounds, unit) if limit else None,
            line(0, _PLOT_PX, "100%", _PLOT_PX, "es-axis"),
            _log_labels(bounds, unit),
            _beyond(shown, end, unit),
        )
    rows = [
        (
            curve.label,
            f"{curve.n:,}",
            *(format_value(curve.quantile(share), unit) for share, _ in _QUANTILES),
            format_value(curve.points[-1][0] if curve.points else None, unit),
        )
        for curve in curves
    ]
    points = [
        (f"{curve.label} ≤ {format_value(v, unit)}", format_value(s, "fraction"))
        for curve in shown
        for v, s in curve.points
    ]
    table = fragment(
        number_table(title, ("", "n", *(name for _, name in _QUANTILES), "largest"), rows),
        number_table("Points of the curve", ("values", "share"), points),
    )
    entries = [(swatch(_STYLES[i][0], hollow=bool(i)), f"{c.label} ({_STYLES[i][3]})") for i, c in enumerate(shown)]
    return figure(title, finding, height, shapes, table, legend=legend(entries) if entries else None)


def _log_share(value: float, bounds: tuple[float, float]) -> float:
    return (math.log(value) - math.log(bounds[0])) / (math.log(bounds[1]) - math.log(bounds[0]))


def _share_line(share: float, name: str) -> Markup:
    y = _PLOT_PX * (1 - share * 0.92)
    anchor_y = y + 13 if name == "p95" else y - 3
    return fragment(line(0, y, "100%", y, "es-grid"), text(name, 0, anchor_y, class_="es-muted"))


def _beyond(curves: Sequence[Curve], end: float, unit: Unit) -> Markup | None:
    """What the axis does not show."""
    cut = [curve for curve in curves if curve.points[-1][0] > end]
    if not cut:
        return None
    counts = " and ".join(f"{curve.beyond:,} of {curve.n:,}" for curve in cut)
    largest = max(curve.points[-1][0] for curve in cut)
    words = f"» {counts} beyond, up to {format_value(largest, unit)}"
    return text(words, "100%", _PLOT_PX - 5, anchor="end", class_="es-muted es-halo")


def _steps(curve: Curve, bounds: tuple[float, float], style: tuple[str, str, str | None, str]) -> Markup:
    points, previous = ["0,1000"], 1000.0
    for value, share in curve.points:
        if value > bounds[1]:
            break
        x, y = 1000.0 * _log_share(value, bounds), 1000.0 * (1 - share * 0.92)
        points += [f"{x:.1f},{previous:.1f}", f"{x:.1f},{y:.1f}"]
        previous = y
    points.append(f"1000,{previous:.1f}")
    return _polyline(points, style[0], style[1], dashes=style[2])


def _polyline(points: Sequence[str], colour: str, class_: str, *, dashes: str | None = None) -> Markup:
    return element(
        "polyline",
        points=" ".join(points),
        fill="none",
        stroke=colour,
        stroke_width=2.5,
        stroke_dasharray=dashes,
        vector_effect="non-scaling-stroke",
        class_=class_,
    )


def _limit_line(limit: float, bounds: tuple[float, float], unit: Unit) -> Markup:
    share = _log_share(limit, bounds)
    anchor = "end" if share > 0.5 else "start"
    return fragment(
        line(percent(share), 0, percent(share), _PLOT_PX, "es-limit"),
        text(f" limit {format_value(limit, unit)} ", percent(share), 0.45 * _PLOT_PX, anchor=anchor, class_="es-muted"),
    )


def _log_labels(bounds: tuple[float, float], unit: Unit) -> Markup:
    middle = math.sqrt(bounds[0] * bounds[1])
    places = ((bounds[0], "0%", "start"), (middle, "50%", "middle"), (bounds[1], "100%", "end"))
    return fragment(
        text(format_value(value, unit), x, _PLOT_PX + 16, anchor=anchor, class_="es-muted")
        for value, x, anchor in places
    )


def difference_band(
    title: str, finding: str, points: Sequence[BandPoint], *, limit: float | None = None, unit: Unit = "fraction"
) -> Markup:
    """A difference over time (up is worse) with its 95 % band, a zero line, and the limit dotted; gaps stay gaps."""
    known = [v for p in points for v in (p.value, p.low, p.high) if v is not None]
    height = _PLOT_PX + 22
    if not known:
        shapes = text("no data", "50%", _PLOT_PX / 2, anchor="middle", class_="es-muted")
    else:
        bounds = _bounds([*known, 0.0, *([limit] if limit is not None else [])])
        limit_words = f"limit {format_value(limit, unit)}"
        zero, at = _height(0.0, bounds), None if limit is None else _height(limit, bounds)
        shapes = fragment(
            stretched(_PLOT_PX, [_run(run, len(points), bounds) for run in _runs(points)]),
            line(0, zero, "100%", zero, "es-axis"),
            text("0", 0, zero - 3, class_="es-muted"),
            None if at is None else line(0, at, "100%", at, "es-limit"),
            None if at is None else text(limit_words, "100%", at - 4, anchor="end", class_="es-muted"),
            text(points[0].label, 0, height - 5, class_="es-muted"),
            text(points[-1].label, "100%", height - 5, anchor="end", class_="es-muted"),
        )
    rows = [(p.label, *(format_value(v, unit, signed=True) for v in (p.value, p.low, p.high))) for p in points]
    return figure(title, finding, height, shapes, number_table(title, ("time", "difference", "low", "high"), rows))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.12 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _height(value: float, bounds: tuple[float, float], size: float = _PLOT_PX) -> float:
    return size * (1 - (value - bounds[0]) / (bounds[1] - bounds[0]))


def _runs(points: Sequence[BandPoint]) -> list[list[tuple[int, BandPoint]]]:
    """Stretches without a gap."""
    runs: list[list[tuple[int, BandPoint]]] = [[]]
    for index, point in enumerate(points):
        if point.value is None:
            runs.append([])
        else:
            runs[-1].append((index, point))
    return [run for run in runs if run]


def _run(run: Sequence[tuple[int, BandPoint]], count: int, bounds: tuple[float, float]) -> Markup:
    def place(index: int, value: float) -> str:
        return f"{1000.0 * (index + 0.5) / count:.1f},{_height(value, bounds, 1000.0):.1f}"

    upper = [place(i, p.high) for i, p in run if p.high is not None]
    lower = [place(i, p.low) for i, p in reversed(run) if p.low is not None]
    middle = [place(i, p.value) for i, p in run if p.value is not None]
    if len(run) == 1:  # what is alone needs a width to be seen
        upper, lower, middle = _widened(upper), _widened(lower)[::-1], _widened(middle)
    band = element("polygon", points=" ".join(upper + lower), fill=FIRST, fill_opacity=0.2, class_="es-a-band")
    return fragment(band if upper and lower else None, _polyline(middle, FIRST, "es-a-line"))


def _widened(places: Sequence[str]) -> list[str]:
    return [f"{float(x) + shift:.1f},{y}" for x, y in (place.split(",") for place in places) for shift in (-9, 9)]


def sparkline(title: str, finding: str, values: Sequence[float | None], *, unit: Unit = "") -> Markup:
    """A small trend for a table's cell, without axes and without a table of its own.

    >>> 'role="img"' in sparkline("p99", "from 2 to 4 ms", [2.0, None, 4.0], unit="ms")
    True
    """
    points = [BandPoint(label="", value=value) for value in values]
    known = [value for value in values if value is not None]
    if not known:
        return element("span", "no data", class_="es-muted")
    bounds = _bounds(known)
    return element(
        "svg",
        element("title", f"{title}: {finding}"),
        element("desc", ", ".join(format_value(value, unit) for value in values)),
        [_run(run, len(points), bounds) for run in _runs(points)],
        role="img",
        width=96,
        height=24,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        class_="es-spark",
    )
