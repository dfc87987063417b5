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
_LARGEST: Final = {8: 127, 7: 64}
#: Rows that are multiplied at once.
_BLOCK_ROWS: Final = 1024
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
    steps = largest / _LARGEST[bits]
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
    outputs = len(weight) // layer.groups
    flat = weight.reshape(layer.groups, outputs, -1)
    grid = steps.reshape(layer.groups, outputs)
    rounded = np.stack([_group(*each) for each in zip(flat, moments, grid, strict=True)])
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


def _group(weight: Array, moments: Array, steps: Array) -> Array:
    """One group: [outputs, inputs] on its grid."""
    limits = np.rint(np.abs(weight).max(axis=1) / steps)
    order = np.argsort(-np.diag(moments), kind="stable")
    upper = _upper(moments[np.ix_(order, order)])
    left = weight[:, order].copy()
    rounded = np.zeros_like(left)
    for index in range(left.shape[1]):
        points = np.clip(np.rint(left[:, index] / steps), -limits, limits)
        rounded[:, index] = points * steps
        error = (left[:, index] - rounded[:, index]) / upper[index, index]
        left[:, index + 1 :] -= np.outer(error, upper[index, index + 1 :])
    result = np.zeros_like(rounded)
    result[:, order] = rounded
    places = (np.arange(len(weight)), np.abs(weight).argmax(axis=1))
    result[places] = np.sign(weight[places]) * limits * steps
    return result


def _upper(moments: Array) -> Array:
    """Upper Cholesky factor of the inverse of the dampened moments."""
    size = len(moments)
    diagonal = np.diag(moments)
    damped = moments + np.eye(size) * (_DAMPING * float(diagonal.mean()) + np.finfo(np.float64).tiny)
    damped[diagonal == 0.0, diagonal == 0.0] = 1.0
    inverse = np.linalg.inv(damped)
    factor: Array = np.linalg.cholesky((inverse + inverse.T) / 2.0).T
    return factor
