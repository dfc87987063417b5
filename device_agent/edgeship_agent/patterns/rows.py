"""Rows of a batch: raw samples from a folder of files, a CSV or Parquet table, or an .npz, in an order that stays."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError, EdgeshipError, InputError
from edgeship_agent.contract.manifest import BundleManifest, InputContract
from edgeship_agent.patterns.pictures import IMAGES, read_image
from edgeship_agent.patterns.sound import SOUNDS, read_sound
from edgeship_agent.processing import check_raw
from edgeship_agent.processing.arrays import Array

_FILES: Final = frozenset({".npy", ".npz"}) | SOUNDS | IMAGES
_KINDS: Final = "a folder, .csv, .parquet or .npz"
_SEPARATORS: Final = ",;\t"
_MOST_NAMED: Final = 8


class Row(Struct, frozen=True, kw_only=True, eq=False):
    """One row.

    Attributes:
        index: from 0.
        key: what names it: the file's path inside the folder, a cell of the table, or the index.
        raw: model input name → raw sample; None where it cannot be read.
        error: why it cannot.
    """

    index: int
    key: str
    raw: Mapping[str, Array] | None = None
    error: EdgeshipError | None = None


class Rows(Struct, frozen=True, kw_only=True, eq=False):
    """All rows of an input.

    Attributes:
        count: how many; None where only the last one tells.
        identity: changes when the input does.
        begin: the rows from an index on.
    """

    count: int | None
    identity: str
    begin: Callable[[int], Iterator[Row]]


def open_rows(path: Path, manifest: BundleManifest, key_column: str = "") -> Rows:
    """The rows of a file or folder.

    Args:
        path: of the input.
        manifest: says which inputs a row needs.
        key_column: column of a table that names its rows; empty for the index.

    Raises:
        ConfigError: no such file, of no known kind, or a package that reads it is missing.
        InputError: it cannot be read, or lacks an input of the model.
    """
    if path.is_dir():
        return _folder(path, manifest)
    opener = {".csv": _csv, ".parquet": _parquet, ".npz": _npz}.get(path.suffix.lower())
    if opener is None or not path.is_file():
        known = "no such file" if not path.exists() else "not an input of a batch"
        raise ConfigError(known, file=path, expected=_KINDS)
    return opener(path, manifest, key_column)


def _identity_of(*paths: Path) -> str:
    """Hash over names, lengths and times of change."""
    known = hashlib.sha256()
    for path in paths:
        facts = path.stat()
        known.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return known.hexdigest()


def _folder(folder: Path, manifest: BundleManifest) -> Rows:
    found = [Path(where) / name for where, _, names in os.walk(folder) for name in names]
    files = sorted((path for path in found if path.suffix.lower() in _FILES), key=str)
    if not files:
        raise InputError("no sample in the folder", file=folder, expected=", ".join(sorted(_FILES)))

    def begin(first: int) -> Iterator[Row]:
        for index in range(first, len(files)):
            path = files[index]
            yield guarded(index, str(path.relative_to(folder)), path, partial(read_file, path, manifest))

    return Rows(count=len(files), identity=_identity_of(*files), begin=begin)


def guarded(index: int, key: str, place: Path, read: Callable[[], Mapping[str, Array]]) -> Row:
    """The row that ``read`` gives, or the row's error with its place."""
    try:
        return Row(index=index, key=key, raw=read())
    except EdgeshipError as error:
        error.file = error.file or str(place)
        return Row(index=index, key=key, error=error)


def read_file(path: Path, manifest: BundleManifest) -> dict[str, Array]:
    """One sample from one file.

    Raises:
        ConfigError: an image, and no package that decodes it.
        InputError: it cannot be read, or is not the only input of the model.
    """
    kind = path.suffix.lower()
    if kind == ".npz":
        return _named(_load(path), manifest, path)
    contract = _only_contract(manifest, path)
    if kind == ".npy":
        return _named(_load(path), manifest, path)
    return {contract.tensor: read_sound(path, contract) if kind in SOUNDS else read_image(path, contract)}


def _only_contract(manifest: BundleManifest, path: Path) -> InputContract:
    if len(manifest.input_contracts) != 1:
        names = ", ".join(contract.tensor for contract in manifest.input_contracts)
        raise InputError("a file of one sample, for a model of several inputs", file=path,
                         expected=f".npz with {names}")  # fmt: skip
    return manifest.input_contracts[0]


def _load(path: Path) -> dict[str, Array]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # zipfile, zlib and numpy each have errors of their own for damaged bytes
        raise InputError(f"cannot be read as numpy arrays: {error}", file=path) from error


def _named(arrays: Mapping[str, Array], manifest: BundleManifest, path: Path) -> dict[str, Array]:
    """Arrays by the model's input names; ``x`` alone stands for the only one."""
    names = [contract.tensor for contract in manifest.input_contracts]
    if set(arrays) == {"x"} and len(names) == 1:
        return {names[0]: arrays["x"]}
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InputError("missing input", file=path, key=missing[0], expected=", ".join(names),
                         got=", ".join(arrays) or "none")  # fmt: skip
    return {name: arrays[name] for name in names}


def _npz(path: Path, manifest: BundleManifest, key_column: str) -> Rows:
    arrays = _load(path)
    keys = arrays.pop(key_column, None) if key_column else None
    named = _named(arrays, manifest, path)
    counts = {name: len(array) if array.ndim else 0 for name, array in named.items()}
    count = next(iter(counts.values()))
    if len(set(counts.values())) != 1 or (keys is not None and len(keys) != count):
        raise InputError("the inputs have different numbers of samples", file=path, got=str(counts))

    def begin(first: int) -> Iterator[Row]:
        for index in range(first, count):
            key = str(index) if keys is None else str(keys[index])
            yield Row(index=index, key=key, raw={name: array[index] for name, array in named.items()})

    return Rows(count=count, identity=_identity_of(path), begin=begin)


def columns_of(manifest: BundleManifest, header: Sequence[str], path: Path) -> dict[str, tuple[str, ...]]:
    """Model input → the columns that hold its values, in order; a layout is never guessed.

    A vector is read from columns with the names of its documented features, else from ``NAME_0``, ``NAME_1`` …; an
    input of one value from a column of its own name.

    Raises:
        InputError: a column is missing, or an input has a free size.
    """
    known, found = set(header), {}
    for contract in manifest.input_contracts:
        size = int(np.prod(contract.shape)) if contract.shape else 1
        features = manifest.input_schema.get(contract.tensor, ())
        numbered = tuple(f"{contract.tensor}_{index}" for index in range(max(size, 0)))
        documented = tuple(feature.name for feature in features) if len(features) == size > 0 else numbered
        choices = [documented, numbered] + ([(contract.tensor,)] if size == 1 else [])
        fitting = next((names for names in choices if names and known.issuperset(names)), None)
        if fitting is None or any(axis < 0 for axis in contract.shape):
            missing = [name for name in documented if name not in known] or ["a fixed shape"]
            raise InputError("columns are missing", file=path, key=contract.tensor,
                             expected=_few(documented or ("an input of a fixed shape",)),
                             got=f"no {_few(missing)}")  # fmt: skip
        found[contract.tensor] = fitting
    return found


def _few(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _cells(
    cells: Mapping[str, Any], columns: Mapping[str, tuple[str, ...]], manifest: BundleManifest
) -> dict[str, Array]:
    """Raw samples from the cells of one row; an empty cell is NaN, where the type has that."""
    raw = {}
    for contract in manifest.input_contracts:
        dtype = np.dtype(contract.dtype)
        values = [_number(cells.get(name), name, dtype) for name in columns[contract.tensor]]
        try:
            raw[contract.tensor] = np.array(values, dtype).reshape(contract.shape)
        except (OverflowError, ValueError) as error:
            raise InputError(f"a value that the type cannot hold: {error}", key=contract.tensor,
                             expected=contract.dtype) from error  # fmt: skip
    return raw


def _number(cell: Any, column: str, dtype: np.dtype[Any]) -> float | int:
    text = "" if cell is None else str(cell).strip()
    try:
        if dtype.kind == "f":
            return float(text) if text else float("nan")
        if dtype.kind == "b":
            return {"true": 1, "false": 0, "1": 1, "0": 0}[text.lower()]
        return int(text)
    except (ValueError, KeyError) as error:
        raise InputError(
            "not a value of the column's type", key=column, expected=dtype.name, got=repr(text[:80])
        ) from error


def _csv(path: Path, manifest: BundleManifest, key_column: str) -> Rows:
    separator = _separator(path)
    header = next(_lines(path, separator), [])
    columns = columns_of(manifest, header, path)
    values = {name for names in columns.values() for name in names} if separator == ";" else set()
    _check_key(key_column, header, path)

    def begin(first: int) -> Iterator[Row]:
        for index, cells in enumerate(islice(_lines(path, separator), 1 + first, None), first):
            named = dict(zip(header, cells, strict=False))
            key = named.get(key_column, str(index))
            yield guarded(index, key, path, partial(_csv_row, cells, named))

    def _csv_row(cells: list[str], named: dict[str, str]) -> dict[str, Array]:
        if len(cells) != len(header):
            raise InputError("a row of another length", expected=f"{len(header)} cells", got=f"{len(cells)}")
        points = {
            name: named[name].replace(",", ".") for name in values
        }  # 0,5 in what spreadsheets write with semicolons
        return _cells({**named, **points}, columns, manifest)

    return Rows(count=sum(1 for _ in _lines(path, separator)) - 1, identity=_identity_of(path), begin=begin)


def _separator(path: Path) -> str:
    """What splits the header into the most columns; a comma where nothing does."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = next((line for line in file if line.strip()), "")
        return max(_SEPARATORS, key=lambda separator: len(next(csv.reader([header], delimiter=separator), [])))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _lines(path: Path, separator: str) -> Iterator[list[str]]:
    """Rows of a CSV that are not empty, the header first."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from (cells for cells in csv.reader(file, delimiter=separator) if cells)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"cannot be read as CSV: {error}", file=path, expected="UTF-8, a header")


def _check_key(key_column: str, header: Sequence[str], path: Path) -> None:
    if key_column and key_column not in header:
        raise ConfigError("no such column", file=path, key="--key", expected=_few(header), got=key_column)


def parquet() -> Any:
    """The module that reads and writes Parquet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise ConfigError("Parquet needs pyarrow, which is not installed",
                          next_step="pip install edgeship-agent[parquet]") from error  # fmt: skip
    return pyarrow.parquet


def _parquet(path: Path, manifest: BundleManifest, key_column: str) -> Rows:
    module = parquet()
    try:
        file = module.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as Parquet: {error}", file=path) from error
    header = list(file.schema_arrow.names)
    lists = {contract.tensor for contract in manifest.input_contracts if contract.tensor in header and contract.shape}
    whole = len(lists) == len(manifest.input_contracts)
    columns = {} if whole else columns_of(manifest, header, path)
    _check_key(key_column, header, path)

    def read(cells: Mapping[str, Any]) -> dict[str, Array]:
        return _lists(cells, manifest) if whole else _cells(cells, columns, manifest)

    def begin(first: int) -> Iterator[Row]:
        index = 0
        for batch in file.iter_batches(batch_size=1024):
            if index + len(batch) > first:
                for at, cells in enumerate(batch.slice(max(first - index, 0)).to_pylist(), max(index, first)):
                    key = str(cells.get(key_column, at))
                    yield guarded(at, key, path, partial(read, cells))
            index += len(batch)

    return Rows(count=file.metadata.num_rows, identity=_identity_of(path), begin=begin)


def _lists(cells: Mapping[str, Any], manifest: BundleManifest) -> dict[str, Array]:
    """Raw samples from columns that hold a (nested) list each."""
    raw = {}
    for contract in manifest.input_contracts:
        try:
            raw[contract.tensor] = np.array(cells[contract.tensor], contract.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"not an array: {error}", key=contract.tensor, expected=contract.dtype) from error
        check_raw(contract, raw[contract.tensor])
    return raw
