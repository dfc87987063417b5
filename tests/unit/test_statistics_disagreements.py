"""The drop from labels of disagreements, and how the error is shared between looks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.statistics import (
    FAMILY_ERROR,
    Disagreements,
    confidence_of_look,
    disagreement_drop,
    disagreements_needed,
    newcombe_paired,
    samples_needed_by_width,
    wilson,
)
from edgeship_agent.contract.errors import InputError


def _counts(samples: int, found: int, *who: int) -> Disagreements:
    lost, won, neither = who or (0, 0, 0)
    return Disagreements(samples=samples, found=found, only_reference=lost, only_candidate=won, neither=neither)


def test_without_a_label_everything_may_be_lost_or_won() -> None:
    found = disagreement_drop(_counts(20_000, 100))
    assert (found.drop, found.low, found.high) == (0.0, -wilson(100, 20_000).high, wilson(100, 20_000).high)


def test_with_every_disagreement_labelled_it_is_the_paired_interval_of_all_samples() -> None:
    cells = (0, 120, 80, 0)
    few = disagreement_drop(_counts(10_000, 200, *cells[1:]))
    all_ = newcombe_paired(8_000, 120, 80, 1_800)
    assert few.drop == all_.drop
    assert (few.low, few.high) == pytest.approx((all_.low, all_.high), rel=0.02)


@settings(derandomize=True, max_examples=150)
@given(st.tuples(*[st.integers(0, 60)] * 3), st.integers(0, 300), st.integers(1, 5_000))
def test_it_is_mirrored_and_lies_on_the_ellipse(who: tuple[int, int, int], more: int, rest: int) -> None:
    lost, won, neither = who
    found = sum(who) + more
    counts = _counts(found + rest, found, *who)
    one, other = disagreement_drop(counts), disagreement_drop(_counts(found + rest, found, won, lost, neither))
    assert one.low <= one.drop <= one.high
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    if sum(who):
        # by brute force over the whole ellipse
        share, shares = found / (found + rest), wilson(found, found + rest)
        among = newcombe_paired(0, *who)
        turns = np.linspace(0.0, np.pi / 2, 4_001)
        sides = [shares.high - share, share - shares.low]
        products = [
            (share + sign * side * np.cos(turns)) * (among.drop + (among.high - among.drop) * np.sin(turns))
            for sign, side in zip((1, -1), sides, strict=True)
        ]
        assert one.high == pytest.approx(min(1.0, max(float(each.max()) for each in products)), abs=1e-7)


def test_labels_needed_decide_and_one_fewer_does_not() -> None:
    seen = _counts(20_000, 1_000, 38, 32, 15)
    more = disagreements_needed(seen, limit=0.01)
    assert more

    def at(total: float) -> Disagreements:
        scale = total / 85
        return Disagreements(samples=20_000, found=1_000, only_reference=38 * scale, only_candidate=32 * scale,
                             neither=15 * scale)  # fmt: skip

    assert disagreement_drop(at(85 + more)).high <= 0.01
    assert disagreement_drop(at(85 + more - 1)).high > 0.01
    assert disagreements_needed(_counts(20_000, 100), limit=0.01) == 0
    assert disagreements_needed(_counts(20_000, 1_000), limit=0.01) is None  # no rates to go by
    assert disagreements_needed(_counts(2_000, 100, 5, 5, 0), limit=0.001) is None  # not even all of them


@pytest.mark.parametrize(
    "counts",
    [_counts(0, 0), _counts(10, 11), _counts(10, 2, 1, 1, 1), _counts(10, 5, -1, 0, 0)],
)
def test_impossible_counts_are_refused(counts: Disagreements) -> None:
    with pytest.raises(InputError):
        disagreement_drop(counts)


def test_looks_never_spend_more_than_there_is() -> None:
    for claims in (1, 2, 5):
        spent = sum((1.0 - confidence_of_look(look, claims)) / 2.0 for look in range(1, 40)) * claims
        assert spent <= FAMILY_ERROR
    with pytest.raises(InputError):
        confidence_of_look(0)


def test_samples_needed_by_width_shrinks_with_the_root() -> None:
    assert samples_needed_by_width(400, 0.0, -0.02, 0.02, limit=0.02) == 0
    assert samples_needed_by_width(400, 0.0, -0.02, 0.02, limit=0.01) == 1200
    assert samples_needed_by_width(400, 0.03, 0.01, 0.05, limit=0.02) == 1200  # to refute
    assert samples_needed_by_width(400, 0.01, 0.0, 0.02, limit=0.01) is None
