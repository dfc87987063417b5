"""The report's charts, from the build document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from edgeship.build.report.words import chosen_of, label_of, unit_of
from edgeship.build.schema import BuildDocument, GateReport, VariantReport
from edgeship.charts import (
    Curve,
    IntervalRow,
    Markup,
    ecdf_plot,
    format_value,
    fragment,
    interval_plot,
)

#: The axis of latencies ends at so many times this quantile: a pause of the machine must not squeeze all the rest.
_ROBUST: Final = 0.99
_ROBUST_SPAN: Final = 1.25
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


def latency_plot(document: BuildDocument, target: str, latencies_ms: Mapping[str, Sequence[float]]) -> Markup:
    """Latency distribution of what was chosen, beside the target's fp32."""
    chosen = chosen_of(document, target)
    float_variant = next((v for v in document.variants if v.target == target and v.precision == "fp32"), None)
    shown = {label_of(each): each for each in (chosen, float_variant) if each and latencies_ms.get(label_of(each))}
    if not shown:
        return fragment()
    curves = [_curve(f"{each.precision} · {each.runtime}", latencies_ms[label]) for label, each in shown.items()]
    first = next(iter(shown.values()))
    finding = f"{first.precision}: p99 {format_value(first.latency_p99_ms, 'ms')} on {first.measured_on.cpu}."
    return ecdf_plot(f"Latency of one inference, {target}", finding, curves)


def _curve(label: str, values: Sequence[float]) -> Curve:
    """The distribution, with an end of its axis behind which only outliers lie."""
    ordered = sorted(value for value in values if value > 0)
    points = _points(values)
    if not ordered:
        return Curve(label=label, points=points, n=len(values))
    end = _ROBUST_SPAN * ordered[int(_ROBUST * (len(ordered) - 1))]
    beyond = sum(value > end for value in ordered)
    return Curve(label=label, points=points, n=len(values), end=end if beyond else None, beyond=beyond)


def _points(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """At most ``_CURVE_POINTS`` steps of a cumulative distribution, its upper tail always among them."""
    ordered = sorted(value for value in values if value > 0)
    count = len(ordered)
    ranks = {round((count - 1) * step / (_CURVE_POINTS - 1)) for step in range(_CURVE_POINTS)}
    ranks |= {min(count - 1, int(count * share)) for share in (0.5, 0.95, 0.99)}
    return tuple((ordered[rank], (rank + 1) / count) for rank in sorted(ranks)) if count else ()
