"""How far a variant is from its source: errors and answers, without any label. Pure functions over arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from edgeship_agent.runtime.engine import Array

#: Values that are widened at a time.
_MOST_VALUES: Final = 4_000_000
_EXACT_BYTES: Final = 4


def relative_rms(candidate: Array, reference: Array) -> float | None:
    """``‖q − f‖₂ ÷ ‖f‖₂`` over everything; None where it has no finite value.

    >>> relative_rms(np.array([1.0, 0.0]), np.array([1.0, 0.0])), relative_rms(np.array([np.nan]), np.array([1.0]))
    (0.0, None)
    """
    error = scale = 0.0
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the result
        for q, f in in_pieces(candidate, reference):
            error += float(np.sum((q - f) ** 2))
            scale += float(np.sum(f**2))
    return _ratio(error, scale)


def is_exact(reference: Array) -> bool:
    """Whether an output holds numbers of classes, counts or flags: near is not right, so only equality counts.

    Integers of 8 and 16 bits are quantized numbers.

    >>> [is_exact(np.zeros(1, kind)) for kind in ("int64", "bool", "int8", "float32")]
    [True, True, False, False]
    """
    return reference.dtype.kind == "b" or (reference.dtype.kind in "iu" and reference.dtype.itemsize >= _EXACT_BYTES)


def differing_share(candidate: Array, reference: Array) -> float:
    """Share of the values that are not the same.

    >>> differing_share(np.array([1.0, 7.0]), np.array([1, 2]))
    0.5
    """
    return float(np.mean(candidate != reference)) if reference.size else 0.0


def output_error(candidate: Array, reference: Array) -> float | None:
    """How far an output lies off: :func:`differing_share` of exact ones, else :func:`relative_rms`."""
    return differing_share(candidate, reference) if is_exact(reference) else relative_rms(candidate, reference)


def in_pieces(candidate: Array, reference: Array) -> Iterator[tuple[Array, Array]]:
    """Both as float64, some samples at a time: a detector's outputs on a thousand images are gigabytes already."""
    step = max(1, _MOST_VALUES // max(1, reference[0].size)) if reference.ndim else 1
    for first in range(0, len(reference), step):
        part = slice(first, first + step)
        yield candidate[part].astype(np.float64), reference[part].astype(np.float64)


def sqnr_db(rms: float | None) -> float | None:
    """Signal to quantization noise in dB from a relative RMS: ``−20·log₁₀``; None where exact or not finite.

    >>> sqnr_db(0.1)
    20.0
    """
    return None if rms is None or rms == 0.0 else -20.0 * math.log10(rms)


def cosine(candidate: Array, reference: Array) -> float | None:
    """``⟨q, f⟩ ÷ (‖q‖₂·‖f‖₂)`` over everything; None where one of the two is zero or not finite.

    >>> cosine(np.array([2.0, 0.0]), np.array([1.0, 0.0])), cosine(np.array([0.0]), np.array([1.0]))
    (1.0, None)
    """
    product = first = second = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for q, f in in_pieces(candidate, reference):
            product += float(np.sum(q * f))
            first += float(np.sum(q**2))
            second += float(np.sum(f**2))
    size = math.sqrt(first) * math.sqrt(second)
    if size == 0.0 or not math.isfinite(size):
        return None
    return max(-1.0, min(1.0, product / size))


def names_class(first: Array) -> bool:
    """Whether an output is one number of a class a sample, the end of a net with its own argmax.

    >>> names_class(np.zeros((5, 1), np.int64)), names_class(np.zeros((5, 1))), names_class(np.zeros((5, 3), np.int64))
    (True, False, False)
    """
    return is_exact(first) and first[0].size == 1


def predictions(first: Array, *, classes: bool) -> list[object]:
    """What each sample's first output says: the class, or a digest of the rounded numbers.

    Args:
        first: [N, …].
        classes: whether the highest entry names a class; an integer a sample is the class itself.

    >>> predictions(np.array([[0.1, 0.9], [0.8, 0.2]]), classes=True), predictions(np.array([[7], [2]]), classes=True)
    ([1, 0], [7, 2])
    """
    flat = first.reshape(len(first), -1)
    if classes:
        return [int(each) for each in (flat[:, 0] if names_class(first) else flat.argmax(axis=1))]
    return [hashlib.blake2b(row.astype(np.float32).round(6).tobytes()).digest() for row in flat]


def sample_rms(candidate: Array, reference: Array) -> list[float]:
    """Relative RMS of every sample on its own, infinite where it has no value; of exact ones :func:`_unlike`.

    Args:
        candidate: [N, …].
        reference: likewise.

    >>> sample_rms(np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]])), sample_rms(np.array([3.0]), np.array([2.0]))
    ([0.0, 0.5], [0.5])
    """
    distance = _unlike if is_exact(reference) else relative_rms
    rows = (each.reshape(len(each), -1) for each in (candidate, reference))
    values = (distance(a, b) for a, b in zip(*rows, strict=True))
    return [math.inf if value is None else value for value in values]


def _unlike(candidate: Array, reference: Array) -> float:
    """Share of the values that differ, among those that are not the commonest of the reference in both.

    So the few pixels of what is looked for count, however large the background is; of one value it is 0 or 1.

    >>> ground = np.zeros(100, np.int64)
    >>> cat = np.where(np.arange(100) < 4, 3, ground)
    >>> _unlike(cat, cat), _unlike(ground, cat), _unlike(np.roll(cat, 1), cat), _unlike(ground, ground)
    (0.0, 1.0, 0.4, 0.0)
    """
    kinds, counts = np.unique(reference, return_counts=True)
    commonest = kinds[counts.argmax()] if len(kinds) else 0
    told = (candidate != commonest) | (reference != commonest)
    return float((candidate != reference).sum() / max(told.sum(), 1))


def _ratio(error: float, scale: float) -> float | None:
    if not math.isfinite(error) or not math.isfinite(scale):
        return None
    if scale == 0.0:
        return 0.0 if error == 0.0 else None
    return math.sqrt(error / scale)
