"""How long a build takes that finds everything remembered, beside the first one and beside starting the program.

    python benchmarks/build_again.py --json [--realtime]

ResNet-8 (Keras) for three targets, the whole process: once with nothing remembered, then in turns the same again, with
another budget each time, and ``edgeship --help``. Wall time is what a person waits; processor time hardly depends on
what else the machine does, and its ratio to that of ``--help`` hardly on how fast it is. ``--realtime`` (needs root)
lets the short runs go before all other work. Needs the folder that EDGESHIP_TEST_DATA names, and the TensorFlow
toolchain. Exit code 3 if the goal is missed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

HERE: Final = Path(__file__).resolve().parent
TEST_DATA: Final = Path(os.environ.get("EDGESHIP_TEST_DATA", HERE.parents[1] / "shared" / "data"))
TARGETS: Final = ("x86-64-server", "intel-nuc", "x86-64-litert")
ROUNDS: Final = 15
GOAL_S: Final = 1.0
EXIT_GOAL_MISSED: Final = 3


def prepared(folder: Path) -> list[str]:
    """Files for calibration and evaluation, and the command of the build."""
    with np.load(TEST_DATA / "data" / "cifar10jpeg_train_2000.npz") as train:
        np.savez(folder / "calibration.npz", x=train["x"][::10].astype(np.float32))
    with np.load(TEST_DATA / "data" / "cifar10jpeg_test_1000.npz") as test:
        np.savez(folder / "evaluation.npz", x=test["x"].astype(np.float32), y=test["y"].astype(np.int64))
    model = TEST_DATA / "mlperf_tiny" / "ic_resnet8" / "pretrainedResnet.h5"
    data = [word for name in ("calibration", "evaluation") for word in (f"--{name}", str(folder / f"{name}.npz"))]
    targets = [word for name in TARGETS for word in ("-t", name)]
    ends = ["--key", str(folder / "author.key"), "-o", str(folder / "out")]
    return [sys.executable, "-m", "edgeship", "build", str(model), *targets, *data, *ends]


def timed(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Wall and processor time of a command and all that it starts, in s.

    Raises:
        SystemExit: it failed.
    """
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"EDGESHIP_CACHE": str(folder / "cache"), "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall_s, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {done.stderr}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return wall_s, spent


def rounds(build: Sequence[str], folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Times of each kind of run, taken in turns."""
    first = ["chrt", "--fifo", "10"] if "--realtime" in sys.argv else []
    build, help_command = [*first, *build], [*first, sys.executable, "-m", "edgeship", "--help"]
    found: dict[str, list[tuple[float, float]]] = {"again": [], "budget": [], "help": []}
    timed([*build, "--max-drop", "0.02"], folder)  # bytecode of what only builds that find everything need
    for index in range(ROUNDS):
        found["again"].append(timed(build, folder))
        found["budget"].append(timed([*build, "--size-bytes", str(400_000 + index)], folder))
        found["help"].append(timed(help_command, folder))
    return found


def row(
    name: str, unit: str, values: Sequence[float], goal: float | None = None, against: str | None = None
) -> dict[str, object]:
    """A figure: the median of some, with their least and largest."""
    value = round(statistics.median(values), 3)
    return {"name": f"build again/{name}", "value": value, "unit": unit, "low": round(min(values), 3),
            "high": round(max(values), 3), "n": len(values), "goal": None if goal is None else f"≤ {goal:g}",
            "met": None if goal is None else value <= goal, "against": against}  # fmt: skip


def figures(folder: Path) -> Iterator[dict[str, object]]:
    """Every figure."""
    build = prepared(folder)
    first = timed(build, folder)
    yield row("first build, wall", "s", [first[0]])
    yield row("first build, processor", "s", [first[1]])
    found = rounds(build, folder)
    for kind, words in (("again", "the same again"), ("budget", "a changed budget")):
        yield row(f"{words}, wall", "s", [wall for wall, _ in found[kind]], GOAL_S if kind == "budget" else None)
        yield row(f"{words}, processor", "s", [spent for _, spent in found[kind]])
        ratios = [one[1] / other[1] for one, other in zip(found[kind], found["help"], strict=True)]
        yield row(f"{words}, processor ÷ edgeship --help", "ratio", ratios, against="edgeship --help")


def main() -> None:
    """Measure and print."""
    missed = False
    with tempfile.TemporaryDirectory(prefix="edgeship-") as folder:
        for line in figures(Path(folder)):
            missed |= line["met"] is False
            shown = json.dumps(line, ensure_ascii=False) if "--json" in sys.argv else f"{line['name']}: {line['value']}"
            print(shown, flush=True)
    sys.exit(EXIT_GOAL_MISSED if missed else 0)


if __name__ == "__main__":
    main()
