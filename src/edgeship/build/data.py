"""Calibration and evaluation data: ``.npz`` files, or folders with one sub-folder of images per class."""

from __future__ import annotations

import hashlib
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct, structs

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.processing import check_raw, prepare
from edgeship_agent.runtime.engine import Array

IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
#: Shares of the calibration file by position: of every five samples three set ranges, two select among schemes.
_CALIBRATES: Final = frozenset({0, 2, 4})
_DESCRIBE: Final = "describe the way from the array to the model with --preprocess FILE.toml"
_SUPPLY: Final = "give a file with x (and y), or a folder with one sub-folder of images per class"
_LABELS: Final = "save y as one class index (0, 1, …) per sample, or as float targets"
_FORMS: Final = "an .npz file with x (and y), or a folder with one sub-folder of images per class"
#: With fewer samples than this, all of them set ranges and the target's default scheme is taken.
SELECTION_MIN: Final = 50


#: What NumPy says of an archive that is none, is damaged, or declares what it does not hold.
UNREADABLE: Final = (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, MemoryError, KeyError,
                     RuntimeError, SyntaxError, TypeError, tokenize.TokenError,
                     zlib.error)  # fmt: skip


class Dataset(Struct, frozen=True, kw_only=True):
    """Samples in order.

    Attributes:
        samples: one mapping model input → raw sample (no batch axis) per sample.
        labels: class index per sample, or None.
        class_names: names of the classes where the data tells them.
        targets: [N, …], where ``y`` holds floats instead of classes.
        files: path of each sample below ``path``, where the samples are files.
        digests: sha256 of each sample's content.
        digest: sha256 over the samples' digests and labels, in order.
    """

    path: Path
    samples: tuple[Mapping[str, Array], ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    digests: tuple[str, ...]
    digest: str
    targets: Array | None = None
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def prepared(self, contracts: Sequence[InputContract]) -> list[dict[str, Array]]:
        """Every sample as the model takes it, with a batch axis of 1."""
        return [prepare(contracts, sample) for sample in self.samples]


def load(path: Path, contracts: Sequence[InputContract]) -> Dataset:
    """Read a data set and check every sample against the contract.

    It is labelled where the file has ``y``, or where the images lie in sub-folders of the folder.

    Raises:
        InputError: not there, not readable, empty, or with a sample of the wrong shape or dtype, or with NaN.
    """
    if path.is_dir():
        read = _read_folder(path, contracts)
    elif path.is_file():
        read = read_archive(path, contracts)
    else:
        raise InputError("no such data", file=path, expected=_FORMS, next_step="check the path")
    samples = read.samples
    if not samples:
        raise InputError("the data set is empty", file=path, expected="at least one sample", got=0, next_step=_SUPPLY)
    for index, sample in enumerate(samples):
        check_sample(sample, contracts, path, index)
    digests = tuple(sample_digest(sample) for sample in samples)
    answers = repr(read.labels) if read.targets is None else hashlib.sha256(read.targets.tobytes()).hexdigest()
    whole = hashlib.sha256("\n".join((*digests, answers)).encode()).hexdigest()
    return Dataset(
        path=path, samples=samples, labels=read.labels, class_names=read.class_names, digests=digests,
        digest=f"sha256:{whole}", targets=read.targets, files=read.files,
    )  # fmt: skip


def as_sequences(path: Path, contracts: tuple[InputContract, ...]) -> tuple[InputContract, ...]:
    """Contracts of sequences, where every array of the file has one axis more than samples and their own axes.

    Args:
        path: an .npz file; anything else holds single samples.
        contracts: of one step.
    """
    if not path.is_file():
        return contracts
    try:
        with np.load(path, allow_pickle=False) as archive:
            shapes = {name: archive[name].shape for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError):
        return contracts  # whoever reads it says so
    found = [shapes.get(each.tensor, shapes.get("x", ())) for each in contracts]
    if not all(len(shape) == len(each.shape) + 2 for shape, each in zip(found, contracts, strict=True)):
        return contracts
    return tuple(
        structs.replace(each, shape=(shape[1], *each.shape), sequence=True)
        for shape, each in zip(found, contracts, strict=True)
    )


def check_disjoint(calibration: Dataset, evaluation: Dataset) -> None:
    """Refuse an evaluation sample that the calibration has seen.

    Raises:
        InputError: names how many samples have the same content, and the first.
    """
    seen = set(calibration.digests)
    shared = [index for index, digest in enumerate(evaluation.digests) if digest in seen]
    if shared:
        raise InputError(
            f"{len(shared)} of {len(evaluation)} evaluation samples are also in the calibration data "
            f"(the first is sample {shared[0]})",
            file=evaluation.path,
            expected="no sample in common",
            next_step="take them out of one of the two",
        )


def split(count: int) -> tuple[list[int], list[int]]:
    """Indices that set ranges, and indices that select among quantization schemes; disjoint, fixed by position.

    >>> split(100)[0][:4], split(100)[1][:3]
    ([0, 2, 4, 5], [1, 3, 6])
    >>> split(3)
    ([0, 1, 2], [])
    """
    if count < SELECTION_MIN:
        return list(range(count)), []
    ranges = [index for index in range(count) if index % 5 in _CALIBRATES]
    return ranges, [index for index in range(count) if index % 5 not in _CALIBRATES]


class _Read(Struct, frozen=True, kw_only=True):
    """What a file or folder holds; fields as in :class:`Dataset`."""

    samples: tuple[Mapping[str, Array], ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    targets: Array | None = None
    files: tuple[str, ...] = ()


def read_archive(path: Path, contracts: Sequence[InputContract]) -> _Read:
    """The samples of an .npz file, and its labels or targets.

    Raises:
        InputError: unreadable, or not what the model takes.
    """
    try:
        check_unpacked(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise InputError(f"not a readable .npz file: {error}", file=path, next_step=_SUPPLY) from error
    inputs = {contract.tensor: _array_of(arrays, contract, len(contracts), path) for contract in contracts}
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
    y = arrays.get("y")
    if y is not None and y.dtype.kind == "f":
        return _Read(samples=samples, targets=_targets(y, count, path))
    return _Read(samples=samples, labels=None if y is None else _labels(y, count, path))


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


def _array_of(arrays: Mapping[str, Array], contract: InputContract, inputs: int, path: Path) -> Array:
    name = contract.tensor if contract.tensor in arrays else "x" if inputs == 1 else contract.tensor
    if name not in arrays:
        wanted = "x" if inputs == 1 else contract.tensor
        raise InputError("missing array", file=path, key=wanted, got=", ".join(arrays) or "an empty file",
                         next_step="save it with numpy.savez, one array per input name")  # fmt: skip
    array = arrays[name]
    if array.ndim == 0:
        raise InputError("a single number is not a set of samples", file=path, key=name, next_step=_DESCRIBE)
    if array.ndim != len(contract.shape) + 1 or array.dtype.name != contract.dtype:
        wanted = ", ".join(["N", *("any" if size < 0 else str(size) for size in contract.shape)])
        raise InputError(
            "not what the model takes, and a layout is never guessed",
            file=path,
            key=name,
            expected=f"{contract.dtype} [{wanted}]",
            got=f"{array.dtype} {list(array.shape)}",
            next_step=_DESCRIBE,
        )
    return array


def _labels(array: Array, count: int, path: Path) -> tuple[int, ...]:
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise InputError("not one class index per sample", file=path, key="y", expected=f"integers [{count}]",
                         got=f"{array.dtype} {list(array.shape)}", next_step=_LABELS)  # fmt: skip
    if array.size and int(array.min()) < 0:
        raise InputError("a negative class index", file=path, key="y", got=int(array.min()), next_step=_LABELS)
    return tuple(int(label) for label in array)


def _targets(array: Array, count: int, path: Path) -> Array:
    if not array.ndim or len(array) != count:
        raise InputError("not one target per sample", file=path, key="y", expected=f"floats [{count}, …]",
                         got=f"{array.dtype} {list(array.shape)}", next_step=_LABELS)  # fmt: skip
    if not np.isfinite(array).all():
        raise InputError("NaN or infinity among the targets", file=path, key="y", expected="finite numbers",
                         got=f"{int((~np.isfinite(array)).sum())} that are not",
                         next_step="take such samples out")  # fmt: skip
    return array


def _read_folder(path: Path, contracts: Sequence[InputContract]) -> _Read:
    if len(contracts) != 1:
        raise InputError("a folder of images feeds a model with one input", file=path,
                         expected="an .npz file with one array per input", got=f"{len(contracts)} inputs",
                         next_step="save the samples with numpy.savez, one array per input name")  # fmt: skip
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    found = [(file, label) for label, folder in enumerate(classes) for file in images_in(folder)]
    labelled = bool(found)
    if not labelled:
        found = [(file, 0) for file in images_in(path)]
    return _Read(
        samples=tuple({contracts[0].tensor: read_image(file, contracts[0])} for file, _ in found),
        labels=tuple(label for _, label in found) if labelled else None,
        class_names=tuple(folder.name for folder in classes) if labelled else (),
        files=tuple(str(file.relative_to(path)) for file, _ in found),
    )


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder, by name."""
    return [file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGES]


def read_image(file: Path, contract: InputContract) -> Array:
    """Pixels as uint8 [height, width, 3], or [height, width] where the contract says two axes."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L" if len(contract.shape) == 2 else "RGB"))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("not a readable image", file=file, next_step="take it out or save it again") from error


def check_sample(sample: Mapping[str, Array], contracts: Sequence[InputContract], path: Path, index: int) -> None:
    """Check one sample against the contracts.

    Raises:
        InputError: another shape or dtype, or NaN.
    """
    for contract in contracts:
        array = sample[contract.tensor]
        key = f"{contract.tensor}, sample {index}"
        try:
            check_raw(contract, array)
        except InputError as error:
            raise InputError("not what the model takes", file=path, key=key, expected=error.expected, got=error.got,
                             next_step=_DESCRIBE) from error  # fmt: skip
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            broken = int((~np.isfinite(array)).sum())
            raise InputError("NaN or infinity in the data", file=path, key=key, expected="finite numbers",
                             got=f"{broken} of {array.size} that are not",
                             next_step="take such samples out, or fill the gaps as the application will")  # fmt: skip


def sample_digest(sample: Mapping[str, Array]) -> str:
    """Sha256 (hex) of a sample's content."""
    state = hashlib.sha256()
    for name in sorted(sample):
        array: np.ndarray[Any, Any] = np.ascontiguousarray(sample[name])
        state.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        state.update(array.tobytes())
    return state.hexdigest()
