"""Where the time of a prediction in process goes: what any application must do itself, and what the agent adds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from edgeship_agent.processing.arrays import Array
from edgeship_agent.runtime.engine import Engine, Signature
from edgeship_agent.serving.library import LocalModel

#: In the order in which a call goes through them.
PARTS = ("preprocessing", "runtime", "postprocessing", "telemetry and answer")


class _TimedEngine:
    """An engine that notes when it was called and when it answered."""

    def __init__(self, engine: Engine, stamps_ns: list[int]) -> None:
        self._engine = engine
        self._stamps_ns = stamps_ns

    @property
    def signature(self) -> Signature:
        """As the engine's."""
        return self._engine.signature

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """As the engine's."""
        self._stamps_ns.append(time.perf_counter_ns())
        results = self._engine.run(arrays)
        self._stamps_ns.append(time.perf_counter_ns())
        return results

    def close(self) -> None:
        """As the engine's."""
        self._engine.close()


def parts_us(model: LocalModel, samples: Sequence[Mapping[str, Array]], calls: int) -> dict[str, Array]:
    """Time of every part of every call, in µs; the clock's own time, some 0.1 µs a part, is in it.

    Args:
        model: its engine and session are looked into from now on.
        samples: what it is called with, in turn.
        calls: how many are timed.
    """
    session = model._session
    predictor = session._predictor
    stamps_ns: list[int] = []
    predictor._bound._engine = predictor._engine = _TimedEngine(predictor._engine, stamps_ns)
    predict = session.predict

    def timed(raw: Mapping[str, Array]) -> dict[str, Array]:
        outputs = predict(raw)
        stamps_ns.append(time.perf_counter_ns())
        return outputs

    session.predict = timed  # type: ignore[method-assign]
    for index in range(calls):
        stamps_ns.append(time.perf_counter_ns())
        model.predict(samples[index % len(samples)])
        stamps_ns.append(time.perf_counter_ns())
    times = np.diff(np.asarray(stamps_ns).reshape(calls, -1), axis=1) / 1000.0
    return dict(zip(PARTS, times.T, strict=True))
