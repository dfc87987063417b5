"""The rules that a candidate must hold to: one function a rule, and every answer carries its evidence. Pure."""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct, structs

from edgeship.build.layout import PARITY_RMS
from edgeship.build.measure import Latency
from edgeship.build.metric_gate import FieldEvidence, judge_classes, judge_field, judge_metric
from edgeship.build.metrics import found_classes
from edgeship.build.schema import GateReport
from edgeship.build.verify import Comparison

#: A candidate that says fewer than this share of the source's different answers is degenerate.
DISTINCT_SHARE: Final = 0.9
#: A channel group whose error is half its own size tells nothing any more.
GROUP_RMS: Final = 0.5
#: Share of an output's classes, counts or flags that may differ even between float files: ties fall either way.
EXACT_SHARE: Final = 0.01
#: Largest loss of a metric in dB where no margin is given: some 1.2 % more noise amplitude.
MAX_DROP_DB: Final = 0.1
#: Largest loss of a class against what the source says where labels of disagreements judge the metric: whether another
#: answer is a loss is for them to say, but a class that is hardly said any more is lost.
UNLABELLED_LOSS: Final = 0.5
#: What decides where small answers need not be met as closely as large ones.
_CLOSER: Final = ("so that small answers count like large ones; where they need not, let --metric with labels or "
                  "targets (y in the evaluation data) decide, or widen --max-relative-rms")  # fmt: skip
#: A quantized file that is passed through to kernels that round elsewhere is still the source's own up to here: beyond
#: it something is lost, and the metric must show that it is not missed. Source: a ResNet-20 in int8 lies at .001–.009
#: from itself between ONNX Runtime's integer and float kernels, at .010–.012 on LiteRT and OpenVINO, and at .20 where
#: products saturate.
ROUNDING_RMS: Final = 0.02
#: What to do there.
_WHERE_SATURATED: Final = ("build where there is VNNI, quantize it with weights of 7 bits (reduce_range), or build "
                           "from the float model")  # fmt: skip
#: How much smaller or faster a quantized variant must be to be worth its loss.
WORTH: Final = 0.95


class Limits(Struct, frozen=True, kw_only=True):
    """What a target asks for, command line and target file joined; 0 for none.

    Attributes:
        max_drop: of the metric, as a fraction; ``max_drop_db``: of one that is measured in dB.
        explicit_latency: whether the latency budget was asked for on the command line.
    """

    max_drop: float
    max_relative_rms: float
    max_drop_db: float = MAX_DROP_DB
    latency_p99_ms: float = 0.0
    explicit_latency: bool = False
    accept_proxy_latency: bool = False
    size_bytes: int = 0


class Candidate(Struct, frozen=True, kw_only=True):
    """What is known of one variant when it is judged.

    Attributes:
        classes: whether its first output is read as classes.
        on_target: whether ``latency`` was taken on the target's ISA class.
        fp32_size_bytes, fp32_latency: of the same target's and runtime's float variant.
        position: among the variants of its target that are judged by the metric, from 1, in the order of preference.
        field: what unlabelled samples say of it, where the build was given some.
        other_kernels: whether it ran on kernels that round in other places than those that the source ran on.
        rounds_elsewhere: whether it was quantized before, and each runtime's kernels round it in places of their own.
        may_saturate: whether it ran where pairs of 8-bit products are added in 16 bits: x86 without VNNI.
        passed_through: whether it holds the source's own numbers, quantized or not, so that nothing can be lost.
    """

    target: str
    runtime: str
    precision: str
    size_bytes: int
    comparison: Comparison
    latency: Latency
    on_target: bool
    classes: bool
    fp32_size_bytes: int
    fp32_latency: Latency
    position: int = 1
    field: FieldEvidence | None = None
    passed_through: bool = False
    other_kernels: bool = False
    rounds_elsewhere: bool = False
    may_saturate: bool = False


def judge(candidate: Candidate, limits: Limits) -> tuple[GateReport, ...]:
    """Every rule that applies to a candidate."""
    quantized = candidate.precision != "fp32" and not candidate.passed_through
    same = not (quantized or candidate.other_kernels or candidate.rounds_elsewhere)
    lossy = quantized or (candidate.rounds_elsewhere and not _only_rounds(candidate.comparison))
    distance = structs.replace(limits, max_relative_rms=PARITY_RMS) if same else limits
    gates = [_distinct(candidate), _relative_rms(candidate, distance)]
    if candidate.comparison.exact:
        gates.append(_differing(candidate, distance))
    if candidate.comparison.grouped and not candidate.classes:
        gates.append(_groups(candidate))
    if lossy:
        gates.append(_metric(candidate, limits))
        if candidate.comparison.class_recalls:
            gates.append(_class_recall(candidate, limits))
    if lossy and candidate.passed_through and candidate.may_saturate:
        gates = [_with_cause(each) for each in gates]
    if quantized:
        gates.append(_slowdown(candidate))
    if limits.size_bytes:
        gates.append(_size(candidate, limits))
    if limits.latency_p99_ms and (candidate.on_target or limits.explicit_latency):
        gates.append(_latency(candidate, limits))
    return tuple(gates)


def verdict_of(gates: tuple[GateReport, ...]) -> str:
    """``fail`` where one rule is broken, else ``inconclusive`` where one is undecided, else ``pass``."""
    if any(gate.holds is False for gate in gates):
        return "fail"
    return "pass" if all(gate.holds for gate in gates) else "inconclusive"


def _gate(candidate: Candidate, name: str, rule: str, holds: bool | None, sentence: str) -> GateReport:
    return GateReport(
        id=name, target=candidate.target, runtime=candidate.runtime, precision=candidate.precision, rule=rule,
        value=None, limit=None, holds=holds, sentence=sentence,
    )  # fmt: skip


def _only_rounds(comparison: Comparison) -> bool:
    """Whether a file that is passed through differs by no more than kernels that round elsewhere make it."""
    others = [value for name, value in comparison.other_outputs.items() if name not in comparison.exact]
    values = (0.0 if comparison.first_is_exact else comparison.relative_rms, *others)
    near = all(value is not None and value <= ROUNDING_RMS for value in values)
    return near and all(share <= EXACT_SHARE for share in comparison.exact.values())


def _with_cause(gate: GateReport) -> GateReport:
    """A rule with what is most likely to blame where it does not hold: the file is the source's own."""
    if gate.holds:
        return gate
    sentence = f"{gate.sentence}; this processor has no VNNI, and pairs of 8-bit products may saturate"
    return structs.replace(gate, sentence=sentence, next=_WHERE_SATURATED if gate.holds is False else gate.next)


def _distinct(candidate: Candidate) -> GateReport:
    seen, reference = candidate.comparison.distinct_predictions, candidate.comparison.distinct_reference
    limit = math.ceil(DISTINCT_SHARE * reference) if candidate.classes else min(2, reference)
    what = "classes" if candidate.classes else "outputs"
    sentence = f"{seen} different {what}, the source says {reference}"
    if seen < limit:
        sentence = f"degenerate: it says only {seen} different {what} where the source says {reference}"
    return structs.replace(
        _gate(candidate, "distinct", f"different {what} ≥ {limit}", seen >= limit, sentence),
        value=float(seen), limit=float(limit), n=candidate.comparison.samples,
        evidence={"source": float(reference)},
    )  # fmt: skip


def _relative_rms(candidate: Candidate, limits: Limits) -> GateReport:
    comparison, limit = candidate.comparison, limits.max_relative_rms
    others = {name: value for name, value in comparison.other_outputs.items() if name not in comparison.exact}
    rms = 0.0 if comparison.first_is_exact else comparison.relative_rms
    bad = next((name for name, value in others.items() if value is None or value > limit), None)
    holds = rms is not None and rms <= limit and bad is None
    if rms is None:
        sentence = "its first output is not a number"
    elif rms > limit:
        sentence = f"relative RMS {rms:.3g} exceeds {limit:g}: its outputs lie too far from the source's"
    elif bad is not None:
        value = others[bad]
        shown = "is not a number" if value is None else f"has relative RMS {value:.3g}, over {limit:g}"
        sentence = f"output {bad} {shown}"
    else:
        sentence = f"relative RMS {rms:.3g} ≤ {limit:g}"
    return structs.replace(
        _gate(candidate, "relative_rms", f"relative RMS ≤ {limit:g}", holds, sentence),
        value=rms, limit=limit, n=comparison.samples,
        evidence={name: -1.0 if value is None else value for name, value in others.items()},
        next="" if holds else "calibrate with data like the field's, or look at the report",
    )  # fmt: skip


def _differing(candidate: Candidate, limits: Limits) -> GateReport:
    """Outputs whose numbers are classes, counts or flags: how far they lie apart says nothing, whether they do does."""
    limit = max(limits.max_relative_rms, EXACT_SHARE)
    name, share = max(candidate.comparison.exact.items(), key=lambda item: item[1])
    holds = share <= limit
    sentence = f"{100 * share:.3g} % of the values of {name} are not the source's"
    return structs.replace(
        _gate(candidate, "differing_values", f"share of differing values of each output of integers ≤ {limit:g}", holds,
              sentence if holds else f"{sentence}, over {100 * limit:g} %"),
        value=share, limit=limit, n=candidate.comparison.samples,
        next="" if holds else "calibrate with data like the field's, or look at the report",
    )  # fmt: skip


def _groups(candidate: Candidate) -> GateReport:
    comparison = candidate.comparison
    worst, name = comparison.worst_group, comparison.worst_group_name
    holds = worst is not None and worst <= GROUP_RMS
    shown = "not a number" if worst is None else f"{worst:.3g}"
    sentence = f"the worst channel group ({name}) has relative RMS {shown}"
    if not holds:
        whole, cosine = (
            "none" if each is None else f"{each:.5g}" for each in (comparison.relative_rms, comparison.cosine)
        )
        sentence = (f"channel group lost: {name} has relative RMS {shown}, although the whole output reads "
                    f"{whole} (cosine {cosine})")  # fmt: skip
    return structs.replace(
        _gate(candidate, "group_rms", f"relative RMS of each channel group ≤ {GROUP_RMS:g}", holds, sentence),
        value=worst, limit=GROUP_RMS, n=comparison.samples,
        evidence={group: -1.0 if value is None else value for group, value in comparison.groups.items()},
        next="" if holds else "give values of different size outputs of their own",
    )  # fmt: skip


def _metric(candidate: Candidate, limits: Limits) -> GateReport:
    comparison = candidate.comparison
    metric = comparison.metric
    limit = limits.max_drop_db if metric.drop_unit == "dB" else limits.max_drop
    answer = judge_metric(comparison.paired, limit, position=candidate.position, differing=comparison.differing)
    name, field = metric.name, candidate.field
    if field is not None and (name != field.metric or answer.holds is not False):
        # the claim was moved to the unlabelled samples before either was looked at: one of them proves, not both
        name, answer = field.metric, judge_field(field, limit)
    found, sentence, hint = answer.difference, answer.sentence, answer.hint
    if name == "closeness" and answer.holds is False:
        far = limits.max_relative_rms
        measured = f"within relative RMS {far:g} of the source's answer, each measured by its own size"
        if comparison.first_is_exact:
            measured = f"with at most {100 * far:g} % of the values unlike the source's, the commonest left out"
        sentence += f": closeness is the share of samples {measured}"
        hint = _CLOSER
    return structs.replace(
        _gate(candidate, name, f"{name} drop_high ≤ {limit:g}", answer.holds, sentence),
        value=found.drop, limit=limit, low=found.low, high=found.high, n=answer.n, next=hint,
        evidence=answer.evidence, unit=metric.drop_unit,
    )  # fmt: skip


def _class_recall(candidate: Candidate, limits: Limits) -> GateReport:
    recalls = candidate.comparison.class_recalls
    unlabelled = candidate.field is not None and candidate.comparison.metric.name == "agreement"
    margin = UNLABELLED_LOSS if unlabelled else limits.max_drop
    holds, sentence, worst = judge_classes(recalls, margin)
    rule = f"no class that the source finds is proven to lose more than {margin:g} of its recall"
    evidence = {"classes": float(len(recalls)), "found_classes": float(len(found_classes(recalls)))}
    if worst is not None:
        evidence |= {"class": float(worst.index), "both": float(worst.both), "only_source": float(worst.only_source),
                     "only_variant": float(worst.only_variant), "neither": float(worst.neither)}  # fmt: skip
    return structs.replace(
        _gate(candidate, "class_recall", rule, holds, sentence),
        value=worst.drop if worst else 0.0, limit=margin, n=worst.n if worst else 0, evidence=evidence,
        next="" if holds else "calibrate with samples of that class, or look at its recall in the report",
    )  # fmt: skip


def _slowdown(candidate: Candidate) -> GateReport:
    size_ratio = candidate.size_bytes / candidate.fp32_size_bytes
    time_ratio = candidate.latency.p50_ms / candidate.fp32_latency.p50_ms
    smaller, faster = size_ratio <= WORTH, candidate.on_target and time_ratio <= WORTH
    speed = f"{time_ratio:.2f}× the time" if candidate.on_target else f"speed not measured on {candidate.target}"
    sentence = f"{size_ratio:.2f}× the size of fp32, {speed}"
    if not (smaller or faster):
        sentence = f"neither smaller nor faster than fp32: {sentence}"
    return structs.replace(
        _gate(candidate, "slowdown", f"size or time ≤ {WORTH:g} × fp32", smaller or faster, sentence),
        value=min(size_ratio, time_ratio) if candidate.on_target else size_ratio, limit=WORTH,
        n=len(candidate.latency.times_ms), evidence={"size_ratio": size_ratio, "time_ratio": time_ratio},
    )  # fmt: skip


def _size(candidate: Candidate, limits: Limits) -> GateReport:
    holds = candidate.size_bytes <= limits.size_bytes
    sign = "≤" if holds else ">"
    return structs.replace(
        _gate(candidate, "size_bytes", f"size_bytes ≤ {limits.size_bytes}", holds,
              f"{candidate.size_bytes:,} bytes {sign} {limits.size_bytes:,}"),
        value=float(candidate.size_bytes), limit=float(limits.size_bytes),
        next="" if holds else "use a smaller model, or raise --size-bytes",
    )  # fmt: skip


def _latency(candidate: Candidate, limits: Limits) -> GateReport:
    value, limit = candidate.latency.p99_ms, limits.latency_p99_ms
    judged = candidate.on_target or limits.accept_proxy_latency
    holds = value <= limit if judged else None
    where = "" if candidate.on_target else f" here, not measured on {candidate.target}"
    sign = "≤" if value <= limit else ">"
    hint = "" if judged else f"measure on {candidate.target}, or add --accept-proxy-latency"
    return structs.replace(
        _gate(candidate, "latency_p99_ms", f"latency_p99_ms ≤ {limit:g}", holds,
              f"p99 {value:.3g} ms {sign} {limit:g} ms{where}"),
        value=value, limit=limit, n=len(candidate.latency.times_ms),
        next=hint if holds is not False else "use a smaller model, or raise --latency-p99-ms",
    )  # fmt: skip
