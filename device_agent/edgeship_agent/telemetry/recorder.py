"""Answered calls, kept as they are until a whole block of them is measured at once.

What a caller waits for is the copying of its sample into memory that was reserved before (of a large image, of the
pixels that its signals are made of); bins, sums and schema checks are numpy's work on many calls, done once a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship_agent.processing.arrays import Array
from edgeship_agent.telemetry.images import ImageColumn, places_of
from edgeship_agent.telemetry.signals import Columns
from edgeship_agent.telemetry.spread import SpreadColumn, is_spread
from edgeship_agent.telemetry.window import MIN_INFERENCES

#: Most calls of a block: as many as of a window by default, so that one call in so many waits for both to be measured.
MOST_CALLS: Final = 512
#: Bytes of raw samples and outputs that a block reserves, where two calls do not need more, and the most for two.
BLOCK_BYTES: Final = 5 << 15
PAIR_BYTES: Final = 1 << 18
#: Where requests come one right after the other, images of as many calls of a window are measured as one that is sent
#: has at least, and then of one in so many. By their place alone, so that the sample is fair.
_FIRST_IMAGES, _IMAGE_EVERY = MIN_INFERENCES, 32
#: Keeps one call's array under its index; whether it has the shape of those before.
_Put = Callable[[int, Array], bool]
#: Name of a tensor, its shape, and reserved memory for it in every call of a block: [calls, …].
_Rows = tuple[str, tuple[int, ...], Array]


class Block(Struct, frozen=True, kw_only=True):
    """Some answered calls. The arrays are lent: they are overwritten by the calls that follow.

    Attributes:
        raw: model input name → [n, …] raw samples.
        measured: signals that are known already, of large images and outputs; these are in neither ``raw`` nor
            ``outputs``. Of the calls that were measured, which may be fewer than n.
        outputs: output name → [n, 1, …].
        finite: in which calls every number of the outputs that are measured already was finite, [n]; None for no such.
        latencies_ns: [n].
        times_s: [n], when each was answered, on the recorder's clock.
        late: how many missed their deadline.
    """

    raw: dict[str, Array]
    measured: Columns
    outputs: dict[str, Array]
    latencies_ns: list[int]
    times_s: list[float]
    late: int
    finite: Array | None = None


class _Column:
    """Reserved memory for one tensor of every call of a block."""

    __slots__ = ("name", "rows", "shape")

    def __init__(self, name: str, array: Array, calls: int) -> None:
        self.name = name
        self.shape = array.shape
        self.rows = np.empty((calls, *array.shape), array.dtype)
        self.rows.fill(0)  # the system hands the memory out now, not while an application waits


class CallRecorder:
    """Collects calls and hands them on in blocks.

    The first call says how large tensors are. A call whose tensors have another size is handed on at once, in a block
    of its own after those that wait, and so is every call where not even two fit into :data:`PAIR_BYTES`. So blocks
    come in the order of the calls.

    Args:
        tensors: names of the inputs that are recorded.
        on_block: takes a full block; also called by :meth:`flush`.
        whole: names of those inputs that are kept whole, since every value of theirs is checked.
        spread: outputs are numbers of which mean and standard deviation are wanted, so that of large ones no more is
            kept.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        tensors: tuple[str, ...],
        on_block: Callable[[Block], None],
        clock: Callable[[], float] = time.monotonic,
        whole: frozenset[str] = frozenset(),
        *,
        spread: bool = False,
    ) -> None:
        self._tensors = tensors
        self._whole = whole
        self._spread = spread
        self._on_block = on_block
        self._clock = clock
        self._inputs: list[_Column] = []
        self._images: list[ImageColumn] = []
        self._outputs: list[_Column] = []
        self._spreads: list[SpreadColumn] = []
        self._input_rows: list[_Rows] = []
        self._output_rows: list[_Rows] = []
        self._looks: list[tuple[str, _Put]] = []
        self._put_images: list[tuple[str, _Put]] = []
        self._has_large = False
        self._sampled = 0  # calls whose images are kept or measured
        self._capacity = 0
        self._goes_alone = False
        self._latencies_ns: list[int] = []
        self._times_s: list[float] = []
        self._handed_on = 0  # calls of this window that went in blocks before
        #: Calls that were recorded and not handed on yet; those of them that missed their deadline.
        self.waiting = self.waiting_late = 0

    def record(
        self,
        raw: Mapping[str, Array],
        outputs: Mapping[str, Array],
        latency_ns: int,
        late: bool,
        *,
        pressed: bool = False,
    ) -> None:
        """Take one answered call.

        Args:
            raw: model input name → raw sample.
            outputs: of the model.
            latency_ns: from receipt to answer.
            late: it missed its deadline.
            pressed: the next request is here already or will be at once: large tensors of some calls are not measured.
        """
        index = self.waiting
        if not self._capacity and not self._found_room(raw, outputs):
            self._hand_on_alone(raw, outputs, latency_ns, late)
            return
        # every answer waits for this: rows are written here, without a call for each
        for name, shape, rows in self._input_rows:
            if (array := raw[name]).shape != shape:
                self._hand_on_alone(raw, outputs, latency_ns, late)
                return
            rows[index] = array
        for name, shape, rows in self._output_rows:
            if (array := outputs[name]).shape != shape:
                self._hand_on_alone(raw, outputs, latency_ns, late)
                return
            rows[index] = array
        if self._has_large:
            place = self._handed_on + index
            measured = not pressed or place < _FIRST_IMAGES or not place % _IMAGE_EVERY
            if (measured or self._looks) and not self._took_large(raw, outputs, index, measured=measured):
                self._hand_on_alone(raw, outputs, latency_ns, late)
                return
        self._latencies_ns[index] = latency_ns
        self._times_s[index] = self._clock()
        if late:
            self.waiting_late += 1
        self.waiting = index = index + 1
        if index >= self._capacity:
            self.flush()

    def _took_large(
        self, raw: Mapping[str, Array], outputs: Mapping[str, Array], index: int, *, measured: bool
    ) -> bool:
        """Look at large tensors of the call at ``index``, and measure them; whether they are as large as the others."""
        sampled = self._sampled
        for name, look in self._looks:
            if not look(index, outputs[name]):
                return False
        if not measured:
            return True
        for name, put in self._put_images:
            if not put(sampled, raw[name]):
                return False
        for spread in self._spreads:
            spread.put(sampled, outputs[spread.name])
        self._sampled = sampled + 1
        return True

    def begin_window(self) -> None:
        """The calls that follow belong to another window, of which the first are measured."""
        self._handed_on = 0

    def measure_some(self) -> bool:
        """Measure a part of an image that waits, before a block needs it; whether there was anything to do."""
        return any(image.measure_some() for image in self._images)

    def flush(self) -> None:
        """Hand on what waits."""
        count, late, sampled = self.waiting, self.waiting_late, self._sampled
        if not count:
            return
        self.waiting = self.waiting_late = self._sampled = 0
        self._handed_on += count
        measured: Columns = {}
        for image in self._images:
            measured.update(image.columns(sampled))
        for spread in self._spreads:
            measured.update(spread.columns(sampled))
        finite = [spread.finite(count) for spread in self._spreads]
        self._on_block(
            Block(
                raw={column.name: column.rows[:count] for column in self._inputs},
                measured=measured,
                finite=np.logical_and.reduce(finite) if finite else None,
                outputs={column.name: column.rows[:count] for column in self._outputs},
                latencies_ns=self._latencies_ns[:count],
                times_s=self._times_s[:count],
                late=late,
            )
        )

    def _found_room(self, raw: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool:
        if not self._goes_alone:
            self._reserve(raw, outputs)
        return not self._goes_alone

    def _reserve(self, raw: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        places = {name: None if name in self._whole else places_of(raw[name]) for name in self._tensors}
        inputs = {name: raw[name] for name, found in places.items() if found is None}
        spreads = {name: array for name, array in outputs.items() if self._spread and is_spread(array)}
        kept = {name: array for name, array in outputs.items() if name not in spreads}
        call_bytes = sum(array.nbytes for array in (*inputs.values(), *kept.values()))
        if 2 * call_bytes > PAIR_BYTES:
            self._goes_alone = True
            return
        calls = min(max(BLOCK_BYTES // max(call_bytes, 1), 2), MOST_CALLS)
        self._capacity = calls
        self._latencies_ns = [0] * calls
        self._times_s = [0.0] * calls
        self._inputs = [_Column(name, array, calls) for name, array in inputs.items()]
        self._images = [ImageColumn(name, raw[name], found, calls) for name, found in places.items() if found]
        self._outputs = [_Column(name, array, calls) for name, array in kept.items()]
        self._spreads = [SpreadColumn(name, array, calls) for name, array in spreads.items()]
        self._input_rows = [(each.name, each.shape, each.rows) for each in self._inputs]
        self._output_rows = [(each.name, each.shape, each.rows) for each in self._outputs]
        self._looks = [(each.name, each.look) for each in self._spreads]
        self._put_images = [(each.name, each.put) for each in self._images]
        self._has_large = bool(self._images or self._spreads)

    def _hand_on_alone(
        self, raw: Mapping[str, Array], outputs: Mapping[str, Array], latency_ns: int, late: bool
    ) -> None:
        self.flush()
        self._handed_on += 1
        self._on_block(
            Block(
                raw={name: raw[name][np.newaxis] for name in self._tensors},
                measured={},
                outputs={name: array[np.newaxis] for name, array in outputs.items()},
                latencies_ns=[latency_ns],
                times_s=[self._clock()],
                late=int(late),
            )
        )
