"""Inputs that the file takes as the application has them: looked at, and handed on without a step between."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeship_agent.contract.manifest import Binding, InputContract
from edgeship_agent.processing import raw_sample
from edgeship_agent.processing.arrays import Array


class UnchangedInput:
    """The way of one input that needs none.

    Args:
        contract: what comes in, without steps.
        binding: where it goes, without any either.
    """

    def __init__(self, contract: InputContract, binding: Binding) -> None:
        self._tensor = contract.tensor
        self._contract = contract
        self._raw_shape, self._raw_dtype = contract.shape, np.dtype(contract.dtype)
        self._shape = binding.shape

    def __call__(self, raw: Mapping[str, Array]) -> Array:
        """One raw sample in the file's shape, batch axis included; a view of it.

        Raises:
            InputError: the sample is missing, or of the wrong shape or dtype.
        """
        sample = raw.get(self._tensor)
        if sample is None or sample.shape != self._raw_shape or sample.dtype is not self._raw_dtype:
            sample = raw_sample(self._contract, raw)
        return sample.reshape(self._shape)


def unchanged_input(contract: InputContract, binding: Binding) -> UnchangedInput | None:
    """The input's way; None where a step, another layout, type or size lies between.

    >>> binding = Binding(name="x", artifact_name="x", artifact_index=0, dtype="float32", shape=(1, 2))
    >>> way = unchanged_input(InputContract(tensor="x", dtype="float32", shape=(2,)), binding)
    >>> way({"x": np.ones(2, np.float32)}).tolist()
    [[1.0, 1.0]]
    >>> unchanged_input(InputContract(tensor="x", dtype="uint8", shape=(2,)), binding) is None
    True
    """
    batch = (1,) if contract.batched else ()
    same = contract.dtype == binding.dtype and (*batch, *contract.shape) == binding.shape
    if contract.sequence or contract.steps or binding.steps or binding.transpose or binding.scale or not same:
        return None
    return UnchangedInput(contract, binding)
