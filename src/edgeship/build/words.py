"""The lines that a build prints, from what it found. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from edgeship.build.metric_gate import shown_drop
from edgeship.build.schema import (
    BuildDocument,
    GateReport,
    MetricFigures,
    OperatorSensitivity,
    SensitivityReport,
    VariantReport,
)
from edgeship.build.select import Choice

#: Searches for a failing part that are offered, of those that the document names.
_MOST_LOOKS: Final = 2
#: Share of the squared error that an operator in float must take off to be worth naming.
_HELPS: Final = 0.05
#: Times the float file's time from which a variant that ships for its size is said to be slow.
_SLOW: Final = 1.25
#: Names that are spoken letter by letter, the first of which begins with a vowel.
_SPELLED: Final = ("LSTM", "RNN")
#: Label, text, glyph.
Line = tuple[str, str, str]


def int8_lines(int8: VariantReport, fp32: VariantReport, gates: Sequence[GateReport]) -> list[Line]:
    """What a smaller variant is, how it compares with its float sibling, and the rules that it does not hold to."""
    lines: list[Line] = [(int8.precision, f"{int8.target} · {int8.runtime} · {int8.scheme}", "done")]
    lines += [("note", note, "note") for note in int8.notes]
    lines += [("measured", _place(int8), "done"), ("", _compared(int8, fp32), "note")]
    moved = next((each for each in gates if _by_unlabelled(each)), None)
    if moved is not None and moved.holds:
        lines.append(("claim", f"on unlabelled samples: {moved.sentence}", "done"))
    return lines + [
        (int8.precision, _with_next(gate), "failed" if gate.holds is False else "undecided") for gate in _open(gates)
    ]


def drop_high(variant: VariantReport, gates: Sequence[GateReport]) -> str:
    """The upper end of the drop that a table shows: where unlabelled samples judged, theirs, with what they judged.

    Args:
        variant: whose it is.
        gates: of every variant of the build.
    """
    own = (variant.target, variant.runtime, variant.precision)
    for gate in gates:
        if (gate.target, gate.runtime, gate.precision) == own and _by_unlabelled(gate) and gate.high is not None:
            return f"{gate.high:+.4f} ({gate.id}, {gate.n:,} unlabelled)"
    return f"{variant.metric.drop_high:+.4f}"


def _by_unlabelled(gate: GateReport) -> bool:
    """Whether the claim was moved to unlabelled samples, and these judged it."""
    return "unlabelled" in gate.evidence


def fp32_lines(fp32: VariantReport, gates: Sequence[GateReport]) -> list[Line]:
    """The rules that a float variant does not hold to; silence where it does."""
    return [
        (fp32.precision, f"{fp32.target}: {_with_next(gate)}", "failed" if gate.holds is False else "undecided")
        for gate in _open(gates)
    ]


def chosen_line(target: str, choice: Choice, shipped: VariantReport | None) -> Line:
    """What ships to a target."""
    if shipped is None:
        glyph = "failed" if choice.verdict == "fail" else "undecided"
        return ("chosen", f"{target} · nothing · {choice.verdict}", glyph)
    return ("chosen", f"{target} · {shipped.runtime} {shipped.precision} · {size(shipped.size_bytes)}", "done")


def slow_lines(shipped: VariantReport | None) -> list[Line]:
    """That what ships is slower than its float sibling, where that was seen on the target's ISA class.

    The smaller file ships all the same, since no budget asked for speed: who would rather have speed has to know.
    """
    if shipped is None or not shipped.on_target or shipped.speedup is None or 1 / shipped.speedup < _SLOW:
        return []
    text = (f"{shipped.precision} takes {1 / shipped.speedup:.3g}× the time of fp32 on {shipped.target}: it ships for "
            "its size; --latency-p99-ms MS refuses what is too slow")  # fmt: skip
    return [("note", text, "note")]


def next_commands(document: BuildDocument, folder: str) -> list[str]:
    """What to do next, as commands.

    Args:
        document: the finished build.
        folder: of the build, as the user would type it.
    """
    undecided = next((gate for gate in document.gates if not gate.holds), None)
    where = "" if folder == "build" else f"@{folder}"
    looks = list(document.next[:_MOST_LOOKS])
    explain = f"edgeship explain {shlex.quote(f'build/{undecided.id}{where}')}" if undecided else ""
    bundle = shlex.quote(f"{folder}/bundle")
    if document.to_label:
        resume = f"edgeship gate resume{where and ' ' + shlex.quote(where)}"
        return [*([f"edgeship verify {bundle}"] if document.bundle else []), resume, *looks]
    if document.bundle:
        add = f"edgeship releases add {bundle}"
        return [f"edgeship verify {bundle}", add, *([explain] if explain else []), *looks]
    return [*([explain] if explain else []), *looks] or ["edgeship targets list"]


def to_keep(one: SensitivityReport) -> OperatorSensitivity | None:
    """The operator to leave in float first: that which took most off the error, else the noisiest one not yet tried.

    An estimate never speaks against a measurement: where an operator's stay in float was tried and did not help, it is
    not named.
    """
    rounded = [each for each in one.operators if not each.in_float]
    helped = [each for each in rounded if (each.removed_share or 0.0) >= _HELPS]
    if helped:
        return max(helped, key=lambda each: each.removed_share or 0.0)
    return next((each for each in rounded if each.removed_share is None and each.noise_share), None)


def worst_layer(one: SensitivityReport) -> str:
    """The operator to leave in float first, why, and how; empty where there is none.

    >>> from edgeship.build.schema import OperatorSensitivity
    >>> conv = OperatorSensitivity(name="conv", kind="CONV_2D", in_float=False, sqnr_db=15.2, noise_share=0.75)
    >>> worst_layer(SensitivityReport(target="t", runtime="litert", precision="int8", samples=8, operators=(conv,)))
    't/litert: a CONV_2D makes about 75 % of the rounding noise; --keep-float conv leaves it in float'
    >>> lstm = OperatorSensitivity(name="l", kind="LSTM", in_float=False, sqnr_db=15.2, noise_share=0.75)
    >>> worst_layer(SensitivityReport(target="t", runtime="r", precision="int8", samples=8, operators=(lstm,)))
    't/r: an LSTM makes about 75 % of the rounding noise; --keep-float l leaves it in float'
    """
    worst = to_keep(one)
    if worst is None:
        return ""
    what = f"makes about {100 * worst.noise_share:.0f} % of the rounding noise"
    if worst.removed_share is not None:
        what = f"in float takes {100 * worst.removed_share:.0f} % off the squared error"
    option = f"--keep-float {shlex.quote(worst.name)}"
    article = "an" if worst.kind[:1].upper() in set("AEIOU") or worst.kind.startswith(_SPELLED) else "a"
    return f"{one.target}/{one.runtime}: {article} {worst.kind} {what}; {option} leaves it in float"


def size(size_bytes: int) -> str:
    """Bytes for people.

    >>> size(14132), size(3_500_000)
    ('14.1 kB', '3.5 MB')
    """
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1e3:.1f} kB"


def _place(variant: VariantReport) -> str:
    where = variant.measured_on.device or "this machine"
    here = f"on {where} ({variant.measured_on.isa})"
    return f"{here}, the ISA class of {variant.target}" if variant.on_target else f"{here}, not on {variant.target}"


def _compared(int8: VariantReport, fp32: VariantReport) -> str:
    sizes = f"size {size(fp32.size_bytes)} → {size(int8.size_bytes)}"
    times = f"p50 {fp32.latency_p50_ms:.3g} → {int8.latency_p50_ms:.3g} ms"
    rms = "not a number" if int8.relative_rms is None else f"{int8.relative_rms:.3f}"
    return f"{sizes}   {times}   {_metric(int8.metric, fp32.metric)}   relative RMS {rms}"


def _metric(int8: MetricFigures, fp32: MetricFigures) -> str:
    if int8.unit != "fraction" or int8.drop_unit != "fraction":
        low, high, drop = (shown_drop(each, int8.drop_unit) for each in (int8.drop_low, int8.drop_high, int8.drop))
        unit = f" {int8.unit}" if int8.unit not in ("", "fraction") else ""
        interval = f"drop {drop}, 95 % {low}…{high}, n={int8.n}"
        return f"{int8.name} {fp32.value:.4g} → {int8.value:.4g}{unit} ({interval})"
    interval = f"drop {_points(int8.drop)} points, 95 % {_points(int8.drop_low)}…{_points(int8.drop_high)}, n={int8.n}"
    return f"{int8.name} {fp32.value:.1%} → {int8.value:.1%} ({interval})"


def _points(share: float) -> str:
    return f"{share * 100:+.2f}"


def _open(gates: Sequence[GateReport]) -> list[GateReport]:
    return [gate for gate in gates if not gate.holds]


def _with_next(gate: GateReport) -> str:
    return f"{gate.sentence}; {gate.next}" if gate.next else gate.sentence
