"""Trained models of every supported format, read into one shape."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

from edgeship.build.sources.model import FROM_CATBOOST, SourceModel
from edgeship.build.sources.request import InputShape, InputValue, SourceOptions, SourceRequest
from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import ConfigError, InputError

__all__ = ["InputShape", "InputValue", "SourceModel", "SourceOptions", "SourceRequest", "load"]

#: File suffix → the module that reads it; each has ``load(request) -> SourceModel``.
BY_SUFFIX: Final[dict[str, str]] = {
    ".onnx": "onnx", ".tflite": "tflite", ".pt2": "torch", ".pt": "torch", ".jit": "torch", ".pth": "torch",
    ".th": "torch", ".keras": "tensorflow", ".h5": "tensorflow", ".hdf5": "tensorflow", ".pb": "tensorflow",
    **dict.fromkeys((".joblib", ".pkl", ".pickle", ".skops", ".json", ".ubj", ".txt"), "classical"),
}  # fmt: skip
#: File in a folder → the module that reads the folder.
BY_MARKER: Final[dict[str, str]] = {"MLmodel": "mlflow", "saved_model.pb": "tensorflow"}
#: How an address begins → the module that resolves it; every other text with a colon is a factory.
BY_SCHEME: Final[dict[str, str]] = {"models:/": "mlflow", "runs:/": "mlflow"}
_FACTORIES: Final = "torch"
#: Suffix of what nothing here reads → what its own library can write instead; for others see :func:`reader_of`.
_EXPORTS: Final = {
    ".cbm": FROM_CATBOOST,
    ".safetensors": "weights go with the model that they belong to: edgeship build package.module:factory "
                    "--weights FILE",
}  # fmt: skip
#: Readers that make inputs constants, or hand the request on to one that does.
_KNOW_VALUES: Final = frozenset({"onnx", "mlflow"})
#: Readers of files that can be looked into as they are, once their shapes are given.
_PINNED: Final = frozenset({"onnx", "tflite"})
#: Reader → the toolchain that it needs to look into a source.
TOOLCHAINS: Final[dict[str, str]] = {"classical": "classical", "tensorflow": "tensorflow", "torch": "torch"}
#: Readers that ask one, or hand the request on to one that does.
_ASKING: Final = frozenset({*TOOLCHAINS, "mlflow"})


def load(asked: SourceRequest | Path, ask: workers.Ask = workers.ask) -> SourceModel:
    """Read a trained model.

    Args:
        asked: which.
        ask: how a toolchain is asked, for the formats that only a framework can look into.

    Raises:
        InputError: no such file, an unknown format, or a damaged file.
        ConfigError: an option that does not fit the source.
        ConversionError: it holds an operator that nothing here can run.
    """
    request = asked if isinstance(asked, SourceRequest) else SourceRequest(text=str(asked))
    name = reader_of(request)
    if request.input_values and name not in _KNOW_VALUES:
        raise ConfigError("inputs of this format cannot be made constants", key="--input-value",
                          file=request.path, expected="an ONNX model",
                          next_step="leave the option out, or export the model as ONNX")  # fmt: skip
    reader = importlib.import_module(f"{__name__}.{name}")
    model: SourceModel = reader.load(request, ask) if name in _ASKING else reader.load(request)
    return model


def toolchain_of(request: SourceRequest) -> str:
    """The toolchain that looking into a source needs, empty for none.

    Raises:
        InputError, ConfigError: the source cannot be used, as far as can be told without the toolchain.
    """
    request = resolved(request)
    name = reader_of(request)
    reader = importlib.import_module(f"{__name__}.{name}")
    if hasattr(reader, "check"):
        reader.check(request)
    return TOOLCHAINS.get(name, "")


def resolved(request: SourceRequest) -> SourceRequest:
    """The request for the model itself, where a tracker's address or a folder of its was named.

    Raises:
        InputError, ConfigError, TransferError: there is none.
    """
    reader = importlib.import_module(f"{__name__}.{reader_of(request)}")
    found: SourceRequest = reader.resolved(request) if hasattr(reader, "resolved") else request
    return found


def file_to_check(request: SourceRequest, folder: Path) -> Path:
    """The model's file for checks of its operators; where an ONNX or a TFLite file is pinned, what is left of it then.

    An ONNX file that answers with maps counts as it is read: without them.

    Raises:
        InputError, ConfigError, ConversionError: it cannot be read, or a value or a shape does not fit.
    """
    request = resolved(request)
    reader = reader_of(request)
    pinned = bool(request.input_values or request.input_shapes) and reader in _PINNED
    return load(request).copy_to(folder) if pinned or (reader == "onnx" and _has_maps(request.path)) else request.path


def _has_maps(path: Path) -> bool:
    from edgeship.build.sources.onnx_classical import may_hold_maps  # ONNX: not for sources that are none

    return may_hold_maps(path)


def stem_of(request: SourceRequest) -> str:
    """What a model is called where nobody gives it a name."""
    if request.path.exists() or not request.text.startswith(tuple(BY_SCHEME)):
        return request.path.stem
    named: str = importlib.import_module(f"{__name__}.{reader_of(request)}").name_of(request.text)
    return named or request.path.stem


def reader_of(request: SourceRequest) -> str:
    """Name of the module that reads a source.

    Raises:
        InputError: none does.
    """
    path = request.path
    if not path.exists() and ":" in request.text:
        return next((name for start, name in BY_SCHEME.items() if request.text.startswith(start)), _FACTORIES)
    if path.is_dir():
        for marker, name in BY_MARKER.items():
            if (path / marker).is_file():
                return name
    elif not path.is_file():
        raise InputError("no such model file", file=path, next_step="check the path")
    elif path.suffix.lower() in BY_SUFFIX:
        return BY_SUFFIX[path.suffix.lower()]
    raise InputError(
        "unknown model format",
        file=path,
        expected=" | ".join([*BY_SUFFIX, *(f"a folder with {marker}" for marker in BY_MARKER)]),
        got="a folder without one of these" if path.is_dir() else path.suffix or "no suffix",
        next_step=_EXPORTS.get(
            path.suffix.lower(), "export the model as ONNX, with torch.onnx.export, tf2onnx or skl2onnx"
        ),
    )
