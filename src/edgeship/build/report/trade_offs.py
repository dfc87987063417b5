"""The Pareto plots: what a smaller or a faster variant costs in accuracy, over all targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgeship.build.report.front import front, most_accurate, ties
from edgeship.build.report.words import label_of, mark, unit_of
from edgeship.build.schema import BuildDocument, VariantReport
from edgeship.charts import Axis, Markup, ScatterPoint, element, format_value, fragment, scatter_plot


def trade_off_plots(document: BuildDocument) -> Markup:
    """Latency and size of every variant against its accuracy, the front and ties marked."""
    variants = document.variants
    if not variants:
        return fragment()
    quantile, latency = _latency_of(document)
    axis = Axis(name=f"latency {quantile}", unit="ms")
    times = [latency(each) for each in variants]
    timed = all(math.isfinite(time_ms) and time_ms > 0 for time_ms in times)
    if timed:
        speeds = _plot("Latency and accuracy", variants, latency, axis, notes=_place_words(variants))
    else:
        speeds = element("p", "Latency was not measured.", class_="note")
    sizes = _plot("Size and accuracy", variants, _size, Axis(name="size", unit="bytes"), notes="")
    return fragment(speeds, sizes)


def _latency_of(document: BuildDocument) -> tuple[str, Callable[[VariantReport], float]]:
    """The quantile that a budget is about, else the median."""
    if any(each.id == "latency_p99_ms" for each in document.gates):
        return "p99", lambda each: each.latency_p99_ms
    return "p50", lambda each: each.latency_p50_ms


def _size(variant: VariantReport) -> float:
    return float(variant.size_bytes)


def _plot(
    title: str, variants: Sequence[VariantReport], cost: Callable[[VariantReport], float], axis: Axis, *, notes: str
) -> Markup:
    on_front, tied = front(variants, cost, timed=axis.unit == "ms"), ties(variants)
    points = [
        ScatterPoint(
            label=label_of(each), mark=mark(index), x=cost(each), y=each.metric.value, low=each.metric.low,
            high=each.metric.high, chosen=each.chosen, holds=each.verdict == "pass", front=index in on_front,
            tie=index in tied, reason=each.reason,
        )
        for index, each in enumerate(variants)
    ]  # fmt: skip
    metric = variants[0].metric
    y_axis = Axis(name=metric.name, unit=unit_of(metric.unit))
    finding = f"{_front_words(variants, on_front, cost, axis)} {_tie_words(variants, tied)} {notes}"
    return scatter_plot(title, " ".join(finding.split()), points, x_axis=axis, y_axis=y_axis)


def _front_words(
    variants: Sequence[VariantReport], on_front: set[int], cost: Callable[[VariantReport], float], axis: Axis
) -> str:
    least = min(variants, key=cost)
    word = "fastest" if axis.unit == "ms" else "smallest"
    marks = ", ".join(mark(index) for index in sorted(on_front))
    chosen = sum(each.chosen for each in variants)
    return (f"On the front: {marks}; {chosen} of {len(variants)} chosen. The {word} is {label_of(least)} with "
            f"{format_value(cost(least), axis.unit)}.")  # fmt: skip


def _tie_words(variants: Sequence[VariantReport], tied: set[int]) -> str:
    if len(variants) < 2:
        return ""
    best = mark(most_accurate(variants))
    if not tied:
        return f"The most accurate is {best}: no other interval overlaps with its own."
    if len(tied) == len(variants) - 1:
        return f"Accuracy: all tie with the most accurate, {best}: their intervals overlap."
    return f"Accuracy: {len(tied)} of {len(variants) - 1} tie with the most accurate, {best}: their intervals overlap."


def _place_words(variants: Sequence[VariantReport]) -> str:
    elsewhere = sum(not each.on_target for each in variants)
    if not elsewhere:
        return ""
    return f"{elsewhere} of {len(variants)} were not measured on their target."
