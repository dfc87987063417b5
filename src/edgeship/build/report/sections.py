"""The report's sections: targets, variants, gates, what was refused, lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeship.build.report import attempts
from edgeship.build.report.plots import accuracy_plot, latency_plot
from edgeship.build.report.trade_offs import trade_off_plots
from edgeship.build.report.words import (
    HOLDS_WORDS,
    chosen_of,
    drop_words,
    label_of,
    latency_words,
    mark,
    target_verdict,
    targets_of,
    unit_of,
    verdict_sentence,
    verdict_word,
)
from edgeship.build.schema import BuildDocument, ClassRecall, GateReport, VariantReport
from edgeship.charts import Child, Markup, Unit, element, format_interval, format_value, fragment


def header(document: BuildDocument) -> Markup:
    """Name, verdict, and the sentence that says it all."""
    title = f"{document.name} {document.version}".strip() or "Build report"
    return element(
        "header",
        element("h1", title),
        element(
            "p", element("strong", verdict_word(document.verdict), class_="verdict"), " ", verdict_sentence(document)
        ),
        [element("p", note, class_="note") for note in document.notes],
    )


def targets(document: BuildDocument, latencies_ms: Mapping[str, Sequence[float]]) -> Markup:
    """One section a target: verdict and reason, the chosen variant's figures, accuracy intervals, latency."""
    return fragment([_target(document, each, latencies_ms) for each in targets_of(document)])


def _target(document: BuildDocument, target: str, latencies_ms: Mapping[str, Sequence[float]]) -> Markup:
    verdict, chosen = target_verdict(document, target), chosen_of(document, target)
    return _section(
        target,
        element("p", element("strong", verdict_word(verdict.verdict)), " ", verdict.reason),
        _facts(_chosen_facts(document, chosen)) if chosen else None,
        accuracy_plot(document, target),
        latency_plot(document, target, latencies_ms),
    )


def _chosen_facts(document: BuildDocument, chosen: VariantReport) -> list[tuple[str, Child]]:
    metric = chosen.metric
    unit = unit_of(metric.unit)
    interval = format_interval(metric.low, metric.high, unit)
    facts: list[tuple[str, Child]] = [
        ("chosen", f"{chosen.precision} in {chosen.runtime} {chosen.runtime_version}".strip()),
        ("why", chosen.reason),
        ("size", format_value(chosen.size_bytes, "bytes")),
        (metric.name, f"{format_value(metric.value, unit)} ({interval}), {drop_words(chosen)}"),
        ("fidelity", f"relative RMS {format_value(chosen.relative_rms)} · SQNR {_decibel(chosen.sqnr_db)}"),
        ("latency", latency_words(chosen)),
    ]
    if chosen.scheme:
        facts.insert(1, ("scheme", chosen.scheme))
    mine = (chosen.target, chosen.runtime, chosen.precision)
    groups = [each for each in document.gates if each.id == "group_rms" and _owner(each) == mine]
    facts += [("channel groups", each.sentence) for each in groups]
    return [*facts, *(("note", note) for note in chosen.notes)]


def _owner(gate: GateReport) -> tuple[str, str, str]:
    return gate.target, gate.runtime, gate.precision


def trade_offs(document: BuildDocument) -> Markup:
    """Charts and table of every variant."""
    if not document.variants:
        return _section("Variants", element("p", "No variant could be built."))
    header_row = ("", "variant", "verdict", "size", "p50", "p99", "metric", "95 %", "drop", "95 %", "relative RMS",
                  "SQNR", "classes", "on target")  # fmt: skip
    rows = [_variant_row(index, each) for index, each in enumerate(document.variants)]
    return _section("Every variant", trade_off_plots(document), _table("Every variant", header_row, rows))


def _variant_row(index: int, variant: VariantReport) -> list[Child]:
    metric = variant.metric
    unit, drop_unit = unit_of(metric.unit), unit_of(metric.drop_unit)
    return [
        mark(index),
        label_of(variant) + (" (chosen)" if variant.chosen else ""),
        verdict_word(variant.verdict),
        format_value(variant.size_bytes, "bytes"),
        format_value(variant.latency_p50_ms, "ms"),
        format_value(variant.latency_p99_ms, "ms"),
        f"{metric.name} {format_value(metric.value, unit)}",
        format_interval(metric.low, metric.high, unit).removeprefix("95 % "),
        format_value(metric.drop, drop_unit, signed=True),
        format_interval(metric.drop_low, metric.drop_high, drop_unit, signed=True).removeprefix("95 % "),
        format_value(variant.relative_rms),
        _decibel(variant.sqnr_db),
        f"{variant.distinct_predictions} of {variant.distinct_reference}" if variant.distinct_reference else "",
        "yes" if variant.on_target else f"no: {variant.measured_on.isa}",
    ]


def refused(document: BuildDocument) -> Markup:
    """What was tried and is not shipped, each with its reason."""
    title, rows, groups = "Tried and not shipped", attempts.rows_in_the_open(document), attempts.searched(document)
    looks = [element("p", "To look into it: ", _code(each)) for each in document.next]
    if not rows and not groups:
        return _section(title, element("p", "Nothing: every variant that was tried ships."))
    return _section(
        title,
        _table(title, ("variant", "outcome", "reason"), rows, wordy=True) if rows else None,
        looks,
        [
            attempts.folded(place, found, _table(place, ("outcome", "candidate", ""), attempts.rows_of(found)))
            for place, found in groups.items()
        ],
    )


def gates(document: BuildDocument) -> Markup:
    """Every rule with its value, limit, interval and sentence."""
    if not document.gates:
        return fragment()
    rows = [_gate_row(each) for each in document.gates]
    header_row = ("gate", "variant", "rule", "value", "limit", "95 %", "n", "verdict", "in words")
    command = element("code", f"edgeship explain build/{document.gates[0].id}")
    return _section("Gates", _table("Gates", header_row, rows), element("p", "The same in the terminal: ", command))


def _gate_row(gate: GateReport) -> list[Child]:
    unit, signed = _gate_unit(gate), gate.low is not None and gate.low < 0
    return [
        gate.id,
        f"{gate.target}/{gate.runtime}/{gate.precision}",
        gate.rule,
        format_value(gate.value, unit, signed=signed),
        format_value(gate.limit, unit) if gate.limit is not None else "none",
        format_interval(gate.low, gate.high, unit, signed=signed).removeprefix("95 % "),
        f"{gate.n:,}" if gate.n else "",
        HOLDS_WORDS[gate.holds],
        gate.sentence + (f" Next: {gate.next}" if gate.next else ""),
    ]


def _gate_unit(gate: GateReport) -> Unit:
    """Unit of a gate by the end of its name; of a metric, its own."""
    units: dict[str, Unit] = {"_ms": "ms", "_bytes": "bytes", "_rms": "", "_db": "", "distinct": "", "slowdown": ""}
    return next((unit for end, unit in units.items() if gate.id.endswith(end)), unit_of(gate.unit))


def class_recalls(document: BuildDocument) -> Markup:
    """Recall of every class for what ships, the class that loses most first."""
    rows = [
        _class_row(variant, one)
        for variant in document.variants
        if variant.chosen
        for one in sorted(variant.class_recalls, key=lambda each: -each.drop)
    ]
    if not rows:
        return fragment()
    header_row = ("variant", "class", "samples", "source", "recall", "95 %", "drop", "95 %")
    return _section("Recall of each class", _table("Recall of each class", header_row, rows))


def _class_row(variant: VariantReport, one: ClassRecall) -> list[Child]:
    return [
        label_of(variant),
        one.label,
        f"{one.n:,}",
        format_value(one.source, "fraction"),
        format_value(one.value, "fraction"),
        format_interval(one.low, one.high, "fraction").removeprefix("95 % "),
        format_value(one.drop, "fraction", signed=True),
        format_interval(one.drop_low, one.drop_high, "fraction", signed=True).removeprefix("95 % "),
    ]


def lineage(document: BuildDocument) -> Markup:
    """Where the bundle came from: source, data, tools, digests."""
    facts: list[tuple[str, Child]] = []
    if source := document.source:
        facts += [
            ("source", f"{source.file} ({source.format}{f', opset {source.opset}' if source.opset else ''})"),
            ("source digest", _code(source.digest)),
            ("model", f"{source.operators:,} operators · {source.parameters:,} parameters"),
            ("size", format_value(source.size_bytes, "bytes")),
        ]
    for data in document.data:
        facts.append((f"{data.role} data", fragment(f"{data.file}, {data.samples:,} samples ", _code(data.digest))))
    if document.bundle:
        facts += [("bundle", _code(document.bundle)), ("bundle digest", _code(document.bundle_digest)),
                  ("to verify", _code(f"edgeship verify {document.bundle}"))]  # fmt: skip
    facts += [("tools", " · ".join(f"{name} {version}" for name, version in sorted(document.tools.items())))]
    facts += [("time", " · ".join(f"{stage} {format_value(s, 's')}" for stage, s in document.timings_s.items()))]
    return _section("Lineage", _facts([(name, value) for name, value in facts if value]))


def _section(title: str, *children: Child) -> Markup:
    return element("section", element("h2", title), *children)


def _facts(facts: Sequence[tuple[str, Child]]) -> Markup:
    return element("dl", [fragment(element("dt", name), element("dd", value)) for name, value in facts])


def _table(caption: str, header_row: Sequence[str], rows: Sequence[Sequence[Child]], *, wordy: bool = False) -> Markup:
    """A table that scrolls by itself where the page is narrow, and can be reached with the keyboard."""
    head = element("tr", [element("th", name, scope="col") for name in header_row])
    body = [element("tr", [element("td", cell) for cell in row]) for row in rows]
    name = element("caption", caption, class_="hidden")
    kind = "words" if wordy else None  # its last column needs room to be read
    table = element("table", name, element("thead", head), element("tbody", body), class_=kind)
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _code(text: str) -> Markup:
    return element("code", text)


def _decibel(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1f} dB"
