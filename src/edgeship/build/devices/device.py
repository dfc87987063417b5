"""A device that candidates are run on: what it is, what it lacks, what it answers and how fast.

Everything goes into the session's private folder there: the agent's runtime code, the candidates, the inputs and, where
the device has no runtime, a virtual environment. The session removes it all.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from msgspec import Struct

from edgeship.build.devices.link import Link
from edgeship.build.devices.worker import Facts, Job, Plan, Task
from edgeship.build.measure import Latency
from edgeship.build.progress import Progress
from edgeship_agent.contract.errors import ConversionError, TransferError
from edgeship_agent.contract.manifest import Variant
from edgeship_agent.runtime.engine import Array
from edgeship_agent.runtime.tensors import decode_tensor_file, encode_tensor_file, sample_arrays

#: Oldest Python that the agent's code runs on. Source: requires-python in device_agent/pyproject.toml.
OLDEST_PYTHON: Final = (3, 10)
#: Runtime → the distribution that brings it; besides, the agent's code needs two more.
DISTRIBUTIONS: Final = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime", "openvino": "openvino"}
_ALWAYS: Final = ("numpy", "msgspec")
_AGENT_PARTS: Final = ("contract", "processing", "runtime")
#: Of this package, what the worker imports; each is light by design.
_OWN_PARTS: Final = ("__init__.py", "build/__init__.py", "build/measure.py", "build/devices/__init__.py",
                     "build/devices/worker.py")  # fmt: skip
_WORKER: Final = "edgeship.build.devices.worker"
#: Prints the installed versions of the distributions in its arguments as one JSON line.
_ASK_VERSIONS: Final = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""
_SHORT_S: Final = 120.0
_INSTALL_S: Final = 1800.0
_WORK_S: Final = 3600.0


class Candidate(Struct, frozen=True, kw_only=True):
    """One artifact that is run there.

    Attributes:
        files: the model first, then what belongs beside it.
        variant: its entry in a manifest, as far as running it needs one.
    """

    label: str
    runtime: str
    threads: int
    files: tuple[Path, ...]
    variant: Variant


class Device:
    """An open session on a device.

    Args:
        link: the connection; closed with the device.
        name: for people.
        progress: told what goes on.

    Raises:
        TransferError: its Python is too old, or the connection broke.
    """

    def __init__(self, link: Link, name: str, progress: Progress) -> None:
        self._link = link
        self._progress = progress
        self.name = name
        self._python = str(link.greeting["executable"])
        self._sent: set[str] = set()
        self._facts: Facts | None = None
        version = tuple(int(part) for part in link.greeting["python"])
        if version[:2] < OLDEST_PYTHON:
            link.close()
            raise TransferError(
                f"Python {'.'.join(map(str, version))} is too old, 3.10 is needed", retryable=False, file=name,
                next_step="install a newer python3 on the device",
            )  # fmt: skip

    def __enter__(self) -> Self:
        """The device itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the session, which removes everything there."""
        self._link.close()

    @property
    def machine(self) -> str:
        """As the device's ``uname -m`` says it."""
        return str(self._link.greeting["machine"])

    @property
    def facts(self) -> Facts:
        """What it is; known once it is prepared."""
        assert self._facts is not None, "prepare() comes first"
        return self._facts

    def prepare(self, requirements: Mapping[str, str]) -> None:
        """Bring the agent's runtime code there, and the runtimes where they are missing.

        Args:
            requirements: runtime → accepted versions, such as ``>=1.23,<2``; empty for any.

        Raises:
            TransferError: something is missing and cannot be installed, or the connection broke.
        """
        self._send_code()
        wanted = dict.fromkeys(_ALWAYS, "") | {DISTRIBUTIONS[name]: accepted for name, accepted in requirements.items()}
        missing = [name for name, version in self._versions(list(wanted)).items() if not version]
        if missing:
            self._install([name + wanted[name] for name in missing], missing)
        self._worker("facts", timeout_s=_SHORT_S)
        self._facts = msgspec.json.decode(self._link.get("facts.json"), type=Facts)

    def send_inputs(self, samples: Sequence[Mapping[str, Array]]) -> None:
        """Send the prepared inputs that every candidate is run on."""
        self._link.put("inputs.msgpack", encode_tensor_file(samples))

    def outputs(self, candidate: Candidate) -> list[dict[str, Array]]:
        """A candidate's answers to every input, in the source's terms.

        Raises:
            ConversionError: its runtime refuses it or dies of it there.
            TransferError: the connection broke.
        """
        task = self._send(candidate)
        self._send_job([task], Plan(warm_up=0, min_queries=1, min_seconds=0.0))
        self._worker("outputs", candidate.label, timeout_s=_WORK_S)
        data = self._link.get(f"{task.model}.outputs")
        return [sample_arrays(sample) for sample in decode_tensor_file(data, file=self.name).samples]

    def latencies(self, candidates: Sequence[Candidate], plan: Plan) -> dict[str, Latency]:
        """Latency of several candidates in one interleaved run.

        Raises:
            ConversionError: a runtime refuses a candidate or dies of it there.
            TransferError: the connection broke.
        """
        self._send_job([self._send(each) for each in candidates], plan)
        self._worker("latency", timeout_s=_WORK_S)
        times = msgspec.json.decode(self._link.get("times.json"), type=dict[str, tuple[float, ...]])
        return {label: Latency(times_ms=series) for label, series in times.items()}

    def _send_code(self) -> None:
        for name, data in _code():
            self._link.put(f"lib/{name}", data)

    def _send(self, candidate: Candidate) -> Task:
        folder = f"models/{candidate.label}"
        if candidate.label not in self._sent:
            for file in candidate.files:
                self._link.put(f"{folder}/{file.name}", file.read_bytes())
            self._sent.add(candidate.label)
        return Task(label=candidate.label, runtime=candidate.runtime, model=f"{folder}/{candidate.files[0].name}",
                    threads=candidate.threads, variant=candidate.variant)  # fmt: skip

    def _send_job(self, tasks: Sequence[Task], plan: Plan) -> None:
        self._link.put("job.json", msgspec.json.encode(Job(tasks=tuple(tasks), plan=plan)))

    def _versions(self, names: Sequence[str]) -> dict[str, str]:
        lines: list[str] = []
        code, said = self._run([self._python, "-c", _ASK_VERSIONS, *names], _SHORT_S, lines)
        if code or not lines:
            raise TransferError(f"its Python does not run: {_last(said)}", retryable=False, file=self.name)
        versions: dict[str, str] = json.loads(lines[-1])
        return versions

    def _install(self, requirements: Sequence[str], missing: Sequence[str]) -> None:
        """A virtual environment in the session's folder, on top of what the device has."""
        self._progress.step("device", f"{self.name} has no {', '.join(missing)}; installing for this run alone", "note")
        by_hand = f"on the device: python3 -m pip install {shlex.join(requirements)}"
        steps = [
            ("a virtual environment", [self._python, "-m", "venv", "--system-site-packages", "{folder}/venv"]),
            ("them", ["{folder}/venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                      "--no-cache-dir", "--only-binary=:all:", *requirements]),
        ]  # fmt: skip
        for what, command in steps:
            code, said = self._run(command, _INSTALL_S)
            if code:
                raise TransferError(
                    f"{', '.join(missing)} is missing there, and {what} could not be installed: {_last(said)}",
                    retryable=False, file=self.name, next_step=by_hand,
                )  # fmt: skip
        self._python = f"{self._link.greeting['folder']}/venv/bin/python"

    def _worker(self, *arguments: str, timeout_s: float) -> None:
        command = [self._python, "-m", _WORKER, arguments[0], "{folder}", *arguments[1:]]
        code, said = self._run(command, timeout_s)
        if code == 0:
            return
        died = f"killed by signal {-code}" if code < 0 else _last(said)
        what = arguments[1] if len(arguments) > 1 else arguments[0]
        raise ConversionError(f"{what} on {self.name}: {died}", target=self.name)

    def _run(self, command: Sequence[str], timeout_s: float, lines: list[str] | None = None) -> tuple[int, list[str]]:
        def hear(line: str) -> None:
            if lines is not None:
                lines.append(line)
            self._count(line)

        # what runtimes and pip put aside goes away with the rest
        environment = {"PYTHONPATH": "{folder}/lib", "OMP_NUM_THREADS": "1", "TMPDIR": "{folder}/tmp"}
        return self._link.run(command, environment=environment, timeout_s=timeout_s, on_line=hear)

    def _count(self, line: str) -> None:
        try:
            message: Any = json.loads(line)
        except ValueError:
            return
        if isinstance(message, dict) and {"label", "done", "total"} <= message.keys():
            self._progress.count(f"{message['label']} on {self.name}", int(message["done"]), int(message["total"]))


def _code() -> Iterator[tuple[str, bytes]]:
    """Files of the two packages that the worker needs: path below the library folder, and contents."""
    import edgeship
    import edgeship_agent

    agent = Path(edgeship_agent.__file__).parent
    yield "edgeship_agent/__init__.py", (agent / "__init__.py").read_bytes()
    for part in _AGENT_PARTS:
        for file in sorted((agent / part).rglob("*.py")):
            yield f"edgeship_agent/{file.relative_to(agent).as_posix()}", file.read_bytes()
    own = Path(edgeship.__file__).parent
    for name in _OWN_PARTS:
        yield f"edgeship/{name}", (own / name).read_bytes()


def _last(lines: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
