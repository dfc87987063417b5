"""Sums of what was said about predictions afterwards: labels and outcomes by version and arm; delays of streams."""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct, structs

from edgeship_agent.contract.messages import MAX_CONFUSION_CELLS, LabelTally, OutcomeTally, ShadowTally
from edgeship_agent.contract.sketch import ExponentialSketch, merge

#: version, arm, digest
Source = tuple[str, str, str]
_SHADOW_SUMS: Final = tuple(name for name in ShadowTally.__struct_fields__ if name not in ("version", "digest"))


class Notes(Struct, frozen=True, kw_only=True):
    """What a window says about predictions that may be older; fields as in :class:`Window`."""

    labels: tuple[LabelTally, ...] = ()
    outcomes: tuple[OutcomeTally, ...] = ()
    label_unknown: int = 0
    label_lost: int = 0
    shadow: tuple[ShadowTally, ...] = ()
    stream_delay_us: ExponentialSketch | None = None


class _Labels:
    """Labels for the predictions of one source."""

    def __init__(self) -> None:
        self.labelled = self.correct = self.confidence_millionths = 0
        self.cells: dict[tuple[int, int], int] = {}
        self.from_s, self.until_s = math.inf, -math.inf

    def add(self, predicted: int, label: int, confidence: float, predicted_at_s: float) -> None:
        self.labelled += 1
        self.correct += predicted == label
        self.confidence_millionths += round(confidence * 1e6)
        self.from_s, self.until_s = min(self.from_s, predicted_at_s), max(self.until_s, predicted_at_s)
        cell = (predicted, label)
        if cell in self.cells or len(self.cells) < MAX_CONFUSION_CELLS:
            self.cells[cell] = self.cells.get(cell, 0) + 1

    def tally(self, source: Source) -> LabelTally:
        version, arm, digest = source
        return LabelTally(
            version=version,
            arm=arm,
            digest=digest,
            labelled=self.labelled,
            correct=self.correct,
            confusion=tuple((*cell, count) for cell, count in sorted(self.cells.items())),
            confidence_sum_millionths=self.confidence_millionths,
            predicted_from_s=self.from_s,
            predicted_until_s=self.until_s,
        )


class NoteSums:
    """Counts labels and outcomes until a window takes them.

    >>> sums = NoteSums()
    >>> sums.label(("v1", "main", "sha256:0"), predicted=3, label=3, confidence=0.9, predicted_at_s=10.0)
    >>> sums.label(("v1", "main", "sha256:0"), predicted=3, label=5, confidence=0.6, predicted_at_s=20.0)
    >>> notes = sums.take()
    >>> notes.labels[0].correct, notes.labels[0].labelled, notes.labels[0].confusion, sums.is_empty
    (1, 2, ((3, 3, 1), (3, 5, 1)), True)
    """

    def __init__(self) -> None:
        self._labels: dict[Source, _Labels] = {}
        self._outcomes: dict[tuple[Source, str], tuple[int, float, float]] = {}
        self._unknown = self._lost = 0
        self._shadow: dict[str, ShadowTally] = {}
        self._delays_us = ExponentialSketch()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        was_said = self._labels or self._outcomes or self._unknown or self._lost or self._shadow
        return not (was_said or self._delays_us.total)

    def label(self, source: Source, *, predicted: int, label: int, confidence: float, predicted_at_s: float) -> None:
        """Count a label; ``predicted_at_s`` on the wall clock."""
        self._labels.setdefault(source, _Labels()).add(predicted, label, confidence, predicted_at_s)

    def outcome(self, source: Source, name: str, value: float) -> None:
        """Count a figure."""
        count, total, square_total = self._outcomes.get((source, name), (0, 0.0, 0.0))
        self._outcomes[source, name] = (count + 1, total + value, square_total + value * value)

    def unknown(self, *, is_lost: bool = False) -> None:
        """Count a label or an outcome whose prediction is not remembered, or was lost with a worker that died."""
        self._lost += is_lost
        self._unknown += not is_lost

    def shadow(self, seen: ShadowTally) -> None:
        """Add what a candidate did beside the champion."""
        known = self._shadow.get(seen.digest)
        if known is not None:
            sums = {name: getattr(known, name) + getattr(seen, name) for name in _SHADOW_SUMS}
            seen = structs.replace(seen, **sums)
        self._shadow[seen.digest] = seen

    def stream_delays(self, delays_us: ExponentialSketch) -> None:
        """Add how late the answers of a stream were."""
        added = merge(self._delays_us, delays_us)
        assert isinstance(added, ExponentialSketch)  # of two such sketches
        self._delays_us = added

    def take(self) -> Notes:
        """All that was counted; the sums begin anew."""
        delays_us, self._delays_us = self._delays_us, ExponentialSketch()
        labels, outcomes, shadow = self._labels, self._outcomes, self._shadow
        unknown, lost = self._unknown, self._lost
        self._labels, self._outcomes, self._shadow, self._unknown, self._lost = {}, {}, {}, 0, 0
        return Notes(
            labels=tuple(labels[source].tally(source) for source in sorted(labels)),
            outcomes=tuple(
                OutcomeTally(
                    version=version,
                    arm=arm,
                    digest=digest,
                    name=name,
                    count=count,
                    total=total,
                    square_total=square_total,
                )
                for ((version, arm, digest), name), (count, total, square_total) in sorted(outcomes.items())
            ),
            label_unknown=unknown,
            label_lost=lost,
            shadow=tuple(shadow[digest] for digest in sorted(shadow)),
            stream_delay_us=delays_us if delays_us.total else None,
        )
