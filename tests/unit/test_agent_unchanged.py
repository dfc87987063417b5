"""Inputs that need no way: handed on as the long way would have."""

from __future__ import annotations

import numpy as np
import pytest

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import Binding, InputContract, Scale
from edgeship_agent.processing import prepare
from edgeship_agent.runtime.layout import to_artifact
from edgeship_agent.runtime.unchanged import unchanged_input


def binding_of(shape: tuple[int, ...], dtype: str = "float32", **fields) -> Binding:
    return Binding(name="x", artifact_name="x", artifact_index=0, dtype=dtype, shape=shape, **fields)


def contract_of(shape: tuple[int, ...], dtype: str = "float32", **fields) -> InputContract:
    return InputContract(tensor="x", dtype=dtype, shape=shape, **fields)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64", "bool"])
@pytest.mark.parametrize(("shape", "batched"), [((3, 2), True), ((), True), ((3, 2), False), ((0, 4), True)])
def test_it_is_what_the_long_way_gives(dtype, shape, batched):
    contract = contract_of(shape, dtype, batched=batched)
    binding = binding_of((1, *shape) if batched else shape, dtype)
    way = unchanged_input(contract, binding)
    assert way is not None
    values = np.random.default_rng(3).integers(0, 2, (2, *shape)).astype(dtype)
    for sample in (values[0], values[::-1][0], values[0].T.copy().T, values[1].astype(values.dtype.newbyteorder())):
        found = way({"x": sample})
        wanted = to_artifact(binding, prepare([contract], {"x": sample})["x"])
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({}, "missing input"),
        ({"y": np.zeros(2, np.float32)}, "missing input"),
        ({"x": np.zeros(3, np.float32)}, "wrong input"),
        ({"x": np.zeros((1, 2), np.float32)}, "wrong input"),
        ({"x": np.zeros(2, np.float64)}, "wrong input"),
    ],
)
def test_what_the_contract_does_not_allow_is_refused_in_its_words(raw, words):
    contract = contract_of((2,))
    way = unchanged_input(contract, binding_of((1, 2)))
    assert way is not None
    with pytest.raises(InputError, match=words) as caught:
        way(raw)
    with pytest.raises(InputError) as long_way:
        prepare([contract], raw)
    assert str(caught.value) == str(long_way.value)


@pytest.mark.parametrize(
    ("contract", "binding"),
    [
        (contract_of((2,), steps=(Scale(factor=2.0),)), binding_of((1, 2))),
        (contract_of((2,), sequence=True), binding_of((1, 2))),
        (contract_of((2,)), binding_of((1, 2), steps=(Scale(factor=2.0),))),
        (contract_of((2, 3)), binding_of((1, 3, 2), transpose=(0, 2, 1))),
        (contract_of((3, 3)), binding_of((1, 3, 3), transpose=(0, 2, 1))),
        (contract_of((2,)), binding_of((1, 2), "int8", scale=0.5)),
        (contract_of((2,), "uint8"), binding_of((1, 2))),
        (contract_of((-1,)), binding_of((1, 2))),
        (contract_of((2,), batched=False), binding_of((1, 2))),
    ],
)
def test_whatever_lies_between_goes_the_long_way(contract, binding):
    assert unchanged_input(contract, binding) is None
