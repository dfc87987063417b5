"""Horizontal bars, the longest first: what contributes most, and how much all the rest does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeship.charts.figures import format_value
from edgeship.charts.frame import FIRST, OTHER, SECOND, figure, legend, number_table, percent, row_label, swatch, text
from edgeship.charts.markup import Attribute, Markup, element, fragment

#: Bars that are drawn; what comes after is summed.
MOST_BARS: Final = 15
_ROW_PX: Final = 40
_BAR_PX: Final = 11
_LABEL_SHARE: Final = 0.58


@dataclass(frozen=True, kw_only=True)
class RankedBar:
    """One contribution.

    Attributes:
        label: whose, in the table; ``short`` beside the bar, where it is long.
        share: of the whole, 0–1.
        word: a figure beside the share, such as a ratio in dB.
        measured: what was measured of it besides, as a share of another whole; None where it was not.
        note: for the table alone.
    """

    label: str
    share: float
    word: str = ""
    measured: float | None = None
    note: str = ""
    short: str = ""


def ranked_bars(title: str, finding: str, bars: Sequence[RankedBar], *, share_name: str, measured_name: str) -> Markup:
    """At most :data:`MOST_BARS` bars in the order given, and one for the rest; the table has them all.

    Args:
        title: what is shown.
        finding: what it says.
        bars: the largest first.
        share_name: what the bars stand for.
        measured_name: what the thin bars beneath them stand for.

    >>> bars = [RankedBar(label=f"layer {index}", share=0.05) for index in range(20)]
    >>> "5 more" in ranked_bars("Layers", "All alike.", bars, share_name="share", measured_name="measured")
    True
    """
    shown, rest = list(bars[:MOST_BARS]), bars[MOST_BARS:]
    longest = max([each.share for each in bars], default=0.0)
    if rest:
        shown.append(RankedBar(label=f"{len(rest)} more", share=sum(each.share for each in rest)))
    scale = max([longest, *(each.share for each in shown), *(each.measured or 0.0 for each in shown)]) or 1.0
    height = _ROW_PX * len(shown) if shown else 30
    shapes = fragment(
        _row(each, index * _ROW_PX, scale, last=bool(rest) and index == len(shown) - 1)
        for index, each in enumerate(shown)
    )
    if not shown:
        shapes = text("no data", "50%", 20, anchor="middle", class_="es-muted")
    measured = any(each.measured is not None for each in bars)
    return figure(title, finding, height, shapes, _table(title, bars, (share_name, measured_name), measured=measured),
                  legend=_legend(share_name, measured_name) if measured else None)  # fmt: skip


def _row(bar: RankedBar, top: float, scale: float, *, last: bool) -> Markup:
    share = format_value(bar.share, "fraction")
    return fragment(
        row_label(bar.short or bar.label, top, _LABEL_SHARE),
        text(f"{bar.word} · {share}" if bar.word else share, "100%", top + 15, anchor="end", class_="es-muted"),
        _bar(bar.share / scale, top + 20, _BAR_PX, OTHER if last else FIRST),
        _bar(bar.measured / scale, top + 32, 4, SECOND) if bar.measured is not None and bar.measured > 0 else None,
    )


def _bar(share: float, y: float, height_px: float, colour: str) -> Markup:
    kind = {FIRST: "es-c0", SECOND: "es-c1"}.get(colour, "es-rest")
    box: dict[str, Attribute] = {"x": 0, "y": y, "width": percent(max(share, 0.002)), "height": height_px}
    return element("rect", **box, fill=colour, class_=kind)


def _table(title: str, bars: Sequence[RankedBar], names: tuple[str, str], *, measured: bool) -> Markup:
    words, notes = any(each.word for each in bars), any(each.note for each in bars)
    header = [
        "",
        *(["by itself"] if words else []),
        names[0],
        *([names[1]] if measured else []),
        *([""] if notes else []),
    ]
    rows = [
        [
            each.label,
            *([each.word] if words else []),
            format_value(each.share, "fraction"),
            *([_measured(each.measured)] if measured else []),
            *([each.note] if notes else []),
        ]
        for each in bars
    ]
    return number_table(title, header, rows)


def _measured(value: float | None) -> str:
    return "not tried" if value is None else format_value(value, "fraction", signed=True)


def _legend(share_name: str, measured_name: str) -> Markup:
    return legend([(swatch(FIRST), share_name), (swatch(SECOND), f"{measured_name} (thin)")])
