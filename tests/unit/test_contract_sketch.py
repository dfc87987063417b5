"""Sketches merge exactly: the order and the grouping of windows leave no trace."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.sketch import (
    BinnedSketch,
    CategorySketch,
    ExponentialSketch,
    bucket_bounds,
    bucket_index,
    downscale,
    exponential_of,
    merge,
    quantile,
)

COUNT = st.integers(0, 10**9)
SUM = st.integers(-(2**50), 2**50)
BINNED = st.builds(
    BinnedSketch,
    counts=st.tuples(COUNT, COUNT, COUNT, COUNT),
    missing_count=COUNT,
    sum_fixed=SUM,
    sum_square_fixed=st.integers(0, 2**60),
)
CATEGORY = st.builds(CategorySketch, counts=st.dictionaries(st.integers(0, 63), COUNT, max_size=8))
EXPONENTIAL = st.builds(
    ExponentialSketch,
    counts=st.dictionaries(st.integers(-200, 200), COUNT, max_size=8),
    zero_count=COUNT,
    scale=st.integers(-1, 4),
)
TRIPLES = (
    st.tuples(BINNED, BINNED, BINNED)
    | st.tuples(CATEGORY, CATEGORY, CATEGORY)
    | st.tuples(EXPONENTIAL, EXPONENTIAL, EXPONENTIAL)
)
VALUES = st.lists(st.floats(-10.0, 1e9) | st.just(0.0), max_size=40)
PROPERTY = settings(derandomize=True, max_examples=100)


@PROPERTY
@given(TRIPLES)
def test_merging_is_associative_and_commutative(sketches):
    a, b, c = sketches
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, b) == merge(b, a)
    assert merge(a, b).total == a.total + b.total


@PROPERTY
@given(TRIPLES)
def test_merging_leaves_its_parts_alone(sketches):
    a, b, _ = sketches
    before = repr(a), repr(b)
    merge(a, b)
    assert (repr(a), repr(b)) == before


@PROPERTY
@given(VALUES, VALUES)
def test_merged_sketches_are_the_sketch_of_everything(left, right):
    assert merge(exponential_of(left), exponential_of(right)) == merge(
        exponential_of([*left, *right]), ExponentialSketch()
    )


@PROPERTY
@given(st.floats(1e-6, 1e12), st.integers(-1, 6))
def test_a_value_lies_in_its_bucket(value, scale):
    low, high = bucket_bounds(bucket_index(value, scale), scale)
    assert low < value * (1 + 1e-12) and value <= high * (1 + 1e-12)


@PROPERTY
@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=60), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_never_too_low_and_at_most_a_bucket_too_high(values, share):
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    found = quantile(exponential_of(values), share)
    assert exact * (1 - 1e-12) <= found <= exact * 2 ** (1 / 8) * (1 + 1e-9)


@PROPERTY
@given(EXPONENTIAL, st.integers(0, 3))
def test_downscaling_in_one_step_or_in_many(sketch, steps):
    there = downscale(sketch, sketch.scale - steps)
    slowly = sketch
    for _ in range(steps):
        slowly = downscale(slowly, slowly.scale - 1)
    assert slowly == there
    assert there.total == sketch.total


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": -11},
        {"scale": 21},
        {"scale": 2**62},
        {"counts": {1023 * 8: 1}},
        {"counts": {-1023 * 8 - 1: 1}},
        {"counts": {2**31: 1}},
    ],
)
def test_buckets_that_no_value_can_have_are_refused_when_made_and_when_read(fields):
    """Else one message could make a reader compute 2 to the power of anything."""
    with pytest.raises(ContractError, match="out of range"):
        ExponentialSketch(**fields)
    crafted = ["exponential", fields.get("counts", {}), 0, fields.get("scale", 3)]
    with pytest.raises(ContractError, match="out of range"):
        msgspec.msgpack.decode(msgspec.msgpack.encode(crafted), type=ExponentialSketch)


def test_the_outermost_buckets_have_bounds():
    sketch = ExponentialSketch(counts={1023 * 8 - 1: 1, -1023 * 8: 1})
    assert quantile(sketch, 1.0) == 2.0**1023
    assert quantile(sketch, 0.1) == pytest.approx(2.0**-1022.875)


def test_what_cannot_be_merged_is_refused():
    binned, category = BinnedSketch(counts=(1, 2)), CategorySketch(counts={1: 2})
    for left, right in ((binned, category), (category, ExponentialSketch()), (binned, BinnedSketch(counts=(1, 2, 3)))):
        with pytest.raises(ContractError):
            merge(left, right)
    with pytest.raises(ContractError):
        downscale(ExponentialSketch(scale=1), 2)
