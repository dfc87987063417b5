"""The report's charts, from the build document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from edgeship.build.report.words import chosen_of, label_of, mark, unit_of
from edgeship.build.schema import BuildDocument, GateReport, VariantReport
from edgeship.charts import (
    Axis,
    Curve,
    IntervalRow,
    Markup,
    ScatterPoint,
    ecdf_plot,
    format_value,
    fragment,
    interval_plot,
    scatter_plot,
)

#: Points of a distribution that are drawn.
_CURVE_POINTS: Final = 60


def accuracy_plot(document: BuildDocument, target: str) -> Markup:
    """Drop of every variant of a target that the metric judged, with its interval, against the margin.

    A variant in full precision is judged by parity with the source, not by labels, and is not drawn.
    """
    judged = [each for each in document.variants if each.target == target and _gate(document, each, each.metric.name)]
    if not judged:
        return fragment()
    rows = [_accuracy_row(document, each) for each in judged]
    name = judged[0].metric.name
    words = {True: "proven within the margin", False: "proven worse than the margin", None: "not decided"}
    counts = {word: sum(row.holds is holds for row in rows) for holds, word in words.items()}
    counted = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    finding = f"Of {len(rows)}: {counted}. Right of zero is worse than the source."
    return interval_plot(f"{name} lost against the source, {target}", finding, rows)


def _accuracy_row(document: BuildDocument, variant: VariantReport) -> IntervalRow:
    metric, gate = variant.metric, _gate(document, variant, variant.metric.name)
    return IntervalRow(
        label=f"{variant.precision} · {variant.runtime}" + (" · chosen" if variant.chosen else ""),
        value=metric.drop,
        low=metric.drop_low,
        high=metric.drop_high,
        limit=gate.limit if gate else None,
        holds=gate.holds if gate else None,
        unit=unit_of(metric.drop_unit),
        n=metric.n,
        signed=True,
    )


def _gate(document: BuildDocument, variant: VariantReport, gate_id: str) -> GateReport | None:
    wanted = (gate_id, variant.target, variant.runtime, variant.precision)
    return next(
        (each for each in document.gates if (each.id, each.target, each.runtime, each.precision) == wanted), None
    )


def trade_off_plots(document: BuildDocument) -> Markup:
    """Size and latency of every variant against its accuracy."""
    variants = document.variants
    if not variants:
        return fragment()
    y_axis = Axis(name=variants[0].metric.name, unit=unit_of(variants[0].metric.unit))
    chosen = [each for each in variants if each.chosen]
    smallest = min(variants, key=lambda each: each.size_bytes)
    fastest = min(variants, key=lambda each: each.latency_p50_ms)
    tail = f"; {len(chosen)} of {len(variants)} chosen."
    size_finding = f"The smallest is {label_of(smallest)} with {format_value(smallest.size_bytes, 'bytes')}{tail}"
    speed_finding = f"The fastest is {label_of(fastest)} with {format_value(fastest.latency_p50_ms, 'ms')}{tail}"
    if not all(each.on_target for each in variants):
        speed_finding += " Not every variant was measured on its target."
    sizes = [_point(index, each, each.size_bytes) for index, each in enumerate(variants)]
    speeds = [_point(index, each, each.latency_p50_ms) for index, each in enumerate(variants)]
    size_axis, speed_axis = Axis(name="size", unit="bytes"), Axis(name="latency p50", unit="ms")
    return fragment(
        scatter_plot("Size and accuracy", size_finding, sizes, x_axis=size_axis, y_axis=y_axis),
        scatter_plot("Latency and accuracy", speed_finding, speeds, x_axis=speed_axis, y_axis=y_axis),
    )


def _point(index: int, variant: VariantReport, x: float) -> ScatterPoint:
    metric = variant.metric
    return ScatterPoint(
        label=label_of(variant), mark=mark(index), x=x, y=metric.value, low=metric.low, high=metric.high,
        chosen=variant.chosen,
    )  # fmt: skip


def latency_plot(document: BuildDocument, target: str, latencies_ms: Mapping[str, Sequence[float]]) -> Markup:
    """Latency distribution of what was chosen, beside the target's fp32."""
    chosen = chosen_of(document, target)
    float_variant = next((v for v in document.variants if v.target == target and v.precision == "fp32"), None)
    shown = {label_of(each): each for each in (chosen, float_variant) if each and latencies_ms.get(label_of(each))}
    if not shown:
        return fragment()
    curves = [
        Curve(
            label=f"{each.precision} · {each.runtime}", points=_points(latencies_ms[label]), n=len(latencies_ms[label])
        )
        for label, each in shown.items()
    ]
    first = next(iter(shown.values()))
    finding = f"{first.precision}: p99 {format_value(curves[0].quantile(0.99), 'ms')} on {first.measured_on.cpu}."
    return ecdf_plot(f"Latency of one inference, {target}", finding, curves)


def _points(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """At most ``_CURVE_POINTS`` steps of a cumulative distribution, its upper tail always among them."""
    ordered = sorted(value for value in values if value > 0)
    count = len(ordered)
    ranks = {round((count - 1) * step / (_CURVE_POINTS - 1)) for step in range(_CURVE_POINTS)}
    ranks |= {min(count - 1, int(count * share)) for share in (0.5, 0.95, 0.99)}
    return tuple((ordered[rank], (rank + 1) / count) for rank in sorted(ranks)) if count else ()
