"""Large outputs that are no class: two figures are kept of each, the same as of the whole, and none is overlooked."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.telemetry.recorder import Block, CallRecorder
from edgeship_agent.telemetry.signals import measure_many

RAW = OutputContract(kind="raw")
X = {"x": np.zeros(3, np.float32)}


def outputs_of(count: int, dtype: str = "float32") -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(7)
    boxes = random.normal(size=(count, 1, 4420, 4)).astype(dtype)
    scores = random.uniform(size=(count, 1, 4420, 2)).astype(dtype)
    return [
        {"boxes": box, "scores": score, "n": np.ones((1, 1), np.int64)}
        for box, score in zip(boxes, scores, strict=True)
    ]


def blocks_of(calls: list[dict[str, np.ndarray]], *, pressed: bool = False, spread: bool = True) -> list[Block]:
    """What is handed on, in arrays of its own."""
    blocks: list[Block] = []

    def keep(block: Block) -> None:
        measured = {name: values.copy() for name, values in block.measured.items()}
        finite = None if block.finite is None else block.finite.copy()
        blocks.append(msgspec.structs.replace(block, measured=measured, finite=finite))

    recorder = CallRecorder(("x",), keep, spread=spread)
    for outputs in calls:
        lent = {name: array.copy() for name, array in outputs.items()}
        recorder.record(X, lent, 1000, False, pressed=pressed)
        for array in lent.values():
            array[...] = 0  # they are the caller's
    recorder.flush()
    return blocks


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_figures_are_those_of_the_whole(dtype):
    calls = outputs_of(40, dtype)
    (block,) = blocks_of(calls)
    assert set(block.outputs) == {"n"}
    whole = measure_many({}, {name: np.stack([each[name] for each in calls]) for name in calls[0]}, RAW)
    assert set(block.measured) == set(whole) - {"output/n/mean", "output/n/std"}
    for name, values in block.measured.items():
        np.testing.assert_array_equal(values, whole[name])
    assert block.finite is not None
    assert block.finite.all()


def test_a_call_that_is_not_finite_is_seen_even_where_it_is_not_measured():
    calls = outputs_of(40)
    calls[3]["boxes"][0, 7, 1] = np.nan
    calls[29]["scores"][0, -1, 1] = -np.inf
    for pressed, measured in ((False, 40), (True, 21)):
        (block,) = blocks_of(calls, pressed=pressed)
        assert block.finite is not None
        assert np.flatnonzero(~block.finite).tolist() == [3, 29]
        assert len(block.latencies_ns) == 40
        assert {len(values) for values in block.measured.values()} == {measured}
        assert np.flatnonzero(~np.isfinite(block.measured["output/boxes/mean"])).tolist() == [3]


def test_outputs_of_another_size_go_alone_and_classes_are_kept_whole():
    calls = outputs_of(9)
    calls[4]["boxes"] = calls[4]["boxes"][:, :4000]
    blocks = blocks_of(calls)
    assert [len(block.latencies_ns) for block in blocks] == [4, 1, 4]
    assert blocks[1].measured == {}
    assert blocks[1].outputs["boxes"].shape == (1, 1, 4000, 4)
    assert all("boxes" in block.outputs for block in blocks_of(calls[:3], spread=False))
