"""The source itself, run on samples: what every artifact is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from edgeship.build.backends.base import Samples, bind
from edgeship.build.cache.memory import Memory
from edgeship.build.probing import Prober
from edgeship.build.progress import Progress
from edgeship.build.quiet import quiet
from edgeship.build.sources import SourceModel
from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.runtime import open_engine
from edgeship_agent.runtime.bound import from_artifact
from edgeship_agent.runtime.engine import Array, EngineOptions, run_steps

#: Formats that a runtime of the agent runs as they are.
RUNS_IN: Final = {"onnx": "onnxruntime", "tflite": "litert"}


class Oracle(Protocol):
    """Runs the source."""

    def run(self, samples: Samples, label: str, progress: Progress) -> list[Mapping[str, Array]]:
        """Outputs of every sample, batch axis included, in the source's order.

        Raises:
            EngineError, ConversionError: the source cannot be run.
        """

    def close(self) -> None:
        """Release it."""


class EngineOracle:
    """A source that is a runtime's own file: in fp32 arithmetic and one thread.

    Outputs that are quantized in the file are given as the numbers that they stand for. An ONNX file in QDQ form is run
    operator by operator, rounded where it says so: as one integer operator each, they saturate on x86 without VNNI, and
    a ResNet-20 lies at relative RMS .20–.28 from itself there. Source: ONNX Runtime, quantization guide; ADR 0028.
    """

    def __init__(self, source: SourceModel, model: Path) -> None:
        self._source = source
        with quiet():  # LiteRT greets
            options = EngineOptions(reference=source.rounds_elsewhere)
            self._engine = open_engine(RUNS_IN[source.format], model, options)

    def run(self, samples: Samples, label: str, progress: Progress) -> list[Mapping[str, Array]]:
        """One call a sample."""
        infos = self._engine.signature.outputs
        outputs = [bind(spec.name, info) for spec, info in zip(self._source.outputs, infos, strict=True)]
        order = [spec.name for spec in self._source.inputs]
        answers: list[Mapping[str, Array]] = []
        for index, sample in enumerate(samples):
            if all(sample[spec.name].ndim > len(spec.shape) for spec in self._source.inputs):
                count = len(sample[order[0]])
                steps = [[np.asarray(sample[name][step], order="C") for name in order] for step in range(count)]
                said = run_steps(self._engine, steps)
                answers.append({
                    each.name: np.stack([from_artifact(each, results[each.artifact_index]) for results in said])
                    for each in outputs
                })  # fmt: skip
            else:
                results = self._engine.run([np.asarray(sample[name], order="C") for name in order])
                answers.append({each.name: from_artifact(each, results[each.artifact_index]) for each in outputs})
            progress.count(label, index + 1, len(samples))
        return answers

    def close(self) -> None:
        """Release the engine."""
        self._engine.close()


class WorkerOracle:
    """A source that only its framework runs, in that framework's own environment and process."""

    def __init__(self, source: SourceModel, model: Path) -> None:
        self._source = source
        self._model = model
        self._calls = 0

    def run(self, samples: Samples, label: str, progress: Progress) -> list[Mapping[str, Array]]:
        """All samples in one process."""
        source = self._source
        self._calls += 1
        folder = self._model.parent
        asked, answered = folder / f"asked{self._calls}.npz", folder / f"answered{self._calls}.npz"
        arrays = {
            f"i{index}": np.stack([sample[spec.name] for sample in samples]) for index, spec in enumerate(source.inputs)
        }
        np.savez(asked, allow_pickle=False, **arrays)
        request = {"command": "run", "model": str(self._model), "format": source.format, "options": source.options,
                   "inputs": str(asked), "outputs": str(answered)}  # fmt: skip
        workers.call(source.toolchain, request, on_count=lambda done, total: progress.count(label, done, total))
        with np.load(answered, allow_pickle=False) as archive:
            outputs = [archive[f"o{index}"] for index in range(len(source.outputs))]
        if any(len(array) != len(samples) for array in outputs):
            raise ConversionError(f"{source.toolchain} answered for another number of samples")
        names = [spec.name for spec in source.outputs]
        return [dict(zip(names, answer, strict=True)) for answer in zip(*outputs, strict=True)]

    def close(self) -> None:
        """Nothing is held."""


class RememberedOracle:
    """A source that is opened only where nothing is remembered of what it says.

    Args:
        source: the model.
        folder: for the private copy that is run.
        memory: of earlier builds; of a factory, whose code may change unseen, nothing is remembered.
    """

    def __init__(self, source: SourceModel, folder: Path, memory: Memory) -> None:
        self._source = source
        self._folder = folder
        self._memory = memory
        self._opened: Oracle | None = None

    def run(self, samples: Samples, label: str, progress: Progress) -> list[Mapping[str, Array]]:
        """See :class:`Oracle`."""
        if not self._source.is_lasting:
            return self._open().run(samples, label, progress)
        key = {"source": self._source.key, "samples": self._memory.digest(samples)}
        return self._memory.answers("source", key, lambda: self._open().run(samples, label, progress))

    def close(self) -> None:
        """Release it, where it was opened."""
        if self._opened is not None:
            self._opened.close()

    def _open(self) -> Oracle:
        if self._opened is None:
            if self._source.toolchain:
                self._memory.ready(self._source.toolchain)
            self._opened = open_oracle(self._source, self._folder)
        return self._opened


def open_oracle(source: SourceModel, folder: Path) -> Oracle:
    """Open the source on a private copy in ``folder``.

    Raises:
        ConversionError: nothing here runs that format, or its runtime refuses the file.
    """
    model = source.copy_to(folder)
    if source.toolchain:
        return WorkerOracle(source, model)
    try:
        with closing(Prober()) as prober:  # a file that kills its runtime must not kill the build
            prober.refusal(RUNS_IN[source.format], model)
        return EngineOracle(source, model)
    except EngineError as error:
        raise ConversionError(f"{RUNS_IN[source.format]} refuses the source: {error.message}",
                              file=source.path) from error  # fmt: skip


def stacked(answers: list[Mapping[str, Array]], label: str) -> dict[str, Array]:
    """Name → [N, …]: the batch axis of 1, where an output has one, gives way to the samples' axis.

    Raises:
        EngineError: an output changes its size from sample to sample.

    >>> stacked([{"y": np.zeros((1, 3))}, {"y": np.ones((1, 3))}], "test")["y"].shape
    (2, 3)
    """
    try:
        return {name: np.stack([_unbatched(answer[name]) for answer in answers]) for name in answers[0]}
    except ValueError as error:
        sizes = {name: {np.shape(answer[name]) for answer in answers} for name in answers[0]}
        name = next(name for name, shapes in sizes.items() if len(shapes) > 1)
        raise EngineError(f"the output {name} changes its size from sample to sample", key=label,
                          got=" and ".join(str(list(shape)) for shape in sorted(sizes[name])[:2]),
                          next_step="end the graph before the operator that selects, such as NonMaxSuppression or "
                                    "NonZero, and select in the application; --metric map decodes boxes itself",
                          ) from error  # fmt: skip


def _unbatched(array: Array) -> Array:
    return array[0] if array.ndim and array.shape[0] == 1 else array
