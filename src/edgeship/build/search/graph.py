"""A float file as the search sees it: operators, and layers with weights, whatever the file's format. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import Struct, structs
from numpy.lib.stride_tricks import sliding_window_view

from edgeship_agent.runtime.engine import Array

Pair = tuple[int, int]
#: Axes of the weights, and of the values, of a convolution over one dimension.
_ONE_DIMENSION: Final = 3
#: Bytes that a weight takes in float beside those that it takes in 8 bits.
_MORE_BYTES: Final = 3
#: Patches of one layer that one sample gives at most: they overlap, and more of them say the same.
MOST_PATCHES: Final = 128
#: Matrix products, in the three formats' words.
PRODUCTS: Final = frozenset({"MatMul", "Gemm", "BATCH_MATMUL", "FULLY_CONNECTED"})


class Layer(Struct, frozen=True, kw_only=True):
    """The weights of one operator, in one layout for all formats; convolutions over one dimension are one high.

    Attributes:
        convolution: whether patches of the input are multiplied, or its rows.
        weight: [outputs, inputs of one group, height, width], or [outputs, inputs] of a matrix product.
        bias: whether the operator has one that can be written.
        groups: of a convolution; as many as inputs where it is depthwise.
        strides, dilations: height, width.
        pads: rows above and below, columns left and right; None for as many as keep the size (before dividing it by
            the stride), the odd one after.
        channels_last: whether the channels are the last axis of the input, not the second.
        packed: whether the weights are stored in 8 bits even where the operator computes in float.
    """

    weight: Array
    convolution: bool
    bias: bool = False
    groups: int = 1
    strides: Pair = (1, 1)
    dilations: Pair = (1, 1)
    pads: tuple[Pair, Pair] | None = ((0, 0), (0, 0))
    channels_last: bool = False
    packed: bool = False

    @property
    def fan_in(self) -> int:
        """Products that one output value sums."""
        return int(self.weight[0].size)


class Operator(Struct, frozen=True, kw_only=True):
    """One operator of a float file.

    Attributes:
        name: by which the runtime's quantizer knows it.
        kind: the format's name of what it does.
        inputs, outputs: names of tensors that are computed, constants left out.
        layer: its weights, where it has some that nobody else reads.
        fan_in: products that one output value sums, where its weights say so: also of weights that are shared.
        elements: of its outputs; 0 where that is not known.
        multiplications: of one inference.
        growth_bytes: by which the file grows where the operator is left in float.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: Layer | None = None
    fan_in: int = 0
    elements: int = 0
    multiplications: int = 0
    growth_bytes: int = 0


def planar(weight: Array) -> Array:
    """Weights of a convolution over one dimension as of one over two that is one high; of two, as they are.

    >>> planar(np.zeros((4, 2, 3))).shape, planar(np.zeros((4, 2, 5, 3))).shape
    ((4, 2, 1, 3), (4, 2, 5, 3))
    """
    return weight[:, :, None] if weight.ndim == _ONE_DIMENSION else weight


def pair(values: Sequence[int], *, height: int = 1) -> Pair:
    """Numbers of a convolution as height and width.

    Args:
        values: of one dimension or two.
        height: for one dimension.

    >>> pair([2]), pair([2, 3]), pair([1], height=0)
    ((1, 2), (2, 3), (0, 1))
    """
    return (height, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def sized(operators: Sequence[Operator], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Operator, ...]:
    """The same operators with sizes, from the shapes that their tensors had in a run."""
    found = []
    for operator in operators:
        elements = sum(int(np.prod(shapes[name])) for name in operator.outputs if name in shapes)
        layer = operator.layer
        growth = _MORE_BYTES * layer.weight.size if layer is not None and not layer.packed else 0
        products = elements * _summed(operator, shapes)
        found.append(structs.replace(operator, elements=elements, multiplications=products, growth_bytes=growth))
    return tuple(found)


def _summed(operator: Operator, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Products that one output value sums; of two computed factors the first one's last axis says it."""
    if operator.layer is not None:
        return operator.layer.fan_in
    if operator.fan_in or operator.kind not in PRODUCTS:
        return operator.fan_in
    return next((shapes[name][-1] for name in operator.inputs if shapes.get(name)), 0)


def patches(layer: Layer, activation: Array) -> Array:
    """What a layer's weights are multiplied with: one row a patch.

    Args:
        layer: with weights.
        activation: of one sample, batch axis of 1 included.

    Returns:
        [groups, rows, inputs of one output value], float32; at most :data:`MOST_PATCHES` rows, evenly spaced.

    >>> dense = Layer(weight=np.ones((3, 2)), convolution=False)
    >>> patches(dense, np.array([[1.0, 2.0]])).tolist()
    [[[1.0, 2.0]]]
    >>> image = Layer(weight=np.ones((1, 1, 3, 3)), convolution=True, pads=None)
    >>> patches(image, np.ones((1, 1, 4, 4))).shape
    (1, 16, 9)
    >>> signal = Layer(weight=planar(np.ones((1, 1, 3))), convolution=True)
    >>> patches(signal, np.arange(4.0).reshape(1, 1, 4)).tolist()
    [[[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]]
    """
    if not layer.convolution:
        return _thinned(activation.reshape(-1, activation.shape[-1]))[None]
    image = np.moveaxis(activation, -1, 1) if layer.channels_last else activation
    if image.ndim == _ONE_DIMENSION:
        image = image[:, :, None]
    kernel = layer.weight.shape[2:]
    pads = layer.pads
    if pads is None:
        pads = _same(image.shape[2:], kernel, layer)
    image = np.pad(image, ((0, 0), (0, 0), *pads))
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, layer.dilations, strict=True))
    windows = sliding_window_view(image, reach, axis=(2, 3))
    windows = windows[:, :, :: layer.strides[0], :: layer.strides[1], :: layer.dilations[0], :: layer.dilations[1]]
    _, channels, height, width = windows.shape[:4]
    chosen = _spread(height * width)
    rows = windows.transpose(0, 2, 3, 1, 4, 5)[0, chosen // width, chosen % width]
    grouped = rows.reshape(len(chosen), layer.groups, -1)
    assert grouped.shape[2] == channels // layer.groups * kernel[0] * kernel[1]
    return np.ascontiguousarray(np.moveaxis(grouped, 1, 0), dtype=np.float32)


def _same(size: Sequence[int], kernel: Sequence[int], layer: Layer) -> tuple[Pair, Pair]:
    pads = []
    for length, window, stride, dilation in zip(size, kernel, layer.strides, layer.dilations, strict=True):
        outputs = -(-length // stride)
        missing = max((outputs - 1) * stride + (window - 1) * dilation + 1 - length, 0)
        pads.append((missing // 2, missing - missing // 2))
    return pads[0], pads[1]


def _spread(count: int) -> Array:
    """Positions at equal distances, all of them where they are few."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_PATCHES)).astype(np.int64))


def _thinned(rows: Array) -> Array:
    return rows[_spread(len(rows))].astype(np.float32)
