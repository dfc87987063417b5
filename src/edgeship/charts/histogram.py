"""Two histograms over the same bins: what was normal, and what is now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeship.charts.figures import format_value
from edgeship.charts.frame import FIRST, SECOND, figure, legend, line, number_table, percent, stretched, swatch, text
from edgeship.charts.markup import Markup, element, fragment

_PLOT_PX: Final = 150


def histogram_pair(
    title: str,
    finding: str,
    bins: Sequence[str],
    reference: Sequence[int],
    current: Sequence[int],
    *,
    names: tuple[str, str] = ("baseline", "now"),
) -> Markup:
    """Shares per bin: the reference as filled columns, the current values as a thick outline.

    All bins are drawn equally wide: over bins of equal baseline mass the reference is flat and a shift stands out.

    Args:
        title: what is shown.
        finding: what it says.
        bins: name of each bin, in order.
        reference: counts of the reference per bin.
        current: counts now per bin.
        names: of the two.

    Raises:
        ValueError: the three sequences differ in length.
    """
    if not len(bins) == len(reference) == len(current):
        raise ValueError(f"bins differ: {len(bins)} names, {len(reference)} and {len(current)} counts")
    shares = _shares(reference), _shares(current)
    top = max([*(shares[0] or ()), *(shares[1] or ()), 1e-9]) * 1.1
    height = _PLOT_PX + 22
    shapes = fragment(
        _columns(shares[0], top) if shares[0] else None,
        _outline(shares[1], top) if shares[1] else text("no data", "50%", 75, anchor="middle"),
        line(0, _PLOT_PX, "100%", _PLOT_PX, "es-axis"),
        text(bins[0], 0, height - 5, class_="es-muted") if bins else None,
        text(bins[-1], "100%", height - 5, anchor="end", class_="es-muted") if len(bins) > 1 else None,
        text(f"highest share {format_value(top / 1.1, 'fraction')}", 0, 12, class_="es-muted"),
    )
    entries = [
        (swatch(FIRST), f"{names[0]} (filled), n = {sum(reference):,}"),
        (swatch(SECOND, hollow=True), f"{names[1]} (outline), n = {sum(current):,}"),
    ]
    return figure(title, finding, height, shapes, _table(title, bins, reference, current), legend=legend(entries))


def _shares(counts: Sequence[int]) -> list[float] | None:
    total = sum(counts)
    return [count / total for count in counts] if total else None


def _columns(shares: Sequence[float], top: float) -> Markup:
    width = 1.0 / len(shares)
    return fragment(
        element(
            "rect",
            x=percent(index * width + 0.1 * width),
            y=_PLOT_PX * (1 - share / top),
            width=percent(0.8 * width),
            height=_PLOT_PX * share / top,
            class_="es-a-soft",
            fill=FIRST,
        )
        for index, share in enumerate(shares)
    )


def _outline(shares: Sequence[float], top: float) -> Markup:
    width = 1000.0 / len(shares)
    points = ["0,1000"]
    for index, share in enumerate(shares):
        y = 1000.0 * (1 - share / top)
        points += [f"{index * width:.1f},{y:.1f}", f"{(index + 1) * width:.1f},{y:.1f}"]
    return stretched(
        _PLOT_PX,
        element(
            "polyline",
            points=" ".join([*points, "1000,1000"]),
            fill="none",
            stroke=SECOND,
            stroke_width=3,
            vector_effect="non-scaling-stroke",
            class_="es-b-line",
        ),
    )


def _table(title: str, bins: Sequence[str], reference: Sequence[int], current: Sequence[int]) -> Markup:
    totals = sum(reference), sum(current)
    rows = [
        (
            name,
            before,
            format_value(before / totals[0] if totals[0] else None, "fraction"),
            after,
            format_value(after / totals[1] if totals[1] else None, "fraction"),
        )
        for name, before, after in zip(bins, reference, current, strict=True)
    ]
    return number_table(title, ("bin", "baseline", "share", "now", "share"), rows)
