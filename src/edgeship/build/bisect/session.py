"""One search from files to files: record what the source computes, probe parts, name the fault, write it down."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct, structs

from edgeship.build import sources
from edgeship.build.bisect import feeds, labels, outcome, search, sides
from edgeship.build.bisect import graph as graphs
from edgeship.build.bisect.child import Answer, Task, read_arrays, write_arrays
from edgeship.build.bisect.graph import Boundary, Graph
from edgeship.build.bisect.outcome import Outcome
from edgeship.build.bisect.prober import TIMEOUT_S, Prober
from edgeship.build.layout import PARITY_RMS
from edgeship.build.options import MAX_RELATIVE_RMS
from edgeship.build.progress import Progress
from edgeship_agent.contract.errors import ConfigError, EngineError, InputError
from edgeship_agent.runtime.engine import Array

Part = frozenset[int]
_DIED: Final = "the process was killed by signal {signal}"


class Question(Struct, frozen=True, kw_only=True):
    """What is searched.

    Attributes:
        model: the source, an ONNX file.
        runtime: that the source's parts are run in.
        artifact: another ONNX file to compare with instead; None for the runtime's own reading.
        inputs: ``.npz``; None for seeded samples.
        tolerance: largest relative RMS that agrees; None for the build's own limits, 0.001, and 0.1 for a quantized
            file.
        timeout_s: of one probe, in seconds.
    """

    model: Path
    runtime: str = "onnxruntime"
    artifact: Path | None = None
    inputs: Path | None = None
    tolerance: float | None = None
    timeout_s: float = TIMEOUT_S


class Fault(Struct, frozen=True, kw_only=True):
    """The smallest part that still fails.

    Attributes:
        label, why: kind of fault and the reason for that name.
        operators: of the source, as ``(name or position, type)``.
        inputs, outputs: tensors at its ends.
        outcome: how the part fails by itself.
        source: the source's part as a model.
        candidate: the artifact's; None without one.
        fed, expected: name → ``[samples, …]``.
    """

    label: labels.Label
    why: str
    operators: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    outcome: Outcome
    source: Any
    candidate: Any
    fed: dict[str, Array]
    expected: dict[str, Array]


class Found(Struct, frozen=True, kw_only=True):
    """The answer.

    Attributes:
        whole: how the whole model fares.
        fault: None where nothing fails.
        tolerance: that was used.
        operators, probes, samples: how many there were.
        notes: what was done otherwise than usual.
    """

    whole: Outcome
    fault: Fault | None
    tolerance: float
    operators: int
    probes: int
    samples: int
    notes: tuple[str, ...] = ()


def find(question: Question, progress: Progress, prober: Prober | None = None) -> Found:
    """Search for the smallest part of a model that fails.

    Args:
        question: what is searched.
        progress: told every probe.
        prober: runs them; stays open. None for one of this search's own.

    Raises:
        InputError, ConfigError: files that cannot be used, or that do not belong together.
        EngineError: the source runs nowhere, so that there is nothing to compare with.
    """
    source = sources.load(question.model)
    if source.format != "onnx":
        raise InputError("only ONNX models can be cut into parts", file=question.model, expected="an .onnx file",
                         got=source.format, next_step="export the model as ONNX")  # fmt: skip
    graph = graphs.read(question.model)
    artifact = _artifact(question, graph)
    fed = feeds.read(question.inputs, source.inputs) if question.inputs else feeds.made(source.inputs)
    count = len(next(iter(fed.values())))
    samples = f"{count} samples" + ("" if question.inputs else " from a seed: --inputs FILE feeds real ones")
    progress.step("read", f"{len(graph.operators)} operators · {samples}", "note")
    with tempfile.TemporaryDirectory(prefix="edgeship-bisect-") as name:
        runs = prober or Prober()
        try:
            return _Session(question, (graph, artifact), Path(name), runs, progress).run(fed)
        finally:
            if prober is None:
                runs.close()


def _artifact(question: Question, source: Graph) -> Graph | None:
    if question.artifact is None:
        return None
    if question.runtime != "onnxruntime":
        raise ConfigError("another ONNX file runs in ONNX Runtime", key="--runtime", expected="onnxruntime",
                          got=question.runtime, next_step="leave --artifact or --runtime out")  # fmt: skip
    artifact = graphs.read(question.artifact)
    for kind, wanted, got in (
        ("inputs", source.inputs, artifact.inputs),
        ("outputs", source.outputs, artifact.outputs),
    ):
        if set(wanted) != set(got):
            raise InputError(f"its {kind} are not the source's", file=question.artifact, expected=", ".join(wanted),
                             got=", ".join(got) or "none",
                             next_step="name a file that was made from this model")  # fmt: skip
    return artifact


class _Session:
    """State of one search."""

    def __init__(
        self, question: Question, pair: tuple[Graph, Graph | None], folder: Path, prober: Prober, progress: Progress
    ) -> None:
        self._question = question
        self._graph, self._artifact = pair
        self._folder = folder
        self._prober = prober
        self._progress = progress
        self._probes = 0
        self._notes: list[str] = []
        quantized = self._artifact is not None and sides.is_quantized(self._artifact.document)
        default = MAX_RELATIVE_RMS if quantized else PARITY_RMS
        self._tolerance = question.tolerance if question.tolerance is not None else default
        self._seen: dict[str, Array] = {}

    def run(self, fed: dict[str, Array]) -> Found:
        """Record, try the whole, search."""
        self._seen = {**fed, **self._record(fed)}
        self._graph = graphs.settled(self._graph, self._seen)
        side, whole = self._whole()
        fault = None
        if whole.kind == "agrees":
            self._progress.step("whole", f"agrees: {_shown(whole)}")
        else:
            self._progress.step("whole", f"{whole.kind}: {whole.reason}", "failed")
            fault = self._search(side, whole)
        return Found(whole=whole, fault=fault, tolerance=self._tolerance, operators=len(self._graph.operators),
                     probes=self._probes, samples=len(next(iter(fed.values()))), notes=tuple(self._notes))  # fmt: skip

    def _record(self, fed: Mapping[str, Array]) -> dict[str, Array]:
        """Every tensor that the source computes, by ONNX Runtime without optimisations, else by ONNX itself.

        Raises:
            EngineError: neither runs it.
        """
        folder = self._new_folder()
        names = list(dict.fromkeys((*self._graph.tensors, *self._graph.outputs)))
        model, inputs = folder / "watched.onnx", folder / "inputs.npz"
        model.write_bytes(graphs.watched(self._graph, names).SerializeToString())
        write_arrays(str(inputs), fed)
        reasons = []
        for kind in ("record", "reference"):
            task = Task(kind=kind, model=str(model), inputs=str(inputs), outputs=str(folder / f"{kind}.npz"))
            answer = self._prober.ask(task, self._question.timeout_s)
            if not answer.refused and not answer.killed:
                return read_arrays(task.outputs)
            reasons.append(_why(answer))
            if kind == "record":
                self._note(f"ONNX Runtime does not run the source ({reasons[0]}): ONNX's reference implementation does")
        raise EngineError(f"nothing here runs the source: {reasons[0]}; {reasons[1]}", file=self._question.model,
                          next_step="export the model again")  # fmt: skip

    def _whole(self) -> tuple[sides.Side, Outcome]:
        """The side to search, and how the whole model fares there."""
        everything = self._graph.boundary(range(len(self._graph.operators)))
        if self._artifact is None:
            side: sides.Side = sides.RuntimeSide(self._graph, self._question.runtime, self._seen)
            return side, self._probe(side, everything)
        side = sides.ArtifactSide(self._artifact, self._seen)
        whole = self._probe(side, everything)
        settled = graphs.settled(self._artifact, self._seen)
        if settled is self._artifact or whole.kind == "agrees":
            return side, whole
        # its shapes as constants make more parts testable; where it fails no more, the fault is in those shapes
        other = sides.ArtifactSide(settled, self._seen)
        again = self._probe(other, everything)
        return (other, again) if again.same_failure(whole) else (side, whole)

    def _search(self, side: sides.Side, whole: Outcome) -> Fault:
        outcomes: dict[Part, Outcome] = {}

        def ask(part: Part) -> bool:
            outcomes[part] = self._probe(side, self._graph.boundary(part))
            fails = outcomes[part].same_failure(whole)
            words = f"{_span(part)}: {'fails' if fails else outcomes[part].kind} {_shown(outcomes[part])}".rstrip()
            self._progress.step("probe", f"{self._probes} · {words}", "failed" if fails else "done")
            return fails

        count = len(self._graph.operators)
        fails = search.Fails(ask, lambda part: side.testable(self._graph.boundary(part)))
        part = search.smallest(count, fails, self._graph.ancestors)
        if fails.probes >= search.MOST_PROBES:
            self._note(f"ended after {fails.probes} probes: a smaller part may fail as well")
        return self._describe(side, part, outcomes.get(part, whole))

    def _describe(self, side: sides.Side, part: Part, result: Outcome) -> Fault:
        boundary = self._graph.boundary(part)
        source = self._graph.extract(boundary, self._seen)
        candidate = side.part(boundary) if isinstance(side, sides.ArtifactSide) else None
        if candidate is not None:
            judged = labels.of_artifact(source, candidate, result, lambda model: self._run(side, boundary, model))
        else:
            judged = labels.of_runtime(self._question.runtime, result)
        nodes = [self._graph.operators[index] for index in sorted(part)]
        return Fault(
            label=judged.label, why=judged.why, inputs=boundary.inputs, outputs=boundary.outputs, outcome=result,
            operators=tuple((node.name or node.output[0], node.op_type) for node in nodes),
            source=source, candidate=candidate, fed=self._take(boundary.inputs), expected=self._take(boundary.outputs),
        )  # fmt: skip

    def _probe(self, side: sides.Side, boundary: Boundary) -> Outcome:
        return self._run(side, boundary, side.part(boundary))

    def _run(self, side: sides.Side, boundary: Boundary, model: Any) -> Outcome:
        folder = self._new_folder()
        file, inputs, expected = folder / "part.onnx", folder / "inputs.npz", folder / "expected.npz"
        file.write_bytes(model.SerializeToString())
        write_arrays(str(inputs), self._take(boundary.inputs))
        wanted = self._take(boundary.outputs)
        write_arrays(str(expected), wanted)
        task = side.task(file, inputs, expected)
        answer = self._prober.ask(task, self._question.timeout_s)
        self._probes += 1
        result = self._outcome(answer, task, wanted)
        shutil.rmtree(folder, ignore_errors=True)
        return result

    def _outcome(self, answer: Answer, task: Task, wanted: Mapping[str, Array]) -> Outcome:
        if answer.killed:
            made = [*Path(task.model).parent.glob("conversion/way*/fp32/model.*")]
            stage = "conversion" if task.kind == "convert" and not made else "run"
            return Outcome(kind="killed", stage=stage, relative_rms=None, reason=_why(answer))
        if answer.refused:
            return Outcome(kind="refused", stage=answer.stage, relative_rms=None, reason=answer.refused)
        got = read_arrays(task.outputs)
        compared = outcome.compare(got, wanted, self._tolerance)
        if compared.kind == "agrees":
            return compared
        plain = None
        if answer.plain_outputs:
            plain = outcome.compare(read_arrays(answer.plain_outputs), wanted, self._tolerance).kind == "agrees"
        moved = answer.layout or outcome.moved(got, wanted, self._tolerance)
        return structs.replace(compared, layout=moved, plain_agrees=plain)

    def _take(self, names: tuple[str, ...]) -> dict[str, Array]:
        return {name: np.asarray(self._seen[name]) for name in names}

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder))

    def _note(self, text: str) -> None:
        self._notes.append(text)
        self._progress.step("note", text, "note")


def _why(answer: Answer) -> str:
    if answer.late:
        return "it did not end in time"
    return _DIED.format(signal=answer.killed) if answer.killed else answer.refused


def _shown(result: Outcome) -> str:
    if result.kind in {"refused", "killed"}:
        return f"({result.reason})"
    return "" if result.relative_rms is None else f"(relative RMS {result.relative_rms:.2g})"


def _span(part: Part) -> str:
    """Positions of a part, from 1."""
    if len(part) == 1:
        return f"operator {min(part) + 1}"
    return f"{len(part)} operators from {min(part) + 1} to {max(part) + 1}"
