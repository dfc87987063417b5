"""One loaded model with its telemetry: what the worker and the in-process library share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import numpy as np

from edgeship_agent.contract.errors import ContractError, InputError
from edgeship_agent.contract.manifest import Feature, InputContract
from edgeship_agent.contract.messages import MAX_OUTCOME, ShadowTally, Window
from edgeship_agent.contract.sketch import ExponentialSketch, quantile
from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime.golden import GoldenResult, check_golden
from edgeship_agent.runtime.isa import isa_class
from edgeship_agent.runtime.predictor import Predictor
from edgeship_agent.runtime.tensors import sample_arrays
from edgeship_agent.serving.control import Counters
from edgeship_agent.serving.slot import LoadedSlot
from edgeship_agent.telemetry.counting import bucket_counts
from edgeship_agent.telemetry.gauges import ProcessGauges
from edgeship_agent.telemetry.recorder import Block, CallRecorder
from edgeship_agent.telemetry.ring import PredictionRing, Predictions
from edgeship_agent.telemetry.signals import CLASS_SIGNAL, CONFIDENCE_SIGNAL, Columns, measure_many
from edgeship_agent.telemetry.window import Clock, WindowBuilder, WindowIdentity, WindowLimits

MISSING: Final = "missing"
TYPE: Final = "type"
RANGE: Final = "range"
_WARMUP_CALLS: Final = 5
#: Sessions of this process: prediction ids stay unique where a library opens one model after another.
_numbers: Final = itertools.count(1)
#: Longest name of an outcome, in characters.
_LONGEST_NAME: Final = 64
_MOST_CLASSES: Final = 2**31 - 1
#: Names of outcomes that a session takes: each is a row of every window.
_MOST_NAMES: Final = 32
#: Buckets that a delay in µs may be in: from 1 µs on, and few enough for a window.
_DELAY_BUCKETS: Final = range(-1, 511)


class ModelSession:
    """A slot's model, opened, with counters and windows.

    Args:
        slot: what is served.
        predictor: its engine behind the manifest.
        limits: when windows close.
        boot_id: names this start of the agent.
        clock: both clocks, read by the caller's choice of clock.
        clock_quality: written into every window.

    Attributes:
        prediction_prefix: how the id of every prediction of this session begins; its number in hexadecimal follows.
        predictions: what labels and outcomes are matched with.
    """

    def __init__(
        self,
        slot: LoadedSlot,
        predictor: Predictor,
        limits: WindowLimits,
        boot_id: str,
        clock: Callable[[], Clock],
        clock_quality: str = "unknown",
    ) -> None:
        self.slot = slot
        info = slot.slot
        self.prediction_prefix = f"{boot_id}-{os.getpid():x}-{next(_numbers):x}-"
        own = PredictionRing(self.prediction_prefix, info.version, info.arm, info.digest, limits.remembered_predictions)
        self.predictions = Predictions(own, limits.remembered_predictions)
        self._outcome_names: set[str] = set()
        self.failures = self.shed = 0
        self._measured = self._measured_late = 0  # answered calls
        self._predictor = predictor
        #: One prediction, not counted; see :meth:`Predictor.run`. No call between, since every answer waits for it.
        self.predict = predictor.run
        self._clock = clock
        self._contracts = {contract.tensor: contract for contract in slot.manifest.input_contracts}
        self._ranges = {
            name: bounds
            for name, contract in self._contracts.items()
            if (bounds := documented_range(contract, slot.manifest.input_schema.get(name, ()))) is not None
        }
        self._recorder = CallRecorder(
            tuple(self._contracts),
            self._count_block,
            whole=frozenset(self._ranges),
            spread=slot.manifest.output.kind != "classification",
        )
        #: Counts an answered call and keeps it until its block is measured; see :meth:`CallRecorder.record`. The arrays
        #: may be changed afterwards. As above, no call between.
        self.count_answer = self._recorder.record
        self._latency_counts: dict[int, int] = {}
        self._hard_stops: dict[str, None] = {}
        self._gauges = ProcessGauges()
        identity = WindowIdentity(
            boot_id=boot_id,
            model=slot.slot.model,
            version=slot.slot.version,
            arm=slot.slot.arm,
            digest=slot.slot.digest,
            variant=slot.slot.variant,
            profile_hash=slot.profile_hash,
            clock_quality=clock_quality,
        )
        self._windows = WindowBuilder(identity, slot.profile, limits, clock())

    @property
    def inferences(self) -> int:
        """Answered calls."""
        return self._measured + self._recorder.waiting

    @property
    def deadline_misses(self) -> int:
        """Answered calls that missed their deadline."""
        return self._measured_late + self._recorder.waiting_late

    def measure_some(self) -> bool:
        """Use a moment in which nobody asks: measure a part of an image that waits. Returns whether there was one."""
        return self._recorder.measure_some()

    def _count_block(self, block: Block) -> None:
        """Measure some answered calls."""
        self._measured += len(block.latencies_ns)
        self._measured_late += block.late
        finite_inputs = self._check_schema(block.raw, len(block.latencies_ns))
        finite_outputs = _all_finite(block.outputs.values(), len(block.latencies_ns))
        if block.finite is not None:
            finite_outputs &= block.finite
        nan_outputs = finite_inputs & ~finite_outputs
        counts = self._latency_counts
        latencies_us = np.maximum(np.asarray(block.latencies_ns, np.int64), 1) / 1000.0
        for index, count in bucket_counts(np.maximum(latencies_us, 1.0)).items():
            counts[index] = counts.get(index, 0) + count
        columns: Columns = {}
        try:
            columns = measure_many(block.raw, block.outputs, self.slot.manifest.output)
            columns.update(block.measured)
        finally:  # a block that cannot be measured has its place all the same: prediction ids are numbers
            self.predictions.own.add(
                columns.get(CLASS_SIGNAL), columns.get(CONFIDENCE_SIGNAL), np.asarray(block.times_s, np.float64)
            )
        self._windows.answered_many(latencies_us, columns, late=block.late, nan_outputs=int(nan_outputs.sum()))

    def count_failure(self, raw: Mapping[str, Array] | None, error: Exception) -> None:
        """Count a call that ended in an error; a missing or mistyped input is a schema fault as well."""
        self.failures += 1
        self._windows.failed()
        if isinstance(error, InputError) and raw is not None:
            absent = any(name not in raw for name in self._contracts)
            self._windows.fault(MISSING if absent else TYPE)

    def count_shed(self) -> None:
        """Count a call that was refused unseen."""
        self.shed += 1
        self._windows.shed()

    def label(self, prediction_id: str, label: int | str, *, final: bool = True) -> bool:
        """Take the right answer to an earlier prediction.

        Args:
            prediction_id: of an answer of this session, or of one before it.
            label: index of the class, or its name.
            final: count a prediction that is not remembered as unknown; else somebody else is asked.

        Returns:
            Whether the prediction is remembered. One that has a label already keeps it.

        Raises:
            InputError: the model's output is no class, or there is no such class.
        """
        wanted = self._class_index(label)
        found = self._find(prediction_id, final=final)
        if found is None:
            return False
        ring, number = found
        seen = ring.find(number)
        assert seen is not None  # _find looked
        if ring.take_label(number):
            now = self._clock()
            self._windows.notes.label(
                (seen.version, seen.arm, seen.digest),
                predicted=seen.predicted,
                label=wanted,
                confidence=seen.confidence,
                predicted_at_s=now.wall_s - max(now.monotonic_s - seen.at_s, 0.0),
            )
        return True

    def outcome(self, name: str, value: float, prediction_id: str, *, final: bool = True) -> bool:
        """Take a business figure of an earlier prediction; a name counts once for each prediction.

        Args:
            name: of the figure, its unit last.
            value: at most ± :data:`edgeship_agent.contract.messages.MAX_OUTCOME`.
            prediction_id: as in :meth:`label`.
            final: as in :meth:`label`.

        Returns:
            Whether the prediction is remembered.

        Raises:
            InputError: no name, no number or too great a one, or too many names.
        """
        if not 0 < len(name) <= _LONGEST_NAME:
            raise InputError("not a name of an outcome", expected=f"1–{_LONGEST_NAME} characters", got=len(name))
        if not abs(value) <= MAX_OUTCOME:  # NaN is not, either
            raise InputError(
                "not a figure that can be summed",
                key=name,
                expected=f"a number from {-MAX_OUTCOME:g} to {MAX_OUTCOME:g}",
                got=value,
                next_step="report it in a larger unit",
            )
        if name not in self._outcome_names and len(self._outcome_names) >= _MOST_NAMES:
            raise InputError("too many names of outcomes", key=name, expected=f"≤ {_MOST_NAMES}")
        found = self._find(prediction_id, final=final)
        if found is None:
            return False
        ring, number = found
        self._outcome_names.add(name)
        if ring.take_outcome(number, name):
            self._windows.notes.outcome((ring.version, ring.arm, ring.digest), name, float(value))
        return True

    def count_stream_delays(self, model: str, release_digest: str, counts: dict[int, int]) -> bool:
        """Count how late the answers of a stream were.

        Args:
            model: that answered.
            release_digest: of the release that answered.
            counts: bucket (of µs) → answers.

        Returns:
            Whether they were counted: only those of the release that this session serves.

        Raises:
            InputError: not the buckets and counts of a sketch.
        """
        if (model, release_digest) != (self.slot.slot.model, self.slot.slot.digest):
            return False
        if any(index not in _DELAY_BUCKETS or not 0 < count < 2**31 for index, count in counts.items()):
            expected = f"buckets {_DELAY_BUCKETS.start} to {_DELAY_BUCKETS.stop - 1} with a count of 1 or more"
            raise InputError("not counts of delays", expected=expected)
        self._windows.notes.stream_delays(ExponentialSketch(counts=counts))
        return True

    def _find(self, prediction_id: str, *, final: bool) -> tuple[PredictionRing, int] | None:
        located = self.predictions.locate(prediction_id)
        if located is not None:
            ring, number = located
            if ring.count < number <= self.inferences and ring is self.predictions.own:
                self._recorder.flush()  # answered, not measured yet
            if ring.find(number) is not None:
                return located
        if final:
            self._windows.notes.unknown(is_lost=self.predictions.is_lost(prediction_id))
        return None

    def _class_index(self, label: int | str) -> int:
        output = self.slot.manifest.output
        if output.kind != "classification":
            raise InputError(
                "the model's output is no class, so it takes no labels",
                expected="a classification",
                got=output.kind,
                next_step="report a figure of your own with outcome(name, value, prediction_id)",
            )
        if isinstance(label, str):
            if label not in output.labels:
                raise InputError("no class of this name", expected=", ".join(output.labels)[:200], got=label[:80])
            return output.labels.index(label)
        if label < 0 or label > _MOST_CLASSES or (output.labels and label >= len(output.labels)):
            raise InputError("no class of this index", expected=f"0–{len(output.labels) - 1}", got=label)
        return int(label)

    def hand_on(self) -> list[bytes]:
        """The predictions that labels may still come for, for the session that takes over."""
        self._recorder.flush()
        return self.predictions.hand_on()

    def count_shadow(self, seen: ShadowTally) -> None:
        """Count what a candidate did beside this model."""
        self._windows.notes.shadow(seen)

    def _check_schema(self, raw: Mapping[str, Array], calls: int) -> Array:
        """Count what raw inputs [n, …] break; returns in which calls every value was finite, [n]."""
        finite = _all_finite(raw.values(), calls)
        if not raw:
            return finite
        for name, samples in raw.items():
            limits = self._ranges.get(name)
            outside = 0 if limits is None else int(_outside(samples, *limits).sum())
            if outside:
                self._windows.fault(RANGE, outside)
        missing = calls - int(finite.sum())
        if missing:
            self._windows.fault(MISSING, missing)
        return finite

    def due_window(self) -> Window | None:
        """The window that is due, or None."""
        return self._close() if self._windows.is_due(self._clock(), self._recorder.waiting) else None

    def last_window(self) -> Window | None:
        """What may still be sent before the model is let go."""
        return self._close()

    def _close(self) -> Window | None:
        self._recorder.flush()
        window = self._windows.close(self._clock(), self._gauges.read())
        if window is not None:
            self._recorder.begin_window()
            self._hard_stops.update(dict.fromkeys(window.hard_stops))
        return window

    def counters(self, memory_bytes: int) -> Counters:
        """Totals since the session was opened."""
        self._recorder.flush()
        p99_us = quantile(ExponentialSketch(counts=self._latency_counts), 0.99)
        return Counters(
            inferences=self.inferences,
            failures=self.failures,
            deadline_misses=self.deadline_misses,
            shed=self.shed,
            latency_p99_ms=(p99_us or 0.0) / 1000.0,
            memory_bytes=memory_bytes,
            hard_stops=tuple(self._hard_stops),
        )

    def warm_up(self) -> None:
        """Run some inferences, so that the first caller does not pay for what a runtime does lazily.

        Raises:
            EngineError: the model does not run.
        """
        for sample in warm_up_samples(self.slot):
            self._predictor.run(sample)

    def golden_samples(self) -> list[dict[str, Array]]:
        """The bundle's golden inputs.

        Raises:
            ContractError: the bundle has none.
        """
        if self.slot.golden_inputs is None or self.slot.golden_outputs is None:
            raise ContractError("the bundle has no golden inputs and outputs", file=self.slot.directory)
        return [sample_arrays(sample) for sample in self.slot.golden_inputs.samples]

    def judge_golden(self, outputs: Iterable[Mapping[str, Array]]) -> GoldenResult:
        """Compare what the live engine gave for the golden inputs, in their order, with the golden outputs.

        Raises:
            ContractError: the bundle has none.
        """
        slot = self.slot
        if slot.golden_inputs is None or slot.golden_outputs is None:
            raise ContractError("the bundle has no golden inputs and outputs", file=slot.directory)
        ready = iter(outputs)
        return check_golden(
            lambda _: next(ready), slot.manifest, slot.variant, slot.golden_inputs, slot.golden_outputs, isa_class()
        )

    def close(self) -> None:
        """Release the engine."""
        self._predictor.close()


def warm_up_samples(slot: LoadedSlot) -> list[dict[str, Array]]:
    """Raw samples to warm up with: golden inputs, else zeros where every size is known, else none."""
    if slot.golden_inputs is not None and slot.golden_inputs.samples:
        samples = [sample_arrays(sample) for sample in slot.golden_inputs.samples[:_WARMUP_CALLS]]
        return (samples * _WARMUP_CALLS)[:_WARMUP_CALLS]
    contracts = slot.manifest.input_contracts
    if any(size < 0 for contract in contracts for size in contract.shape):
        return []
    return [{contract.tensor: np.zeros(contract.shape, contract.dtype) for contract in contracts}] * _WARMUP_CALLS


def documented_range(contract: InputContract, features: tuple[Feature, ...]) -> tuple[Array, Array] | None:
    """Lower and upper limits that broadcast against a raw sample, or None where no range was documented.

    A range that was only observed in the reference data is no rule: what leaves it is what drift sketches are for.
    One feature describes every value; else there is one per value, or one per index of the last axis.

    >>> contract = InputContract(tensor="x", dtype="float32", shape=(2,))
    >>> low, high = documented_range(contract, (Feature(name="t", low=-5.0, documented=True), Feature(name="p")))
    >>> low.tolist(), high.tolist()
    ([-5.0, -inf], [inf, inf])
    """
    known = [feature.documented and (feature.low is not None or feature.high is not None) for feature in features]
    if not any(known):
        return None
    lows = [-np.inf if not use or f.low is None else f.low for f, use in zip(features, known, strict=True)]
    highs = [np.inf if not use or f.high is None else f.high for f, use in zip(features, known, strict=True)]
    shape = contract.shape
    if len(features) == 1:
        limits_shape: tuple[int, ...] = ()
    elif min(shape, default=0) > 0 and int(np.prod(shape)) == len(features):
        limits_shape = shape
    elif shape and shape[-1] == len(features):
        limits_shape = (len(features),)
    else:
        return None
    return np.asarray(lows).reshape(limits_shape), np.asarray(highs).reshape(limits_shape)


def _outside(samples: Array, low: Array, high: Array) -> Array:
    """In which of the samples [n, …] a value is out of range, [n]."""
    rows = samples.reshape(len(samples), -1 if samples.size else 0)
    if not rows.shape[1]:
        return np.zeros(len(samples), bool)
    # comparisons with NaN are false: what is missing is not also out of range
    if not low.shape:
        return np.asarray((rows.min(axis=1) < low) | (rows.max(axis=1) > high))
    broken = (samples < low) | (samples > high)
    return np.asarray(broken.reshape(rows.shape).any(axis=1))


def _all_finite(arrays: Iterable[Array], calls: int) -> Array:
    """In which calls every value of every array [n, …] is finite, [n]."""
    finite = np.ones(calls, bool)
    for array in arrays:
        if array.dtype.kind == "f" and array.size:
            known = np.isfinite(array)
            if not known.all():
                finite &= known.reshape(calls, -1).all(axis=1)
    return finite
