"""The phase rail: how far a rollout went, and where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from edgeship.charts.frame import figure, line, number_table, percent, text
from edgeship.charts.markup import Markup, element, fragment

PhaseMark = Literal["passed", "active", "failed", "paused", "pending"]

_GLYPHS: Final = {"passed": "✔", "active": "●", "failed": "✖", "paused": "❚❚", "pending": "○"}
_HEIGHT_PX: Final = 92


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stage of a rollout.

    Attributes:
        label: its share of the fleet, such as ``20 %``.
        word: its state in a word, such as ``passed`` or ``halted``.
        mark: how it is drawn.
        detail: how many devices, such as ``3 devices``.
    """

    label: str
    word: str
    mark: PhaseMark
    detail: str = ""


def phase_rail(title: str, finding: str, phases: Sequence[Phase]) -> Markup:
    """Stages from left to right, each with share, glyph and word.

    >>> "halted" in phase_rail("Stages", "Halted at 20 %.", [Phase(label="20 %", word="halted", mark="failed")])
    True
    """
    shapes = fragment(
        [
            line(percent(_place(i, phases)), 44, percent(_place(i + 1, phases)), 44, _link_class(phases[i]))
            for i in range(len(phases) - 1)
        ],
        [_phase(phase, _place(i, phases)) for i, phase in enumerate(phases)],
    )
    rows = [(phase.label, phase.word, phase.detail) for phase in phases]
    return figure(title, finding, _HEIGHT_PX, shapes, number_table(title, ("stage", "state", "devices"), rows))


def _place(index: int, phases: Sequence[Phase]) -> float:
    return (index + 0.5) / len(phases)


def _link_class(phase: Phase) -> str:
    return "es-rail" if phase.mark == "passed" else "es-rail es-rail-open"


def _phase(phase: Phase, share: float) -> Markup:
    x = percent(share)
    return fragment(
        text(phase.label, x, 16, anchor="middle", class_="es-strong"),
        element("circle", cx=x, cy=44, r=15, class_=f"es-phase es-phase-{phase.mark}", fill="#eee", stroke="#555"),
        text(_GLYPHS[phase.mark], x, 49, anchor="middle", class_=f"es-glyph es-glyph-{phase.mark}"),
        text(phase.word, x, 75, anchor="middle", class_="es-strong" if phase.mark == "failed" else ""),
        text(phase.detail, x, 90, anchor="middle", class_="es-muted"),
    )
