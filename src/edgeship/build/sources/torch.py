"""PyTorch models: exported programs, TorchScript, and weights for a factory of the user's own."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from edgeship.build.sources.model import SourceModel, check_size, digest_of_files
from edgeship.build.sources.request import SourceRequest
from edgeship.build.sources.torch_files import TorchFile, TorchKind, recognise
from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import TensorSpec

TOOLCHAIN: Final = "torch"
_FACTORY: Final = re.compile(
    r"(?:(?P<file>.+\.py)|(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)):(?P<attribute>[A-Za-z_]\w*)"
)
_NAMES_SHOWN: Final = 3


class _Asked(Struct, frozen=True, kw_only=True):
    """What is read, and how.

    Attributes:
        file: the model, or the weights.
        options: for the worker.
    """

    kind: TorchKind
    file: Path
    options: dict[str, Any]


def check(request: SourceRequest) -> None:
    """Refuse what cannot be used, before PyTorch is looked for.

    Raises:
        InputError: the file is none of PyTorch's, or not one that can be used as it is.
        ConfigError: an option does not fit.
    """
    _asked(request)


def load(request: SourceRequest, ask: workers.Ask = workers.ask) -> SourceModel:
    """Read a PyTorch model in PyTorch's own process.

    Raises:
        InputError: it cannot be used, or a shape is missing.
        ConfigError: an option does not fit.
        ConversionError: PyTorch is not installed, or died.
    """
    asked = _asked(request)
    data = asked.file.read_bytes()
    with tempfile.TemporaryDirectory(prefix="edgeship-torch-") as folder:
        copy = Path(folder) / f"model{asked.file.suffix.lower()}"
        copy.write_bytes(data)
        question = {"command": "describe", "model": str(copy), "format": TOOLCHAIN, "options": asked.options}
        try:
            said = ask(TOOLCHAIN, question)
        except InputError as error:
            raise InputError(error.message, file=request.text, next_step=error.next_step) from error
    files = (asked.file, *(Path(file) for file in said["code"]))
    return SourceModel(
        path=asked.file,
        format=TOOLCHAIN,
        data=data,
        digest=digest_of_files(files),
        files=files,
        size_bytes=sum(file.stat().st_size for file in files),
        operators=int(said["operators"]),
        parameters=int(said["parameters"]),
        inputs=_specs(said["inputs"]),
        outputs=_specs(said["outputs"]),
        quantized=bool(said["quantized"]),
        toolchain=TOOLCHAIN,
        options=asked.options,
        notes=tuple(said["notes"]),
        facts={"torch_kind": str(asked.kind)},
        tools={"torch": str(said["torch"])},
    )


def _specs(tensors: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=each["name"], dtype=each["dtype"], shape=tuple(each["shape"])) for each in tensors)


def _asked(request: SourceRequest) -> _Asked:
    if request.input_tensors or request.output_tensors:
        raise ConfigError("a PyTorch model is not cut", file=request.text, key="--input-tensor, --output-tensor",
                          next_step="return what you need from forward()")  # fmt: skip
    options: dict[str, Any] = {
        "input_shapes": [
            {"name": each.name, "shape": list(each.shape), "dtype": each.dtype} for each in request.input_shapes
        ],
        "allow_pickle": request.allow_pickle,
    }
    if request.path.is_file():
        return _file(request, options)
    return _factory(request, options)


def _file(request: SourceRequest, options: dict[str, Any]) -> _Asked:
    path = request.path
    check_size(path, path.stat().st_size)
    if request.weights:
        raise ConfigError("belongs to a factory", file=path, key="--weights", got=request.weights,
                          next_step=f"edgeship build package.module:factory --weights {request.weights}")  # fmt: skip
    found = recognise(path)
    if found.kind in {TorchKind.STATE_DICT, TorchKind.SAFETENSORS}:
        raise InputError(
            "weights without the model that they belong to", file=path, expected="a model",
            got="a state dict", next_step=f"edgeship build package.module:factory --weights {path}",
        )  # fmt: skip
    if found.kind is TorchKind.PICKLED and not request.allow_pickle:
        raise _code(path, found)
    paths = [str(path.parent.absolute()), *_import_paths()]
    return _Asked(kind=found.kind, file=path, options={**options, "kind": str(found.kind), "paths": paths})


def _code(path: Path, found: TorchFile) -> InputError:
    names = ", ".join(found.code[:_NAMES_SHOWN]) + (" …" if len(found.code) > _NAMES_SHOWN else "")
    return InputError(
        "holds pickled code, which could do anything when it is loaded", file=path, expected="weights or a graph",
        got=names,
        next_step="save weights with torch.save(model.state_dict(), FILE), or a graph with torch.export.save; "
        "add --allow-pickle for a file that you trust",
    )  # fmt: skip


def _factory(request: SourceRequest, options: dict[str, Any]) -> _Asked:
    found = _FACTORY.fullmatch(request.text)
    if not found:
        raise InputError("no such model file", file=request.text, expected="a file, or package.module:factory",
                         next_step="check the path")  # fmt: skip
    file = Path(found["file"]).absolute() if found["file"] else None
    if file and not file.is_file():
        raise InputError("no such Python file", file=found["file"], next_step="check the path")
    if request.weights is None:
        raise ConfigError("a factory makes a model without trained weights", file=request.text, key="--weights",
                          next_step=f"edgeship build {request.text} --weights FILE")  # fmt: skip
    if not request.weights.is_file():
        raise InputError("no such weights file", file=request.weights, next_step="check --weights")
    check_size(request.weights, request.weights.stat().st_size, "save the weights alone, without the optimizer")
    weights = recognise(request.weights)
    if weights.kind is TorchKind.PICKLED and not request.allow_pickle:
        raise _code(request.weights, weights)
    if weights.kind is TorchKind.EXPORTED_PROGRAM:
        raise ConfigError("is a whole model", file=request.weights, key="--weights", expected="a state dict",
                          next_step=f"edgeship build {request.weights}")  # fmt: skip
    factory = {"module": found["module"] or "", "file": str(file or ""), "attribute": found["attribute"]}
    paths = [str(file.parent) if file else str(Path.cwd()), *_import_paths()]
    options = {**options, "kind": str(TorchKind.STATE_DICT), "weights_kind": str(weights.kind),
               "factory": factory, "paths": paths}  # fmt: skip
    return _Asked(kind=TorchKind.STATE_DICT, file=request.weights, options=options)


def _import_paths() -> list[str]:
    """Where the user's own modules are found besides: the worker's Python is isolated from the environment."""
    return [str(Path(each).absolute()) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
