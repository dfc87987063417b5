"""Graphs of thousands of small operators: when another precision of one cannot gain anything."""

from __future__ import annotations

import pytest

from edgeship.build.search.gain import is_fine, no_gain
from edgeship.build.search.graph import Operator

PRODUCT = Operator(name="product", kind="MatMul", inputs=("a",), outputs=("b",), multiplications=2_304)
GATE = Operator(name="gate", kind="Sigmoid", inputs=("b",), outputs=("c",))
#: A recurrent net of 66 kB of weights over 120 steps, as OpenVINO has it written out.
STEPS = [PRODUCT, PRODUCT, *[GATE] * 18] * 120
WEIGHTS, SIZE = 66_056, 1_678_866


@pytest.mark.parametrize("precision", ["int8", "fp16", "int4"])
def test_nothing_is_gained_where_the_graph_and_not_its_weights_takes_the_room(precision: str) -> None:
    reason = no_gain(STEPS, precision, WEIGHTS, SIZE)
    assert reason.startswith(f"{precision} would be neither smaller nor faster")
    assert "2,400 operators" in reason


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_large_weights_are_worth_their_quantizers(precision: str) -> None:
    assert no_gain(STEPS, precision, 20_000_000, 21_700_000) == ""


def test_half_precision_has_no_quantizers_to_pay_for() -> None:
    assert no_gain(STEPS, "int8", 400_000, 2_000_000)
    assert not no_gain(STEPS, "fp16", 400_000, 2_000_000)


def test_large_products_and_small_graphs_are_tried_in_any_case() -> None:
    heavy = [Operator(name="m", kind="MatMul", inputs=("a",), outputs=("b",), multiplications=10_000_000)] * 1_200
    assert not is_fine(heavy)
    assert not is_fine(STEPS[:999])
    assert no_gain(heavy, "int8", WEIGHTS, SIZE) == no_gain(STEPS[:999], "int8", WEIGHTS, SIZE) == ""
