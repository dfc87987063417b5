"""Calls measured in blocks: the numbers of single calls, none lost, none altered by what the caller does later."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship_agent.contract.manifest import OutputContract
from edgeship_agent.contract.sketch import bucket_index
from edgeship_agent.telemetry.counting import bucket_counts
from edgeship_agent.telemetry.recorder import BLOCK_BYTES, MOST_CALLS, CallRecorder
from edgeship_agent.telemetry.signals import CLASS_SIGNAL, SignalAccumulator, make_profile, measure, measure_many

SHAPES = [(8, 8), (3, 28, 28), (96, 96, 3), (16,), (64,), (640,), (49, 10), (1,), (), (0,)]


def same_to_the_bit(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


@given(
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]),
    classes=st.sampled_from([1, 2, 7, 10, 33, 1001]),
    kind=st.sampled_from(["classification", "raw"]),
    calls=st.integers(1, 40),
    seed=st.integers(0, 1000),
    spoiled=st.booleans(),
)
@settings(derandomize=True, max_examples=120, deadline=None)
def test_a_block_is_measured_as_its_calls_are(shape, dtype, classes, kind, calls, seed, spoiled):
    random = np.random.default_rng(seed)
    samples = (random.normal(size=(calls, *shape)) * 40).astype(dtype)
    scores = random.normal(size=(calls, 1, classes)).astype(np.float32)
    if spoiled:
        scores[0, 0, 0] = np.nan
        if samples.dtype.kind == "f" and samples[-1].size:
            samples[-1].flat[0] = np.inf
    output = OutputContract(kind=kind, activation="softmax")
    columns = measure_many({"x": samples}, {"p": scores}, output)
    for index in range(calls):
        alone = measure({"x": samples[index]}, {"p": scores[index]}, output)
        in_block = {name: column[index] for name, column in columns.items()}
        if CLASS_SIGNAL not in alone:
            assert math.isnan(in_block.pop(CLASS_SIGNAL, math.nan))
        assert alone.keys() == in_block.keys()
        assert all(same_to_the_bit(alone[name], float(in_block[name])) for name in alone), (alone, in_block)


def test_sketches_of_blocks_are_those_of_single_calls():
    random = np.random.default_rng(3)
    samples = random.normal(size=(700, 6)).astype(np.float32)
    scores = random.dirichlet(np.ones(5), size=(700, 1)).astype(np.float32)
    output = OutputContract()
    values = [measure({"x": x}, {"p": p}, output) for x, p in zip(samples, scores, strict=True)]
    profile = make_profile(values[:300])
    single, blocks = SignalAccumulator(profile), SignalAccumulator(profile)
    for sample in values:
        single.add(sample)
    for start in range(0, 700, 64):
        part = slice(start, start + 64)
        columns = measure_many({"x": samples[part]}, {"p": scores[part]}, output)
        blocks.add_many(columns, len(samples[part]))
    assert blocks.take() == single.take()


class Collector:
    """What a recorder hands on, copied."""

    def __init__(self, *tensors: str) -> None:
        self.samples: list = []
        self.outputs: list = []
        self.latencies: list = []
        self.late = 0
        self.blocks: list[int] = []
        self.recorder = CallRecorder(tensors, self.take)

    def take(self, block) -> None:
        self.samples += [sample.copy() for sample in block.raw["x"]]
        self.outputs += [array.copy() for array in block.outputs["y"]]
        self.latencies += block.latencies_ns
        self.late += block.late
        self.blocks.append(len(block.latencies_ns))


def test_every_call_is_handed_on_once_in_order():
    collector = Collector("x")
    buffer, out = np.zeros(4, np.float32), np.zeros((1, 2), np.float32)
    for index in range(600):
        buffer[:], out[:] = index, -index
        collector.recorder.record({"x": buffer, "unknown": out}, {"y": out}, index, index % 3 == 0)
    assert collector.recorder.waiting == 600 - MOST_CALLS
    collector.recorder.flush()
    collector.recorder.flush()
    assert collector.blocks == [512, 88]
    assert [int(sample[0]) for sample in collector.samples] == list(range(600))
    assert [int(array[0, 1]) for array in collector.outputs] == [-index for index in range(600)]
    assert (collector.latencies, collector.late) == (list(range(600)), 200)


def test_sizes_that_change_lose_nothing():
    collector = Collector("x")
    for index in range(50):
        size = 4 if index % 5 else 9
        collector.recorder.record({"x": np.full(size, index)}, {"y": np.zeros((1, 1))}, index, False)
    collector.recorder.flush()
    assert sorted(int(sample[0]) for sample in collector.samples) == list(range(50))
    assert sorted(collector.latencies) == list(range(50))


@pytest.mark.parametrize(("size_bytes", "blocks"), [(BLOCK_BYTES // 4, [3, 2]), (BLOCK_BYTES, [1] * 5)])
def test_large_samples_reserve_a_bounded_amount_of_memory(size_bytes, blocks):
    collector = Collector("x")
    for index in range(5):
        collector.recorder.record({"x": np.full(size_bytes, index, np.uint8)}, {"y": np.zeros((1, 1))}, 1, False)
    collector.recorder.flush()
    assert collector.blocks == blocks
    assert [int(sample[-1]) for sample in collector.samples] == list(range(5))


#: Kept whole, by rows, and by places, in this order.
IMAGES = [(32, 32, 3), (3, 48, 48), (96, 96, 3), (3, 101, 53), (130, 97), (1, 200, 49), (480, 640, 3)]


@pytest.mark.parametrize("shape", IMAGES)
def test_of_large_images_the_figures_are_kept(shape):
    """Less memory, the same numbers; an input whose every value is checked is kept whole."""
    images = np.random.default_rng(5).integers(0, 256, (40, *shape), dtype=np.uint8)
    blocks: list = []
    recorder = CallRecorder(("x",), lambda block: blocks.append(lasting(block)))
    for index, image in enumerate(images[:37]):
        in_memory = np.asfortranarray(image) if index % 3 == 0 else image.copy()
        recorder.record({"x": in_memory}, {"y": np.zeros((1, 2))}, 1, False)
        in_memory[...] = 0  # it is the caller's
    recorder.record({"x": images[37][..., 1:]}, {"y": np.zeros((1, 2))}, 1, False)
    recorder.record({"x": images[37]}, {"y": np.zeros((1, 3))}, 1, False)
    for image in images[37:]:
        recorder.record({"x": image}, {"y": np.zeros((1, 2))}, 1, False)
    recorder.flush()
    assert [len(block.latencies_ns) for block in blocks] == [37, 1, 1, 3]
    whole = measure_many({"x": images}, {}, OutputContract())
    for block, part in ((blocks[0], slice(0, 37)), (blocks[-1], slice(37, 40))):
        assert block.raw == {}
        assert block.measured.keys() == whole.keys()
        for name, column in whole.items():
            assert column[part].tolist() == block.measured[name].tolist()
    checked = CallRecorder(("x",), blocks.append, whole=frozenset({"x"}))
    checked.record({"x": images[0]}, {"y": np.zeros((1, 2))}, 1, False)
    checked.flush()
    assert blocks[-1].measured == {}
    np.testing.assert_array_equal(blocks[-1].raw["x"][0], images[0])


def lasting(block):
    """A block whose arrays are its own."""
    measured = {name: values.copy() for name, values in block.measured.items()}
    return msgspec.structs.replace(block, measured=measured)


@given(
    calls=st.integers(1, 40),
    steps=st.lists(st.integers(0, 5), min_size=40, max_size=40),
    shape=st.sampled_from([(96, 96), (200, 240, 3)]),
)
@settings(derandomize=True, max_examples=30, deadline=None)
def test_images_measured_one_at_a_time_between_calls_give_the_same_numbers(calls, steps, shape):
    random = np.random.default_rng(calls)
    images = [random.integers(0, 256, shape).astype(np.uint8) for _ in range(calls)]
    blocks: list[dict[str, np.ndarray]] = []

    def keep(block) -> None:
        blocks.append({name: values.copy() for name, values in block.measured.items()})

    recorder = CallRecorder(("x",), keep)
    for image, count in zip(images, steps, strict=False):
        recorder.record({"x": image}, {"p": np.zeros((1, 4), np.float32)}, 1000, False)
        done = [recorder.measure_some() for _ in range(count)]
        assert done == sorted(done, reverse=True)
    recorder.flush()
    assert not recorder.measure_some()
    whole = measure_many({"x": np.stack(images)}, {}, OutputContract())
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([block[name] for block in blocks]), values)


def recorded(calls: int, pressed: bool) -> tuple[int, int]:
    """Calls that were handed on, and images that were measured."""
    blocks: list[tuple[int, int]] = []
    recorder = CallRecorder(
        ("x",), lambda block: blocks.append((len(block.latencies_ns), len(block.measured["input/x/brightness"])))
    )
    image, scores = np.zeros((96, 96, 3), np.uint8), np.zeros((1, 4), np.float32)
    for _ in range(calls):
        recorder.record({"x": image}, {"p": scores}, 1000, False, pressed=pressed)
        recorder.measure_some()
    recorder.flush()
    return sum(block[0] for block in blocks), sum(block[1] for block in blocks)


@pytest.mark.parametrize(("calls", "images"), [(20, 20), (32, 20), (33, 21), (100, 23), (1000, 51)])
def test_under_pressure_images_are_sampled_by_their_place_and_no_call_is_lost(calls, images):
    assert recorded(calls, pressed=True) == (calls, images)
    assert recorded(calls, pressed=False) == (calls, calls)


def test_of_every_window_the_first_images_are_measured():
    """The sums of fewer than twenty are never sent, and blocks end where somebody asks for figures."""
    counts: list[int] = []
    recorder = CallRecorder(("x",), lambda block: counts.append(len(block.measured["input/x/brightness"])))
    image, scores = np.zeros((96, 96, 3), np.uint8), np.zeros((1, 4), np.float32)
    for calls in (15, 15, 30):
        for _ in range(calls):
            recorder.record({"x": image}, {"p": scores}, 1000, False, pressed=True)
        recorder.flush()
    assert counts == [15, 5, 1]
    recorder.begin_window()
    for _ in range(30):
        recorder.record({"x": image}, {"p": scores}, 1000, False, pressed=True)
    recorder.flush()
    assert counts[-1] == 20


@given(st.lists(st.integers(1, 10**12), max_size=50))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_buckets_of_many_latencies_are_those_of_each(latencies_ns):
    values = [latency_ns / 1000.0 for latency_ns in latencies_ns]
    assert bucket_counts(values) == dict(sorted(Counter(map(bucket_index, values)).items()))


def test_values_that_were_not_looked_at_are_not_missing():
    values = [measure({"x": np.full((8, 8), index, np.uint8)}, {}, OutputContract()) for index in range(100)]
    sums = SignalAccumulator(make_profile(values))
    columns = {name: np.array([each[name] for each in values[:60]]) for name in values[0]}
    short, *others = columns
    columns[short] = np.append(columns[short][:50], math.nan)
    sums.add_many(columns, 60)
    sketches = sums.take()
    assert (sum(sketches[short].counts), sketches[short].missing_count) == (50, 1)
    assert all((sum(sketches[name].counts), sketches[name].missing_count) == (60, 0) for name in others)
