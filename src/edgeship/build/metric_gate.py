"""The rule on the task metric: proven within the margin, proven beyond it, or what would decide. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from edgeship.build.metrics import Paired, found_classes, lost_classes
from edgeship.build.schema import ClassRecall
from edgeship.statistics import (
    Difference,
    Disagreements,
    confidence_of_look,
    disagreement_drop,
    disagreements_needed,
)

#: Unlabelled samples that a hint supposes, as a multiple of the labelled ones that would decide.
_UNLABELLED_PER_LABELLED = 2
#: Fewer disagreements than this tell nothing of the rates that a hint supposes.
_FEWEST_DISCORDANT = 3


class FieldEvidence(Struct, frozen=True, kw_only=True):
    """What unlabelled samples say of one variant, and the labels of disagreements so far.

    Attributes:
        counts: see :class:`Disagreements`.
        metric: that its labels judge.
        look: how many times labels were looked at, this time included; 1 also before the first.
        claims: variants of the same target that are judged by the same labels.
        rates: who is right where the two differ on the evaluation set, to foresee how many labels would decide.
    """

    counts: Disagreements
    metric: str = "top1"
    look: int = 1
    claims: int = 1
    rates: Disagreements | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """Whether the metric holds, from what, and what would decide.

    Attributes:
        n: samples behind the interval; ``evidence``: what it is recomputed from.
    """

    holds: bool | None
    difference: Difference
    n: int
    sentence: str
    hint: str
    evidence: dict[str, float]


def judge_metric(paired: Paired, limit: float, *, position: int = 1, differing: int | None = None) -> Answer:
    """By the labels of the evaluation set.

    Args:
        paired: the variant against the source.
        limit: largest drop, in the metric's unit.
        position: of the variant among those of its target that are judged by the metric, from 1.
        differing: evaluation samples on which the two say something else, where labels of such samples would decide.
    """
    confidence = confidence_of_look(position)
    found = paired.difference(confidence)
    holds = _holds(found, limit)
    hint = "" if holds is not None else _ways_out(paired, limit, confidence, differing)
    figures = paired.figures
    return Answer(
        holds=holds, difference=found, n=figures.n, hint=hint,
        sentence=_sentence(figures.name, figures.drop_unit, found, limit, (confidence, f"n={figures.n}")),
        evidence={**paired.evidence, "confidence": confidence},
    )  # fmt: skip


def claims_of(position: int, runtimes: int) -> int:
    """How many claims share the error that a target's candidates may make before any disagreement has a label.

    As many as the runtimes, which share the labels later; from the second candidate on at least as many as the ladder
    of candidates has for it (:func:`confidence_of_look`), so that all of them together stay within the family's error.

    Args:
        position: among the target's quantized candidates, from 1.
        runtimes: of the target.

    >>> [claims_of(position, runtimes=1) for position in (1, 2, 3)], [claims_of(each, runtimes=3) for each in (1, 2, 3)]
    ([1, 2, 4], [3, 3, 4])
    >>> max(sum(1 / claims_of(each, count) for each in range(1, 40)) for count in range(1, 6)) * (1 - 0.95) / 2 < 0.05
    True
    """
    return max(runtimes, 1 << (position - 1))


def judge_field(field: FieldEvidence, limit: float) -> Answer:
    """By labels of disagreements among unlabelled samples."""
    counts = field.counts
    confidence = confidence_of_look(field.look, field.claims)
    found = disagreement_drop(counts, confidence)
    holds = _holds(found, limit)
    told = f"{counts.labelled:,.0f} of {counts.found:,.0f} disagreements labelled, {counts.samples:,.0f} samples"
    hint = ""
    if holds is None:
        wanted = labels_wanted(field, limit)
        hint = "not even labels of all disagreements would decide; run on more unlabelled samples"
        if wanted is not None:
            hint = f"{wanted:,} more labels of disagreements at these rates would decide (edgeship gate resume)"
    return Answer(
        holds=holds, difference=found, n=round(counts.samples), hint=hint,
        sentence=_sentence(field.metric, "fraction", found, limit, (confidence, told)),
        evidence={
            "unlabelled": float(counts.samples), "disagreements": float(counts.found), "both": float(counts.both),
            "only_source": float(counts.only_reference), "only_variant": float(counts.only_candidate),
            "neither": float(counts.neither), "confidence": confidence,
        },
    )  # fmt: skip


def labels_wanted(field: FieldEvidence, limit: float) -> int | None:
    """How many more labels of disagreements would decide at the rates seen, or supposed where next to none are.

    Returns:
        At least 1; None where not even all would do.
    """
    counts = field.counts
    seen = counts if _telling(counts) else _supposed(counts, field.rates)
    more = disagreements_needed(seen, limit, confidence_of_look(field.look, field.claims))
    return None if more is None else max(1, math.ceil(more + seen.labelled - counts.labelled))


def judge_classes(recalls: Sequence[ClassRecall], margin: float) -> tuple[bool, str, ClassRecall | None]:
    """Whether no class that the source finds is proven to be lost; in words; and the class that is lost most.

    Args:
        recalls: of every class.
        margin: largest loss of recall, as a fraction.
    """
    found, lost = found_classes(recalls), lost_classes(recalls, margin)
    if lost:
        worst = lost[0]
        others = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        interval = f"95 % {worst.drop_low:+.1%}…{worst.drop_high:+.1%} lost, n={worst.n}"
        recall = f"recall {worst.source:.1%} → {worst.value:.1%}"
        return False, f"class {worst.label} is lost: {recall} ({interval}){others}", worst
    if not found:
        return True, "no class is found by the source on 10 samples or more", None
    worst = max(found, key=lambda each: each.drop)
    return (
        True,
        f"no class of {len(found)} is proven lost; the worst is {worst.label}: {worst.drop:+.1%}, n={worst.n}",
        worst,
    )


def shown_drop(value: float, unit: str, *, signed: bool = True) -> str:
    """A drop in its unit.

    >>> shown_drop(0.0123, "fraction"), shown_drop(0.25, "dB"), shown_drop(1.5, "", signed=False)
    ('+1.23%', '+0.25 dB', '1.5')
    """
    sign = "+" if signed else ""
    if unit == "fraction":
        return format(value, f"{sign}.2%")
    return format(value, f"{sign}.3g") + (f" {unit}" if unit else "")


def _holds(found: Difference, limit: float) -> bool | None:
    return True if found.high <= limit else False if found.low > limit else None


def _sentence(name: str, unit: str, found: Difference, limit: float, level: tuple[float, str]) -> str:
    confidence, told = level
    low, high, drop = (shown_drop(value, unit) for value in (found.low, found.high, found.drop))
    margin = shown_drop(limit, unit, signed=False)
    interval = f"{confidence * 100:.4g} % {low}…{high}, {told}"
    holds = _holds(found, limit)
    if holds:
        return f"{name} drop {drop} ({interval}) is proven within {margin}"
    if holds is False:
        return f"{name} drop {drop} ({interval}) exceeds {margin}"
    return f"{name} drop ≤ {margin}: not proven ({interval} crosses the limit)"


def _ways_out(paired: Paired, limit: float, confidence: float, differing: int | None) -> str:
    """How many more labelled samples, or how many labels of disagreements, would decide."""
    more = paired.needed(limit, confidence)
    if more is None:
        return "no reasonable number of samples would decide: the drop lies at the limit"
    hint = f"{more:,} more evaluation samples at these rates would decide"
    if paired.figures.name == "agreement":
        return f"{hint}, or labels of disagreements alone (--unlabelled), which tell losses from wins"
    labels = _labels_instead(paired, limit, confidence, more, differing)
    if labels is None:
        return hint
    word = "label" if labels[0] == 1 else "labels"
    return f"{hint}, or {labels[0]:,} {word} of disagreements among {labels[1]:,} unlabelled samples (--unlabelled)"


def _labels_instead(
    paired: Paired, limit: float, confidence: float, more: int, differing: int | None
) -> tuple[int, int] | None:
    """Labels of disagreements that would decide, and the unlabelled samples that they come from."""
    cells = paired.cells
    if cells is None or not differing or cells.only_reference + cells.only_candidate > differing:
        return None
    samples = _UNLABELLED_PER_LABELLED * (cells.n + more)
    found = differing / cells.n * samples
    # both right although they differ happens to top-5 lists, not to classes; here such samples are among the rest
    rest = differing - cells.only_reference - cells.only_candidate
    rates = Disagreements(samples=samples, found=found, only_reference=cells.only_reference,
                          only_candidate=cells.only_candidate, neither=rest)  # fmt: skip
    needed = disagreements_needed(rates, limit, confidence)
    return None if needed is None else (math.ceil(needed + rates.labelled), samples)


def _telling(counts: Disagreements) -> bool:
    """Whether enough of its labels differ to tell rates."""
    return counts.only_reference + counts.only_candidate >= _FEWEST_DISCORDANT


def _supposed(counts: Disagreements, rates: Disagreements | None) -> Disagreements:
    """Rates of the evaluation set; without any, as if source and variant were each right on every other one."""
    if rates is None or not _telling(rates):
        rates = Disagreements(samples=1, found=1, only_reference=0.5, only_candidate=0.5)
    scale = min(1.0, counts.found) / rates.labelled
    return Disagreements(
        samples=counts.samples, found=counts.found, both=rates.both * scale, neither=rates.neither * scale,
        only_reference=rates.only_reference * scale, only_candidate=rates.only_candidate * scale,
    )  # fmt: skip
