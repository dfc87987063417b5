"""Calibration and evaluation data: ``.npz`` files, or folders with one sub-folder of images per class."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct, structs

from edgeship.build.metrics import names_class
from edgeship.build.reading.archives import (
    UNREADABLE,
    check_unpacked,
    described,
    free_memory_bytes,
    mend,
    read_archive,
    read_array,
)
from edgeship.build.reading.folders import read_file, read_folder
from edgeship.build.reading.labels import renumber
from edgeship.build.reading.tables import TABLES, read_table
from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import Impute, InputContract
from edgeship_agent.patterns.pictures import IMAGES
from edgeship_agent.processing import check_raw, prepare
from edgeship_agent.runtime.engine import Array

__all__ = [
    "IMAGES", "SELECTION_MIN", "UNREADABLE", "Dataset", "as_classes", "as_numbers", "as_sequences", "check_disjoint",
    "check_sample", "check_unpacked", "free_memory_bytes", "load", "read_archive", "read_file", "renumbered",
    "sample_digest", "split",
]  # fmt: skip

#: Shares of the calibration file by position: of every five samples three set ranges, two select among schemes.
_CALIBRATES: Final = frozenset({0, 2, 4})
_SUPPLY: Final = "give a file with x (and y), or a folder with one sub-folder of images per class"
_FORMS: Final = "an .npz file with x (and y), a .csv, .parquet or .npy file, or a folder with one sub-folder per class"
#: With fewer samples than this, all of them set ranges and the target's default scheme is taken.
SELECTION_MIN: Final = 50


class Dataset(Struct, frozen=True, kw_only=True):
    """Samples in order.

    Attributes:
        samples: one mapping model input → raw sample (no batch axis) per sample.
        labels: class index per sample, or None.
        class_names: names of the classes where the data tells them; once renumbered, the model's.
        targets: [N, …], where ``y`` holds floats instead of classes.
        files: path of each sample below ``path``, where the samples are files.
        digests: sha256 of each sample's content.
        digest: sha256 over the samples' digests and labels, in order; the labels as the file has them.
        columns: model input → names of its columns, where the data is a table.
        notes: how it was read, where names alone do not say it.
    """

    path: Path
    samples: tuple[Mapping[str, Array], ...]
    labels: tuple[int, ...] | None
    class_names: tuple[str, ...]
    digests: tuple[str, ...]
    digest: str
    targets: Array | None = None
    files: tuple[str, ...] = ()
    columns: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def prepared(self, contracts: Sequence[InputContract]) -> list[dict[str, Array]]:
        """Every sample as the model takes it, with a batch axis of 1."""
        return [prepare(contracts, sample) for sample in self.samples]


def load(
    path: Path,
    contracts: Sequence[InputContract],
    role: str = "",
    *,
    gaps: bool = False,
    names: Sequence[str] = (),
) -> Dataset:
    """Read a data set and check every sample against the contract.

    It is labelled where the file has ``y``, or where the samples lie in sub-folders of the folder.

    Args:
        path: an archive, an array, a table or a folder.
        contracts: of the model's inputs.
        role: ``calibration`` or ``evaluation``: which half is read of a file that holds both.
        gaps: whether the model itself takes NaN.
        names: what the model calls the features of its only input, for the columns of a table; empty for no names.

    Raises:
        InputError: not there, not readable, empty, or with a sample of the wrong shape or dtype, or with NaN.
        ConfigError: a package that reads it is not installed.
    """
    if path.is_dir():
        read = read_folder(path, contracts, role)
    elif not path.is_file():
        raise InputError("no such data", file=path, expected=_FORMS, next_step="check the path")
    elif path.suffix.lower() in TABLES:
        read = read_table(path, contracts, names)
    elif path.suffix.lower() == ".npy":
        read = read_array(path, contracts)
    else:
        read = read_archive(path, contracts, role)
    samples = read.samples
    if not samples:
        raise InputError("the data set is empty", file=path, expected="at least one sample", got=0, next_step=_SUPPLY)
    for index, sample in enumerate(samples):
        check_sample(sample, contracts, path, index, read.files[index] if read.files else "", gaps=gaps)
    digests = tuple(sample_digest(sample) for sample in samples)
    answers = repr(read.labels) if read.targets is None else hashlib.sha256(read.targets.tobytes()).hexdigest()
    whole = hashlib.sha256("\n".join((*digests, answers)).encode()).hexdigest()
    return Dataset(
        path=path, samples=samples, labels=read.labels, class_names=read.class_names, digests=digests,
        digest=f"sha256:{whole}", targets=read.targets, files=read.files, columns=read.columns, notes=read.notes,
    )  # fmt: skip


def renumbered(dataset: Dataset, classes: Sequence[str]) -> Dataset:
    """With labels as positions among the model's classes, by the names that the data has for them.

    Floats stay what they are; :func:`as_classes` finds them among the classes, where they are labels.

    Args:
        dataset: as it was read.
        classes: of the model, in the order of its output; empty where nobody says so.

    Raises:
        InputError: a class that the model does not have.
    """
    if not classes:
        return dataset
    if dataset.labels is None:
        return structs.replace(dataset, class_names=tuple(classes))
    labels, notes = renumber(dataset.labels, dataset.class_names, classes, dataset.path)
    return structs.replace(dataset, labels=labels, class_names=tuple(classes), notes=(*dataset.notes, *notes))


def as_classes(dataset: Dataset, first: Array) -> Dataset:
    """With class numbers that were saved as floats read as such, where the model's first output has scores of classes.

    Zeros and ones are two classes beside one score, too.

    Args:
        dataset: as it was read, renumbered.
        first: the source's first output, [N, …].

    Raises:
        InputError: classes are called by numbers, and a label is none of them.
    """
    targets = dataset.targets
    if targets is None or targets.size != len(targets):
        return dataset
    flat = targets.reshape(-1)
    if not (first[0].size > 1 or names_class(first) or set(flat.tolist()) == {0.0, 1.0}):
        return dataset
    if not (flat == np.round(flat)).all() or flat.min() < 0:
        return dataset
    whole = structs.replace(dataset, targets=None, labels=tuple(int(value) for value in flat), class_names=(),
                            notes=(*dataset.notes, "its labels are whole numbers: read as classes"))  # fmt: skip
    return renumbered(whole, dataset.class_names)


def as_numbers(dataset: Dataset) -> Dataset:
    """With class numbers read as numbers to be predicted: grades and counts that were saved as integers."""
    if dataset.labels is None or dataset.class_names:
        return dataset
    return structs.replace(dataset, labels=None, targets=np.asarray(dataset.labels, np.float64))


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


def check_sample(
    sample: Mapping[str, Array],
    contracts: Sequence[InputContract],
    path: Path,
    index: int,
    file: str = "",
    *,
    gaps: bool = False,
) -> None:
    """Check one sample against the contracts.

    Args:
        sample: model input → array.
        contracts: of the model's inputs.
        path: of the data.
        index: of the sample in it.
        file: where the sample is one by itself.
        gaps: whether the model itself takes NaN.

    Raises:
        InputError: another shape or dtype, infinity, or NaN that neither a step of the contract nor the model takes.
    """
    for contract in contracts:
        array = sample[contract.tensor]
        key = f"{contract.tensor}, {file or f'sample {index}'}"
        try:
            check_raw(contract, array)
        except InputError as error:
            raise InputError("not what the model takes", file=path, key=key, expected=error.expected, got=error.got,
                             next_step=_mend(contract, array, file)) from error  # fmt: skip
        fills = gaps or any(isinstance(step, Impute) for step in contract.steps)
        if array.dtype.kind == "f" and not (np.isfinite(array) | (np.isnan(array) & fills)).all():
            broken = int((~np.isfinite(array)).sum())
            raise InputError("NaN or infinity in the data", file=path, key=key, expected="finite numbers",
                             got=f"{broken} of {array.size} that are not",
                             next_step="take such samples out, or fill the gaps as the application will")  # fmt: skip


def _mend(contract: InputContract, array: Array, file: str) -> str:
    """The next step of a sample that does not fit: of a file's it can only be the contract."""
    return (described if file else mend)(contract, array.dtype.name, array.shape)


def sample_digest(sample: Mapping[str, Array]) -> str:
    """Sha256 (hex) of a sample's content."""
    state = hashlib.sha256()
    for name in sorted(sample):
        array: np.ndarray[Any, Any] = np.ascontiguousarray(sample[name])
        state.update(f"{name} {array.dtype.name} {array.shape} ".encode())
        state.update(array.tobytes())
    return state.hexdigest()
