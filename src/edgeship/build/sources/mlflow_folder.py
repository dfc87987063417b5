"""MLflow model folders: which file in them is the model. ``MLmodel`` is read as plain data; nothing is unpickled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from edgeship.build.sources.torch_files import TorchKind, recognise
from edgeship_agent.contract.errors import InputError

MARKER: Final = "MLmodel"
#: A description of this size is none.
_LARGEST_BYTES: Final = 4 * 1024**2
_AGAIN: Final = "log or download the model again"
_PICKLES: Final = frozenset({".pkl", ".pickle", ".joblib"})
_KERAS_FILES: Final = ("model.keras", "model.h5", "model")
_SAVED_MODEL: Final = "saved_model.pb"


class Inner(Struct, frozen=True, kw_only=True):
    """The model in a folder.

    Attributes:
        path: file or folder.
        suffix: what the file's name must end with for its reader, where MLflow names it otherwise; else empty.
        flavor: of MLflow.
    """

    path: Path
    flavor: str
    suffix: str = ""


def read(folder: Path) -> dict[str, Any]:
    """``MLmodel`` as a mapping.

    Raises:
        InputError: it cannot be read.
    """
    import yaml  # few sources are such folders

    path = folder / MARKER
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise InputError("is too large for a description of a model", file=path,
                             expected=f"at most {_LARGEST_BYTES} bytes", got=f"{path.stat().st_size} bytes",
                             next_step=_AGAIN)  # fmt: skip
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError("cannot be read", file=path, expected="YAML, as MLflow writes it", got=reason,
                         next_step=_AGAIN) from error  # fmt: skip
    if not isinstance(found, dict) or not isinstance(found.get("flavors"), dict):
        raise InputError("is no description of a model", file=path, key="flavors", expected="a mapping of flavours",
                         next_step=_AGAIN)  # fmt: skip
    return found


def inner(folder: Path, described: Mapping[str, Any], *, allow_pickle: bool) -> Inner:
    """The model itself, by the first flavour that can be built.

    Args:
        folder: with ``MLmodel``.
        described: what that says; see :func:`read`.
        allow_pickle: whether files that can run code when they are read may be named.

    Raises:
        InputError: a flavour that cannot be built, a missing file, or a pickle that nobody allowed.
    """
    flavors = described["flavors"]
    for flavor, find in FLAVORS.items():
        if flavor in flavors:
            options = flavors[flavor]
            return find(_Folder(path=folder, flavor=flavor, options=options if isinstance(options, dict) else {},
                                allow_pickle=allow_pickle))  # fmt: skip
    raise InputError(
        "has no flavour that can be built", file=folder, expected=" | ".join(FLAVORS),
        got=", ".join(sorted(str(name)[:40] for name in flavors)[:10]) or "none",
        next_step="export the model as ONNX and log that: mlflow.onnx.log_model",
    )  # fmt: skip


class _Folder(Struct, frozen=True, kw_only=True):
    """A model folder, and what it says of one flavour."""

    path: Path
    flavor: str
    options: dict[str, Any]
    allow_pickle: bool

    def named(self, key: str, usual: str) -> Path:
        """The file or folder that a key names.

        Raises:
            InputError: not a name, outside of the folder, or not there.
        """
        name = self.options.get(key) or usual
        where = f"flavors.{self.flavor}.{key}"
        if not isinstance(name, str) or "\0" in name:
            raise InputError("names no file", file=self.path / MARKER, key=where, expected="a name in this folder",
                             got=repr(name)[:80], next_step=_AGAIN)  # fmt: skip
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise InputError("leads out of the model's folder", file=self.path / MARKER, key=where,
                             expected="a name in this folder", got=name,
                             next_step="take the model from a source that you trust")  # fmt: skip
        if not path.exists():
            raise InputError("is missing", file=path, expected=f"what {MARKER} names in {where}", next_step=_AGAIN)
        return path

    def file(self, key: str, usual: str, expected: str) -> Path:
        """The file that a key names.

        Raises:
            InputError: as for :meth:`named`, or it is a folder.
        """
        path = self.named(key, usual)
        if not path.is_file():
            raise InputError("is a folder", file=path, expected=expected, next_step=_AGAIN)
        return path

    def found(self, path: Path, suffix: str = "") -> Inner:
        return Inner(path=path, flavor=self.flavor, suffix=suffix)

    def pickled(self, path: Path, instead: str) -> Inner:
        """A pickle, where the user trusts it.

        Raises:
            InputError: nobody said so.
        """
        if not self.allow_pickle:
            raise InputError("a pickle can run any code when it is read", file=path,
                             expected=f"a model of the flavour {self.flavor} without pickles", got=path.name,
                             next_step=f"{instead}; or add --allow-pickle for a model that you trust")  # fmt: skip
        return self.found(path)

    def strange(self, path: Path, expected: str) -> InputError:
        return InputError("is not what this flavour holds", file=path, expected=expected,
                          got=path.suffix or "no suffix", next_step=_AGAIN)  # fmt: skip


def _onnx(folder: _Folder) -> Inner:
    path = folder.file("data", "model.onnx", "an .onnx file")
    if path.suffix.lower() != ".onnx":
        raise folder.strange(path, "an .onnx file")
    return folder.found(path)


def _tensorflow(folder: _Folder) -> Inner:
    """A Keras file or a SavedModel, as ``mlflow.tensorflow`` and ``mlflow.keras`` lay them out."""
    saved = "saved_model_dir" in folder.options
    path = folder.named("saved_model_dir" if saved else "data", "data")
    for candidate in (path, *(path / name for name in _KERAS_FILES)):
        if (candidate / _SAVED_MODEL).is_file() or (candidate.is_file() and candidate.suffix in {".keras", ".h5"}):
            return folder.found(candidate)
    raise folder.strange(path, f"{_KERAS_FILES[0]}, {_KERAS_FILES[1]} or a folder with {_SAVED_MODEL}")


def _xgboost(folder: _Folder) -> Inner:
    path = folder.file("data", "model.ubj", "a file of XGBoost")
    if path.suffix.lower() in {".json", ".ubj"}:
        return folder.found(path)
    with path.open("rb") as stream:
        head = stream.read(2)
    if head[:1] != b"{":
        raise InputError("is XGBoost's old binary form", file=path, expected="JSON or UBJSON",
                         next_step="log it again with mlflow.xgboost.log_model(…, model_format='ubj')")  # fmt: skip
    # JSON goes on with a name in quotes, UBJSON with the type of that name's length
    return folder.found(path, ".json" if head[1:2] in {b'"', b"\n", b" "} else ".ubj")


def _lightgbm(folder: _Folder) -> Inner:
    path = folder.file("data", "model.lgb", "a file of LightGBM")
    if path.suffix.lower() in _PICKLES:
        return folder.pickled(path, "log model.booster_ instead, or with serialization_format='skops'")
    return folder.found(path, "" if path.suffix.lower() in {".txt", ".skops"} else ".txt")


def _sklearn(folder: _Folder) -> Inner:
    path = folder.file("pickled_model", "model.pkl", "a .skops or .pkl file")
    if path.suffix.lower() == ".skops":
        return folder.found(path)
    if path.suffix.lower() not in _PICKLES:
        raise folder.strange(path, ".skops or .pkl")
    return folder.pickled(path, "log it with mlflow.sklearn.log_model(…, serialization_format='skops')")


def _pytorch(folder: _Folder) -> Inner:
    data = folder.named("model_data", "data")
    files = [data / name for name in ("model.pt2", "model.pth") if (data / name).is_file()]
    if not files:
        raise folder.strange(data, "a folder with model.pt2 or model.pth")
    if recognise(files[0]).kind is TorchKind.PICKLED:
        return folder.pickled(files[0], "log it with mlflow.pytorch.log_model(…, serialization_format='pt2'), or "
                              "export it with torch.onnx.export and log that with mlflow.onnx.log_model")  # fmt: skip
    return folder.found(files[0])


#: Flavours in order of preference: what needs no framework first.
FLAVORS: Final[dict[str, Callable[[_Folder], Inner]]] = {
    "onnx": _onnx,
    "tensorflow": _tensorflow,
    "keras": _tensorflow,
    "xgboost": _xgboost,
    "lightgbm": _lightgbm,
    "sklearn": _sklearn,
    "pytorch": _pytorch,
}
