"""What the agent adds to a raw runtime call: in process with sketches on, through its socket, and end to end.

    EDGESHIP_TEST_DATA=... python benchmarks/agent_overhead.py --json [--realtime]

The ways take turns in one run, one thread each, so that differences hold when the machine's speed drifts. In process
they do so call by call: what is added is the median of the differences of the pairs, `low` and `high` are the ends of
its 95 % interval. Through a socket they do so by rounds: what is added is the difference of the medians, `low` and
`high` are the smallest and largest of the rounds. The mean contains what the median does not: one call in 512 (fewer
for large samples) measures the whole block before it. A machine that other programs use too adds their turns to every
answer through a socket: `--realtime` asks the system for priority over them (SCHED_FIFO; needs the right to it), and
every figure says so. Exit code 3 if a goal is missed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.agents.made import frame_case, tiny_cases
from benchmarks.agents.paired import (
    Statistic,
    added_mean,
    added_median,
    added_p99,
    mean_ratio,
    median_ratio,
    take_pairs,
)
from benchmarks.agents.parts import parts_us
from benchmarks.agents.raw import open_raw, raw_of
from benchmarks.agents.shipped import face_detector_int8
from benchmarks.agents.slots import FACE_DETECTOR, Case, known_cases, write_slot
from benchmarks.agents.through_socket import socket_ways
from benchmarks.agents.workers import worker

from edgeship_agent.serving.library import LocalModel

ROUNDS = 8
#: Longest time of one way in one round.
ROUND_S = 0.25
MOST_CALLS = 1024
FEWEST_CALLS = 40
#: Calls whose parts are timed.
PART_CALLS = 512
REALTIME = "--realtime" in sys.argv
AGAINST = "the raw runtime, one thread, in the same run" + (", real-time priority" if REALTIME else "")
SMALL_FRAME, LARGE_FRAME = (224, 224, 3), (1080, 1920, 3)

Times = dict[str, list[list[float]]]
Way = Callable[[int], object]


def timed_us(way: Way, calls: int) -> list[float]:
    """One time per call, in µs."""
    times = []
    for index in range(calls):
        started_ns = time.perf_counter_ns()
        way(index)
        times.append((time.perf_counter_ns() - started_ns) / 1000.0)
    return times


def take_turns(ways: dict[str, Way]) -> Times:
    """Times of every way, by round."""
    slowest_us = max(float(np.median(timed_us(way, FEWEST_CALLS))) for way in ways.values())
    calls = int(min(MOST_CALLS, max(FEWEST_CALLS, ROUND_S * 1e6 / slowest_us)))
    times: Times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            times[name].append(timed_us(way, calls))
    return times


def pooled(times: Times, name: str) -> np.ndarray:
    """All times of a way."""
    return np.concatenate(times[name])


def figure(name: str, unit: str, rounds: list[float], value: float, n: int, goal: float | None) -> dict[str, object]:
    """One line of the result; low and high are those of the rounds, or the ends of an interval."""
    line = {"name": f"agent/{name}", "value": round(value, 4), "unit": unit}
    line |= {"low": round(min(rounds), 4), "high": round(max(rounds), 4), "n": n}
    return {**line, "goal": None if goal is None else f"≤ {goal:g}", "met": None if goal is None else value <= goal} | {
        "against": AGAINST
    }


def added(name: str, times: Times, ours: str, base: str, share: float, goal: float | None) -> dict[str, object]:
    """Quantile of one way minus the median of another, in µs; share 0 stands for the means."""

    def difference(left: np.ndarray, right: np.ndarray) -> float:
        if not share:
            return float(left.mean() - right.mean())
        return float(np.quantile(left, share) - np.median(right))

    pairs = zip(times[ours], times[base], strict=True)
    rounds = [difference(np.asarray(left), np.asarray(right)) for left, right in pairs]
    both = pooled(times, ours), pooled(times, base)
    return figure(name, "us", rounds, difference(*both), both[0].size, goal)


def in_process(case: Case, slot: Path) -> Iterator[dict[str, object]]:
    """The library, which prepares raw samples, against the raw runtime, which is given a prepared one."""
    samples = case.samples(64)
    with LocalModel.open(slot) as model, priority():
        engine = model._session._predictor._engine
        raw, (info,) = raw_of(engine), engine.signature.inputs
        prepared = np.random.default_rng(0).normal(size=info.shape).astype(info.dtype)
        pairs = take_pairs(lambda _: raw(prepared), lambda index: model.predict(samples[index % 64]))
        yield from parts(case, model)
    rows: tuple[tuple[str, Statistic, float | None], ...] = (
        ("added p50", added_median, 10.0),
        ("added p99 over the raw p50", added_p99, None),
        ("added mean, blocks measured", added_mean, None),
    )
    for word, statistic, goal in rows:
        value, ends = pairs.of(statistic)
        yield figure(f"in process/{case.name}: {word}", "us", ends, value, len(pairs), goal)


def parts(case: Case, model: LocalModel) -> Iterator[dict[str, object]]:
    """What one call consists of."""
    for part, times in parts_us(model, case.samples(64), PART_CALLS).items():
        rounds = [float(np.median(each)) for each in np.array_split(times, ROUNDS)]
        name = f"in process/{case.name}: of a call, {part}, p50"
        yield figure(name, "us", rounds, float(np.median(times)), times.size, None)


def mobilenet_ratio(case: Case, slot: Path) -> Iterator[dict[str, object]]:
    """What serving and telemetry add to the predictor (preprocessing and runtime) of a MobileNet-class model."""
    samples = case.samples(64)
    with LocalModel.open(slot) as model, priority():
        predictor = model._session._predictor  # the very one: two of the same file differ by where their memory lies
        pairs = take_pairs(
            lambda index: predictor.run(samples[index % 64]), lambda index: model.predict(samples[index % 64])
        )
        yield from parts(case, model)
    rows: tuple[tuple[str, Statistic, float | None], ...] = (
        ("p50", median_ratio, 1.02),
        ("mean, blocks measured", mean_ratio, None),
    )
    for word, statistic, goal in rows:
        value, ends = pairs.of(statistic)
        name = f"in process/{case.name}: ratio to preprocessing and runtime, {word}"
        yield figure(name, "ratio", ends, value, len(pairs), goal)


def through_socket(case: Case, slot: Path, goals: tuple[float, float | None]) -> Iterator[dict[str, object]]:
    """Whole frames through the worker: against the raw runtime, against the library, and against a bare socket."""
    with socket_ways(case, slot) as ways, priority(*ways.processes):
        times = take_turns(ways.calls)
        processor = {name: [ways.processor_us(name) for _ in range(3)] for name in ("ours", "sleeping")}
    times |= ways.on_the_way(times)
    name = f"socket/{case.name}"
    yield added(f"{name}: in process, added p50", times, "in process", "raw", 0.5, None)
    for way, title in (("ours", name), ("sleeping", f"{name}, sleeping")):
        yield added(f"{title}: added p50", times, way, "raw", 0.5, goals[0])
        yield added(f"{title}: added p99 over the raw p50", times, way, "raw", 0.99, goals[1])
        yield added(f"{title}: more than in process, p50", times, way, "in process", 0.5, None)
        yield alone(f"{title}: on the way, p50", times, f"{way}, on the way", 0.5, goals[0])
        yield alone(f"{title}: on the way, p99", times, f"{way}, on the way", 0.99, goals[1])
        used = processor[way]
        yield figure(f"{title}: processor time of a call, 200 a second", "us", used, float(np.median(used)), 300, None)
    yield added(f"{name}, frame in room of the client's: added p50", times, "room", "raw", 0.5, None)
    yield alone(f"{name}: two bare processes and the same bytes, p50", times, "echo", 0.5, None)
    yield alone(f"{name}: two bare processes and 128 bytes, p50", times, "wake", 0.5, None)
    yield alone(f"{name}: two bare processes and 128 bytes, p99", times, "wake", 0.99, None)
    yield alone(f"{name}: two that never sleep and the same bytes in shared memory, p50", times, "shared", 0.5, None)
    yield alone(f"{name}: two that never sleep and the same bytes in shared memory, p99", times, "shared", 0.99, None)


def alone(name: str, times: Times, way: str, share: float, goal: float | None) -> dict[str, object]:
    """Quantile of one way, in µs."""
    values = pooled(times, way)
    rounds = [float(np.quantile(part, share)) for part in times[way]]
    return figure(name, "us", rounds, float(np.quantile(values, share)), values.size, goal)


def end_to_end(case: Case, slot: Path) -> Iterator[dict[str, object]]:
    """Bytes in, answer out, through the socket, preprocessing included, while telemetry runs; and the runtime alone."""
    raw, shape, dtype = open_raw(case.runtime, case.file)
    prepared = np.random.default_rng(0).normal(size=shape).astype(dtype)
    samples = case.samples(16)
    with worker(slot, slot.parent / f"{slot.name}.sock") as (client, pid), priority(pid):
        times = take_turns({"raw": lambda _: raw(prepared), "ours": lambda index: client.infer(samples[index % 16])})
    goal_ms = None if case.name == FACE_DETECTOR else 10.0
    rows = (("ours", "bytes in, answer out, p50", 0.5, None), ("ours", "bytes in, answer out, p99", 0.99, goal_ms),
            ("raw", "the runtime alone, p50", 0.5, None), ("raw", "the runtime alone, p99", 0.99, None))  # fmt: skip
    for way, word, share, goal in rows:
        values = pooled(times, way) / 1000.0
        rounds = [float(np.quantile(part, share)) / 1000.0 for part in times[way]]
        name = f"end to end/{case.name}: {word}"
        yield figure(name, "ms", rounds, float(np.quantile(values, share)), values.size, goal)


@contextmanager
def priority(*others: int) -> Iterator[None]:
    """Real-time priority for this process and others, where it was asked for."""
    processes = (0, *others) if REALTIME else ()
    for process in processes:
        os.sched_setscheduler(process, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        if REALTIME:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def figures(folder: Path) -> Iterator[dict[str, object]]:
    """Everything, one figure after another."""
    known = known_cases()
    for case in [*tiny_cases(folder), *known[:1]]:
        yield from in_process(case, write_slot(case, folder / f"{case.name}.in-process"))
    small = frame_case(folder, "150 kB", SMALL_FRAME)
    large = frame_case(folder, "6 MB by memfd", LARGE_FRAME)
    yield from through_socket(small, write_slot(small, folder / "small"), (40.0, 150.0))
    yield from through_socket(large, write_slot(large, folder / "large"), (1000.0, None))
    for index, case in enumerate([*known, *shipped(known, folder)]):
        slot = write_slot(case, folder / f"known{index}")
        if case.name.startswith("mobilenet"):
            yield from mobilenet_ratio(case, slot)
        yield from end_to_end(case, slot)


def shipped(known: Sequence[Case], folder: Path) -> Iterator[Case]:
    """Cases that are published in fp32 alone, as the build ships them."""
    for case in known:
        if case.name == FACE_DETECTOR:
            file = face_detector_int8(case.file, folder / "face-detector")
            yield replace(case, name="ultraface-320", file=file)


def main() -> None:
    """Measure and print."""
    missed = False
    with tempfile.TemporaryDirectory(prefix="edgeship-") as name:
        for line in figures(Path(name)):
            missed |= line["met"] is False
            print(json.dumps(line, ensure_ascii=False), flush=True)
    sys.exit(3 if missed else 0)


if __name__ == "__main__":
    main()
