"""What the agent takes on a device: memory beside the raw runtime's, bytes on the disk, time to import.

    python benchmarks/agent_footprint.py --json

Memory is PSS (shared pages divided among those who share them) after 200 calls and a pause of 3 s: a supervisor that
looks for its server plus a worker, against a process that holds numpy, the runtime and the same model. Import times are
processor times, differences between fresh interpreters that take turns. Exit code 3 if a goal is missed.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.agents.made import tiny_cases
from benchmarks.agents.slots import Case, known_cases, write_slot
from benchmarks.agents.workers import worker

from edgeship.server.trust import Trust
from edgeship_agent.runtime.memory import SERVICE_ENVIRONMENT

CALLS = 200
ROUNDS = 5
SETTLE_S = 3.0
MEMORY_GOAL_MB = 30.0
SIZE_GOAL_MB = 45.0
IMPORT_GOAL_MS = 150.0
#: Outside the size goal: the array library, and the runtimes (they are extras).
NOT_COUNTED = {"numpy", "onnxruntime", "openvino", "ai-edge-litert"}
RUNTIME_MODULES = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert.interpreter", "openvino": "openvino"}
RAW = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from benchmarks.agents.raw import open_raw
call, shape, dtype = open_raw(sys.argv[2], Path(sys.argv[3]))
for _ in range(int(sys.argv[4])):
    call(np.zeros(shape, dtype))
print("ready", flush=True)
sys.stdin.read()
"""
CONFIGURATION = """
schema_version = 1
device_id = "footprint"
target = "x86-64-server"
state_dir = "state"
server_url = "http://127.0.0.1:9"
broker_url = "mqtt://127.0.0.1:9"
root = "root.json"
goal_key = "goal.pub"
"""


def pss_mb(pid: int) -> float:
    """Proportional set size of a process, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise SystemExit("the system does not tell PSS")
    return int(found[1]) * 1024 / 1e6


@contextmanager
def raw_process(case: Case) -> Iterator[int]:
    """A process with nothing but numpy, the runtime and the model."""
    command = [sys.executable, "-c", RAW, str(Path(__file__).resolve().parents[1])]
    command += [case.runtime, str(case.file), str(CALLS)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"the raw runtime did not run {case.name}")
        yield process.pid
        process.stdin.close()


@contextmanager
def supervisor(folder: Path) -> Iterator[int]:
    """An agent that looks for its server and serves nothing yet."""
    Trust.open(folder / "data", time.time)
    for name in ("root.json", "goal.pub"):
        (folder / name).write_bytes((folder / "data" / "trust" / name).read_bytes())
    (folder / "agent.toml").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "edgeship_agent.cli", "run", "--config", "agent.toml"]
    quiet, own = subprocess.DEVNULL, {**os.environ, **SERVICE_ENVIRONMENT}
    with subprocess.Popen(command, cwd=folder, stderr=quiet, stdout=quiet, env=own) as process:
        time.sleep(SETTLE_S)
        if process.poll() is not None:
            raise SystemExit("the supervisor did not stay")
        try:
            yield process.pid
        finally:
            process.terminate()


def figure(name: str, unit: str, values: list[float], goal: float | None, against: str | None) -> dict[str, object]:
    """One line of the result: the median, with the smallest and largest."""
    value = statistics.median(values)
    line = {"name": f"agent/{name}", "value": round(value, 2), "unit": unit, "low": round(min(values), 2)}
    line |= {"high": round(max(values), 2), "n": len(values), "goal": None if goal is None else f"≤ {goal:g}"}
    return {**line, "met": None if goal is None else value <= goal, "against": against}


def memory(case: Case, folder: Path, supervisor_pid: int) -> Iterator[dict[str, object]]:
    """PSS of supervisor and worker, against the raw runtime's process that runs beside them."""
    slot = write_slot(case, folder / f"{case.name}.slot")
    samples = case.samples(16)
    added, workers, raws = [], [], []
    for round_ in range(ROUNDS):
        with raw_process(case) as raw_pid, worker(slot, folder / f"{round_}.sock") as (client, worker_pid):
            for index in range(CALLS):
                client.infer(samples[index % 16])
            time.sleep(SETTLE_S)
            workers.append(pss_mb(worker_pid))
            raws.append(pss_mb(raw_pid))
            added.append(pss_mb(supervisor_pid) + workers[-1] - raws[-1])
    name = f"footprint/{case.name} on {case.runtime}"
    yield figure(f"{name}: raw runtime, PSS", "MB", raws, None, None)
    yield figure(f"{name}: worker, PSS", "MB", workers, None, None)
    yield figure(f"{name}: supervisor and worker over the raw runtime", "MB", added, MEMORY_GOAL_MB, "the raw runtime")


def installed_mb() -> float:
    """Files of the agent's distribution and of everything it needs, without numpy and the runtimes."""
    waiting, seen, size_bytes = ["edgeship-agent"], set(NOT_COUNTED), 0
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        files = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
        if name == "edgeship-agent":  # an editable install lists none of its modules
            files = list((Path(__file__).resolve().parents[1] / "device_agent" / "edgeship_agent").rglob("*.py"))
        size_bytes += sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".pyc")
        waiting += [
            re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
            for requirement in distribution.requires or ()
            if "extra ==" not in requirement and "python_version" not in requirement
        ]
    return size_bytes / 1e6


def started_ms(code: str) -> float:
    """Processor time of a fresh interpreter for some code: an import waits for nothing but a processor."""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"this does not run: {code}")
    return (usage.ru_utime + usage.ru_stime) * 1000.0


def import_time(runtime: str) -> dict[str, object]:
    """What importing the library takes beyond numpy and the runtime."""
    alone = f"import numpy, {RUNTIME_MODULES[runtime]}"
    library = f"{alone}, edgeship_agent.serving.library"
    for code in (alone, library):
        started_ms(code)
    differences = [started_ms(library) - started_ms(alone) for _ in range(2 * ROUNDS)]
    name = f"footprint/import of the library, beyond {runtime}"
    return figure(name, "ms", differences, IMPORT_GOAL_MS, "the runtime's own import")


def figures(folder: Path) -> Iterator[dict[str, object]]:
    """Everything, one figure after another."""
    yield figure("footprint/installed, without numpy and runtime", "MB", [installed_mb()], SIZE_GOAL_MB, None)
    cases = [*tiny_cases(folder)[:1], *(case for case in known_cases() if case.name.startswith("mobilenet"))]
    for runtime in dict.fromkeys(case.runtime for case in cases):
        yield import_time(runtime)
    with supervisor(folder) as pid:
        yield figure("footprint/supervisor alone, PSS", "MB", [pss_mb(pid)], None, None)
        for case in cases:
            yield from memory(case, folder, pid)


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
