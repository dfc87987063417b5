"""Loops or their written-out form: by counts, and as the measured times of ADR 0020 say."""

from __future__ import annotations

import pytest

from edgeship.build.loop_costs import COSTS, Counts, gain, is_worth

#: Net → what it holds written out, share of its loops that join their steps' results, and how many times as fast it was
#: written out in OpenVINO and in LiteRT. Source: ADR 0020.
MEASURED = {
    "LSTM 16, 10 steps": (Counts(loop_steps=10, layer_steps=0, operators=182, multiplications=15_424), 0.0, 2.95, 1.29),
    "LSTM 128, 30": (Counts(loop_steps=30, layer_steps=0, operators=522, multiplications=2_580_992), 0.0, 1.71, 0.69),
    "LSTM 256, 20": (Counts(loop_steps=20, layer_steps=0, operators=352, multiplications=6_554_624), 0.0, 1.29, 0.35),
    "GRU 32, 40": (Counts(loop_steps=40, layer_steps=0, operators=811, multiplications=184_448), 0.0, 2.51, 1.03),
    "GRU 64, 8": (Counts(loop_steps=8, layer_steps=0, operators=195, multiplications=147_712), 0.0, 1.74, 0.98),
    "two LSTM 64, 60": (
        Counts(loop_steps=120, layer_steps=0, operators=2_060, multiplications=3_256_576), 0.5, 3.05, 0.46,
    ),
    "two ways, attention, GRU": (
        Counts(loop_steps=120, layer_steps=0, operators=2_236, multiplications=708_620), 2 / 3, 2.49, 1.64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("runtime", ["openvino", "litert"])
def test_the_counts_decide_as_the_measured_times_do(name: str, runtime: str) -> None:
    counts, gathering, openvino, litert = MEASURED[name]
    measured = openvino if runtime == "openvino" else litert
    assert is_worth(COSTS[runtime], counts, counts.loop_steps, gathering) == (measured >= 1.5)


@pytest.mark.parametrize("name", MEASURED)
def test_the_gain_in_openvino_is_near_what_was_measured(name: str) -> None:
    counts, gathering, measured, _ = MEASURED[name]
    assert gain(COSTS["openvino"], counts, counts.loop_steps, gathering) == pytest.approx(measured, rel=0.35)


def test_more_steps_and_fewer_operators_speak_for_writing_out_and_large_products_against_it() -> None:
    few = Counts(loop_steps=10, layer_steps=0, operators=200, multiplications=1_000)
    small = Counts(loop_steps=10, layer_steps=0, operators=100, multiplications=1_000)
    heavy = Counts(loop_steps=10, layer_steps=0, operators=200, multiplications=50_000_000)
    for costs in COSTS.values():
        assert gain(costs, few, 20, 0.0) > gain(costs, few, 10, 0.0)
        assert gain(costs, small, 10, 0.0) > gain(costs, few, 10, 0.0)
        assert gain(costs, heavy, 10, 0.0) < 1.05
