"""The newest predictions of this device, so that a label which comes later finds what was predicted.

A ring of fixed size: predicted class, confidence and time of each prediction, by the number in its prediction id. A
worker that makes room for another hands its ring on, so that a label may come after a switch of models.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.processing.arrays import Array

#: The predicted class of a prediction without one: a raw output, or NaN.
NO_CLASS: Final = -1
_LONGEST_NUMBER: Final = 16
#: Most that a worker hands on: below what the next one takes in one message
#: (:data:`edgeship_agent.serving.control.MAX_CONTROL_BYTES`), with room for the prefixes beside it.
MOST_HANDED_ON_BYTES: Final = 4 * 1024 * 1024 - 64 * 1024
#: Of a prediction; at most of an outcome beside its name, and of a ring beside both and its texts.
#: Source: the MessagePack specification (a head takes at most 5 bytes, a number 9).
_PREDICTION_BYTES: Final = 4 + 4 + 8 + 1
_OUTCOME_BYTES: Final = 1 + 9 + 5
_RING_BYTES: Final = 256


class Remembered(Struct, frozen=True, kw_only=True):
    """A prediction that is remembered.

    Attributes:
        predicted: class index, or :data:`NO_CLASS`.
        at_s: when it was made, on the system's monotonic clock.
    """

    version: str
    arm: str
    digest: str
    predicted: int
    confidence: float
    at_s: float


#: Workers that died whose predictions are told from those that nobody made.
MOST_LOST: Final = 32


class HandedOn(Struct, frozen=True, kw_only=True):
    """A ring as it travels from one worker to the next (MessagePack map).

    Attributes:
        prefix: of its prediction ids.
        first: number of the oldest prediction.
        classes: int32; confidences: float32; times: float64, seconds on the monotonic clock; labelled: 0 or 1.
        outcomes: (number of a prediction, name) of the outcomes that were counted.
    """

    prefix: str
    version: str
    arm: str
    digest: str
    first: int
    classes: bytes
    confidences: bytes
    times: bytes
    labelled: bytes
    outcomes: tuple[tuple[int, str], ...] = ()


class PredictionRing:
    """The newest predictions of one worker.

    Args:
        prefix: of its prediction ids; the rest is the prediction's number in hexadecimal, counted from 1.
        version, arm, digest: who predicted.
        capacity: predictions that are remembered.
    """

    def __init__(self, prefix: str, version: str, arm: str, digest: str, capacity: int) -> None:
        self.prefix = prefix
        self.version, self.arm, self.digest = version, arm, digest
        self.count = 0
        self._capacity = max(capacity, 1)
        self._oldest = 1
        self._classes = np.full(self._capacity, NO_CLASS, np.int32)
        self._confidences = np.zeros(self._capacity, np.float32)
        self._times = np.zeros(self._capacity, np.float64)
        self._labelled = np.zeros(self._capacity, np.uint8)
        self._outcomes: dict[int, set[str]] = {}

    @property
    def oldest(self) -> int:
        """Number of the oldest prediction that is remembered."""
        return max(self._oldest, self.count - self._capacity + 1)

    def add(self, classes: Array | None, confidences: Array | None, times_s: Array) -> None:
        """Remember predictions in their order.

        Args:
            classes: [n], NaN for none; None where the output is no class.
            confidences: [n]; None as above. What a model gives as such may be any number: kept is what is in 0–1, the
                nearer end of it, or 0 for NaN.
            times_s: [n], monotonic.
        """
        calls = len(times_s)
        kept = min(calls, self._capacity)
        places = np.arange(self.count + calls - kept, self.count + calls) % self._capacity
        self._times[places] = times_s[calls - kept :]
        self._labelled[places] = 0
        if classes is not None and confidences is not None:
            last = classes[calls - kept :]
            self._classes[places] = np.where(np.isnan(last), NO_CLASS, last)
            self._confidences[places] = np.nan_to_num(np.clip(confidences[calls - kept :], 0.0, 1.0))
        self.count += calls
        if len(self._outcomes) > self._capacity:
            self._forget_outcomes()

    def find(self, number: int) -> Remembered | None:
        """The prediction of that number, or None where it is not remembered."""
        if not self.oldest <= number <= self.count:
            return None
        place = (number - 1) % self._capacity
        return Remembered(
            version=self.version,
            arm=self.arm,
            digest=self.digest,
            predicted=int(self._classes[place]),
            confidence=float(self._confidences[place]),
            at_s=float(self._times[place]),
        )

    def take_label(self, number: int) -> bool:
        """Whether the prediction has no label yet; from now on it has."""
        place = (number - 1) % self._capacity
        if self._labelled[place]:
            return False
        self._labelled[place] = 1
        return True

    def take_outcome(self, number: int, name: str) -> bool:
        """Whether the prediction has no outcome of that name yet; from now on it has."""
        names = self._outcomes.setdefault(number, set())
        if name in names:
            return False
        names.add(name)
        return True

    def keep_taken(self, earlier: PredictionRing) -> None:
        """Labels and outcomes that were counted with an earlier copy of this ring are not counted again."""
        numbers = np.arange(max(self.oldest, earlier.oldest), min(self.count, earlier.count) + 1)
        self._labelled[(numbers - 1) % self._capacity] |= earlier._labelled[(numbers - 1) % earlier._capacity]
        for number, names in earlier._outcomes.items():
            self._outcomes.setdefault(number, set()).update(names)

    def hand_on(self, most: int, most_bytes: int = MOST_HANDED_ON_BYTES) -> bytes:
        """The newest predictions for the worker that comes next: at most so many, in at most so many bytes.

        Returns:
            Empty where not one of them has room.
        """
        first = self._first_within(max(self.oldest, self.count - most + 1), most_bytes)
        if first > self.count:
            return b""
        places = np.arange(first - 1, self.count) % self._capacity
        outcomes = ((number, names) for number, names in self._outcomes.items() if number >= first)
        return msgspec.msgpack.encode(
            HandedOn(
                prefix=self.prefix,
                version=self.version,
                arm=self.arm,
                digest=self.digest,
                first=first,
                classes=self._classes[places].tobytes(),
                confidences=self._confidences[places].tobytes(),
                times=self._times[places].tobytes(),
                labelled=self._labelled[places].tobytes(),
                outcomes=tuple((number, name) for number, names in outcomes for name in sorted(names)),
            )
        )

    def _first_within(self, first: int, most_bytes: int) -> int:
        """Number of the oldest prediction, from ``first`` on, that has room with all that are newer."""
        sizes = np.full(self.count - first + 1, _PREDICTION_BYTES, np.int64)
        for number, names in self._outcomes.items():
            if first <= number <= self.count:
                sizes[number - first] += sum(_OUTCOME_BYTES + len(name.encode()) for name in names)
        texts = (self.prefix, self.version, self.arm, self.digest)
        room = most_bytes - _RING_BYTES - sum(len(text.encode()) for text in texts)
        return self.count - int(np.searchsorted(sizes[::-1].cumsum(), room, side="right")) + 1

    @classmethod
    def taken_over(cls, data: bytes) -> PredictionRing:
        """A ring that another worker handed on; nothing is added to it any more.

        Raises:
            ContractError: it is damaged.
        """
        try:
            handed = msgspec.msgpack.decode(data, type=HandedOn)
            classes = np.frombuffer(handed.classes, np.int32)
            ring = cls(handed.prefix, handed.version, handed.arm, handed.digest, len(classes))
            ring._oldest, ring.count = handed.first, handed.first + len(classes) - 1
            places = np.arange(handed.first - 1, ring.count) % ring._capacity
            ring._classes[places] = classes
            ring._confidences[places] = np.frombuffer(handed.confidences, np.float32)
            ring._times[places] = np.frombuffer(handed.times, np.float64)
            ring._labelled[places] = np.frombuffer(handed.labelled, np.uint8)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ContractError(f"unreadable predictions of another worker: {error}") from error
        for number, name in handed.outcomes:
            ring._outcomes.setdefault(number, set()).add(name)
        return ring

    def _forget_outcomes(self) -> None:
        oldest = self.oldest
        self._outcomes = {number: names for number, names in self._outcomes.items() if number >= oldest}


class Predictions:
    """What a worker remembers: its own predictions, and those of workers before it.

    Args:
        own: of this worker.
        capacity: of all that was taken over; the oldest rings go first.
    """

    def __init__(self, own: PredictionRing, capacity: int) -> None:
        self.own = own
        self._capacity = capacity
        self._earlier: list[PredictionRing] = []
        self._lost: tuple[str, ...] = ()

    def take_over(self, data: bytes) -> None:
        """Take what another worker handed on; what it hands on again later takes the place of the first.

        Raises:
            ContractError: it is damaged.
        """
        ring = PredictionRing.taken_over(data)
        others = []
        for known in self._earlier:
            if known.prefix == ring.prefix:
                ring.keep_taken(known)
            else:
                others.append(known)
        self._earlier = [*others, ring]
        while len(self._earlier) > 1 and sum(r.count - r.oldest + 1 for r in self._earlier) > self._capacity:
            self._earlier.pop(0)

    def lose(self, prefixes: tuple[str, ...]) -> None:
        """A worker died: what it predicted, and what had been handed to it, is known no more."""
        self._lost = tuple(dict.fromkeys((*self._lost, *prefixes)))[-MOST_LOST:]

    def is_lost(self, prediction_id: str) -> bool:
        """Whether a prediction that is not remembered was lost with a worker, rather than too old or never made."""
        return self.locate(prediction_id) is None and prediction_id.startswith(self._lost)

    def hand_on(self) -> list[bytes]:
        """What is remembered, the oldest first; of more than a message holds, the newest."""
        handed: list[bytes] = []
        room = MOST_HANDED_ON_BYTES
        for ring in (self.own, *reversed(self._earlier)):
            data = ring.hand_on(self._capacity, room) if ring.count else b""
            if data:
                handed.append(data)
                room -= len(data)
        return handed[::-1]

    def locate(self, prediction_id: str) -> tuple[PredictionRing, int] | None:
        """The ring and the number that an id names, or None where it names no prediction of these workers."""
        for ring in (self.own, *self._earlier):
            if prediction_id.startswith(ring.prefix):
                number = _number(prediction_id[len(ring.prefix) :])
                return None if number is None else (ring, number)
        return None


def _number(text: str) -> int | None:
    """A prediction's number as it is written in its id, and in no other way.

    >>> _number("1f"), _number("1F"), _number("+1"), _number("")
    (31, None, None, None)
    """
    if not text or len(text) > _LONGEST_NUMBER or any(digit not in "0123456789abcdef" for digit in text):
        return None
    return int(text, 16)
