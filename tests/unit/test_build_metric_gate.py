"""The rule on the task metric: both sources of evidence, both ways out, and no class that is lost."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgeship.build import metrics
from edgeship.build.metric_gate import FieldEvidence, judge_classes, judge_field, judge_metric, shown_drop
from edgeship.build.metrics import Cells, Paired
from edgeship.statistics import Disagreements, disagreement_drop, newcombe_paired


def _paired(both: int, lost: int, won: int, neither: int, name: str = "top1") -> Paired:
    cells = Cells(both=both, only_reference=lost, only_candidate=won, neither=neither)
    return Paired(figures=metrics.figures(name, cells), cells=cells)


def _field(samples: int, found: int, *who: int, look: int = 1, claims: int = 1) -> FieldEvidence:
    lost, won, neither = who or (0, 0, 0)
    counts = Disagreements(samples=samples, found=found, only_reference=lost, only_candidate=won, neither=neither)
    return FieldEvidence(counts=counts, look=look, claims=claims)


def test_an_undecided_metric_says_both_ways_out_and_they_hold() -> None:
    answer = judge_metric(_paired(880, 10, 5, 5), 0.01, differing=25)
    assert answer.holds is None
    found = re.fullmatch(
        r"([\d,]+) more evaluation samples at these rates would decide, "
        r"or ([\d,]+) labels of disagreements among ([\d,]+) unlabelled samples \(--unlabelled\)",
        answer.hint,
    )
    assert found
    more, labels, samples = (int(text.replace(",", "")) for text in found.groups())
    scale = (900 + more) / 900
    assert newcombe_paired(*(scale * cell for cell in (880, 10, 5, 5))).high <= 0.01
    share = labels / 25
    rates = Disagreements(samples=samples, found=samples * 25 / 900, only_reference=10 * share,
                          only_candidate=5 * share, neither=10 * share)  # fmt: skip
    assert disagreement_drop(rates).high <= 0.01
    assert labels < more / 10


def test_a_later_variant_has_less_error_to_spend() -> None:
    cells = next(_paired(n - 1, 1, 0, 0) for n in range(560, 700) if judge_metric(_paired(n - 1, 1, 0, 0), 0.01).holds)
    first, second = (judge_metric(cells, 0.01, position=position) for position in (1, 2))
    assert (first.holds, second.holds) == (True, None)
    assert (first.evidence["confidence"], second.evidence["confidence"]) == (0.95, 0.975)


def test_without_labels_few_disagreements_prove_and_many_do_not() -> None:
    assert judge_field(_field(20_000, 120), 0.01).holds is True
    undecided = judge_field(_field(20_000, 1_000), 0.01)
    assert undecided.holds is None
    assert "more labels of disagreements" in undecided.hint


def test_labels_of_disagreements_prove_or_refute() -> None:
    assert judge_field(_field(20_000, 1_000, 150, 140, 60), 0.01).holds is True
    assert judge_field(_field(20_000, 1_000, 300, 20, 30), 0.01).holds is False
    assert judge_field(_field(2_000, 100, 40, 38, 22), 0.001).hint.startswith("not even labels of all")


def test_each_further_look_is_stricter() -> None:
    widths = [judge_field(_field(20_000, 1_000, 80, 60, 30, look=look), 0.01).difference.high for look in (1, 2, 3)]
    assert widths == sorted(widths)
    assert len(set(widths)) == 3


def _recalls(rare_found: int, rare: int = 20, common: int = 1980) -> list:
    labels = [0] * common + [1] * rare
    source = np.ones(common + rare, bool)
    variant = source.copy()
    variant[common + rare_found :] = False
    return list(metrics.class_recalls(labels, source, variant, ("ok", "fault")))


def test_ninety_nine_per_cent_right_and_a_class_never_found_is_refused() -> None:
    recalls = _recalls(rare_found=0)
    right = 1980 / 2000
    assert right == 0.99
    holds, sentence, worst = judge_classes(recalls, 0.01)
    assert holds is False
    assert worst is not None
    assert sentence.startswith("class fault is lost: recall 100.0% → 0.0%")


@pytest.mark.parametrize(("found", "rare", "holds"), [(20, 20, True), (19, 20, True), (0, 9, True), (0, 10, False)])
def test_a_class_is_lost_only_where_it_is_proven(found: int, rare: int, holds: bool) -> None:
    assert judge_classes(_recalls(found, rare), 0.01)[0] is holds


def test_a_class_that_the_source_does_not_find_cannot_be_lost() -> None:
    labels = [0] * 50 + [1] * 50
    source = np.arange(100) < 70  # 40 % of class 1
    recalls = metrics.class_recalls(labels, source, np.arange(100) < 50)
    assert judge_classes(recalls, 0.01)[0] is True


def test_chance_alone_loses_no_class() -> None:
    """A variant that only swaps answers: of 400 builds with 10 classes, few are refused for one of them."""
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(400):
        labels = rng.integers(0, 10, 1_000)
        source, variant = rng.random(1_000) < 0.9, rng.random(1_000) < 0.9
        refused += judge_classes(metrics.class_recalls(labels.tolist(), source, variant), 0.0)[0] is False
    assert refused <= 20


def test_drops_are_shown_in_their_unit() -> None:
    assert [shown_drop(0.5, unit) for unit in ("fraction", "dB", "")] == ["+50.00%", "+0.5 dB", "+0.5"]
