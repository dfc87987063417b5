"""What every chart shares: the figure around the SVG, percentages as coordinates, swatches, the table of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeship.charts.markup import Child, Markup, element

#: Wong's palette, safe for colour-blind readers, in the order of use; each at least 3:1 on white and on the dark
#: background. Source: Wong, "Points of view: Color blindness", Nature Methods 8, 441 (2011); purple and brown darkened.
SWATCHES: Final = ("#0072B2", "#D55E00", "#00896A", "#B0578D", "#8C6D1F")
OTHER: Final = "#7A7A7A"
FIRST: Final = SWATCHES[0]
SECOND: Final = SWATCHES[1]
HATCH: Final = "url(#es-hatch)"
TEXT_PX: Final = 13
SMALL_PX: Final = 12


def percent(share: float) -> str:
    """A share of the width (0–1) as a coordinate.

    >>> percent(0.125)
    '12.5%'
    """
    return f"{100.0 * share:.3f}".rstrip("0").rstrip(".") + "%"


def text(content: str, x: str | float, y: float, *, anchor: str = "start", class_: str = "") -> Markup:
    """Text in a chart; its size does not change with the width."""
    size_px = SMALL_PX if class_ == "es-muted" else TEXT_PX
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=f"es-text {class_}".strip(), font_size=size_px)


def row_label(content: str, top: float, share: float) -> Markup:
    """A row's name, cut where the words at the right begin; the whole of it is in the table below."""
    return element(
        "svg", text(content, 0, 15, class_="es-strong"), x=0, y=top, width=percent(share), height=20, overflow="hidden"
    )


def line(x1: str | float, y1: float, x2: str | float, y2: float, class_: str) -> Markup:
    """A line of a class that the stylesheet draws; black where there is none."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, stroke="#555")


def hatch() -> Markup:
    """The pattern laid over a canary's colour and over cells without data."""
    return element(
        "defs",
        element(
            "pattern",
            element("path", d="M0 6L6 0M-1 1L1 -1M5 7L7 5", class_="es-hatch-line", stroke="#fff", fill="none"),
            id="es-hatch",
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
        ),
    )


def stretched(height_px: float, *shapes: Child, y: float = 0.0) -> Markup:
    """Shapes in a square of 1000 × 1000 that is stretched over the width, for paths, which know no percentages."""
    return element(
        "svg",
        *shapes,
        x=0,
        y=y,
        width="100%",
        height=height_px,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def figure(
    title: str, finding: str, height_px: float, shapes: Child, table: Markup, *, legend: Markup | None = None
) -> Markup:
    """A finished chart.

    Args:
        title: what is shown; the accessible name.
        finding: what it says, in one sentence; visible above the chart and its accessible description.
        height_px: height of the drawing; the width is that of the page.
        shapes: content of the SVG.
        table: every number of the chart.
        legend: what marks stand for, as text beside swatches.
    """
    drawing = element(
        "svg",
        element("title", title),
        element("desc", finding),
        shapes,
        role="img",
        width="100%",
        height=height_px,
        class_="es-svg",
        xmlns="http://www.w3.org/2000/svg",
    )
    return element(
        "figure",
        element("figcaption", element("strong", title), " ", element("span", finding)),
        drawing,
        legend,
        element(
            "details", element("summary", "Numbers"), element("div", table, class_="es-scroll"), class_="es-numbers"
        ),
        class_="es-chart",
    )


def number_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Child]]) -> Markup:
    """The table under a chart: first column names the row."""
    return element(
        "table",
        element("caption", caption),
        element("thead", element("tr", [element("th", name, scope="col") for name in header])),
        element(
            "tbody",
            [
                element("tr", element("th", row[0], scope="row"), [element("td", cell) for cell in row[1:]])
                for row in rows
            ],
        ),
    )


def swatch(colour: str, *, hatched: bool = False, hollow: bool = False) -> Markup:
    """A small square for a legend: full, hatched, or only its outline."""
    kind = f"es-{'o' if hollow else 'c'}{colour_index(colour)}"
    fill = "none" if hollow else colour
    shape = element("rect", x=1, y=1, width=12, height=12, fill=fill, stroke=colour, stroke_width=2, class_=kind)
    over = element("rect", x=1, y=1, width=12, height=12, fill=HATCH) if hatched else None
    return element("svg", hatch() if hatched else None, shape, over, width=14, height=14, aria_hidden="true")


def legend(entries: Sequence[tuple[Markup, Child]]) -> Markup:
    """Swatches with their words."""
    return element("ul", [element("li", mark, " ", word) for mark, word in entries], class_="es-legend")


def colour_index(colour: str) -> str:
    """The class suffix of a colour, so that a stylesheet can replace it."""
    return str(SWATCHES.index(colour)) if colour in SWATCHES else "x"
