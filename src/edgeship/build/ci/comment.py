"""``report.md``: a pull-request comment that says what changed, and stays below what a comment may hold. Pure."""

from __future__ import annotations

import re
from typing import Final

from edgeship.build.ci.findings import findings
from edgeship.build.markdown import plain, table
from edgeship.build.schema import BuildDocument, GateReport, MetricFigures, VariantReport
from edgeship.build.words import size, worst_layer
from edgeship.statistics import newcombe_independent

#: A comment holds 65,536 characters; a byte is never more than a character, and the rest is left to whoever adds to it.
MAX_BYTES: Final = 60_000
#: Metrics that are a share of samples, so that the interval of a change follows from two of them.
_SHARES: Final = re.compile(r"top[0-9]+|agreement|closeness")
_MARKS: Final = {"pass": "✔ pass", "fail": "✖ fail", "inconclusive": "? inconclusive"}
_LEVELS: Final = {"error": "✖", "warning": "?", "note": "·"}
_ROW_BYTES: Final = 40_000
_FINDING_BYTES: Final = 12_000
_INSIDE_BYTES: Final = 4_000


def marker(name: str) -> str:
    """The hidden first line by which the comment of a model is found again and edited.

    >>> marker("gauge")
    '<!-- edgeship-report: gauge -->'
    """
    kept = re.sub(r"[^A-Za-z0-9._+]+", "-", name)[:128].strip("-")
    return f"<!-- edgeship-report: {kept or 'model'} -->"


def comment(document: BuildDocument, base: BuildDocument | None) -> str:
    """The comment.

    Args:
        document: the build.
        base: the build that it is compared with, such as the base branch's; None for none.
    """
    parts = [marker(document.name), _title(document), _targets(document), _against(document, base)]
    rows, left = _within([_row(each, _former(each, base)) for each in document.variants], _ROW_BYTES)
    header = ["variant", _metric_name(document), "size", "latency p50 / p99", "relative RMS", "verdict"]
    parts.append(table(header, rows))
    if left:
        parts.append(f"… and {left} more variants: see report.html.")
    parts += [_gone(document, base), _findings(document), _inside(document), _replay(document)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text.encode()[:MAX_BYTES].decode(errors="ignore")


def _title(document: BuildDocument) -> str:
    name = f"{plain(document.name)} {plain(document.version)}".strip()
    return f"### {_MARKS[document.verdict]}: {name}"


def _targets(document: BuildDocument) -> str:
    lines = []
    for each in document.targets:
        ships = f"{plain(each.chosen)} ships" if each.chosen and each.verdict == "pass" else plain(each.reason)
        lines.append(f"- {_MARKS[each.verdict]} **{plain(each.target)}**: {ships}")
    kept, left = _within([[line] for line in lines], _FINDING_BYTES)
    return "\n".join([line for (line,) in kept] + ([f"- … and {left} more targets"] if left else []))


def _against(document: BuildDocument, base: BuildDocument | None) -> str:
    if base is None:
        return "There is no base build to compare with."
    sentence = f"Old → new, against the base build {plain(base.version)} ({_MARKS[base.verdict]})."
    if _evaluation(document) != _evaluation(base):
        sentence += " **The evaluation data changed**, so the metrics are of different samples."
    return sentence


def _evaluation(document: BuildDocument) -> str:
    return next((each.digest for each in document.data if each.role == "evaluation"), "")


def _metric_name(document: BuildDocument) -> str:
    return plain(document.variants[0].metric.name) if document.variants else "metric"


def _former(variant: VariantReport, base: BuildDocument | None) -> VariantReport | None:
    """The same variant in the base build."""
    return next((each for each in base.variants if _label(each) == _label(variant)), None) if base else None


def _label(variant: VariantReport) -> str:
    return f"{variant.target}/{variant.runtime}/{variant.precision}"


def _row(new: VariantReport, old: VariantReport | None) -> list[str]:
    name = plain(_label(new))
    old_rms = f"{_number(old.relative_rms)} → " if old else ""
    return [
        f"**{name}**" if new.chosen else name,
        _metric(new.metric, old.metric if old else None),
        size(new.size_bytes) if old is None else _change(old.size_bytes, new.size_bytes),
        _latency(new, old),
        old_rms + _number(new.relative_rms),
        "**ships**" if new.chosen else f"{_MARKS[new.verdict]}, {plain(new.reason)}",
    ]


def _metric(new: MetricFigures, old: MetricFigures | None) -> str:
    """The metric with its interval; a change with its interval where both are shares of samples."""
    shown = f"{_value(new.value, new.unit)} (95 %: {_value(new.low, new.unit)} to {_value(new.high, new.unit)})"
    if old is None or old.name != new.name:
        return shown
    if not _SHARES.fullmatch(new.name) or not (old.n and new.n):
        return f"{_value(old.value, old.unit)} → {shown}"
    found = newcombe_independent(old.value * old.n, old.n, new.value * new.n, new.n)
    change = f"{100 * found.change:+.2f} points, 95 %: {100 * found.low:+.2f} to {100 * found.high:+.2f}"
    return f"{_value(old.value, old.unit)} → {_value(new.value, new.unit)} ({change})"


def _value(value: float, unit: str) -> str:
    """A figure in its unit.

    >>> _value(0.9871, "fraction"), _value(12.5, "dB"), _value(0.03, "")
    ('98.71 %', '12.5 dB', '0.03')
    """
    return f"{100 * value:.2f} %" if unit == "fraction" else f"{value:.5g} {unit}".strip()


def _change(old: int, new: int) -> str:
    if old == new:
        return size(new)
    return f"{size(old)} → {size(new)} ({100 * (new - old) / old:+.1f} %)" if old else f"{size(old)} → {size(new)}"


def _latency(new: VariantReport, old: VariantReport | None) -> str:
    """Latency, honestly: on the target's ISA class or not, and compared only with the same processor's."""
    here = f"{new.latency_p50_ms:.3g} / {new.latency_p99_ms:.3g} ms"
    if old is not None and _place(old) == _place(new):
        here = f"{old.latency_p50_ms:.3g} / {old.latency_p99_ms:.3g} → {here}"
    elif old is not None:
        here += "; the base build was measured on another processor"
    return here if new.on_target else f"{here}; not measured on {plain(new.target)}"


def _place(variant: VariantReport) -> tuple[str, str, str, str]:
    """A machine, as far as its speed goes."""
    place = variant.measured_on
    return place.arch, place.isa, place.cpu, place.device


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _gone(document: BuildDocument, base: BuildDocument | None) -> str:
    """Variants that only the base build has."""
    if base is None:
        return ""
    now = {_label(each) for each in document.variants}
    gone = [plain(_label(each)) for each in base.variants if _label(each) not in now]
    shown, left = _within([[name] for name in gone], _FINDING_BYTES // 4)
    names = ", ".join(name for (name,) in shown)
    return f"Only in the base build: {names}{f' and {left} more' if left else ''}." if gone else ""


def _findings(document: BuildDocument) -> str:
    lines = []
    for each in findings(document):
        if each.rule == "target":
            continue
        text = f"{plain(each.text)}; {plain(each.next)}" if each.next else plain(each.text)
        lines.append([f"- {_LEVELS[each.level]} {plain(each.where)}: {text}"])
    if not lines:
        return ""
    kept, left = _within(lines, _FINDING_BYTES)
    listed = "\n".join(line for (line,) in kept) + (f"\n- … and {left} more: see report.html" if left else "")
    return f"<details><summary>Rules that do not hold ({len(lines)})</summary>\n\n{listed}\n\n</details>"


def _inside(document: BuildDocument) -> str:
    """Where int8 loses most, and what looks into a failure."""
    lines = [[f"- {plain(text)}"] for each in document.sensitivity if (text := worst_layer(each))]
    lines += [[f"- `{command}`"] for command in document.next if "`" not in command]
    kept, _ = _within(lines, _INSIDE_BYTES)
    listed = "\n".join(line for (line,) in kept)
    return f"<details><summary>Where int8 loses most</summary>\n\n{listed}\n\n</details>" if kept else ""


def _replay(document: BuildDocument) -> str:
    undecided: GateReport | None = next((gate for gate in document.gates if not gate.holds), None)
    explain = f" `edgeship explain build/{undecided.id}` recomputes a rule." if undecided else ""
    digest = f" Bundle `{document.bundle_digest}`." if document.bundle_digest else ""
    return "Intervals of a change are as of independent samples, which are wider than paired ones." + digest + explain


def _within(rows: list[list[str]], limit_bytes: int) -> tuple[list[list[str]], int]:
    """As many rows as fit, and how many do not."""
    kept: list[list[str]] = []
    used = 0
    for row in rows:
        used += sum(len(cell.encode()) + 3 for cell in row) + 2
        if used > limit_bytes:
            break
        kept.append(row)
    return kept, len(rows) - len(kept)
