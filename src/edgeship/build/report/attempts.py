"""What was tried and does not ship: refusals in the open, long lists folded, runtime by runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgeship.build.report.words import label_of, verdict_word
from edgeship.build.schema import Attempt, BuildDocument
from edgeship.build.stages import said
from edgeship.charts import Child, Markup, element

#: Outcomes that say why a whole precision is missing; others are candidates of a search.
_OPEN = frozenset({"refused", "fallback"})


def rows_in_the_open(document: BuildDocument) -> list[list[Child]]:
    """Variants that were judged and do not ship, then what could not be had at all: label, outcome, reason."""
    rows: list[list[Child]] = [
        [label_of(each), verdict_word(each.verdict), each.reason] for each in document.variants if not each.chosen
    ]
    rows += [[f"{each.target}/{each.runtime}/{each.precision}", each.outcome, said(each.stage, each.reason)]
             for each in document.tried if each.outcome in _OPEN]  # fmt: skip
    return rows


def searched(document: BuildDocument) -> dict[str, list[Attempt]]:
    """``target/runtime`` → candidates of its search that were not taken; those that failed first."""
    groups: dict[str, list[Attempt]] = {}
    for each in document.tried:
        if each.outcome not in _OPEN:
            groups.setdefault(f"{each.target}/{each.runtime}", []).append(each)
    return {place: sorted(found, key=lambda each: not each.stage) for place, found in groups.items()}


def summary(place: str, found: Sequence[Attempt]) -> str:
    """One line for a group.

    >>> summary("t/litert", [Attempt(target="t", runtime="litert", precision="int8", outcome="failed", reason="x")])
    't/litert: 1 candidate of the search (1 failed)'
    """
    counts = Counter(each.outcome for each in found)
    words = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    return f"{place}: {len(found)} candidate{'' if len(found) == 1 else 's'} of the search ({words})"


def rows_of(found: Sequence[Attempt]) -> list[list[Child]]:
    """Outcome, reason, how often: the same sentence stands once."""
    counted = Counter((each.outcome, said(each.stage, each.reason)) for each in found)
    return [[outcome, reason, f"{count} ×" if count > 1 else ""] for (outcome, reason), count in counted.items()]


def folded(place: str, found: Sequence[Attempt], table: Markup) -> Markup:
    """A group that opens on demand."""
    return element("details", element("summary", summary(place, found)), table)
