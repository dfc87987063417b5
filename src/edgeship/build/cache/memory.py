"""The cache as the passes of a build see it: artifacts, answers of models, figures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import structs

from edgeship.build.backends.base import Artifact, Samples
from edgeship.build.cache.basis import samples_digest
from edgeship.build.cache.store import Cache, Made
from edgeship.build.sources.model import runs_own_code
from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.runtime.engine import Array

T = TypeVar("T")
Answers = Sequence[Mapping[str, Array]]


class Memory:
    """Remembers for one build.

    Args:
        cache: where.
        folder: private, for files on their way.
        ready: called with a toolchain's name before it is asked: what is remembered needs none.
    """

    def __init__(self, cache: Cache, folder: Path, ready: Callable[[str], None] = lambda _: None) -> None:
        self.cache = cache
        self.ready = ready
        self._folder = folder
        self._count = 0
        self._samples: dict[int, tuple[Samples, str]] = {}
        self._artifacts: dict[tuple[Path, bool], dict[str, Any]] = {}

    def digest(self, samples: Samples) -> str:
        """Of samples in order; worked out once."""
        known = self._samples.get(id(samples))
        if known is None:
            known = self._samples[id(samples)] = (samples, samples_digest(samples))
        return known[1]

    def key_of(self, artifact: Artifact) -> dict[str, Any]:
        """What an artifact is: its files' content and how they are bound; worked out once."""
        known = (artifact.model, artifact.reference)
        if known not in self._artifacts:
            self._artifacts[known] = {
                "runtime": artifact.runtime,
                "reference": artifact.reference,
                "files": [_digest(file) for file in artifact.files],
                "inputs": msgspec.to_builtins(artifact.inputs),
                "outputs": msgspec.to_builtins(artifact.outputs),
            }
        return self._artifacts[known]

    def artifact(self, name: str, key: Mapping[str, Any], base: Path, make: Callable[[], Artifact]) -> Artifact:
        """A file that a runtime loads, with its bindings.

        Raises:
            ConversionError: it cannot be made, now or before.
        """

        def made() -> Made:
            artifact = make()
            files = (*artifact.files, *(artifact.plain.files if artifact.plain is not None else ()))
            relative = _moved(artifact, lambda file: file.relative_to(base))
            return Made(value=msgspec.to_builtins(relative, enc_hook=str), files=tuple(dict.fromkeys(files)))

        value = self.cache.remember(name, key, base, made)
        found = msgspec.convert(value, Artifact, dec_hook=lambda _, text: Path(text))
        return _moved(found, lambda file: base / file)

    def answers(self, name: str, key: Mapping[str, Any], run: Callable[[], Answers]) -> list[Mapping[str, Array]]:
        """What a model says to samples, batch axes and all; answers of changing size are never kept.

        Raises:
            ConversionError: it cannot be run, now or before.
        """
        self._count += 1
        base = self._folder / f"answers{self._count}"
        file = base / "answers.npz"
        fresh: list[Mapping[str, Array]] = []

        def made() -> Made:
            try:
                fresh.extend(run())
            except EngineError as error:
                raise _as_conversion(error) from error
            base.mkdir(parents=True, exist_ok=True)
            names = list(fresh[0])
            arrays = {f"o{index}": np.stack([each[name] for each in fresh]) for index, name in enumerate(names)}
            with file.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
            return Made(value=names, files=(file,))

        try:
            names = self.cache.remember(name, key, base, made)
        except ValueError:  # arrays of several sizes: the caller says what that means
            return fresh
        if fresh:
            return fresh
        with np.load(file, allow_pickle=False) as archive:
            columns = [archive[f"o{index}"] for index in range(len(names))]
        file.unlink()
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def figures(self, name: str, key: Mapping[str, Any], kind: type[T], make: Callable[[], T]) -> T:
        """Numbers and words; infinity is kept.

        Raises:
            ConversionError: there are none, now or before.
        """

        def made() -> Made:
            try:
                return Made(value=_finite(msgspec.to_builtins(make())))
            except EngineError as error:
                raise _as_conversion(error) from error

        return msgspec.convert(_infinite(self.cache.remember(name, key, self._folder, made)), kind)


def remembering(memory: Memory) -> workers.Ask:
    """Asks a toolchain about a model, unless the same was asked before; of code of the user's nothing is remembered."""

    def really(toolchain: str, question: dict[str, Any]) -> dict[str, Any]:
        memory.ready(toolchain)
        return workers.ask(toolchain, question)

    def ask(toolchain: str, question: dict[str, Any]) -> dict[str, Any]:
        if runs_own_code(question["options"]):
            return really(toolchain, question)
        model = Path(question["model"])
        files = sorted(file for file in model.rglob("*") if file.is_file()) if model.is_dir() else [model]
        key = {
            **{name: value for name, value in question.items() if name != "model"},
            "toolchain": toolchain, "suffix": model.suffix,
            "files": {file.relative_to(model.parent).as_posix(): _digest(file) for file in files},
        }  # fmt: skip
        return memory.figures("describe", key, dict[str, Any], lambda: really(toolchain, question))

    return ask


def _moved(artifact: Artifact, place: Callable[[Path], Path]) -> Artifact:
    """The same artifact with its files elsewhere."""
    return structs.replace(
        artifact,
        model=place(artifact.model),
        weights=None if artifact.weights is None else place(artifact.weights),
        plain=None if artifact.plain is None else _moved(artifact.plain, place),
    )


def _as_conversion(error: EngineError) -> ConversionError:
    wrapped = ConversionError(error.sentence())
    wrapped.stage = error.stage
    return wrapped


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return {"~": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _infinite(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value["~"]) if set(value) == {"~"} else {key: _infinite(each) for key, each in value.items()}
    return [_infinite(each) for each in value] if isinstance(value, list) else value


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
