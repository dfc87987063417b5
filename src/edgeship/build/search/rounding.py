"""Rounding weights so that the errors of a layer's weights cancel in its outputs. Pure.

The result lies on the grid that a min–max quantizer derives from it, so it passes through every quantizer unchanged.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeship.build.search.graph import Layer, patches
from edgeship_agent.runtime.engine import Array

#: Share of the mean diagonal that is added to it, against directions that the samples do not span. Source: Frantar et
#: al., GPTQ, 2023, "dampening".
_DAMPING: Final = 0.01
#: Largest 8-bit weight, and largest 7-bit one. Source: ONNX Runtime, ``quant_utils``, symmetric int8 and reduce_range.
LARGEST: Final = {8: 127, 7: 64}
#: Rows that are multiplied at once.
_BLOCK_ROWS: Final = 1024
#: Inputs after which the errors of their weights reach the weights of all later ones, as one product of matrices.
_BLOCK_INPUTS: Final = 64
#: A layer whose outputs sum more products than this is rounded to nearest: its inverse would take minutes.
MOST_INPUTS: Final = 2400


class LayerInputs:
    """Second moments of what a layer's weights are multiplied with, gathered sample by sample."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._waiting: list[Array] = []
        width = layer.fan_in
        self._sums = np.zeros((layer.groups, width))
        self._moments = np.zeros((layer.groups, width, width)) if width <= MOST_INPUTS else None
        self.rows = 0

    def add(self, activation: Array) -> None:
        """Take one sample in: the layer's input, batch axis of 1 included."""
        rows = patches(self._layer, activation)
        self._waiting.append(rows)
        self.rows += rows.shape[1]
        if sum(each.shape[1] for each in self._waiting) >= _BLOCK_ROWS:
            self._flush()

    @property
    def means(self) -> Array:
        """[groups, inputs of one output value]."""
        self._flush()
        return self._sums / max(self.rows, 1)

    @property
    def moments(self) -> Array | None:
        """[groups, inputs, inputs], or None for a layer with too many."""
        self._flush()
        return self._moments

    def _flush(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting, axis=1)
            self._waiting.clear()
            self._sums += rows.sum(axis=1, dtype=np.float64)
            if self._moments is not None:
                self._moments += rows.transpose(0, 2, 1) @ rows


def steps_of(weight: Array, *, bits: int, per_channel: bool) -> Array:
    """The distance of two neighbours on the grid of symmetric weights, one an output.

    Args:
        weight: [outputs, …].
        bits: of a weight, its sign included.
        per_channel: one distance for each output, or one for all.

    >>> steps_of(np.array([[127.0, 1.0], [0.0, 0.0]]), bits=8, per_channel=True).tolist()
    [1.0, 1.0]
    """
    flat = np.abs(weight.reshape(len(weight), -1))
    largest = flat.max(axis=1) if per_channel else np.full(len(weight), flat.max())
    steps = largest / LARGEST[bits]
    return np.where(steps > 0, steps, 1.0)


def nearest(weight: Array, steps: Array) -> Array:
    """Every weight on the nearest point of its grid."""
    column = steps.reshape(-1, *([1] * (weight.ndim - 1)))
    return np.rint(weight / column) * column


def compensated(layer: Layer, inputs: LayerInputs, steps: Array) -> Array:
    """Weights rounded one input after the other, each error made good by those that are still to come.

    Source: Frantar et al., GPTQ, 2023 (Optimal Brain Surgeon on the layer's squared output error), inputs in the order
    of their size. An output's largest weight keeps its place at the end of the grid, so that a quantizer finds the
    same grid again.

    Args:
        layer: with float weights.
        inputs: what they are multiplied with.
        steps: of the grid, one an output.
    """
    moments = inputs.moments
    if moments is None:
        return nearest(layer.weight.astype(np.float64), steps)
    weight = layer.weight.astype(np.float64)
    flat = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    grid = steps.reshape(layer.groups, -1)
    limits = np.rint(np.abs(flat).max(axis=2) / grid)
    order = np.argsort(-np.diagonal(moments, axis1=1, axis2=2), axis=1, kind="stable")
    ordered = np.take_along_axis(flat, order[:, None, :], axis=2)
    places = (np.arange(layer.groups)[:, None, None], order[:, :, None], order[:, None, :])
    rounded = np.empty_like(flat)
    np.put_along_axis(rounded, order[:, None, :], _in_turn(ordered, _upper(moments[places]), grid, limits), axis=2)
    ends = np.abs(flat).argmax(axis=2)[:, :, None]
    largest = np.sign(np.take_along_axis(flat, ends, axis=2)) * (limits * grid)[:, :, None]
    np.put_along_axis(rounded, ends, largest, axis=2)
    return rounded.reshape(weight.shape)


def bias_correction(layer: Layer, inputs: LayerInputs, rounded: Array) -> Array:
    """What each output's bias must gain so that the outputs keep their mean on the samples.

    Args:
        layer: with float weights.
        inputs: what they are multiplied with.
        rounded: the weights that will be used.

    Returns:
        [outputs].
    """
    error = (rounded - layer.weight).reshape(layer.groups, len(layer.weight) // layer.groups, -1)
    gains: Array = -np.einsum("goi,gi->go", error, inputs.means).reshape(-1)
    return gains


def _in_turn(weight: Array, upper: Array, steps: Array, limits: Array) -> Array:
    """Weights on their grid, one input after the other, those of all groups and outputs at once.

    Args:
        weight: [groups, outputs, inputs].
        upper: see :func:`_upper`, [groups, inputs, inputs].
        steps: of the grid, [groups, outputs].
        limits: largest point of the grid, [groups, outputs].
    """
    left = weight.copy()
    rounded = np.empty_like(left)
    for start in range(0, left.shape[2], _BLOCK_INPUTS):
        stop = min(start + _BLOCK_INPUTS, left.shape[2])
        block = np.ascontiguousarray(left[:, :, start:stop])
        errors = np.empty_like(block)
        for place in range(stop - start):
            index = start + place
            points = np.clip(np.rint(block[:, :, place] / steps), -limits, limits)
            rounded[:, :, index] = points * steps
            errors[:, :, place] = (block[:, :, place] - rounded[:, :, index]) / upper[:, index, index, None]
            block[:, :, place + 1 :] -= errors[:, :, place, None] * upper[:, None, index, index + 1 : stop]
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    return rounded


def _upper(moments: Array) -> Array:
    """Upper Cholesky factor of the inverse of each group's dampened moments, [groups, inputs, inputs].

    It is the inverse of the moments' own factor, where inputs are counted from the last to the first.
    """
    places = np.arange(moments.shape[1])
    diagonal = np.diagonal(moments, axis1=1, axis2=2)
    damping = _DAMPING * diagonal.mean(axis=1, keepdims=True) + np.finfo(np.float64).tiny
    damped = moments.copy()
    damped[:, places, places] = np.where(diagonal == 0.0, 1.0, diagonal + damping)
    factor: Array = _inverse(np.linalg.cholesky(damped[:, ::-1, ::-1]))[:, ::-1, ::-1]
    return np.ascontiguousarray(factor)


def _inverse(lower: Array) -> Array:
    """Of lower triangular matrices, [groups, size, size]: by halves, a sixth of what a general inverse takes."""
    size = lower.shape[1]
    if size <= _BLOCK_INPUTS:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    first, last = _inverse(lower[:, :half, :half]), _inverse(lower[:, half:, half:])
    result = np.zeros_like(lower)
    result[:, :half, :half], result[:, half:, half:] = first, last
    result[:, half:, :half] = -last @ (lower[:, half:, :half] @ first)
    return result
