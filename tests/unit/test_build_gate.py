"""Every rule, both ways; and what is chosen from what the rules say."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import structs

from edgeship.build import gate, metrics, select
from edgeship.build.gate import Candidate, Limits
from edgeship.build.measure import Latency
from edgeship.build.metric_gate import FieldEvidence
from edgeship.build.metrics import Cells
from edgeship.build.select import Judged
from edgeship.build.verify import Comparison
from edgeship.bundle.rules import follows
from edgeship.statistics import Disagreements

LIMITS = Limits(max_drop=0.01, max_relative_rms=0.1)


def _candidate(cells: Cells | None = None, **changes: object) -> Candidate:
    counted = cells or Cells(both=890, only_reference=2, only_candidate=2, neither=6)
    comparison = Comparison(
        relative_rms=0.02, sqnr_db=34.0, worst_group=0.03, other_outputs={}, grouped=False, samples=counted.n,
        distinct_predictions=10, distinct_reference=10,
        paired=metrics.Paired(figures=metrics.figures("top1", counted), cells=counted),
    )  # fmt: skip
    known = {name: changes.pop(name) for name in list(changes) if name in Comparison.__struct_fields__}
    base = Candidate(
        target="box", runtime="litert", precision="int8", size_bytes=250, on_target=True, classes=True,
        comparison=structs.replace(comparison, **known), latency=Latency(times_ms=(0.5,)),
        fp32_size_bytes=1000, fp32_latency=Latency(times_ms=(1.0,)),
    )  # fmt: skip
    return structs.replace(base, **changes)


def _holds(candidate: Candidate, name: str, limits: Limits = LIMITS) -> bool | None:
    return next(each.holds for each in gate.judge(candidate, limits) if each.id == name)


def test_a_good_variant_passes() -> None:
    assert gate.verdict_of(gate.judge(_candidate(), LIMITS)) == "pass"


def test_one_class_only_is_degenerate_even_where_the_metric_would_agree() -> None:
    assert _holds(_candidate(distinct_predictions=1), "distinct") is False
    assert _holds(_candidate(distinct_predictions=9), "distinct") is True


@pytest.mark.parametrize(("rms", "holds"), [(0.1, True), (0.1001, False), (0.62, False), (None, False)])
def test_relative_rms_fails_closed(rms: float | None, holds: bool) -> None:
    assert _holds(_candidate(relative_rms=rms), "relative_rms") is holds


def test_a_quantized_source_that_only_rounds_elsewhere_needs_no_labels() -> None:
    own = _candidate(Cells(both=40, only_reference=0, only_candidate=0, neither=0), passed_through=True,
                     rounds_elsewhere=True, may_saturate=True, relative_rms=gate.ROUNDING_RMS)  # fmt: skip
    gates = gate.judge(own, LIMITS)
    assert [each.id for each in gates] == ["distinct", "relative_rms"]
    assert gate.verdict_of(gates) == "pass"


@pytest.mark.parametrize("saturates", [True, False])
def test_a_quantized_source_that_loses_more_is_judged_by_the_metric(saturates: bool) -> None:
    bad = Cells(both=700, only_reference=100, only_candidate=2, neither=98)
    own = _candidate(bad, passed_through=True, rounds_elsewhere=True, may_saturate=saturates, relative_rms=0.05)
    found = {each.id: each for each in gate.judge(own, LIMITS)}
    assert list(found) == ["distinct", "relative_rms", "top1"]
    assert (found["relative_rms"].holds, found["top1"].holds) == (True, False)
    assert ("no VNNI" in found["top1"].sentence) is saturates
    assert "no VNNI" not in found["relative_rms"].sentence
    assert ("7 bits" in found["top1"].next) is saturates


def test_the_same_file_on_reference_kernels_needs_no_labels() -> None:
    own = _candidate(Cells(both=40, only_reference=0, only_candidate=1, neither=0), passed_through=True,
                     other_kernels=True, relative_rms=2 * gate.ROUNDING_RMS)  # fmt: skip
    assert [each.id for each in gate.judge(own, LIMITS)] == ["distinct", "relative_rms"]


def test_another_output_that_is_broken_refuses_the_variant() -> None:
    assert _holds(_candidate(other_outputs={"boxes": 0.9}), "relative_rms") is False
    assert _holds(_candidate(other_outputs={"boxes": None}), "relative_rms") is False


@pytest.mark.parametrize(
    ("share", "precision", "holds"),
    [(0.0, "int8", True), (0.1, "int8", True), (0.11, "int8", False), (0.01, "fp32", True), (0.02, "fp32", False)],
)
def test_classes_and_counts_are_compared_one_by_one(share: float, precision: str, holds: bool) -> None:
    """A class of another number lies far off by relative RMS; what counts is how often it is another one."""
    label = _candidate(exact={"label": share}, other_outputs={"label": share}, relative_rms=1e-4, precision=precision)
    assert _holds(label, "differing_values") is holds
    assert _holds(label, "relative_rms") is True
    first = _candidate(exact={"id": share}, first_is_exact=True, relative_rms=0.9, precision=precision)
    assert _holds(first, "differing_values") is holds
    assert _holds(first, "relative_rms") is True
    assert all(follows(each) for each in gate.judge(first, LIMITS))


def test_a_lost_channel_group_is_refused_where_the_output_has_groups() -> None:
    lost = _candidate(classes=False, grouped=True, worst_group=1.0, distinct_predictions=900, distinct_reference=900)
    assert _holds(lost, "group_rms") is False
    assert "group_rms" not in [each.id for each in gate.judge(_candidate(), LIMITS)]


@pytest.mark.parametrize(
    ("cells", "holds"),
    [
        (Cells(both=899, only_reference=1, only_candidate=0, neither=0), True),
        (Cells(both=880, only_reference=10, only_candidate=5, neither=5), None),
        (Cells(both=700, only_reference=150, only_candidate=5, neither=45), False),
        (Cells(both=100, only_reference=0, only_candidate=0, neither=0), None),
    ],
)
def test_a_drop_is_proven_refuted_or_undecided(cells: Cells, holds: bool | None) -> None:
    gates = {each.id: each for each in gate.judge(_candidate(cells), LIMITS)}
    assert gates["top1"].holds is holds
    assert ("more evaluation samples" in gates["top1"].next) is (holds is None)
    assert sum(value for name, value in gates["top1"].evidence.items() if name != "confidence") == cells.n


def test_a_refusal_by_closeness_says_what_that_is_and_which_option_decides() -> None:
    cells = Cells(both=92, only_reference=58, only_candidate=0, neither=0)
    paired = metrics.Paired(figures=metrics.figures("closeness", cells), cells=cells)
    refused = next(each for each in gate.judge(_candidate(cells, paired=paired, classes=False), LIMITS)
                   if each.id == "closeness")  # fmt: skip
    assert refused.holds is False
    assert f"within relative RMS {LIMITS.max_relative_rms:g}" in refused.sentence
    assert "--metric" in refused.next
    assert "--max-relative-rms" in refused.next
    assert follows(refused)
    top1 = next(each for each in gate.judge(_candidate(cells), LIMITS) if each.id == "top1")
    assert top1.holds is False
    assert "closeness" not in top1.sentence + top1.next


def test_without_labels_another_answer_is_no_lost_class_but_silence_is() -> None:
    """120 samples of each of two classes, by what the source says; labels of disagreements judge the metric."""
    said = [index // 120 for index in range(240)]
    field = FieldEvidence(counts=Disagreements(samples=20_000, found=1_000))
    for silent, holds in ((20, True), (110, False)):
        right = np.arange(240) >= silent
        counted = metrics.cells([True] * 240, right.tolist())
        agreement = metrics.Paired(figures=metrics.figures("agreement", counted), cells=counted)
        recalls = metrics.class_recalls(said, np.ones(240, bool), right)
        candidate = _candidate(paired=agreement, samples=240, class_recalls=recalls, field=field)
        assert _holds(candidate, "class_recall") is holds
        assert _holds(candidate, "top1") is None
        assert "agreement" not in [each.id for each in gate.judge(candidate, LIMITS)]
    assert _holds(_candidate(class_recalls=recalls), "class_recall") is False


def test_the_evaluation_set_can_refuse_but_not_prove_where_the_claim_is_on_unlabelled_samples() -> None:
    undecided = FieldEvidence(counts=Disagreements(samples=20_000, found=1_000))
    proven = Cells(both=2_000, only_reference=0, only_candidate=0, neither=0)
    refuted = Cells(both=700, only_reference=150, only_candidate=5, neither=45)
    assert _holds(_candidate(proven), "top1") is True
    assert _holds(_candidate(proven, field=undecided), "top1") is None
    assert _holds(_candidate(refuted, field=undecided), "top1") is False


def test_a_float_variant_needs_parity_and_no_labels() -> None:
    few = Cells(both=20, only_reference=0, only_candidate=0, neither=0)
    assert gate.verdict_of(gate.judge(_candidate(few, precision="fp32", relative_rms=1e-6), LIMITS)) == "pass"
    assert gate.verdict_of(gate.judge(_candidate(precision="fp32", relative_rms=0.01), LIMITS)) == "fail"


@pytest.mark.parametrize(
    ("size_bytes", "time_ms", "on_target", "holds"),
    [(250, 3.0, True, True), (1100, 0.5, True, True), (1100, 1.2, True, False), (1100, 0.5, False, False)],
)
def test_neither_smaller_nor_faster_on_its_target_is_refused(
    size_bytes: int, time_ms: float, on_target: bool, holds: bool
) -> None:
    candidate = _candidate(size_bytes=size_bytes, latency=Latency(times_ms=(time_ms,)), on_target=on_target)
    assert _holds(candidate, "slowdown") is holds


def test_latency_elsewhere_is_inconclusive_unless_a_proxy_is_accepted() -> None:
    budget = structs.replace(LIMITS, latency_p99_ms=2.0, explicit_latency=True)
    away = _candidate(on_target=False)
    assert _holds(away, "latency_p99_ms", budget) is None
    assert _holds(away, "latency_p99_ms", structs.replace(budget, accept_proxy_latency=True)) is True
    assert _holds(_candidate(), "latency_p99_ms", structs.replace(budget, latency_p99_ms=0.1)) is False
    by_the_target_file = structs.replace(budget, explicit_latency=False)
    assert "latency_p99_ms" not in [each.id for each in gate.judge(away, by_the_target_file)]


def test_a_size_budget_is_exact() -> None:
    assert _holds(_candidate(), "size_bytes", structs.replace(LIMITS, size_bytes=250)) is True
    assert _holds(_candidate(), "size_bytes", structs.replace(LIMITS, size_bytes=249)) is False


def _judged(label: str, verdict: str, fallbacks: tuple[str, ...] = ()) -> Judged:
    return Judged(label=label, verdict=verdict, gates=(), fallbacks=fallbacks)


@pytest.mark.parametrize(
    ("verdicts", "verdict", "chosen"),
    [
        (("pass", "pass"), "pass", "t/r/int8"),
        (("inconclusive", "pass"), "pass", "t/r/fp32"),
        (("fail", "pass"), "pass", "t/r/fp32"),
        (("inconclusive", "fail"), "inconclusive", ""),
        (("fail", "fail"), "fail", ""),
    ],
)
def test_the_first_that_holds_is_chosen(verdicts: tuple[str, str], verdict: str, chosen: str) -> None:
    candidates = [_judged("t/r/int8", verdicts[0]), _judged("t/r/fp32", verdicts[1])]
    choice = select.choose(candidates, strict=False)
    assert (choice.verdict, choice.chosen) == (verdict, chosen)


def test_strict_takes_no_fallback() -> None:
    fallen = [_judged("t/r/int8", "pass", fallbacks=("per tensor",)), _judged("t/r/fp32", "pass")]
    assert select.choose(fallen, strict=True).verdict == "fail"
    assert select.choose([_judged("t/r/int8", "pass")], strict=True).verdict == "pass"
    assert select.choose([_judged("t/r/fp32", "pass")], strict=True, refused=["int8: no"]).verdict == "fail"


def test_a_build_is_as_good_as_its_worst_target() -> None:
    assert select.overall(["pass", "pass"]) == "pass"
    assert select.overall(["pass", "inconclusive", "fail"]) == "fail"
