"""Masked scores in 8 bits: they take no part in the softmax, and leave the others their steps."""

from __future__ import annotations

import numpy as np
import pytest

from edgeship.build.search.graph import Operator
from edgeship.build.search.masks import BELOW, MASKED, Logits, logits_of, with_room
from edgeship.build.search.ranges import STEPS, Statistics, with_zero

ATTENTION = (
    Operator(name="spread", kind="MUL", inputs=("mask",), outputs=("wide",)),
    Operator(name="product", kind="BATCH_MATMUL", inputs=("q", "k"), outputs=("scores",)),
    Operator(name="scaled", kind="MUL", inputs=("scores",), outputs=("smaller",)),
    Operator(name="sum", kind="ADD", inputs=("smaller", "wide"), outputs=("masked",)),
    Operator(name="shape", kind="RESHAPE", inputs=("masked",), outputs=("flat",)),
    Operator(name="weigh", kind="SOFTMAX", inputs=("flat",), outputs=("weights",)),
    Operator(name="answer", kind="BATCH_MATMUL", inputs=("weights", "v"), outputs=("y",)),
)


def held(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """As 8 bits hold them."""
    low, high = with_zero(bounds)
    scale = (high - low) / STEPS
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(np.maximum(values, -1e30) / scale) + zero, 0, STEPS) - zero) * scale


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_what_leads_to_a_softmax_is_found_behind_moves_sums_and_scales() -> None:
    found = logits_of(ATTENTION)
    assert found.scores == {"masked", "flat"}
    assert found.terms == {"smaller", "wide", "scores", "mask"}
    assert "weights" not in found and "q" not in found and "y" not in found


def test_a_product_of_two_tensors_is_no_mask() -> None:
    found = logits_of([Operator(name="p", kind="Mul", inputs=("a", "b"), outputs=("s",)),
                       Operator(name="w", kind="Softmax", inputs=("s",), outputs=("y",))])  # fmt: skip
    assert found == Logits(scores=frozenset({"s"}), terms=frozenset())


def test_a_tensor_that_is_both_is_a_term() -> None:
    """As the sum of two attentions that share their mask."""
    found = logits_of([Operator(name="s", kind="Add", inputs=("m", "q"), outputs=("a",)),
                       Operator(name="w", kind="Softmax", inputs=("a",), outputs=("y",)),
                       Operator(name="v", kind="Softmax", inputs=("m",), outputs=("z",))])  # fmt: skip
    assert (found.scores, found.terms) == ({"a"}, {"m", "q"})


@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min, -1e9, -10_000.0, -100.0])
@pytest.mark.parametrize("spread", [0.2, 1.0, 4.0])
def test_eight_bits_keep_masked_scores_out(mask: float, spread: float) -> None:
    """The sum of two tensors of 8 bits, in 8 bits, before a softmax in float: against the softmax of floats."""
    rng = np.random.default_rng(3)
    hidden = rng.random((40, 12)) < 0.3
    hidden[:, 0] = False
    scores = rng.normal(0, spread, (40, 12)).astype(np.float32)
    wide = np.where(hidden, np.float32(mask), np.float32(0))
    seen = Statistics(dict.fromkeys(["smaller", "wide", "masked"], MASKED))
    for row, term in zip(scores, wide, strict=True):
        seen.add({"smaller": row, "wide": term, "masked": row + term})
    logits = Logits(scores=frozenset({"masked"}), terms=frozenset({"smaller", "wide"}))
    ranges = with_room(seen.ranges("minmax"), seen.lowest_masked, logits)
    total = held(held(scores, ranges["smaller"]) + held(wide, ranges["wide"]), ranges["masked"])
    found, expected = softmax(total), softmax(scores + np.maximum(wide, np.float32(-1e30)))
    low, high = ranges["masked"]
    assert high - low < scores.max() - scores.min() + BELOW + 1e-4
    assert found[hidden].max() < 1e-4
    np.testing.assert_allclose(found, expected, atol=(high - low) / STEPS)


def test_no_room_is_made_below_the_lowest_value() -> None:
    """Of a classifier whose scores reach −60, say."""
    seen = Statistics({"s": MASKED})
    seen.add({"s": np.array([-60.0, -45.0, 3.0], np.float32)})
    logits = Logits(scores=frozenset({"s"}), terms=frozenset())
    assert with_room(seen.ranges("minmax"), seen.lowest_masked, logits) == {"s": (-45.0 - BELOW, 3.0)}
    seen.add({"s": np.array([-50.5, -49.0, 3.0], np.float32)})
    assert with_room(seen.ranges("minmax"), seen.lowest_masked, logits) == {"s": (-60.0, 3.0)}


def test_scores_that_are_all_low_are_no_masks() -> None:
    seen = Statistics({"s": MASKED})
    seen.add({"s": np.array([-80.0, -60.0], np.float32)})
    assert seen.lowest_masked == {}
    assert seen.ranges("minmax") == {"s": (-80.0, -60.0)}


def test_elsewhere_every_value_counts() -> None:
    seen = Statistics({"s": MASKED})
    seen.add({"other": np.array([-80.0, 1.0], np.float32)})
    assert seen.ranges("minmax") == {"other": (-80.0, 1.0)}
