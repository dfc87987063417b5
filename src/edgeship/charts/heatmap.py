"""The drift heat map: which signal moved, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeship.charts.figures import format_value
from edgeship.charts.frame import HATCH, figure, hatch, legend, number_table, percent, row_label, text
from edgeship.charts.markup import Attribute, Markup, element, fragment

#: Upper ends of the five fixed steps, as shares of the limit; the last step is everything from the limit on.
STEPS: Final = (0.25, 0.5, 0.75, 1.0)
_WORDS: Final = ("under ¼ of the limit", "¼–½", "½–¾", "¾–1", "✖ at or over the limit")
_FILLS: Final = ("#DCE9F2", "#A9CBE3", "#6AA5CF", "#2F7FB5", "#D55E00")
_ROW_PX: Final = 46
_CELL_PX: Final = 20
_LABEL_SHARE: Final = 0.68


@dataclass(frozen=True, kw_only=True)
class HeatRow:
    """One signal over time.

    Attributes:
        label: name of the signal (or device).
        values: distance per column, None for no data; oldest first.
        limit: where an alarm begins.
        href: where its name leads, empty for nowhere.
    """

    label: str
    values: tuple[float | None, ...]
    limit: float
    href: str = ""

    @property
    def worst(self) -> float | None:
        """The largest distance as a share of the limit, None for no data."""
        known = [value for value in self.values if value is not None]
        return max(known) / self.limit if known else None


def step_of(value: float, limit: float) -> int:
    """The fixed step (0–4) of a distance.

    >>> [step_of(value, 0.1) for value in (0.0, 0.03, 0.06, 0.099, 0.1)]
    [0, 1, 2, 3, 4]
    """
    return sum(value >= step * limit for step in STEPS)


def worst_first(rows: Sequence[HeatRow]) -> list[HeatRow]:
    """Rows by their worst distance; those without data last, equal ones by name so that nothing moves on refresh."""
    return sorted(rows, key=lambda row: (row.worst is None, -(row.worst or 0.0), row.label))


def heat_map(title: str, finding: str, rows: Sequence[HeatRow], columns: Sequence[str]) -> Markup:
    """Signals × time in five fixed steps of the limit, worst first, a mark over the limit.

    Args:
        title: what is shown.
        finding: what it says.
        rows: any order; each with one value per column.
        columns: names of the times, oldest first.
    """
    ordered = worst_first(rows)
    height = _ROW_PX * len(ordered) + 20
    shapes = fragment(
        hatch(),
        [_row(row, index * _ROW_PX) for index, row in enumerate(ordered)],
        text(columns[0], 0, height - 4, class_="es-muted") if columns else None,
        text(columns[-1], "100%", height - 4, anchor="end", class_="es-muted") if len(columns) > 1 else None,
    )
    header = ("signal", "limit", *columns)
    numbers = [
        (
            element("a", row.label, href=row.href) if row.href else row.label,
            format_value(row.limit),
            *(format_value(value) for value in row.values),
        )
        for row in ordered
    ]
    return figure(title, finding, height, shapes, number_table(title, header, numbers), legend=_legend())


def _row(row: HeatRow, top: float) -> Markup:
    known = [value for value in row.values if value is not None]
    worst = f"worst {format_value(max(known))}" if known else "no data"
    label = row_label(row.label, top, _LABEL_SHARE)
    return fragment(
        element("a", label, href=row.href) if row.href else label,
        text(worst, "100%", top + 15, anchor="end", class_="es-muted"),
        [_cell(value, row.limit, index, len(row.values), top + 21) for index, value in enumerate(row.values)],
    )


def _cell(value: float | None, limit: float, index: int, count: int, top: float) -> Markup:
    box: dict[str, Attribute] = {
        "x": percent(index / count),
        "y": top,
        "width": percent(1.0 / count),
        "height": _CELL_PX,
    }
    if value is None:
        return fragment(
            element("rect", **box, class_="es-nodata", fill="none", stroke="#999"), element("rect", **box, fill=HATCH)
        )
    step = step_of(value, limit)
    middle = percent((index + 0.5) / count)
    return fragment(
        element("rect", **box, class_=f"es-cell es-step{step}", fill=_FILLS[step], stroke="#fff"),
        text("✖", middle, top + 15, anchor="middle", class_="es-over") if step == len(STEPS) else None,
    )


def _legend() -> Markup:
    marks = [
        element(
            "svg",
            element("rect", x=0, y=0, width=14, height=14, class_=f"es-step{step}", fill=fill),
            width=14,
            height=14,
            aria_hidden="true",
        )
        for step, fill in enumerate(_FILLS)
    ]
    return legend(list(zip(marks, _WORDS, strict=True)))
