"""One bar of 100 %: who has what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgeship.charts.figures import format_value
from edgeship.charts.frame import (
    HATCH,
    OTHER,
    SWATCHES,
    colour_index,
    figure,
    hatch,
    legend,
    number_table,
    percent,
    swatch,
    text,
)
from edgeship.charts.markup import Attribute, Markup, element, fragment

MAX_SEGMENTS: Final = 5
_BAR_PX: Final = 30


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of the bar.

    Attributes:
        label: what these are.
        count: how many.
        canary: drawn hatched: a version that is still being tried.
        colour: one of :data:`SWATCHES`; by position where empty.
        href: where its name leads, empty for nowhere.
    """

    label: str
    count: int
    canary: bool = False
    colour: str = ""
    href: str = ""


def version_bar(title: str, finding: str, segments: Sequence[Segment]) -> Markup:
    """The largest segments, at most five, and the rest as "other"; a canary is always among those shown."""
    kept = sorted(segments, key=lambda part: (not part.canary, -part.count, part.label))[:MAX_SEGMENTS]
    rest = [part for part in segments if part not in kept]
    shown = sorted(kept, key=lambda part: (part.canary, -part.count, part.label))
    if rest:
        names = ", ".join(part.label for part in rest[:8])
        other = Segment(label=f"other ({names})", count=sum(part.count for part in rest), colour=OTHER)
        shown = [*shown, other]
    return stacked_bar(title, finding, shown)


def stacked_bar(title: str, finding: str, segments: Sequence[Segment]) -> Markup:
    """A 100 % bar in the order given, with counts and shares in the legend.

    >>> "no data" in stacked_bar("Versions", "Nothing runs yet.", [])
    True
    """
    total = sum(part.count for part in segments)
    coloured = [replace(part, colour=part.colour or _colour(i)) for i, part in enumerate(segments)]
    shapes = _bar(coloured, total) if total else _empty_bar()
    rows = [(part.label, part.count, _share(part, total), "canary" if part.canary else "") for part in segments]
    entries = [
        (swatch(part.colour, hatched=part.canary), _entry(part, total)) for part in coloured if part.count or total
    ]
    return figure(
        title,
        finding,
        _BAR_PX,
        shapes,
        number_table(title, ("", "count", "share", ""), rows),
        legend=legend(entries) if entries else None,
    )


def _colour(index: int) -> str:
    return SWATCHES[index] if index < len(SWATCHES) else OTHER


def _entry(part: Segment, total: int) -> Markup:
    name = element("a", part.label, href=part.href) if part.href else part.label
    return fragment(name, f" {part.count:,} ({_share(part, total)})", " canary" if part.canary else None)


def _share(part: Segment, total: int) -> str:
    return format_value(part.count / total, "fraction") if total else "no data"


def _bar(segments: Sequence[Segment], total: int) -> Markup:
    shapes: list[Markup] = []
    start = 0.0
    for part in segments:
        if not part.count:
            continue
        width = percent(part.count / total)
        box: dict[str, Attribute] = {"x": percent(start), "y": 0, "width": width, "height": _BAR_PX}
        shapes.append(
            element(
                "rect",
                **box,
                fill=part.colour,
                class_=f"es-segment es-c{colour_index(part.colour)}",
                stroke="#fff",
                stroke_width=2,
            )
        )
        if part.canary:
            shapes.append(element("rect", **box, fill=HATCH))
        start += part.count / total
    return fragment(hatch(), shapes)


def _empty_bar() -> Markup:
    return fragment(
        element("rect", x=0, y=0, width="100%", height=_BAR_PX, class_="es-empty", fill="none", stroke="#777"),
        text("no data", "50%", 20, anchor="middle", class_="es-muted"),
    )
