"""Measures in a process of its own: ``python -m edgeship_agent.profiling.measuring outputs|times FOLDER [INDEX]``.

FOLDER holds ``plan.json``, ``inputs`` and, in ``tasks/INDEX/``, the files of each task. It prints JSON lines
``{"label", "done", "total"}``, leaves its result in FOLDER, and ends with 0; else the last line of stderr says why.
A model that crashes its runtime takes this process with it, nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final

import msgspec

from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.contract.profiling import Conditions, ProfilePlan, ProfileTask
from edgeship_agent.contract.wire import read_json
from edgeship_agent.processing.arrays import Array
from edgeship_agent.profiling.answers import (
    EXPECTED_FILE,
    INPUTS_FILE,
    OUTPUTS_FILE,
    PLAN_FILE,
    TASKS_FOLDER,
    TIMES_FILE,
    Outputs,
    Times,
)
from edgeship_agent.profiling.figures import latency_of, parity_of, throttling
from edgeship_agent.runtime import EngineOptions, open_engine
from edgeship_agent.runtime.bound import BoundModel
from edgeship_agent.runtime.tensors import decode_tensor_file, sample_arrays
from edgeship_agent.runtime.timing import time_in_turn

_NICENESS: Final = 19
#: Where sessions share the processor group by group, niceness counts within a group alone, and this process has its own
#: session. Source: sched(7), "The autogroup feature".
_AUTOGROUP: Final = Path("/proc/self/autogroup")
#: Chosen first where memory runs out. Source: proc(5), oom_score_adj.
_FIRST_TO_GO: Final = "1000"
_CPUS: Final = Path("/sys/devices/system/cpu")
_SENSORS: Final = Path("/sys/class/thermal")
#: Queries in a row before memory is looked at, at least.
_FEWEST_RUNS: Final = 20


def outputs(folder: Path, plan: ProfilePlan, index: int) -> None:
    """One task: its answers to every input against the expected ones, and the memory that it takes."""
    task = plan.tasks[index]
    samples = _samples(folder / INPUTS_FILE)
    model = _open(folder, index, task)
    answers = []
    for done, sample in enumerate(samples, 1):
        answers.append(model.run(sample))
        _say(task.label, done, len(samples))
    parity = None
    if task.expected is not None:
        wanted = _samples(folder / TASKS_FOLDER / str(index) / EXPECTED_FILE)
        if len(wanted) != len(answers) or not all(wanted):
            raise EdgeshipError("expected outputs and inputs do not belong together", key=task.label)
        parity = parity_of(answers, wanted, next(iter(wanted[0])), task.tolerance)
    for _, sample in zip(range(_FEWEST_RUNS - len(samples)), cycle(samples), strict=False):
        model.run(sample)
    result = Outputs(peak_memory_bytes=_peak_memory_bytes(), parity=parity)
    (folder / TASKS_FOLDER / str(index) / OUTPUTS_FILE).write_bytes(msgspec.json.encode(result))


def times(folder: Path, plan: ProfilePlan, indices: Sequence[int]) -> None:
    """All tasks in turn."""
    samples = _samples(folder / INPUTS_FILE)
    runs = {plan.tasks[index].label: _open(folder, index, plan.tasks[index]).run for index in indices}
    first = read_conditions()
    series = time_in_turn(runs, samples, plan, lambda done, total: _say("latency", done, total))
    last = read_conditions()
    latencies = {label: latency_of(times_ms, len(plan.tasks)) for label, times_ms in series.items()}
    result = Times(latencies=latencies, throttling=throttling(latencies, first, last), first=first, last=last)
    (folder / TIMES_FILE).write_bytes(msgspec.json.encode(result))


def read_conditions(cpus: Path = _CPUS, sensors: Path = _SENSORS) -> Conditions:
    """Clock of the fastest processor and heat of the hottest sensor, as Linux tells them.

    Source: Linux, cpufreq (``scaling_cur_freq``, in kHz) and sysfs-class-thermal (``temp``, in m°C).
    """
    heat = _highest(sensors.glob("thermal_zone*/temp"))
    return Conditions(frequency_khz=_highest(cpus.glob("cpu*/cpufreq/scaling_cur_freq")), temperature_c=heat / 1000.0)


def _highest(files: Iterable[Path]) -> float:
    found = [0.0]
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            found.append(float(file.read_text(encoding="ascii")))
    return max(found)


def stand_back(memory_bytes: int) -> None:
    """Give way to everything else on this device, and keep to a limit of memory.

    The limit is on private writable memory (``RLIMIT_DATA``): address space alone costs nothing, and runtimes reserve
    much more of it than they use.
    """
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        _AUTOGROUP.write_text(str(_NICENESS), encoding="ascii")
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO, encoding="ascii")
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _peak_memory_bytes() -> int:
    """Resident memory of this process at its highest. Source: proc(5), VmHWM."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _samples(path: Path) -> list[Mapping[str, Array]]:
    return [sample_arrays(sample) for sample in decode_tensor_file(path.read_bytes(), file=path.name).samples]


def _open(folder: Path, index: int, task: ProfileTask) -> BoundModel:
    model = folder / TASKS_FOLDER / str(index) / task.files[0].name
    return BoundModel(open_engine(task.runtime, model, EngineOptions(threads=task.threads)), task.variant)


def _say(label: str, done: int, total: int) -> None:
    sys.stdout.write(msgspec.json.encode({"label": label, "done": done, "total": total}).decode() + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done; 1 and one sentence as the last line of stderr."""
    command, folder, *indices = arguments
    plan = read_json((Path(folder) / PLAN_FILE).read_bytes(), ProfilePlan, file=PLAN_FILE)
    stand_back(plan.memory_bytes)
    try:
        if command == "outputs":
            outputs(Path(folder), plan, int(indices[0]))
        else:
            times(Path(folder), plan, [int(index) for index in indices])
    except EdgeshipError as error:
        sys.stderr.write(f"\n{error.sentence()}\n")
        return 1
    except MemoryError:
        sys.stderr.write(f"\nit needs more memory than the {plan.memory_bytes} bytes that the job allows\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
