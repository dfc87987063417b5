"""Large images of bytes, kept as the rows of pixels that their signals are made of.

A camera's frame is 150 kB and more, and its signals look at some thousand places of it. Its caller waits until the rows
that hold them are copied, which is some microseconds; a few frames at a time are then gathered from and measured, and
what is kept of a call are its three figures.
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
    image_axes,
    image_signal_names,
    image_slices,
    is_image,
    mean_and_std,
)

#: Images that are measured in one pass, at most: few enough for the processor's caches, and for whoever asks meanwhile.
MOST_IMAGES: Final = 16
#: Bytes of rows that wait for such a pass, where two images do not need more.
PASS_BYTES: Final = 1 << 17


class Places(Struct, frozen=True, kw_only=True, eq=False):
    """Where images of one shape are sampled.

    Attributes:
        rows: which rows of the image hold the places, int64; a row is all that lies beside each other in memory.
        row_size: values of a row.
        flat: the places in the kept rows, flattened, int64 [k]; None where the images are so small that most of their
            pixels would be gathered more than once: nothing is gathered from them.
        parts: of what was gathered, or of [n, *shape]: the pixels, then two neighbours down and two across.
    """

    rows: Array
    row_size: int
    flat: Array | None
    parts: tuple[tuple[slice, ...], ...]


def places_of(sample: Array) -> Places | None:
    """Where a raw sample is to be sampled; None where it is kept whole: no image, no bytes, or small.

    >>> places_of(np.zeros((28, 28), np.uint8)) is None, places_of(np.zeros((128, 128, 3), np.float32)) is None
    (True, True)
    >>> places = places_of(np.zeros((144, 176, 3), np.uint8))
    >>> places.rows.tolist()[:6], places.row_size, places.flat.size
    ([0, 1, 3, 4, 6, 7], 528, 19008)
    """
    if sample.dtype != np.uint8 or not is_image(sample.shape) or sample.size <= IMAGE_SAMPLES**2:
        return None
    return _places(sample.shape)


@lru_cache(maxsize=8)
def _places(shape: tuple[int, ...]) -> Places:
    size = math.prod(shape)
    row_size = math.prod(shape[image_axes(shape)[1] :])
    positions = np.arange(size, dtype=np.int32).reshape(1, *shape)
    found: list[Array] = []
    parts: list[tuple[slice, ...]] = []
    for place in image_slices(shape):  # some of the five are often the same pixels, which are gathered once
        wanted = positions[place].reshape(-1)
        known = next((index for index, each in enumerate(found) if np.array_equal(each, wanted)), len(found))
        if known == len(found):
            found.append(wanted)
        start = sum(each.size for each in found[:known])
        parts.append((slice(None), slice(start, start + wanted.size)))
    flat = np.concatenate(found)
    if flat.size >= size:
        return Places(rows=np.arange(size // row_size), row_size=row_size, flat=None, parts=image_slices(shape))
    rows = np.unique(flat // row_size).astype(np.intp)
    in_rows = np.searchsorted(rows, flat // row_size) * row_size + flat % row_size
    return Places(rows=rows, row_size=row_size, flat=in_rows.astype(np.intp), parts=tuple(parts))


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
        kept_bytes = places.rows.size * places.row_size
        self._images = min(max(PASS_BYTES // kept_bytes, 2), MOST_IMAGES, calls)
        self._kept = np.zeros((self._images, places.rows.size, places.row_size), sample.dtype)
        # reserved, since the system takes large arrays back and hands them out anew, page by page, on every pass
        size = sample.shape if places.flat is None else places.flat.shape
        self._gathered = None if places.flat is None else np.zeros((self._images, *size), sample.dtype)
        self._numbers = np.zeros((self._images, *size), np.float32)
        self._scratch = np.zeros(self._numbers[places.parts[0]].size, np.float32)
        self._names = image_signal_names(tensor)
        self._figures = np.zeros((len(self._names), calls))

    def put(self, index: int, array: Array) -> bool:
        """Keep what is measured of one call's image, the calls in their order; whether it has the column's shape."""
        if array.shape != self._shape:
            return False
        place = index % self._images
        rows = array.reshape(-1, self._places.row_size)
        # "clip" since the default would gather into a copy first; every row is inside
        rows.take(self._places.rows, axis=0, out=self._kept[place], mode="clip")
        if place == self._images - 1:
            self._measure(index + 1 - self._images, self._images)
        return True

    def columns(self, calls: int) -> Columns:
        """Signals of the first calls; lent, as the arrays of a block are."""
        if rest := calls % self._images:
            self._measure(calls - rest, rest)
        return {name: self._figures[index, :calls] for index, name in enumerate(self._names)}

    def _measure(self, start: int, count: int) -> None:
        numbers, places = self._numbers[:count], self._places
        if self._gathered is None:
            np.copyto(numbers, self._kept[:count].reshape(numbers.shape))
        else:
            taken = self._gathered[:count]
            self._kept[:count].reshape(count, -1).take(places.flat, axis=1, out=taken, mode="clip")
            np.copyto(numbers, taken)
        figures = _statistics([numbers[part] for part in places.parts], self._scratch)
        for index, values in enumerate(figures):
            self._figures[index, start : start + count] = values


def _statistics(parts: list[Array], scratch: Array) -> tuple[Array, Array, Array]:
    """As :func:`edgeship_agent.telemetry.signals.measure_many` measures images.

    Args:
        parts: pixels, two neighbours down, two neighbours across: [n, …] of float32.
        scratch: room for one of them.
    """
    images = len(parts[0])

    def room(part: Array) -> Array:
        return scratch[: part.size].reshape(part.shape)

    pixels = parts[0].reshape(images, -1)
    brightness, contrast = mean_and_std(pixels, room(pixels))
    total, count = np.zeros(images), 0
    for low, high in (parts[1:3], parts[3:5]):
        difference = np.subtract(high, low, out=room(low)).reshape(images, -1)
        total += np.add.reduce(np.square(difference, out=difference), axis=1)
        count += difference.shape[1]
    return brightness, contrast, np.sqrt(total / count)
