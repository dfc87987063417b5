"""Large images of bytes, kept as the sampled pixels that their signals are made of.

A camera's frame is 150 kB and more, and its signals look at some thousand places of it. Those are gathered while the
frame is still at hand, and measured a few frames at a time: what is kept of a call are its three figures.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship_agent.processing.arrays import Array
from edgeship_agent.telemetry.signals import (
    IMAGE_SAMPLES,
    Columns,
    image_signal_names,
    image_slices,
    is_image,
    mean_and_std,
)

#: Images that are measured in one pass: few enough for the processor's caches, and for whoever asks meanwhile.
ROWS: Final = 4


class Places(Struct, frozen=True, kw_only=True, eq=False):
    """Where images of one shape are sampled.

    Attributes:
        flat: positions in the flattened image, int64 [k].
        parts: of what was gathered: the pixels, then two neighbours down and two neighbours across.
    """

    flat: Array
    parts: tuple[slice, ...]


def places_of(sample: Array) -> Places | None:
    """Where a raw sample is to be sampled; None where it is kept whole: no image, no bytes, or small.

    >>> places_of(np.zeros((28, 28), np.uint8)) is None, places_of(np.zeros((128, 128, 3), np.float32)) is None
    (True, True)
    >>> places_of(np.zeros((96, 96, 3), np.uint8)).flat.size
    20736
    """
    if sample.dtype != np.uint8 or not is_image(sample.shape) or sample.size <= IMAGE_SAMPLES**2:
        return None
    return _places(sample.shape)


@lru_cache(maxsize=8)
def _places(shape: tuple[int, ...]) -> Places:
    positions = np.arange(math.prod(shape), dtype=np.int32).reshape(1, *shape)
    found: list[Array] = []
    parts: list[slice] = []
    for place in image_slices(shape):  # some of the five are often the same pixels, which are gathered once
        wanted = positions[place].reshape(-1)
        known = next((index for index, each in enumerate(found) if np.array_equal(each, wanted)), len(found))
        if known == len(found):
            found.append(wanted)
        start = sum(each.size for each in found[:known])
        parts.append(slice(start, start + wanted.size))
    return Places(flat=np.concatenate(found).astype(np.intp), parts=tuple(parts))


class ImageColumn:
    """The signals of one image tensor of every call of a block: the same numbers, to the bit, as of whole images.

    Args:
        tensor: name of the input.
        sample: one raw sample, for its shape.
        places: where it is sampled.
        calls: of a block.

    >>> from edgeship_agent.contract.manifest import OutputContract
    >>> from edgeship_agent.telemetry.signals import measure_many
    >>> images = np.arange(6 * 96 * 96, dtype=np.uint8).reshape(6, 96, 96)
    >>> column = ImageColumn("x", images[0], places_of(images[0]), calls=8)
    >>> all(column.put(index, image) for index, image in enumerate(images))
    True
    >>> part, whole = column.columns(6), measure_many({"x": images}, {}, OutputContract())
    >>> [bool((part[name] == whole[name]).all()) for name in whole]
    [True, True, True]
    """

    def __init__(self, tensor: str, sample: Array, places: Places, calls: int) -> None:
        self.name = tensor
        self._shape = sample.shape
        self._places = places
        self._rows = np.zeros((ROWS, places.flat.size), sample.dtype)
        self._names = image_signal_names(tensor)
        self._figures = np.zeros((len(self._names), calls))

    def put(self, index: int, array: Array) -> bool:
        """Keep what is measured of one call's image, the calls in their order; whether it has the column's shape."""
        if array.shape != self._shape:
            return False
        row = index % ROWS
        # "clip" since the default would gather into a copy first; every place is inside
        array.reshape(-1).take(self._places.flat, out=self._rows[row], mode="clip")
        if row == ROWS - 1:
            self._measure(index + 1 - ROWS, ROWS)
        return True

    def columns(self, calls: int) -> Columns:
        """Signals of the first calls; lent, as the arrays of a block are."""
        if rest := calls % ROWS:
            self._measure(calls - rest, rest)
        return {name: self._figures[index, :calls] for index, name in enumerate(self._names)}

    def _measure(self, start: int, count: int) -> None:
        figures = _statistics(self._rows[:count].astype(np.float32), self._places)
        for index, values in enumerate(figures):
            self._figures[index, start : start + count] = values


def _statistics(taken: Array, places: Places) -> tuple[Array, Array, Array]:
    pixels, *neighbours = (taken[:, part] for part in places.parts)
    brightness, contrast = mean_and_std(pixels)
    total, count = np.zeros(len(taken)), 0
    for low, high in (neighbours[:2], neighbours[2:]):
        difference = high - low
        total += np.add.reduce(np.square(difference, out=difference), axis=1)
        count += difference.shape[1]
    return brightness, contrast, np.sqrt(total / count)
