"""Where words stand beside their marks, so that none covers another at any width of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Widths of a drawing at which words must not meet, in px: a narrow phone to a wide page.
_WIDTHS_PX: Final = (250.0, 330.0, 480.0, 660.0, 920.0)
_HEIGHT_PX: Final = 14.0
_CHARACTER_PX: Final = 8.0
_MARK_PX: Final = 8.0
_STEP_PX: Final = 15.0


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A mark with a word at its right.

    Attributes:
        x: share of the width.
        y: from the top, in px.
        text: the word.
    """

    x: float
    y: float
    text: str


def offsets(spots: Sequence[Spot], height_px: float, gap_px: float) -> list[float]:
    """How far each word is moved down (negative: up) from its mark's height, in px.

    Words move up and down alone: then their order from left to right is that of their marks at every width.

    Args:
        spots: in order of importance; earlier ones stay nearer.
        height_px: of the drawing, within which words stay.
        gap_px: from a mark's middle to its word.

    >>> offsets([Spot(x=0.5, y=50, text="a"), Spot(x=0.5, y=50, text="b")], 100, 11)
    [0.0, 15.0]
    >>> offsets([Spot(x=0.1, y=50, text="a"), Spot(x=0.9, y=50, text="b")], 100, 11)
    [0.0, 0.0]
    """
    steps = range(1, int(height_px / _STEP_PX) + 1)
    moves = [0.0, *(sign * _STEP_PX * step for step in steps for sign in (1, -1))]
    placed: list[tuple[Spot, float]] = []
    for spot in spots:
        inside = [move for move in moves if 0 <= spot.y + move <= height_px] or [0.0]
        costs = [_overlaps(spot, spot.y + move, placed, spots, gap_px) for move in inside]
        placed.append((spot, spot.y + inside[costs.index(min(costs))]))
    return [y - spot.y for spot, y in placed]


def _overlaps(spot: Spot, y: float, placed: Sequence[tuple[Spot, float]], spots: Sequence[Spot], gap_px: float) -> int:
    """How many words and marks a word at this height would cover at some width."""
    words = sum(_meet(spot, y, gap_px, other, other_y, gap_px) for other, other_y in placed)
    marks = sum(_covers(spot, y, gap_px, other) for other in spots)
    return 4 * words + marks


def _meet(one: Spot, y: float, gap_px: float, other: Spot, other_y: float, other_gap_px: float) -> bool:
    if abs(y - other_y) >= _HEIGHT_PX:
        return False
    return any(
        one.x * width + gap_px < other.x * width + other_gap_px + _CHARACTER_PX * len(other.text)
        and other.x * width + other_gap_px < one.x * width + gap_px + _CHARACTER_PX * len(one.text)
        for width in _WIDTHS_PX
    )


def _covers(one: Spot, y: float, gap_px: float, mark: Spot) -> bool:
    if abs(y - mark.y) >= _HEIGHT_PX / 2 + _MARK_PX / 2:
        return False
    end = gap_px + _CHARACTER_PX * len(one.text)
    return any(
        one.x * width + gap_px - _MARK_PX / 2 < mark.x * width < one.x * width + end + _MARK_PX / 2
        for width in _WIDTHS_PX
    )
