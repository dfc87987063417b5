"""Arrays of NumPy: an ``.npz`` file by the names that people use, or a ``.npy`` file with its labels beside it."""

from __future__ import annotations

import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.reading.found import HALVES, LABEL_NAMES, Read, plain
from edgeship.build.reading.labels import Answers, answers_of
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.runtime.engine import Array

#: What NumPy says of an archive that is none, is damaged, or declares what it does not hold.
UNREADABLE: Final = (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, MemoryError, KeyError,
                     RuntimeError, SyntaxError, TypeError, tokenize.TokenError,
                     zlib.error)  # fmt: skip
DESCRIBE: Final = "describe the way from the array to the model with --preprocess FILE.toml"
_SUPPLY: Final = "give a file with x (and y), or a folder with one sub-folder of images per class"
_TEXT: Final = "save labels as text of a fixed width, y.astype(str), and numbers as numbers"
#: Names of the array that holds the samples of a model with one input; ``arr_0`` is what savez calls the first.
_SAMPLE_NAMES: Final = frozenset(
    {"x", "image", "images", "data", "input", "inputs", "feature", "features", "sample", "samples", "signal",
     "signals", "window", "windows", "audio", "arr0"}
)  # fmt: skip
#: Channels of a picture: grey, colours, colours and transparency.
_COLOURS: Final = frozenset({1, 3, 4})
_LABELS: Final = LABEL_NAMES | {"arr1"}


class _Chosen(Struct, frozen=True, kw_only=True):
    """Which array is read as what: names of the file's own."""

    samples: str = ""
    labels: str = ""


def read_archive(path: Path, contracts: Sequence[InputContract], role: str = "") -> Read:
    """The samples of an .npz file, and its labels or targets.

    Args:
        path: of the file.
        contracts: of the model's inputs.
        role: ``calibration`` or ``evaluation``: which half is read of a file that holds both.

    Raises:
        InputError: unreadable, or not what the model takes.
    """
    arrays = _arrays(path)
    chosen = _choose(arrays, contracts, role)
    if chosen.samples:
        arrays = {**arrays, contracts[0].tensor: arrays[chosen.samples]}
    inputs = {contract.tensor: array_of(arrays, contract, len(contracts), path) for contract in contracts}
    notes = _notes(arrays, inputs, chosen)
    return joined(inputs, arrays.get(chosen.labels), path, chosen.labels, notes)


def read_array(path: Path, contracts: Sequence[InputContract]) -> Read:
    """The samples of a .npy file, and the labels of the one beside it whose name says that it is theirs.

    Raises:
        InputError: unreadable, or not what the model takes.
    """
    if len(contracts) != 1:
        raise InputError("one array feeds a model with one input", file=path, got=f"{len(contracts)} inputs",
                         expected="an .npz file with one array per input", next_step=_SUPPLY)  # fmt: skip
    array = load_array(path)
    beside = [each for each in sorted(path.parent.glob("*.npy")) if each != path and _belongs(each.stem, path.stem)]
    given = load_array(beside[0]) if len(beside) == 1 else None
    notes = (f"labels are read from {beside[0].name}",) if given is not None else ()
    inputs = {contracts[0].tensor: array_of({"x": array}, contracts[0], 1, path)}
    return joined(inputs, given, path, beside[0].name if given is not None else "y", notes)


def joined(inputs: Mapping[str, Array], answers: Array | None, path: Path, key: str, notes: Sequence[str] = ()) -> Read:
    """Samples from one array per input, with the right answers where there are some.

    Raises:
        InputError: different numbers of samples, or answers that are none.
    """
    sizes = {name: len(array) for name, array in inputs.items()}
    count = next(iter(sizes.values()))
    if len(set(sizes.values())) != 1:
        raise InputError(
            "inputs with different numbers of samples",
            file=path,
            got=sizes,
            next_step="give every input as many samples",
        )
    samples = tuple({name: array[index] for name, array in inputs.items()} for index in range(count))
    found = Answers() if answers is None else answers_of(answers, count, path, key)
    return Read(samples=samples, labels=found.labels, class_names=found.class_names, targets=found.targets,
                notes=(*notes, *found.notes))  # fmt: skip


def load_array(path: Path) -> Array:
    """One array from a .npy file.

    Raises:
        InputError: it is none.
    """
    try:
        array: Array = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise InputError(f"not a readable .npy file: {error}", file=path, next_step=_next(error)) from error
    return array


def _arrays(path: Path) -> dict[str, Array]:
    try:
        check_unpacked(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise InputError(f"not a readable .npz file: {error}", file=path, next_step=_next(error)) from error


def _next(error: BaseException) -> str:
    return _TEXT if "pickle" in str(error) else _SUPPLY


def check_unpacked(path: Path) -> None:
    """Refuse an archive that unpacks to more than this machine's free memory, before anything is unpacked.

    Raises:
        InputError: it does.
        OSError, zipfile.BadZipFile: not an archive.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    free = free_memory_bytes()
    if size > free:
        raise InputError(f"it unpacks to {size / 1e9:.3g} GB, more than the memory that is free", file=path,
                         expected=f"at most {free / 1e9:.3g} GB", got=f"{path.stat().st_size / 1e9:.3g} GB packed",
                         next_step="give fewer samples, or a folder of images")  # fmt: skip


def free_memory_bytes(report: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be had without swapping. Source: proc(5), MemAvailable."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", report.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _choose(arrays: Mapping[str, Array], contracts: Sequence[InputContract], role: str) -> _Chosen:
    """The array of the samples where it is not called as the input, and that of the labels."""
    tensors = {contract.tensor for contract in contracts}
    samples, half = "", ""
    if len(contracts) == 1 and not tensors & set(arrays) and "x" not in arrays:
        samples, half = _named_so(arrays, _SAMPLE_NAMES, role, "")
        fitting = [name for name, array in arrays.items() if _fits(array, contracts[0])]
        if not samples and len(fitting) == 1:
            samples = fitting[0]
    others = {name: array for name, array in arrays.items() if name not in {*tensors, samples, "x"}}
    return _Chosen(samples=samples, labels=_named_so(others, _LABELS, role, half)[0])


def _named_so(names: Mapping[str, Array], wanted: frozenset[str], role: str, half: str) -> tuple[str, str]:
    """The one array that is called so, and the half that its name tells; without a half before one of it."""
    found: dict[str, list[str]] = {}
    for name in names:
        stem, part = _halved(name)
        if stem in wanted:
            found.setdefault(part, []).append(name)
    for part in dict.fromkeys((half, "", *HALVES.get(role, ()))):
        if len(found.get(part, ())) == 1:
            return found[part][0], part
    if not role and len(found) == 1 and len(next(iter(found.values()))) == 1:
        part, (name,) = next(iter(found.items()))
        return name, part
    return "", ""


def _halved(name: str) -> tuple[str, str]:
    """What a name says besides the half of the data, and the half.

    >>> _halved("X_train"), _halved("test_images"), _halved("y")
    (('x', 'train'), ('images', 'test'), ('y', ''))
    """
    words = [word for word in re.split(r"[^A-Za-z0-9]+", name.lower()) if word]
    halves = [word for word in words if any(word in some for some in HALVES.values())]
    return plain("".join(word for word in words if word not in halves)), halves[0] if halves else ""


def _fits(array: Array, contract: InputContract) -> bool:
    same = array.ndim == len(contract.shape) + 1 and array.dtype.name == contract.dtype
    return same and all(want in {size, -1} for size, want in zip(array.shape[1:], contract.shape, strict=True))


def _belongs(labels: str, samples: str) -> bool:
    """Whether one file's name is that of the labels of another's samples.

    >>> _belongs("y_test", "x_test"), _belongs("y_train", "x_test"), _belongs("x_val_labels", "x_val")
    (True, False, True)
    """
    (stem, half), (other, part) = _halved(labels), _halved(samples)
    ours = stem in LABEL_NAMES or any(stem == other + name for name in LABEL_NAMES)
    return ours and half == part


def _notes(arrays: Mapping[str, Array], inputs: Mapping[str, Array], chosen: _Chosen) -> tuple[str, ...]:
    """How names were understood, and which arrays are not read."""
    notes = []
    if chosen.samples:
        also = f", {chosen.labels} as the labels" if chosen.labels else ""
        notes.append(f"{chosen.samples} is read as the samples{also}")
    elif chosen.labels not in {"", "y"}:
        notes.append(f"{chosen.labels} is read as the labels")
    read = {*inputs, chosen.samples, chosen.labels, "x"}
    if others := [name for name in arrays if name not in read]:
        notes.append(f"not read: {', '.join(others[:8])}" + ("" if chosen.labels else "; labels are called y"))
    return tuple(notes)


def array_of(arrays: Mapping[str, Array], contract: InputContract, inputs: int, path: Path) -> Array:
    """The array of one input, [N, …].

    Raises:
        InputError: missing, or of another type or shape.
    """
    name = contract.tensor if contract.tensor in arrays else "x" if inputs == 1 else contract.tensor
    if name not in arrays:
        wanted = "x" if inputs == 1 else contract.tensor
        raise InputError("missing array", file=path, key=wanted, got=", ".join(arrays) or "an empty file",
                         next_step="save it with numpy.savez, one array per input name")  # fmt: skip
    array = arrays[name]
    if array.ndim == 0:
        raise InputError("a single number is not a set of samples", file=path, key=name, next_step=DESCRIBE)
    if array.ndim != len(contract.shape) + 1 or array.dtype.name != contract.dtype:
        wanted = ", ".join(["N", *("any" if size < 0 else str(size) for size in contract.shape)])
        raise InputError(
            "not what the model takes, and a layout is never guessed",
            file=path,
            key=name,
            expected=f"{contract.dtype} [{wanted}]",
            got=f"{array.dtype} {list(array.shape)}",
            next_step=mend(contract, array.dtype.name, array.shape[1:]),
        )
    return array


def mend(contract: InputContract, dtype: str, shape: Sequence[int]) -> str:
    """How to save the samples so that they fit, where types or the order of axes are all that differs.

    Args:
        contract: what the model takes.
        dtype: of the samples.
        shape: of one sample.

    >>> contract = InputContract(tensor="x", dtype="float32", shape=(1, 8, 8))
    >>> mend(contract, "float64", (8, 8, 1))
    'save x.transpose(0, 3, 1, 2).astype("float32"), or describe the way from the array to the model with \
--preprocess FILE.toml'
    """
    wanted = contract.shape
    changes = ""
    if tuple(shape) != wanted:
        if len(shape) == 3 and wanted == (shape[2], *shape[:2]):
            changes = ".transpose(0, 3, 1, 2)"
        elif len(shape) == 3 and wanted == (*shape[1:], shape[0]):
            changes = ".transpose(0, 2, 3, 1)"
        elif [size for size in shape if size != 1] == [size for size in wanted if size != 1] and -1 not in wanted:
            changes = f".reshape({', '.join(['-1', *map(str, wanted)])})"
        else:
            return described(contract, dtype, shape)
    if dtype != contract.dtype:
        if dtype == "uint8" and contract.dtype.startswith("float"):
            return described(contract, dtype, shape)
        changes += f'.astype("{contract.dtype}")'
    return f"save x{changes}, or {DESCRIBE}"


def described(contract: InputContract, dtype: str, shape: Sequence[int]) -> str:
    """The preprocessing contract of pictures as a next step; of anything else only that there is one.

    How bytes are scaled, only whoever trained the model knows: the step is there to be corrected.

    Args:
        contract: what the model takes.
        dtype: of one raw sample.
        shape: of one raw sample.

    >>> contract = InputContract(tensor="x", dtype="float32", shape=(3, 8, 8))
    >>> described(contract, "uint8", (20, 30, 3)).split("steps = ")[1]
    '[{ op = "resize", height = 8, width = 8 }, { op = "cast", dtype = "float32" }, { op = "scale", factor = \
0.00392156862745098 }, { op = "transpose", axes = [2, 0, 1] }], with the scale of the training'
    """
    wanted = contract.shape
    if dtype != "uint8" or len(shape) != 3 or len(wanted) != 3 or contract.steps:
        return DESCRIBE
    if tuple(shape) != wanted and shape[2] not in _COLOURS:
        return DESCRIBE
    first = wanted[0] == shape[2] and wanted[2] != shape[2]
    height, width = wanted[1:] if first else wanted[:2]
    if min(height, width) < 1 or (not first and wanted[2] != shape[2]):
        return DESCRIBE
    resized = (height, width) != tuple(shape[:2]) and tuple(shape) != wanted
    steps = [f'{{ op = "resize", height = {height}, width = {width} }}'] if resized else []
    if contract.dtype.startswith("float"):
        steps.append(f'{{ op = "cast", dtype = "{contract.dtype}" }}')
        steps.append('{ op = "scale", factor = 0.00392156862745098 }')
    steps += ['{ op = "transpose", axes = [2, 0, 1] }'] if first else []
    raw = f"[-1, -1, {shape[2]}]" if resized else list(shape)
    scale = ", with the scale of the training" if contract.dtype.startswith("float") else ""
    return (f'write to --preprocess FILE.toml: [[input]] dtype = "uint8", shape = {raw}, '
            f"steps = [{', '.join(steps)}]{scale}")  # fmt: skip
