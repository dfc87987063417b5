"""Steps on the columns of a table: the last axis of a sample. Comparisons and copies, so exact everywhere."""

from __future__ import annotations

import numpy as np

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import Categories, Impute, OneHot
from edgeship_agent.processing.arrays import Array


def impute(step: Impute, sample: Array) -> Array:
    """The sample without NaN.

    Raises:
        ValueError: another number of values than columns.

    >>> impute(Impute(values=(1.0, 2.0)), np.array([np.nan, 5.0], np.float32)).tolist()
    [1.0, 5.0]
    """
    if sample.dtype.kind != "f":
        return sample
    if len(step.values) not in {1, sample.shape[-1] if sample.ndim else 1}:
        raise ValueError(f"{len(step.values)} values for {sample.shape[-1]} columns")
    return np.where(np.isnan(sample), np.asarray(step.values, sample.dtype), sample)


def one_hot(step: OneHot, sample: Array) -> Array:
    """The sample with one column a known value; the columns behind move up.

    Raises:
        IndexError: there is no such column.
        ValueError: a value that is not known, where that is refused.
        ContractError: an answer to unknown values that is not known.

    >>> one_hot(OneHot(column=0, values=(3.0, 7.0)), np.array([7.0, 0.5], np.float32)).tolist()
    [0.0, 1.0, 0.5]
    """
    if step.unknown not in {"zeros", "refuse"}:
        raise ContractError("unknown option of one_hot", key="unknown", expected="zeros | refuse", got=step.unknown)
    column, same = _compare(step.column, step.values, sample)
    if step.unknown == "refuse" and not same.any(axis=-1).all():
        raise ValueError(f"an unknown value in column {step.column}")
    parts = (sample[..., :column], same.astype(sample.dtype), sample[..., column + 1 :])
    return np.concatenate(parts, axis=-1)


def categories(step: Categories, sample: Array) -> Array:
    """The sample with positions in the place of values.

    Raises:
        IndexError: there is no such column.

    >>> categories(Categories(column=1, values=(10.0, 20.0)), np.array([0.5, 20.0])).tolist()
    [0.5, 1.0]
    """
    column, same = _compare(step.column, step.values, sample)
    mapped = sample.copy()
    mapped[..., column] = np.where(same.any(axis=-1), same.argmax(axis=-1), step.unknown)
    return mapped


def _compare(column: int, values: tuple[float, ...], sample: Array) -> tuple[int, Array]:
    """The column from the left, and which of the values it has: […, values]; compared in the sample's own type."""
    if not sample.ndim or not -sample.shape[-1] <= column < sample.shape[-1]:
        raise IndexError(f"no column {column}")
    column %= sample.shape[-1]
    return column, sample[..., column, np.newaxis] == np.asarray(values).astype(sample.dtype)
