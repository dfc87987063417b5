"""What a probe does in a process of its own: run a part, in ONNX Runtime as it is or through a runtime's routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from msgspec import Struct

from edgeship.build import routes, sources
from edgeship.build.backends import Job, open_backend
from edgeship.build.bisect import second_look
from edgeship.build.quiet import quiet
from edgeship_agent.contract.errors import EdgeshipError, EngineError
from edgeship_agent.contract.manifest import Binding
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import from_artifact, to_artifact
from edgeship_agent.runtime.engine import Array

Arrays = Mapping[str, Array]
_FATAL_ONLY: Final = 4


class Task(Struct, frozen=True, kw_only=True):
    """What a probe is asked.

    Attributes:
        kind: ``record`` (ONNX Runtime without optimisations), ``reference`` (ONNX's reference implementation), ``run``
            (ONNX Runtime as devices run it), ``convert`` (through a runtime's routes).
        model: an ONNX file.
        inputs: ``.npz``, name → ``[samples, …]``.
        outputs: where to write the same of the outputs.
        expected: ``.npz`` of what the outputs should be, for ``convert``.
        runtime: for ``convert``.
    """

    kind: str
    model: str
    inputs: str
    outputs: str
    expected: str = ""
    runtime: str = "onnxruntime"


class Answer(Struct, frozen=True, kw_only=True):
    """What became of it.

    Attributes:
        refused: empty where it ran; else what refused it said.
        stage: where it was refused: ``conversion``, ``load`` or ``run``.
        layout: the numbers are right, their places are not.
        plain_outputs: ``.npz`` of the same file run by the runtime's plain reference kernels; empty for none.
        killed: number of the signal that ended the process; 0 for none.
        late: whether that was because it took too long.
    """

    refused: str = ""
    stage: str = ""
    layout: bool = False
    plain_outputs: str = ""
    killed: int = 0
    late: bool = False


def do(task: Task) -> Answer:
    """Do what is asked; whatever the libraries raise becomes an answer."""
    return _TASKS[task.kind](task)


def read_arrays(path: str) -> dict[str, Array]:
    """Arrays of an ``.npz`` file."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def write_arrays(path: str, arrays: Arrays) -> None:
    """Write arrays by name, whatever characters the names hold."""
    np.savez(path, allow_pickle=False, **dict(arrays))


def _samples(inputs: Arrays) -> list[dict[str, Array]]:
    count = min((len(array) for array in inputs.values()), default=1)
    return [{name: array[index] for name, array in inputs.items()} for index in range(count)]


def _record(task: Task) -> Answer:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL_ONLY
    try:
        session = onnxruntime.InferenceSession(task.model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 (a probe's outermost call: native libraries raise what they like)
        return Answer(refused=_first_line(error), stage="load")
    names = [output.name for output in session.get_outputs()]
    return _each_sample(task, names, lambda sample: session.run(names, sample))


def _reference(task: Task) -> Answer:
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(onnx.load(task.model))
    except Exception as error:  # noqa: BLE001 (as above)
        return Answer(refused=_first_line(error), stage="load")
    return _each_sample(task, evaluator.output_names, lambda sample: evaluator.run(None, sample))


def _each_sample(task: Task, names: Sequence[str], run: Any) -> Answer:
    try:
        results = [run(sample) for sample in _samples(read_arrays(task.inputs))]
    except Exception as error:  # noqa: BLE001 (as above)
        return Answer(refused=_first_line(error), stage="run")
    write_arrays(task.outputs, _stacked(dict(zip(names, result, strict=True)) for result in results))
    return Answer()


def _stacked(results: Any) -> dict[str, Array]:
    """Name → [samples, …] of what is a tensor of numbers and keeps its size."""
    rows = list(results)
    found = {}
    for name in rows[0]:
        arrays = [row[name] for row in rows]
        if all(isinstance(each, np.ndarray | np.generic) for each in arrays):
            plain = [np.asarray(each) for each in arrays]
            if plain[0].dtype.kind in "fiub" and len({each.shape for each in plain}) == 1:
                found[name] = np.stack(plain)
    return found


def _run(task: Task) -> Answer:
    try:
        engine = open_engine("onnxruntime", Path(task.model))
    except EngineError as error:
        return Answer(refused=error.message, stage="load")
    infos = engine.signature
    results = []
    try:
        for sample in _samples(read_arrays(task.inputs)):
            arrays = engine.run([np.asarray(sample[info.name], info.dtype, order="C") for info in infos.inputs])
            results.append({info.name: array for info, array in zip(infos.outputs, arrays, strict=True)})
    except EngineError as error:
        return Answer(refused=error.message, stage="run")
    write_arrays(task.outputs, _stacked(results))
    return Answer()


def _convert(task: Task) -> Answer:
    folder = Path(task.model).parent / "conversion"
    folder.mkdir()
    samples, expected = _samples(read_arrays(task.inputs)), _samples(read_arrays(task.expected))
    reason = "there is no way"
    try:
        source = sources.load(Path(task.model))
    except EdgeshipError as error:
        return Answer(refused=error.message, stage="conversion")
    forms = routes.Forms(source, folder / "forms", lambda _name: None)
    answer = None
    for number, route in enumerate(routes.plan("onnx", task.runtime)):
        job = Job(source=source, samples=samples, checks=samples, expected=expected, folder=folder / f"way{number}")
        try:
            with quiet():
                model = forms.file(route)
                artifact = open_backend(task.runtime).convert(job, model)
        except EdgeshipError as error:
            reason = error.message
            answer = answer or _looked_at(task, job, reason)
        else:
            write_arrays(
                task.outputs, _call(task.runtime, artifact.model, (artifact.inputs, artifact.outputs), samples)
            )
            return Answer()
    return answer or Answer(refused=reason, stage="conversion")


def _looked_at(task: Task, job: Job, reason: str) -> Answer | None:
    """What a file that the backend did not accept computes all the same; None where there is none."""
    files = [file for file in sorted(job.folder.glob("fp32/model.*")) if file.suffix != ".bin"]
    if not files:
        return None
    try:
        with quiet():
            found = second_look.look(job, task.runtime, files[0])
    except EngineError as error:
        return Answer(refused=error.message, stage="load")
    if found is None:
        return Answer(refused=reason, stage="run")
    write_arrays(task.outputs, found.outputs)
    plain = ""
    if found.plain:
        plain = task.outputs.removesuffix(".npz") + "-plain.npz"
        write_arrays(plain, found.plain)
    return Answer(layout=found.layout, plain_outputs=plain)


def _call(runtime: str, model: Path, bindings: Any, samples: Sequence[Arrays]) -> dict[str, Array]:
    inputs: tuple[Binding, ...] = bindings[0]
    with quiet():
        engine = open_engine(runtime, model)
    rows = []
    for sample in samples:
        arrays: list[Array] = [np.empty(0)] * len(inputs)
        for each in inputs:
            arrays[each.artifact_index] = np.ascontiguousarray(to_artifact(each, sample[each.name]))
        results = engine.run(arrays)
        rows.append({each.name: from_artifact(each, results[each.artifact_index]) for each in bindings[1]})
    return _stacked(rows)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).split("\n", 1)[0]
    return line.rsplit("[ONNXRuntimeError] : ", 1)[-1]


_TASKS: Final = {"record": _record, "reference": _reference, "run": _run, "convert": _convert}
