"""What int8 does inside: which operators lose most, and which classes are taken for others."""

from __future__ import annotations

import shlex
from typing import Final

from edgeship.build.report.words import label_of
from edgeship.build.schema import BuildDocument, ConfusionReport, OperatorSensitivity, SensitivityReport, VariantReport
from edgeship.build.words import to_keep
from edgeship.charts import (
    Confusion,
    Markup,
    RankedBar,
    confusion_matrix,
    element,
    format_value,
    fragment,
    moved_figure,
    ranked_bars,
)

_LONGEST: Final = 32
_METHOD: Final = (
    "An estimate: each operator alone, its weights and its output on their 8-bit grids, everything before it in float; "
    "the shares add up to the whole rounding noise. Where the search left an operator in float by itself, what that "
    "took off the net's squared error is measured."
)


def sensitivity(document: BuildDocument) -> Markup:
    """Operators of every int8, the noisiest first, and how one stays in float."""
    shown = [each for each in document.sensitivity if each.operators]
    if not shown:
        return fragment()
    return element("section", element("h2", "Sensitivity: where int8 loses"), element("p", _METHOD, class_="note"),
                   [_sensitivity(each) for each in shown])  # fmt: skip


def _sensitivity(one: SensitivityReport) -> Markup:
    rounded = [each for each in one.operators if not each.in_float]
    kept = [each.name for each in one.operators if each.in_float]
    bars = [_bar(each) for each in one.operators]
    title = f"Rounding noise by operator, {one.target}/{one.runtime}"
    finding = "Everything stays in float."
    if rounded:
        worst, share = rounded[0], format_value(rounded[0].noise_share, "fraction")
        finding = f"{worst.kind} {_short(worst.name)} makes {share} of the noise of {len(rounded)} rounded operators."
        if worst.removed_share is not None and worst.removed_share < 0:
            grown = format_value(-worst.removed_share, "fraction")
            finding += f" In float by itself it did not help: the squared error grew by {grown}."
    if kept:
        finding += f" In float already: {len(kept)}."
    return fragment(
        ranked_bars(title, finding, bars, share_name="share of the noise", measured_name="measured: error that goes"),
        _advice(one),
    )


def _advice(one: SensitivityReport) -> Markup | None:
    """Which operator to leave in float first, and how."""
    worst = to_keep(one)
    if worst is None:
        return None
    why = "the noisiest that was not tried in float yet"
    if worst.removed_share is not None:
        why = f"measured: {format_value(worst.removed_share, 'fraction')} of the squared error goes"
    option = element("code", f"--keep-float {shlex.quote(worst.name)}")
    return element("p", "To leave one in float, build again with ", option, f" ({why}); repeatable.")


def _bar(one: OperatorSensitivity) -> RankedBar:
    word = "exact" if one.sqnr_db is None else f"{one.sqnr_db:.0f} dB"
    name, short = (f"{one.kind} {each}".strip() + " (in float)" * one.in_float for each in (one.name, _short(one.name)))
    return RankedBar(
        label=name, short=short, share=one.noise_share, word=word,
        measured=one.removed_share, note="stays in float" if one.in_float else "",
    )  # fmt: skip


def _short(name: str) -> str:
    """The end of a long name, which tells it from its neighbours.

    >>> _short("conv"), _short("functional_1/stage3/block2/separable_conv2d/depthwise")
    ('conv', '…ock2/separable_conv2d/depthwise')
    """
    name = name.split(";", 1)[0]  # LiteRT's names of fused operators list them all
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST + 1 :]}"


def confusions(document: BuildDocument) -> Markup:
    """What the quantized variants that ship take for what, or the first one of a target that none ships for."""
    shown = [figure for variant in _shown(document) if (figure := _confusion(variant))]
    if not shown:
        return fragment()
    return element("section", element("h2", "Confusion: float against int8"), shown)


def _shown(document: BuildDocument) -> list[VariantReport]:
    chosen = [each for each in document.variants if each.chosen and each.confusion]
    served = {each.target for each in chosen}
    rest = {each.target: each for each in reversed(document.variants) if each.confusion and each.target not in served}
    return [*chosen, *rest.values()]


def _confusion(variant: VariantReport) -> Markup | None:
    found = variant.confusion
    if found is None:
        return None
    counts = {(each.actual, each.said): (each.source, each.variant) for each in found.cells}
    drawn = Confusion(counts=counts, classes=found.classes, labels=found.labels)
    title = f"Classes and answers, {label_of(variant)}"
    return (confusion_matrix if found.whole else moved_figure)(title, _confusion_words(found), drawn)


def _confusion_words(found: ConfusionReport) -> str:
    against = "Rows by the labels." if found.against == "labels" else "Rows by the source's answers."
    moved = f"{found.moved:,} of {found.samples:,} samples are answered otherwise than by the source."
    many = "" if found.whole else f" Of {found.classes:,} classes, only what changed is listed."
    return f"{moved} {against}{many}"
