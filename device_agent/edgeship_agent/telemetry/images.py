"""Large images of bytes, kept as the pixels that their signals are made of.

A camera's frame is 150 kB and more, and its signals look at some thousand places of it. These are gathered when the
frame is recorded; a few frames at a time are measured, and what is kept of a call are its three figures.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
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
)
from edgeship_agent.telemetry.window import MIN_INFERENCES

#: Images that wait until they are measured, at most and at least: few enough for whoever asks meanwhile.
MOST_IMAGES, FEWEST_IMAGES = 16, 4
#: Bytes that wait, where the fewest images do not need more.
WAITING_BYTES: Final = 1 << 16
#: The same where they are measured one by one between two looks for the next request: as many as come in a row.
LOOKING_IMAGES: Final = MIN_INFERENCES + 4
LOOKING_BYTES: Final = 1 << 19
#: Numbers that are looked at in one pass, where one image does not need more: they should stay in a processor's cache.
PASS_VALUES: Final = 1 << 15
#: Values of one image that are worked on between two looks for the next request, which finds them under way.
_PIECE_VALUES: Final = 1 << 14


class Places(Struct, frozen=True, kw_only=True, eq=False):
    """Where images of one shape are sampled, and what is kept of an image until it is measured.

    Attributes:
        flat: the places in the image, flattened, int64 [k]; None where images are so small that most of their pixels
            would be gathered more than once: these are kept whole.
        parts: of what was gathered, or of [n, *shape]: the pixels, then two neighbours down and two across.
    """

    flat: Array | None
    parts: tuple[tuple[slice, ...], ...]


def places_of(sample: Array) -> Places | None:
    """Where a raw sample is to be sampled; None where it is kept whole: no image, no bytes, or small.

    >>> places_of(np.zeros((28, 28), np.uint8)) is None, places_of(np.zeros((128, 128, 3), np.float32)) is None
    (True, True)
    >>> places_of(np.zeros((144, 176, 3), np.uint8)).flat.size
    19008
    """
    if sample.dtype != np.uint8 or not is_image(sample.shape) or sample.size <= IMAGE_SAMPLES**2:
        return None
    return _places(sample.shape)


@lru_cache(maxsize=8)
def _places(shape: tuple[int, ...]) -> Places:
    size = math.prod(shape)
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
        return Places(flat=None, parts=image_slices(shape))
    return Places(flat=flat.astype(np.intp), parts=tuple(parts))


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
        size = sample.shape if places.flat is None else places.flat.shape
        self._next = self._measured = 0  # the calls between wait
        self._steps: Iterator[None] | None = None  # of the image that is measured between two looks
        self._has_looks = False
        self._together = min(max(WAITING_BYTES // math.prod(size), FEWEST_IMAGES), MOST_IMAGES, calls)
        self._images = max(min(LOOKING_BYTES // math.prod(size), LOOKING_IMAGES, calls), self._together)
        self._in_pass = min(max(PASS_VALUES // math.prod(size), 1), self._together)
        self._kept = np.zeros((self._images, *size), sample.dtype)
        # reserved, since the system takes large arrays back and hands them out anew, page by page, on every pass
        self._numbers = np.zeros((self._in_pass, *size), np.float32)
        self._scratch = np.zeros(self._numbers[places.parts[0]].size, np.float32)
        self._names = image_signal_names(tensor)
        self._figures = np.zeros((len(self._names), calls))

    def put(self, index: int, array: Array) -> bool:
        """Keep what is measured of one call's image, the calls in their order; whether it has the column's shape."""
        if array.shape != self._shape:
            return False
        if not index:
            self._measured = 0  # whatever came before was handed on, or belonged to a call that went alone
            self._steps = None
        place, flat = index % self._images, self._places.flat
        if flat is None:
            self._kept[place] = array
        else:  # "clip" since the default would gather into a copy first; every place is inside
            array.reshape(-1).take(flat, out=self._kept[place], mode="clip")
        self._next = index + 1
        waiting = self._next - self._measured
        if self._has_looks:
            if waiting == self._images:  # whoever asks next waits for one image, not for all of them
                self._measure_oldest()
        elif waiting >= self._together:
            self._measure_waiting()
        return True

    def measure_some(self) -> bool:
        """Do a part of what measuring the image that waits longest takes, some µs; whether there was anything to do."""
        self._has_looks = True
        if self._steps is None:
            if self._measured == self._next:
                return False
            self._steps = self._measure(1, in_pieces=True)
        for _ in self._steps:
            return True
        self._steps = None
        return True

    def _measure_oldest(self) -> None:
        for _ in self._steps or self._measure(1):
            pass
        self._steps = None

    def columns(self, calls: int) -> Columns:
        """Signals of the first calls; lent, as the arrays of a block are."""
        self._measure_waiting()
        self._next = self._measured = 0
        return {name: self._figures[index, :calls] for index, name in enumerate(self._names)}

    def _measure_waiting(self) -> None:
        self._steps = None  # what was begun is done with the others
        while waiting := self._next - self._measured:
            for _ in self._measure(min(waiting, self._in_pass)):
                pass

    def _measure(self, most: int, *, in_pieces: bool = False) -> Iterator[None]:
        """Measure the oldest images that wait, as many as lie beside each other; step by step."""
        start = self._measured
        kept = self._kept[start % self._images :][:most]
        images = len(kept)
        numbers = self._numbers[:images]
        for piece in _pieces(kept.shape[-1], in_pieces=in_pieces):
            np.copyto(numbers[..., piece], kept[..., piece])
            yield
        figures = yield from _statistics(
            [numbers[part] for part in self._places.parts], self._scratch, in_pieces=in_pieces
        )
        for index, values in enumerate(figures):
            self._figures[index, start : start + images] = values
        self._measured = start + images


def _statistics(
    parts: list[Array], scratch: Array, *, in_pieces: bool
) -> Generator[None, None, tuple[Array, Array, Array]]:
    """As :func:`edgeship_agent.telemetry.signals.measure_many` measures images, step by step.

    Sums are made in one go: in pieces they would be rounded otherwise.

    Args:
        parts: pixels, two neighbours down, two neighbours across: [n, …] of float32.
        scratch: room for one of them.
        in_pieces: whether every step shall take some µs at most.
    """
    images = len(parts[0])

    def room(part: Array) -> Array:
        return scratch[: part.size].reshape(part.shape)

    pixels = parts[0].reshape(images, -1)
    size = pixels.shape[1]
    brightness = np.add.reduce(pixels, axis=1).astype(np.float64) / size
    yield
    mean, centred = brightness.astype(pixels.dtype)[:, np.newaxis], room(pixels)
    for piece in _pieces(size, in_pieces=in_pieces):
        part = np.subtract(pixels[:, piece], mean, out=centred[:, piece])
        np.square(part, out=part)
        yield
    contrast = np.sqrt(np.add.reduce(centred, axis=1).astype(np.float64) / size)
    yield
    total, count = np.zeros(images), 0
    for low, high in (parts[1:3], parts[3:5]):
        difference = room(low)
        for piece in _pieces(low.shape[-1], in_pieces=in_pieces):
            part = np.subtract(high[..., piece], low[..., piece], out=difference[..., piece])
            np.square(part, out=part)
            yield
        difference = difference.reshape(images, -1)
        total += np.add.reduce(difference, axis=1)
        count += difference.shape[1]
        yield
    return brightness, contrast, np.sqrt(total / count)


@lru_cache(maxsize=32)
def _pieces(size: int, *, in_pieces: bool) -> tuple[slice, ...]:
    """Parts of each image's values, or all of them.

    >>> _pieces(20_000, in_pieces=True)
    (slice(0, 16384, None), slice(16384, 32768, None))
    """
    length = _PIECE_VALUES if in_pieces else max(size, 1)
    return tuple(slice(start, start + length) for start in range(0, size, length))
