"""Which of two files is closer, in the quality benchmark: proven over the same samples, or a tie."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers import judge
from benchmarks.peers.judge import Measured


def _file(name: str, errors: np.ndarray, *, p50_ms: float = 1.0, size_bytes: int = 100) -> Measured:
    return Measured(name=name, errors=errors, sizes=np.full(len(errors), 100.0), times_ms=[p50_ms] * 100,
                    size_bytes=size_bytes)  # fmt: skip


def test_a_difference_that_samples_agree_on_is_proven_and_one_of_a_few_samples_is_a_tie() -> None:
    base = np.random.default_rng(0).uniform(0.5, 1.5, 200)
    low, high = judge.ratio_interval(_file("ours", 1.2 * base), _file("peer", base))
    assert low > 1.0, "twenty percent more on every sample"
    assert high < 1.2
    few = base.copy()
    few[:2] += 12.0
    low, high = judge.ratio_interval(_file("ours", few), _file("peer", base))
    assert low <= 1.0 <= high, "two samples decide nothing"


def test_pairing_tells_apart_what_two_separate_intervals_would_not() -> None:
    base = np.random.default_rng(1).lognormal(0.0, 2.0, 300)
    ours, peer = _file("ours", base), _file("peer", 1.1 * base)
    assert judge.rms_interval(ours)[1] > judge.rms_interval(peer)[0]
    assert judge.ratio_interval(ours, peer)[1] < 1.0


def test_a_peer_without_any_error_is_closer_and_two_without_are_equal() -> None:
    none, some = np.zeros(9), np.ones(9)
    assert judge.ratio_interval(_file("ours", some), _file("peer", none))[0] > 1.0
    assert judge.ratio_interval(_file("ours", none), _file("peer", none)) == (1.0, 1.0)


def test_a_rival_is_as_small_and_as_fast() -> None:
    ours = _file("ours", np.ones(9))
    assert judge.is_rival(_file("peer", np.ones(9), p50_ms=1.1, size_bytes=109), ours)
    assert not judge.is_rival(_file("peer", np.ones(9), p50_ms=1.2), ours)
    assert not judge.is_rival(_file("peer", np.ones(9), size_bytes=120), ours)


def test_the_best_variant_is_no_slower_than_the_float_file_unless_all_are() -> None:
    ours, reference = _file("ours", np.ones(9)), _file("float", np.zeros(9), p50_ms=2.0)
    close, fast = _file("close", np.full(9, 0.1), p50_ms=13.0), _file("fast", np.full(9, 2.0), p50_ms=2.1)
    assert judge.closest([close, fast], ours, reference) is fast
    assert judge.closest([close], ours, reference) is close


def test_the_interval_of_a_ratio_of_medians_holds_it() -> None:
    rng = np.random.default_rng(2)
    slow, quick = (Measured(name="", errors=np.ones(1), sizes=np.ones(1), times_ms=list(rng.gamma(50, scale, 1000)),
                            size_bytes=1) for scale in (0.02, 0.01))  # fmt: skip
    ratio, (low, high) = judge.time_ratio(slow, quick)
    assert low < ratio < high
    assert 1.9 < low < high < 2.1


def test_times_of_turns_that_only_one_file_had_do_not_count() -> None:
    one = Measured(name="", errors=np.ones(1), sizes=np.ones(1), times_ms=[1.0] * 100, size_bytes=1)
    longer = Measured(name="", errors=np.ones(1), sizes=np.ones(1), times_ms=[2.0] * 100 + [9.0] * 500, size_bytes=1)
    assert judge.time_ratio(one, longer) == (0.5, (0.5, 0.5))
