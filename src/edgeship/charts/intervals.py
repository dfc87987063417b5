"""The interval (forest) plot: is it worse, and is that decided?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeship.charts.figures import Unit, format_interval, format_value
from edgeship.charts.frame import FIRST, SECOND, figure, line, number_table, percent, row_label, text
from edgeship.charts.markup import Attribute, Markup, element, fragment

_ROW_PX: Final = 66
_AXIS_PX: Final = 22
_LABEL_SHARE: Final = 0.64
_MARGIN: Final = 0.03  # of the width, kept free on either side
_FARTHEST: Final = 10.0  # limits to the right of zero, and half as many to the left; what lies further out is cut
_WORDS: Final = {True: "✔ holds", False: "✖ over the limit", None: "◌ undecided"}


@dataclass(frozen=True, kw_only=True)
class IntervalRow:
    """One figure against its limit; larger is worse.

    Attributes:
        label: what was measured.
        value: the estimate, None for no data.
        low, high: its interval, None where the figure is exact or has none.
        limit: what it must not exceed, None for none.
        holds: True or False where it is decided, None where it is not.
        unit: of value, interval and limit.
        n: how many calls, labels or devices it rests on.
        signed: whether it is a difference and carries its sign.
        level_percent: confidence level of the interval.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    holds: bool | None = None
    unit: Unit = ""
    n: int | None = None
    signed: bool = False
    level_percent: int = 95


def interval_plot(title: str, finding: str, rows: Sequence[IntervalRow]) -> Markup:
    """Horizontal intervals, one row per figure, each scaled so that all share one zero line and one limit line.

    An undecided interval is dashed; a word and a glyph say what the colour says.

    >>> row = IntervalRow(label="top-1 drop", value=0.012, low=0.004, high=0.02, limit=0.01, unit="fraction")
    >>> "undecided" in interval_plot("Gates", "One gate is undecided.", [row])
    True
    """
    height = _ROW_PX * len(rows) + _AXIS_PX
    scale = _scale_of(rows)
    zero, limit = percent(scale.place(0.0)), percent(scale.place(1.0))
    has_limit = any(row.limit for row in rows)
    shapes = fragment(
        [_row(row, index * _ROW_PX, scale) for index, row in enumerate(rows)],
        text("0", zero, height - 6, anchor="middle", class_="es-muted"),
        text("limit", limit, height - 6, anchor="middle", class_="es-muted") if has_limit else None,
    )
    return figure(title, finding, height, shapes, _table(title, rows))


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """The width in units of the limit: 0 at the zero line, 1 at the limit line."""

    low: float
    high: float

    def place(self, value: float) -> float:
        share = (min(self.high, max(self.low, value)) - self.low) / (self.high - self.low)
        return _MARGIN + (1.0 - 2.0 * _MARGIN) * share

    def cuts(self, value: float) -> bool:
        return not self.low <= value <= self.high


def _scale_of(rows: Sequence[IntervalRow]) -> _Scale:
    values = [value / _span(row) for row in rows for value in (row.value, row.low, row.high) if value is not None]
    return _Scale(
        low=max(-_FARTHEST / 2, min([-0.08, *values])), high=min(_FARTHEST, max([1.25, *(v * 1.02 for v in values)]))
    )


def _row(row: IntervalRow, top: float, scale: _Scale) -> Markup:
    middle = top + 34
    zero, limit = percent(scale.place(0.0)), percent(scale.place(1.0))
    return fragment(
        row_label(row.label, top + 2, _LABEL_SHARE),
        text(_word(row), "100%", top + 17, anchor="end", class_="es-strong"),
        line(zero, middle - 9, zero, middle + 9, "es-axis"),
        line(limit, middle - 9, limit, middle + 9, "es-limit") if row.limit else None,
        _mark(row, middle, scale),
        text(_sentence(row), 0, top + 57, class_="es-muted"),
    )


def _word(row: IntervalRow) -> str:
    return "no data" if row.value is None else _WORDS[row.holds]


def _sentence(row: IntervalRow) -> str:
    interval = _interval(row)
    parts = [
        format_value(row.value, row.unit, signed=row.signed) + (f" ({interval})" if interval else ""),
        "" if row.limit is None else f"limit {format_value(row.limit, row.unit, signed=row.signed)}",
        "" if row.n is None else f"n = {row.n:,}",
    ]
    return " · ".join(part for part in parts if part)


def _mark(row: IntervalRow, y: float, scale: _Scale) -> Markup:
    if row.value is None:
        return line(percent(scale.place(0.0)), y, percent(scale.place(1.0)), y, "es-nothing")
    colour = SECOND if row.holds is False else FIRST
    kind = "es-b" if row.holds is False else "es-a"
    dashes = "5 4" if row.holds is None else None
    low, high = (scale.place((row.value if end is None else end) / _span(row)) for end in (row.low, row.high))
    stroke: dict[str, Attribute] = {"stroke": colour, "stroke_width": 3, "class_": f"{kind}-line"}
    middle, is_cut = scale.place(row.value / _span(row)), scale.cuts(row.value / _span(row))
    return fragment(
        element("line", x1=percent(low), y1=y, x2=percent(high), y2=y, stroke_dasharray=dashes, **stroke)
        if high > low
        else None,
        [
            element("line", x1=percent(end), y1=y - 5, x2=percent(end), y2=y + 5, **stroke)
            for end in (low, high)
            if high > low
        ],
        text("»" if row.value > 0 else "«", percent(middle), y + 5, anchor="middle", class_="es-strong")
        if is_cut
        else element("circle", cx=percent(middle), cy=y, r=6, fill=colour, class_=f"{kind}-fill"),
    )


def _span(row: IntervalRow) -> float:
    """What lies between zero and the limit line; a row whose limit is zero (or none) has a scale of its own."""
    if row.limit:
        return abs(row.limit)
    largest = max(abs(value) for value in (row.value, row.low, row.high, 0.0) if value is not None)
    return largest / 1.2 if largest else 1.0


def _interval(row: IntervalRow) -> str:
    return format_interval(row.low, row.high, row.unit, signed=row.signed, level_percent=row.level_percent)


def _table(title: str, rows: Sequence[IntervalRow]) -> Markup:
    return number_table(
        title,
        ("figure", "value", "interval", "limit", "n", "verdict"),
        [
            (
                row.label,
                format_value(row.value, row.unit, signed=row.signed),
                _interval(row) or "none",
                "none" if row.limit is None else format_value(row.limit, row.unit, signed=row.signed),
                "" if row.n is None else f"{row.n:,}",
                _word(row),
            )
            for row in rows
        ],
    )
