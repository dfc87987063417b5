"""What the agent adds to a raw runtime call: in process with sketches on, and through its Unix socket.

    python benchmarks/agent_overhead.py --json

For each runtime, on the demo's second digits model: the runtime alone, the in-process library and the worker's socket
take turns in one run, so that the ratios hold when the machine's speed drifts. Exit code 3 if a goal is missed.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgeship.bundle import Bundle
from edgeship.demo.building import build, write_data
from edgeship.demo.digits import load_digits
from edgeship_agent.contract.manifest import Variant
from edgeship_agent.contract.oci import MANIFEST_FILE
from edgeship_agent.runtime import EngineOptions, open_engine
from edgeship_agent.serving.client import Client
from edgeship_agent.serving.library import LocalModel

ROUNDS = 10
CALLS_A_ROUND = 300
P99_GOAL_MS = 10.0
READY_TIMEOUT_S = 30.0


def unpack(bundle: Bundle, variant: Variant, directory: Path) -> Path:
    """Write a variant as the slot directory that an agent would have."""
    (directory / "files").mkdir(parents=True)
    manifest = bundle.blob(bundle.manifest_digest)
    (directory / MANIFEST_FILE).write_bytes(manifest)
    for file in variant.files:
        (directory / "files" / file.path).parent.mkdir(parents=True, exist_ok=True)
        (directory / "files" / file.path).write_bytes(bundle.blob(file.digest))
    slot = {"schema_version": 1, "model": bundle.manifest.name, "version": bundle.manifest.version}
    slot |= {"digest": bundle.digest, "variant": variant.label, "arm": "main"}
    (directory / "slot.json").write_text(json.dumps(slot))
    return directory


@contextmanager
def worker(slot: Path, path: Path) -> Iterator[Client]:
    """A real worker process on its socket."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "edgeship_agent.serving.worker", "--slot", str(slot), "--arm", "main"]
    command += ["--boot-id", "bench", "--socket", str(path), "--control-fd", str(theirs.fileno()), "--settings", "{}"]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not path.exists():
            if time.monotonic() > deadline_s or process.poll() is not None:
                raise SystemExit("the worker did not become ready")
            time.sleep(0.02)
        try:
            with Client(path) as client:
                yield client
        finally:
            ours.close()  # the worker ends with its supervisor


def timed_us(call: Callable[[np.ndarray], object], images: np.ndarray) -> list[float]:
    """One time per call, in µs."""
    times = []
    for index in range(CALLS_A_ROUND):
        image = images[index % len(images)]
        started_ns = time.perf_counter_ns()
        call(image)
        times.append((time.perf_counter_ns() - started_ns) / 1000.0)
    return times


def compare(bundle: Bundle, variant: Variant, folder: Path) -> dict[str, list[float]]:
    """Times of the three ways, taken in turns."""
    slot = unpack(bundle, variant, folder / variant.runtime)
    model = variant.file("model")
    assert model is not None
    engine = open_engine(variant.runtime, slot / "files" / model.path, EngineOptions())
    shapes = [tuple(1 if size < 0 else size for size in info.shape) for info in engine.signature.inputs]
    arrays = [np.zeros(shape, info.dtype) for shape, info in zip(shapes, engine.signature.inputs, strict=True)]
    images = load_digits().evaluation.images
    times: dict[str, list[float]] = {"raw": [], "library": [], "socket": []}
    with LocalModel.open(slot) as local, worker(slot, folder / f"{variant.runtime}.sock") as client:
        ways: dict[str, Callable[[np.ndarray], object]] = {
            "raw": lambda _image: engine.run(arrays),
            "library": lambda image: local.predict({"image": image}),
            "socket": lambda image: client.infer({"image": image}),
        }
        for way in ways.values():
            timed_us(way, images)
        for _ in range(ROUNDS):
            for name, way in ways.items():
                times[name] += timed_us(way, images)
    engine.close()
    return times


def figure(name: str, value: float, unit: str, spread: tuple[float, float], goal: float | None) -> dict[str, object]:
    """One line of the result."""
    met = None if goal is None else value <= goal
    low, high = (round(bound, 2) for bound in spread)
    count = ROUNDS * CALLS_A_ROUND
    line = {"name": name, "value": round(value, 2), "unit": unit, "low": low, "high": high, "n": count}
    return {**line, "goal": goal, "met": met, "against": "the raw runtime, one thread, in the same run"}


def rounds_spread(ours: list[float], raw: list[float], merge: Callable[[float, float], float]) -> tuple[float, float]:
    """Smallest and largest difference or ratio of the rounds' medians."""
    per_round = []
    for start in range(0, len(ours), CALLS_A_ROUND):
        end = start + CALLS_A_ROUND
        per_round.append(merge(statistics.median(ours[start:end]), statistics.median(raw[start:end])))
    return min(per_round), max(per_round)


def figures_of(runtime: str, times: dict[str, list[float]]) -> list[dict[str, object]]:
    """Overheads of the library and the socket against the raw runtime."""
    raw = statistics.median(times["raw"])
    library, through = statistics.median(times["library"]), statistics.median(times["socket"])
    p99_ms = float(np.quantile(times["socket"], 0.99)) / 1000.0
    ordered = np.sort(times["socket"]) / 1000.0
    added = rounds_spread(times["library"], times["raw"], lambda ours, base: ours - base)
    ratio = rounds_spread(times["socket"], times["raw"], lambda ours, base: ours / base)
    return [
        figure(f"agent.{runtime}.library_overhead_p50_us", library - raw, "us", added, None),
        figure(f"agent.{runtime}.socket_over_raw_p50", through / raw, "ratio", ratio, None),
        figure(f"agent.{runtime}.socket_p99_ms", p99_ms, "ms", (float(ordered[0]), float(ordered[-1])), P99_GOAL_MS),
    ]


def main() -> None:
    """Build, compare, print."""
    missed = False
    with tempfile.TemporaryDirectory(prefix="edgeship-") as name:
        folder = Path(name)
        write_data(folder / "data")
        built = build("v2", folder / "data", folder / "v2", folder / "build.log")
        bundle = Bundle.open(built.bundle)
        chosen = {f"{row['target']}/{row['runtime']}/{row['precision']}" for row in built.chosen}
        for variant in bundle.manifest.variants:
            if variant.label in chosen:
                for line in figures_of(variant.runtime, compare(bundle, variant, folder)):
                    missed |= line["met"] is False
                    print(json.dumps(line))
    sys.exit(3 if missed else 0)


if __name__ == "__main__":
    main()
