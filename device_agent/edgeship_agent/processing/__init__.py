"""From an application's raw sample to the model's input, and from its first output to probabilities; numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.processing.arrays import Array, dtype_name
from edgeship_agent.processing.steps import apply_steps

__all__ = ["check_finite", "check_raw", "prepare", "raw_sample"]


def prepare(contracts: Sequence[InputContract], raw: Mapping[str, Array]) -> dict[str, Array]:
    """Apply every input's preprocessing contract.

    The build and the device call this very function, so what was verified is what runs. Integer image steps are exact
    on every machine; float steps are float32 additions and multiplications.

    Args:
        contracts: one per model input.
        raw: model input name → one raw sample, without batch axis.

    Returns:
        Model input name → array with a batch axis of 1 in front, where the input has one; of a sequence, with the axis
        of its steps before that.

    Raises:
        InputError: an input is missing or of the wrong shape or dtype.

    >>> from edgeship_agent.contract.manifest import Scale
    >>> contract = InputContract(tensor="x", dtype="uint8", shape=(2,), steps=(Scale(factor=0.5),))
    >>> prepare([contract], {"x": np.array([2, 4], np.uint8)})["x"].tolist()
    [[1.0, 2.0]]
    """
    prepared = {}
    for contract in contracts:
        sample = raw_sample(contract, raw)
        if contract.sequence:
            prepared[contract.tensor] = np.stack([_prepared(contract, step) for step in sample])
        else:
            prepared[contract.tensor] = _prepared(contract, sample)
    return prepared


def raw_sample(contract: InputContract, raw: Mapping[str, Array]) -> Array:
    """One input's raw sample, as its contract wants it.

    Raises:
        InputError: it is missing, or of the wrong shape or dtype.
    """
    sample = raw.get(contract.tensor)
    if sample is None:
        raise InputError("missing input", key=contract.tensor, got=", ".join(raw) or "none")
    check_raw(contract, sample)
    return sample


def _prepared(contract: InputContract, sample: Array) -> Array:
    sample = apply_steps(contract.steps, sample)
    return sample[np.newaxis] if contract.batched else sample


def check_raw(contract: InputContract, array: Array) -> None:
    """Refuse a raw sample of the wrong shape or dtype; NaN is let through, so that it can be counted where it falls.

    Raises:
        InputError: names the tensor, what was expected and what came.

    >>> try:
    ...     check_raw(InputContract(tensor="x", dtype="uint8", shape=(-1, 3)), np.zeros((5, 4), np.uint8))
    ... except InputError as error:
    ...     print(error)
    x: wrong input (expected uint8 [any, 3], got uint8 [5, 4])
    """
    wanted = contract.shape
    shape = array.shape
    name = dtype_name(array.dtype)
    if name == contract.dtype and shape == wanted:
        return
    fits = len(shape) == len(wanted) and all(want in {size, -1} for size, want in zip(shape, wanted, strict=True))
    if name != contract.dtype or not fits:
        raise InputError(
            "wrong input",
            key=contract.tensor,
            expected=f"{contract.dtype} [{', '.join('any' if size < 0 else str(size) for size in wanted)}]",
            got=f"{array.dtype} [{', '.join(map(str, shape))}]",
        )


def check_finite(name: str, array: Array) -> None:
    """Refuse NaN and infinity: the rule for calibration and evaluation data, where nothing may be missing.

    Raises:
        InputError: says how many values are not finite.

    >>> check_finite("x", np.ones(3))
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("values that are not finite", key=name, expected=0, got=int((~np.isfinite(array)).sum()))
