"""Keras files, SavedModel folders and frozen TensorFlow graphs: opened and described by the tensorflow toolchain."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from edgeship.build.sources.model import SourceModel, check_size, digest_of_files
from edgeship.build.sources.request import SourceRequest
from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import TensorSpec

TOOLCHAIN: Final = "tensorflow"
_FORMATS: Final = {".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".pb": "frozen_graph"}


def check(request: SourceRequest) -> None:
    """Refuse what is too large before any of it is read or copied.

    Raises:
        InputError: it is.
    """
    path = request.path
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    check_size(path, sum(file.stat().st_size for file in files),
               "save the model without its optimizer: model.save(FILE, include_optimizer=False)")  # fmt: skip


def load(request: SourceRequest, ask: workers.Ask = workers.ask) -> SourceModel:
    """Look into a TensorFlow model, in the toolchain's own process and on a private copy.

    Raises:
        InputError: damaged, renamed, with code of its own, or with ends that the fleet cannot serve.
        ConfigError: an option that does not belong to the format.
        ConversionError: the toolchain is not installed, or died of the file.
    """
    check(request)
    path = request.path
    kind = "saved_model" if path.is_dir() else _FORMATS[path.suffix.lower()]
    options = _options(request, kind)
    files = tuple(sorted(file for file in path.rglob("*") if file.is_file())) if path.is_dir() else (path,)
    digest = digest_of_files(files)
    answer = _described((path, kind), options, ask)
    return SourceModel(
        path=path,
        format=kind,
        data=b"" if path.is_dir() else path.read_bytes(),
        digest=digest,
        files=files,
        size_bytes=sum(file.stat().st_size for file in files),
        operators=int(answer["operators"]),
        parameters=int(answer["parameters"]),
        inputs=tuple(_spec(entry) for entry in answer["inputs"]),
        outputs=tuple(_spec(entry) for entry in answer["outputs"]),
        quantized=bool(answer["quantized"]),
        toolchain=TOOLCHAIN,
        options=options,
        notes=tuple(str(note) for note in answer["notes"]),
    )


def _options(request: SourceRequest, kind: str) -> dict[str, Any]:
    """What the worker is told besides the file.

    Raises:
        ConfigError: an option of another format.
    """
    for key, given, owner in (
        ("--input-tensor", request.input_tensors, "frozen_graph"),
        ("--output-tensor", request.output_tensors, "frozen_graph"),
        ("--signature", request.signature, "saved_model"),
    ):
        if given and kind != owner:
            raise ConfigError("does not belong to this format", file=request.path, key=key, got=kind, expected=owner,
                              next_step="leave the option out")  # fmt: skip
    shapes = [{"name": each.name, "shape": list(each.shape), "dtype": each.dtype} for each in request.input_shapes]
    options: dict[str, Any] = {
        "input_shapes": shapes,
        "input_tensors": list(request.input_tensors),
        "output_tensors": list(request.output_tensors),
        "allow_pickle": request.allow_pickle,
        "signature": request.signature,
    }
    return {key: value for key, value in options.items() if value}


def _described(model: tuple[Path, str], options: dict[str, Any], ask: workers.Ask) -> dict[str, Any]:
    path, kind = model
    with tempfile.TemporaryDirectory(prefix="edgeship-source-") as folder:
        copy = Path(folder) / f"model{path.suffix.lower()}"
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        request = {"command": "describe", "model": str(copy), "format": kind, "options": options}
        try:
            return ask(TOOLCHAIN, request)
        except InputError as error:
            raise InputError(error.message, file=path, next_step=error.next_step) from error


def _spec(entry: dict[str, Any]) -> TensorSpec:
    return TensorSpec(name=str(entry["name"]), dtype=str(entry["dtype"]), shape=tuple(entry["shape"]))
