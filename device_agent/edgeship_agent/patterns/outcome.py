"""The output of a batch, made of its chunks: JSON lines, CSV, .npz or Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.patterns.rows import parquet
from edgeship_agent.processing.arrays import Array

_READ_AS: Final = ("index", "label", "probability")
_ROWS_OF_A_GROUP: Final = 1024


def check_kind(output: Path) -> None:
    """Refuse an output whose form is not known, before anything is run.

    Raises:
        ConfigError: another suffix, or Parquet without the package for it.
    """
    suffix = output.suffix.lower()
    if suffix not in _WRITERS:
        raise ConfigError("not an output of a batch", file=output, key="--output", expected=" | ".join(_WRITERS),
                          got=suffix or "no suffix")  # fmt: skip
    if suffix == ".parquet":
        parquet()


def write_outcome(path: Path, suffix: str, chunks: Sequence[Path]) -> None:
    """Write all rows of the chunks, in their order, and bring them to the disk."""
    _WRITERS[suffix](path, chunks)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _documents(chunks: Sequence[Path]) -> Iterator[dict[str, Any]]:
    decoder = msgspec.json.Decoder()
    for chunk in chunks:
        with chunk.open("rb") as lines:
            for line in lines:
                yield decoder.decode(line)


def _json_lines(path: Path, chunks: Sequence[Path]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk.read_bytes())


def _columns(chunks: Sequence[Path]) -> tuple[list[str], dict[str, int]]:
    """What was read of the outputs, and the size of each output, from the first good row."""
    for document in _documents(chunks):
        if "error" not in document:
            sizes = {name: _flat(values).size for name, values in document.get("outputs", {}).items()}
            read: list[str] = [name for name in (*_READ_AS, "detections") if name in document]
            return read, sizes
    return [], {}


def _flat(values: Any) -> Array:
    """Nested lists as one line of numbers; what JSON cannot say (NaN, infinity) is NaN."""
    return np.array(values, np.float64).reshape(-1)


def _cells(document: dict[str, Any], read: Sequence[str], sizes: dict[str, int]) -> list[Any]:
    cells: list[Any] = [document["row"], document["key"]]
    cells += [_text(document.get(name)) for name in read]
    outputs = document.get("outputs", {})
    for name, size in sizes.items():
        values = _flat(outputs[name]).tolist() if name in outputs else []
        cells += values[:size] + [""] * (size - len(values))
    error = document.get("error")
    cells.append("" if error is None else msgspec.json.encode(error).decode())
    return cells


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return msgspec.json.encode(value).decode()
    return "" if value is None else value


def _header(read: Sequence[str], sizes: dict[str, int]) -> list[str]:
    values = [name if size == 1 else f"{name}_{index}" for name, size in sizes.items() for index in range(size)]
    return ["row", "key", *read, *values, "error"]


def _csv(path: Path, chunks: Sequence[Path]) -> None:
    read, sizes = _columns(chunks)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_header(read, sizes))
        writer.writerows(_cells(document, read, sizes) for document in _documents(chunks))


def _npz(path: Path, chunks: Sequence[Path]) -> None:
    """``row`` and ``key`` of the good rows, each output as [rows, …], and ``bad_row`` of the others."""
    good, bad, keys = [], [], []
    outputs: dict[str, list[Any]] = {}
    for document in _documents(chunks):
        if "error" in document:
            bad.append(document["row"])
            continue
        good.append(document["row"])
        keys.append(document["key"])
        known = {name: np.array(values, np.float32)[0] for name, values in document.get("outputs", {}).items()}
        known |= {name: document[name] for name in _READ_AS if name in document}
        for name, values in known.items():
            outputs.setdefault(name, []).append(values)
    arrays = {name: np.array(values) for name, values in outputs.items()}
    arrays |= {"row": np.array(good, np.int64), "key": np.array(keys, np.str_), "bad_row": np.array(bad, np.int64)}
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type, unused-ignore]


def _parquet(path: Path, chunks: Sequence[Path]) -> None:
    module = parquet()
    import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]

    read, sizes = _columns(chunks)
    kinds = {"index": pyarrow.int64(), "probability": pyarrow.float64()}
    fields = [("row", pyarrow.int64()), ("key", pyarrow.string())]
    fields += [(name, kinds.get(name, pyarrow.string())) for name in read]
    fields += [(name, pyarrow.list_(pyarrow.float64())) for name in sizes] + [("error", pyarrow.string())]
    with module.ParquetWriter(path, pyarrow.schema(fields)) as writer:
        group: list[dict[str, Any]] = []
        for document in _documents(chunks):
            row = {"row": document["row"], "key": document["key"]}
            row |= {name: _text(document[name]) if name in document else None for name in read}
            row |= {name: _flat(values).tolist() for name, values in document.get("outputs", {}).items()}
            row["error"] = msgspec.json.encode(document["error"]).decode() if "error" in document else None
            group.append(row)
            if len(group) == _ROWS_OF_A_GROUP:
                writer.write_table(pyarrow.Table.from_pylist(group, schema=writer.schema))
                group = []
        writer.write_table(pyarrow.Table.from_pylist(group, schema=writer.schema))


_WRITERS: Final[dict[str, Callable[[Path, Sequence[Path]], None]]] = {
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".npz": _npz,
    ".parquet": _parquet,
}
