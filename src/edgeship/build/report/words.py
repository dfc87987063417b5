"""What the report says in words: verdicts, sentences, figures beside their units."""

from __future__ import annotations

from typing import Final

from edgeship.build.schema import BuildDocument, TargetVerdict, VariantReport
from edgeship.charts import Unit, format_interval, format_value

#: Verdict → glyph and word; the word always stands beside the glyph.
VERDICT_WORDS: Final = {"pass": "✔ pass", "fail": "✖ fail", "inconclusive": "? inconclusive"}
HOLDS_WORDS: Final = {True: "✔ holds", False: "✖ missed", None: "? undecided"}
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


def label_of(variant: VariantReport) -> str:
    """``target/runtime/precision``."""
    return f"{variant.target}/{variant.runtime}/{variant.precision}"


def mark(index: int) -> str:
    """The letter that stands for a variant in charts: a to z, then aa, ab and so on.

    >>> mark(0), mark(25), mark(26)
    ('a', 'z', 'aa')
    """
    head, tail = divmod(index, len(_LETTERS))
    return (mark(head - 1) if head else "") + _LETTERS[tail]


def unit_of(name: str) -> Unit:
    """A metric's unit as the charts know it."""
    units: dict[str, Unit] = {"fraction": "fraction", "dB": "dB"}
    return units.get(name, "")


def verdict_word(verdict: str) -> str:
    """Glyph and word of a verdict; a word that is not known stands for itself."""
    return VERDICT_WORDS.get(verdict, verdict)


def chosen_of(document: BuildDocument, target: str) -> VariantReport | None:
    """The variant that ships for a target."""
    return next((each for each in document.variants if each.target == target and each.chosen), None)


def targets_of(document: BuildDocument) -> tuple[str, ...]:
    """Targets in the order of the build."""
    names = [each.target for each in document.targets] + [each.target for each in document.variants]
    return tuple(dict.fromkeys(names))


def target_verdict(document: BuildDocument, target: str) -> TargetVerdict:
    """The verdict of a target; where the build recorded none, from its chosen variant."""
    for each in document.targets:
        if each.target == target:
            return each
    chosen = chosen_of(document, target)
    return TargetVerdict(
        target=target,
        verdict=chosen.verdict if chosen else "fail",
        chosen=label_of(chosen) if chosen else "",
        reason=chosen.reason if chosen else "nothing could be chosen",
    )


def verdict_sentence(document: BuildDocument) -> str:
    """The first sentence of the report: what was decided, for how many targets, and the number that counts."""
    targets = targets_of(document)
    verdicts = [target_verdict(document, each) for each in targets]
    if document.verdict == "pass":
        parts = [_chosen_words(document, each) for each in targets]
        return f"A bundle for {_count(len(targets), 'target')}: " + "; ".join(part for part in parts if part) + "."
    worst = [each for each in verdicts if each.verdict == document.verdict] or verdicts
    why = "; ".join(f"{each.target}: {each.reason}" for each in worst)
    head = "No bundle" if document.verdict == "fail" else "No bundle yet: not decided"
    if not targets:
        return f"{head}: no target was built."
    return f"{head} for {len(worst)} of {_count(len(targets), 'target')}. {why}."


def _chosen_words(document: BuildDocument, target: str) -> str:
    chosen = chosen_of(document, target)
    if chosen is None:
        return ""
    return (
        f"{target} gets {chosen.precision} in {chosen.runtime} "
        f"({chosen.metric.name} {format_value(chosen.metric.value, unit_of(chosen.metric.unit))}, {drop_words(chosen)})"
    )


def drop_words(variant: VariantReport) -> str:
    """``drop +0.2 % (95 % −0.1…+0.5, n = 900)``; a positive drop is worse than the source."""
    metric = variant.metric
    unit = unit_of(metric.drop_unit)
    interval = format_interval(metric.drop_low, metric.drop_high, unit, signed=True)
    return f"drop {format_value(metric.drop, unit, signed=True)} ({interval}, n = {metric.n:,})"


def latency_words(variant: VariantReport) -> str:
    """p50 and p99; what was not measured on the target says so."""
    figures = f"p50 {format_value(variant.latency_p50_ms, 'ms')} · p99 {format_value(variant.latency_p99_ms, 'ms')}"
    place = f"measured on {variant.measured_on.cpu} ({variant.measured_on.isa})"
    return f"{figures}, {place}" + ("" if variant.on_target else f"; not measured on {variant.target}")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
