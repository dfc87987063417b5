"""Tensors that say what their bytes are not: refused in one way, whatever numpy would make of them."""

from __future__ import annotations

import pytest

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.frames import Tensor
from edgeship_agent.runtime.tensors import to_array


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2**64 - 1,), "wrong number of bytes"),
        ((2**63, 2), "wrong number of bytes"),
        ((5,), "wrong number of bytes"),
        ((0,), "wrong number of bytes"),
        ((-1,), "impossible shape"),
        ((-2, -2), "impossible shape"),
        ((*[1] * 32, 4), "impossible shape"),
    ],
)
def test_a_shape_that_four_bytes_do_not_have(shape, words):
    with pytest.raises(ContractError, match=words):
        to_array(Tensor(name="x", dtype="uint8", shape=shape, data=memoryview(b"abcd")))


def test_no_values_are_an_array_too():
    assert to_array(Tensor(name="x", dtype="float32", shape=(3, 0), data=memoryview(b""))).shape == (3, 0)
