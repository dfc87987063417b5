"""Windows: what one model arm did over some time or some calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct, structs

from edgeship_agent.contract.messages import Window
from edgeship_agent.contract.profile import Profile
from edgeship_agent.contract.sketch import CategorySketch, ExponentialSketch, Sketch, bucket_index, most_frequent
from edgeship_agent.processing.arrays import Array
from edgeship_agent.telemetry.counting import bucket_counts
from edgeship_agent.telemetry.noted import Notes, NoteSums
from edgeship_agent.telemetry.signals import CLASS_SIGNAL, Columns, SignalAccumulator, Values

#: A window of fewer calls is never sent alone: its sums would be the inputs. Source: drift.md §1.
MIN_INFERENCES: Final = 20
#: A run of one class is a hard stop where the baseline gives it less than this probability.
CONSTANT_CLASS_PROBABILITY: Final = 1e-6
#: Predictions that are remembered where the configuration does not say otherwise.
DEFAULT_CAPACITY: Final = 10_000
NAN_OUTPUT: Final = "nan_output"
CONSTANT_CLASS: Final = "constant_class"


class WindowIdentity(Struct, frozen=True, kw_only=True):
    """Whose windows these are; fields as in :class:`edgeship_agent.contract.messages.Window`."""

    boot_id: str
    model: str
    version: str
    arm: str
    digest: str
    variant: str
    profile_hash: str
    clock_quality: str = "unknown"


class WindowLimits(Struct, frozen=True, kw_only=True):
    """When a window closes: whichever comes first.

    Attributes:
        duration_s: time since it opened.
        inferences: answered calls.
        remembered_predictions: how many predictions labels and outcomes may still come for.
    """

    duration_s: float = 60.0
    inferences: int = 500
    remembered_predictions: int = DEFAULT_CAPACITY


class Clock(Struct, frozen=True, kw_only=True):
    """A moment on both clocks: order and duration come from ``monotonic_s``, ``wall_s`` is only written down."""

    monotonic_s: float
    wall_s: float


class _Answers:
    """Tally of answered calls: what is kept until there are enough of them."""

    def __init__(self, since: Clock) -> None:
        self.since = since
        self.inferences = 0
        self.deadline_misses = 0
        self.nan_outputs = 0
        self.zero_latencies = 0
        self.latency_counts: dict[int, int] = {}

    def latency(self) -> ExponentialSketch:
        return ExponentialSketch(counts=dict(sorted(self.latency_counts.items())), zero_count=self.zero_latencies)


class _Trouble:
    """Tally of what holds no input and need not wait: failed and shed calls, schema checks."""

    def __init__(self, since: Clock) -> None:
        self.since = since
        self.failures = 0
        self.shed = 0
        self.schema_faults: dict[str, int] = {}


class WindowBuilder:
    """Collects calls and closes windows. Time is an argument; nothing here looks at a clock.

    A window that is due with fewer than 20 answered calls stays open: it is merged into the next. Failed and shed
    calls, labels and outcomes do not wait for that, since they hold no input: they then travel in a window without
    answers.

    Attributes:
        notes: labels and outcomes, how a shadow did, and how late a stream's answers were.
    """

    def __init__(self, identity: WindowIdentity, profile: Profile, limits: WindowLimits, now: Clock) -> None:
        self._identity = identity
        self._limits = limits
        reference = profile.signal(CLASS_SIGNAL)
        self._baseline = reference.reference if reference and isinstance(reference.reference, CategorySketch) else None
        self._signals = SignalAccumulator(profile)
        self._answers = _Answers(now)
        self._trouble = _Trouble(now)
        self.notes = NoteSums()

    def answered(self, latency_us: float, values: Values, *, late: bool = False, nan_output: bool = False) -> None:
        """Count an answered call.

        Args:
            latency_us: from receipt to answer, preprocessing included.
            values: from :func:`edgeship_agent.telemetry.signals.measure`.
            late: it missed its deadline.
            nan_output: an output was not finite although every input was.
        """
        answers = self._answers
        answers.inferences += 1
        answers.deadline_misses += late
        answers.nan_outputs += nan_output
        if latency_us > 0:
            index = bucket_index(latency_us)
            answers.latency_counts[index] = answers.latency_counts.get(index, 0) + 1
        else:
            answers.zero_latencies += 1
        self._signals.add(values)

    def answered_many(
        self, latencies_us: Sequence[float] | Array, columns: Columns, *, late: int = 0, nan_outputs: int = 0
    ) -> None:
        """Count several answered calls, as :meth:`answered` counts each.

        Args:
            latencies_us: one per call.
            columns: from :func:`edgeship_agent.telemetry.signals.measure_many`.
            late: how many missed their deadline.
            nan_outputs: how many gave an output that was not finite although every input was.
        """
        answers = self._answers
        answers.inferences += len(latencies_us)
        answers.deadline_misses += late
        answers.nan_outputs += nan_outputs
        counts = answers.latency_counts
        latencies = np.asarray(latencies_us, np.float64)
        positive = latencies[latencies > 0.0]
        answers.zero_latencies += latencies.size - positive.size
        for index, count in bucket_counts(positive).items():
            counts[index] = counts.get(index, 0) + count
        self._signals.add_many(columns, len(latencies_us))

    def failed(self) -> None:
        """Count a call that ended in an error."""
        self._trouble.failures += 1

    def shed(self) -> None:
        """Count a call that was refused unseen, because its answer would have come too late."""
        self._trouble.shed += 1

    def fault(self, check: str, calls: int = 1) -> None:
        """Count calls whose input failed a schema check: ``missing``, ``type`` or ``range``."""
        faults = self._trouble.schema_faults
        faults[check] = faults.get(check, 0) + calls

    def is_due(self, now: Clock, waiting: int = 0) -> bool:
        """Whether the window has lasted long enough, or has enough calls, and :meth:`close` would give one.

        Args:
            now: on both clocks.
            waiting: answered calls that are not counted here yet, and will be before the window is closed.
        """
        inferences = self._answers.inferences + waiting
        if inferences >= max(self._limits.inferences, MIN_INFERENCES):
            return True
        if inferences >= MIN_INFERENCES and _elapsed_s(self._answers.since, now) >= self._limits.duration_s:
            return True
        return self._has_trouble() and _elapsed_s(self._trouble.since, now) >= self._limits.duration_s

    def _has_enough(self) -> bool:
        return self._answers.inferences >= MIN_INFERENCES

    def _has_trouble(self) -> bool:
        return bool(self._trouble.failures or self._trouble.shed or not self.notes.is_empty)

    def close(self, now: Clock, gauges: dict[str, float]) -> Window | None:
        """Close the window as it is, and open the next one.

        Args:
            now: end of the window.
            gauges: infrastructure, from :class:`edgeship_agent.telemetry.gauges.ProcessGauges`.

        Returns:
            The window, with ``seq`` 0 (whoever stores it numbers it), or None where there is nothing that may be
            sent. Fewer than 20 answered calls stay in the next window.
        """
        if self._has_enough():
            answers, signals = self._answers, _bounded(self._signals.take())
            self._answers = _Answers(now)
        elif self._has_trouble():
            answers, signals = _Answers(self._trouble.since), {}
        else:
            return None
        trouble, self._trouble = self._trouble, _Trouble(now)
        return _with_notes(self._window(answers, trouble, signals, now, gauges), self.notes.take())

    def _window(
        self, answers: _Answers, trouble: _Trouble, signals: dict[str, Sketch], now: Clock, gauges: dict[str, float]
    ) -> Window:
        identity = self._identity
        return Window(
            boot_id=identity.boot_id,
            seq=0,
            model=identity.model,
            version=identity.version,
            arm=identity.arm,
            digest=identity.digest,
            variant=identity.variant,
            profile_hash=identity.profile_hash,
            started_at_s=min(answers.since.wall_s, trouble.since.wall_s),
            ended_at_s=now.wall_s,
            clock_quality=identity.clock_quality,
            inferences=answers.inferences,
            failures=trouble.failures,
            deadline_misses=answers.deadline_misses,
            shed=trouble.shed,
            crashes=0,
            latency_us=answers.latency(),
            signals=signals,
            schema_faults=dict(sorted(trouble.schema_faults.items())),
            gauges=gauges,
            hard_stops=self._hard_stops(answers, signals),
        )

    def _hard_stops(self, answers: _Answers, signals: dict[str, Sketch]) -> tuple[str, ...]:
        stops = []
        if answers.nan_outputs:
            stops.append(NAN_OUTPUT)
        classes = signals.get(CLASS_SIGNAL)
        if isinstance(classes, CategorySketch) and self._baseline and is_constant_class(classes, self._baseline):
            stops.append(CONSTANT_CLASS)
        return tuple(stops)


def _bounded(signals: dict[str, Sketch]) -> dict[str, Sketch]:
    """Sketches of a size that a server takes: of a model with thousands of classes a long window may see too many."""
    return {
        name: most_frequent(sketch) if isinstance(sketch, CategorySketch) else sketch
        for name, sketch in signals.items()
    }


def _with_notes(window: Window, notes: Notes) -> Window:
    return structs.replace(
        window,
        labels=notes.labels,
        outcomes=notes.outcomes,
        label_unknown=notes.label_unknown,
        label_lost=notes.label_lost,
        shadow=notes.shadow,
        stream_delay_us=notes.stream_delay_us,
    )


def _elapsed_s(since: Clock, now: Clock) -> float:
    return now.monotonic_s - since.monotonic_s


def is_constant_class(classes: CategorySketch, baseline: CategorySketch) -> bool:
    """Whether a model that always answers one class does what its baseline makes next to impossible.

    P = p̂ⁿ for n answers, all of one class, with p̂ = (count + 1) ÷ (total + 1) of that class in the reference: never
    0, so that a class that the reference happens to lack does not count as impossible by itself.

    >>> even = CategorySketch(counts={0: 50, 1: 50})
    >>> is_constant_class(CategorySketch(counts={0: 19}), even), is_constant_class(CategorySketch(counts={0: 21}), even)
    (False, True)
    >>> is_constant_class(CategorySketch(counts={0: 30, 1: 1}), even)
    False
    """
    if len(classes.counts) != 1 or baseline.total == 0:
        return False
    ((winner, count),) = classes.counts.items()
    share = (baseline.counts.get(winner, 0) + 1) / (baseline.total + 1)
    return count * math.log(share) < math.log(CONSTANT_CLASS_PROBABILITY)
