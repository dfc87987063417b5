"""Models of scikit-learn, XGBoost and LightGBM: looked at in the toolchain that has these libraries."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

from edgeship.build.sources.model import FROM_CATBOOST, SourceModel, check_size, digest_of_files
from edgeship.build.sources.request import SourceRequest
from edgeship.build.toolchains import workers
from edgeship_agent.contract.errors import ConfigError, ConversionError, InputError
from edgeship_agent.contract.manifest import TensorSpec

TOOLCHAIN: Final = "classical"
PICKLES: Final = frozenset({".joblib", ".pkl", ".pickle"})
#: Suffix → format, and what must stand at the file's beginning.
_NATIVE: Final = {
    ".json": ("xgboost", b'"learner"', "XGBoost's JSON, as Booster.save_model writes it"),
    ".ubj": ("xgboost", b"learner", "XGBoost's UBJSON, as Booster.save_model writes it"),
    ".txt": ("lightgbm", b"tree\n", "LightGBM's text, as Booster.save_model writes it"),
}
#: The marks stand in the first bytes of these formats; XGBoost's JSON has its trees between brace and key.
_HEAD_BYTES: Final = 1 << 16
#: A .skops file is a zip archive; one that unpacks to more than this is no model but a bomb.
MOST_UNPACKED_BYTES: Final = 8 * 1024**3
_TRAIN: Final = "save it again, or as ONNX with skl2onnx or onnxmltools"
#: What stands in a file of CatBoost's, in JSON as well.
_CATBOOST: Final = b"catboost_version_info"


def load(request: SourceRequest, ask: workers.Ask = workers.ask) -> SourceModel:
    """Look at a model of one of the three libraries.

    Raises:
        InputError: damaged, of another kind, a pickle that nobody allowed, or no model.
        ConfigError: an option that does not fit.
        ConversionError: the toolchain is not installed, or its process died.
    """
    path = request.path
    kind = check(request)
    options = {"allow_pickle": request.allow_pickle, "outputs": list(request.output_tensors)}
    answer = _describe((path, kind), options, ask)
    return SourceModel(
        path=path,
        format=kind,
        data=path.read_bytes(),
        digest=digest_of_files((path,)),
        files=(path,),
        size_bytes=path.stat().st_size,
        operators=int(answer["operators"]),
        parameters=int(answer["parameters"]),
        inputs=_specs(answer["inputs"]),
        outputs=_specs(answer["outputs"]),
        toolchain=TOOLCHAIN,
        options=options,
        notes=tuple(answer["notes"]),
        takes_gaps=bool(answer.get("takes_gaps")),
        classes=tuple(answer["classes"]),
        features=tuple(answer["features"]),
    )


def check(request: SourceRequest) -> str:
    """What can be told without the toolchain.

    Returns:
        The format.

    Raises:
        InputError: the contents are not what the suffix says, or may not be read.
        ConfigError: an option that does not fit.
    """
    if request.input_shapes:
        raise ConfigError("the model says itself how many features it takes", file=request.path, key="--input-shape",
                          next_step="leave the option out")  # fmt: skip
    check_size(request.path, request.path.stat().st_size)
    return _kind(request.path, allow_pickle=request.allow_pickle)


def _kind(path: Path, *, allow_pickle: bool) -> str:
    """The format, from the suffix and the first bytes.

    Raises:
        InputError: the contents are not what the suffix says, or may not be read.
    """
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        if not allow_pickle:
            raise InputError("a pickle can run any code when it is read", file=path, expected="a .skops file",
                             got=f"a {suffix} file", next_step="save it with skops.io.dump, or add --allow-pickle "
                             "if you trust where it comes from")  # fmt: skip
        return "sklearn"
    if suffix == ".skops":
        _check_archive(path)
        return "sklearn"
    kind, mark, wanted = _NATIVE[suffix]
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if mark not in head or (suffix == ".txt" and not head.startswith(mark)):
        step = FROM_CATBOOST if _CATBOOST in head else _TRAIN
        raise InputError("not a model of that kind", file=path, expected=wanted, next_step=step)
    return kind


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError("damaged or truncated", file=path, expected="a zip archive, as skops.io.dump writes it",
                         next_step=_TRAIN) from error  # fmt: skip
    if size_bytes > MOST_UNPACKED_BYTES:
        raise InputError("unpacks to more than a model can be", file=path, got=f"{size_bytes} bytes",
                         expected=f"at most {MOST_UNPACKED_BYTES} bytes", next_step=_TRAIN)  # fmt: skip


def _describe(model: tuple[Path, str], options: dict[str, Any], ask: workers.Ask) -> dict[str, Any]:
    path, kind = model
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copyfile(path, Path(folder) / f"model{path.suffix.lower()}"))
        request = {"command": "describe", "model": str(copy), "format": kind, "options": options}
        try:
            return ask(TOOLCHAIN, request)
        except InputError as error:
            raise InputError(error.message, file=path, next_step=error.next_step or _TRAIN) from error
        except ConversionError as error:
            error.file = error.file or str(path)
            raise


def _specs(told: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=each["name"], dtype=each["dtype"], shape=tuple(each["shape"])) for each in told)
