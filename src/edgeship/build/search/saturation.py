"""Whether 8-bit products could saturate on x86 without VNNI: emulated, since this machine may have it. Pure.

``vpmaddubsw`` multiplies unsigned activations with signed weights and adds two neighbouring products into 16 bits.
Which products are neighbours is the kernel's secret, so the two largest count: where even they fit, no order of the
products can saturate. Source: Intel, Intrinsics Guide, ``_mm256_maddubs_epi16``; ONNX Runtime, quantization guide.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeship.build.search.ranges import STEPS, Range, with_zero
from edgeship_agent.runtime.engine import Array

_LARGEST: Final = 2**15 - 1
_LEAST: Final = -(2**15)
#: Patches of one layer that are looked at.
MOST_ROWS: Final = 96


def unsigned(values: Array, bounds: Range) -> Array:
    """Activations as the bytes that the products are made from.

    >>> unsigned(np.array([0.0, 1.0, 9.0]), (0.0, 1.0)).tolist()
    [0, 255, 255]
    """
    low, high = with_zero(bounds)
    scale = (high - low) / STEPS or 1.0
    zero = np.rint(-low / scale)
    levels: Array = np.clip(np.rint(values / scale) + zero, 0, STEPS).astype(np.int32)
    return levels


def could_saturate(weights: Array, rows: Array) -> bool:
    """Whether two products of one output could exceed 16 bits.

    Args:
        weights: [outputs, inputs], the integers of an 8-bit grid.
        rows: [rows, inputs], bytes of activations.

    >>> could_saturate(np.array([[127, 127]]), np.array([[255, 255]]))
    True
    >>> could_saturate(np.array([[64, 64]]), np.array([[255, 255]]))
    False
    """
    if weights.shape[1] < 2:
        return False
    for row in rows[:MOST_ROWS]:
        products = np.sort(weights * row, axis=1)
        if (products[:, -1] + products[:, -2]).max() > _LARGEST or (products[:, 0] + products[:, 1]).min() < _LEAST:
            return True
    return False
