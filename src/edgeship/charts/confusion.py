"""Which classes are answered with which, before and after: counts in a table, the cells that moved outlined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeship.charts.frame import number_table
from edgeship.charts.heatmap import STEPS
from edgeship.charts.markup import Markup, element, fragment

#: Pairs of classes that the table of moves lists.
MOST_PAIRS: Final = 20
Counts = Mapping[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of source and variant.

    Attributes:
        counts: (class, answer) → samples of the source, of the variant; cells that are missing hold none.
        classes: how many there are.
        labels: their names, empty where they have none.
    """

    counts: Counts
    classes: int
    labels: tuple[str, ...] = ()

    def name(self, index: int) -> str:
        """A class for people: its number, and its name where it has one."""
        return f"{index} {self.labels[index]}" if self.labels else str(index)

    @property
    def moves(self) -> list[tuple[int, int, int, int]]:
        """(class, answer, source, variant) of cells that changed, the largest change first."""
        changed = [(*cell, *counts) for cell, counts in self.counts.items() if counts[0] != counts[1]]
        return sorted(changed, key=lambda each: (-abs(each[3] - each[2]), each))


def confusion_matrix(title: str, finding: str, found: Confusion) -> Markup:
    """Rows are classes, columns answers; a cell holds its count, or ``source → variant`` and an outline where it moved.

    >>> moved = Confusion(counts={(0, 0): (5, 4), (0, 1): (0, 1), (1, 1): (6, 6)}, classes=2, labels=("cat", "dog"))
    >>> "5 → 4" in confusion_matrix("Confusion", "1 moved.", moved)
    True
    """
    largest = [
        max((max(found.counts.get((row, column), (0, 0))) for column in range(found.classes)), default=0)
        for row in range(found.classes)
    ]
    head = element("tr", element("td"), [element("th", column, scope="col", title=found.name(column))
                                         for column in range(found.classes)])  # fmt: skip
    rows = [
        element("tr", element("th", found.name(row), scope="row"),
                [_cell(found, row, column, largest[row]) for column in range(found.classes)])
        for row in range(found.classes)
    ]  # fmt: skip
    reading = element("p", "Rows: classes. Columns: answers, by number. Outlined: source → variant. Darker: more of "
                      "the row.", class_="es-muted")  # fmt: skip
    table = element("table", element("thead", head), element("tbody", rows), class_="es-confusion")
    return _figure(title, finding, fragment(reading, _scrolling(table, title), _moved(title, found, is_open=False)))


def moved_figure(title: str, finding: str, found: Confusion) -> Markup:
    """For many classes: the cells that moved, and no matrix."""
    return _figure(title, finding, _moved(title, found, is_open=True))


def _moved(title: str, found: Confusion, *, is_open: bool) -> Markup:
    """The cells that changed most, as a list."""
    moves = found.moves
    rows = [
        (found.name(actual), found.name(said), str(source), str(variant), f"{variant - source:+d}".replace("-", "−"))
        for actual, said, source, variant in moves[:MOST_PAIRS]
    ]
    more = f" (the {MOST_PAIRS} largest of {len(moves)})" if len(moves) > MOST_PAIRS else ""
    table = number_table(f"Cells that moved{more}", ("class", "answer", "source", "variant", "change"), rows)
    if not rows:
        return element("p", "No cell moved.", class_="es-muted")
    summary = element("summary", f"{len(moves)} cells moved")
    scrolling = _scrolling(table, f"{title}: cells that moved")
    return element("details", summary, scrolling, class_="es-numbers", open=is_open)


def _figure(title: str, finding: str, body: Markup) -> Markup:
    caption = element("figcaption", element("strong", title), " ", element("span", finding))
    return element("figure", caption, body, class_="es-chart")


def _scrolling(table: Markup, name: str) -> Markup:
    return element("div", table, class_="es-scroll", tabindex=0, role="region", aria_label=name)


def _cell(found: Confusion, row: int, column: int, largest: int) -> Markup:
    source, variant = found.counts.get((row, column), (0, 0))
    kinds = [f"es-step{_step(max(source, variant), largest)}" if source or variant else ""]
    kinds += ["es-moved"] if source != variant else []
    word = f"{source} → {variant}" if source != variant else str(variant or "·")
    return element("td", word, class_=" ".join(kind for kind in kinds if kind) or None)


def _step(count: int, largest: int) -> int:
    """One of four fixed steps of a row's largest count.

    >>> [_step(count, 8) for count in (1, 2, 5, 8)]
    [0, 1, 2, 3]
    """
    return min(sum(count >= step * largest for step in STEPS), 3)
