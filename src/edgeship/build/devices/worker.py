"""Runs on the device, in its Python, with the agent's own runtime code: outputs and latency of candidates.

``python -m edgeship.build.devices.worker facts|outputs|latency FOLDER [LABEL]``. It prints JSON lines
``{"label", "done", "total"}`` and leaves its results in FOLDER. Kept to Python 3.10, as the agent is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from edgeship.build.measure import measure
from edgeship_agent.contract.errors import EdgeshipError
from edgeship_agent.contract.manifest import Variant
from edgeship_agent.runtime import EngineOptions, isa, open_engine, runtime_version
from edgeship_agent.runtime.bound import BoundModel
from edgeship_agent.runtime.engine import Array
from edgeship_agent.runtime.tensors import decode_tensor_file, encode_tensor_file, sample_arrays

_EVERY = 50


class Task(Struct, frozen=True, kw_only=True):
    """One candidate.

    Attributes:
        model: path of its file below the folder.
        variant: its entry in a manifest, as far as running it needs one.
    """

    label: str
    runtime: str
    model: str
    threads: int
    variant: Variant


class Plan(Struct, frozen=True, kw_only=True):
    """How latency is measured; the target's own table."""

    warm_up: int
    min_queries: int
    min_seconds: float


class Job(Struct, frozen=True, kw_only=True):
    """Everything that there is to do."""

    tasks: tuple[Task, ...]
    plan: Plan


class Facts(Struct, frozen=True, kw_only=True):
    """What the device is.

    Attributes:
        isa: ISA class, such as ``aarch64+dotprod``.
        runtimes: runtime → installed version, empty where there is none.
    """

    arch: str
    isa: str
    features: tuple[str, ...]
    cpu: str
    runtimes: dict[str, str]


class _Lines:
    """Progress as JSON lines."""

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        """Nothing is finished here."""

    def count(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total``."""
        sys.stdout.write(json.dumps({"label": label, "done": done, "total": total}) + "\n")
        sys.stdout.flush()


def facts(folder: Path, _label: str) -> None:
    """``facts.json``: what this device is."""
    found = Facts(
        arch=isa.architecture(),
        isa=isa.isa_class(),
        features=isa.isa_features(),
        cpu=isa.cpu_name(),
        runtimes={name: runtime_version(name) or "" for name in ("litert", "onnxruntime", "openvino")},
    )
    (folder / "facts.json").write_bytes(msgspec.json.encode(found))


def outputs(folder: Path, label: str) -> None:
    """``<label>/outputs.msgpack``: the answers of one candidate to every input."""
    job = _job(folder)
    task = next(each for each in job.tasks if each.label == label)
    samples = _samples(folder)
    model = _open(folder, task)
    answers: list[Mapping[str, Array]] = []
    for index, sample in enumerate(samples):
        answers.append(model.run(sample))
        if (index + 1) % _EVERY == 0 or index + 1 == len(samples):
            _Lines().count(f"verify {label}", index + 1, len(samples))
    (folder / f"{task.model}.outputs").write_bytes(encode_tensor_file(answers))


def latency(folder: Path, _label: str) -> None:
    """``times.json``: label → times of every query in ms, all candidates in turn."""
    job = _job(folder)
    runs = {task.label: _open(folder, task).run for task in job.tasks}
    times = measure(runs, _samples(folder), job.plan, _Lines())
    document = {label: each.times_ms for label, each in times.items()}
    (folder / "times.json").write_bytes(msgspec.json.encode(document))


def _job(folder: Path) -> Job:
    return msgspec.json.decode((folder / "job.json").read_bytes(), type=Job)


def _samples(folder: Path) -> Sequence[Mapping[str, Array]]:
    path = folder / "inputs.msgpack"
    return [sample_arrays(sample) for sample in decode_tensor_file(path.read_bytes(), file=path).samples]


def _open(folder: Path, task: Task) -> BoundModel:
    engine = open_engine(task.runtime, folder / task.model, EngineOptions(threads=task.threads))
    return BoundModel(engine, task.variant)


_COMMANDS = {"facts": facts, "outputs": outputs, "latency": latency}


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 done, 1 and one sentence as the last line of stderr."""
    command, folder, *label = arguments
    try:
        _COMMANDS[command](Path(folder), label[0] if label else "")
    except EdgeshipError as error:
        sys.stderr.write(f"\n{error.sentence()}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
