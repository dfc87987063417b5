"""What metrics read from files: a cost matrix, and the decoding of a detector."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from edgeship.build.metrics.paired import Outputs
from edgeship_agent.contract.errors import ConfigError
from edgeship_agent.processing.detection import ACTIVATIONS, FORMATS, Decoding

T = TypeVar("T")
FILE_VERSION: Final = 1
_SEE: Final = "compare with the example in docs/guide/metrics.md"


class _CostTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    matrix: tuple[tuple[float, ...], ...]
    classes: tuple[str, ...] = ()


class _CostFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cost: _CostTable
    schema_version: int = FILE_VERSION


class _DecodingFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    detection: Decoding
    schema_version: int = FILE_VERSION


def read_costs(path: Path, classes: int, names: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """A cost matrix, [right class, said class], in the order of the model's classes.

    Args:
        path: TOML with ``[cost] matrix`` and, if in another order, ``classes``; or CSV, plain numbers or with the
            classes' names in the first row and column, split by commas, semicolons (then 0,5 is a half) or tabs.
        classes: of the model.
        names: of its classes, where known.

    Raises:
        ConfigError: unreadable, of another size, with a negative cost or none at all, or with names that are not the
            model's.
    """
    matrix, given = _costs_from_csv(path) if path.suffix.lower() == ".csv" else _costs_from_toml(path)
    if len(matrix) != classes or any(len(row) != classes for row in matrix):
        got = f"{len(matrix)} rows of {sorted({len(row) for row in matrix})}"
        raise ConfigError("not one cost for each pair of classes", file=path, key="matrix", got=got,
                          expected=f"{classes} rows of {classes}", next_step=_SEE)  # fmt: skip
    costs = np.asarray(matrix, np.float64)
    if not np.isfinite(costs).all() or (costs < 0.0).any():
        raise ConfigError("a cost that is negative or no number", file=path, key="matrix", expected="costs ≥ 0",
                          got=f"{costs[~(costs >= 0.0)][0]:g}", next_step=_SEE)  # fmt: skip
    if not costs[~np.eye(classes, dtype=bool)].any():
        raise ConfigError("no error can cost anything", file=path, key="matrix",
                          expected="a cost above 0 where the said class is not the right one", got="zeros",
                          next_step=_SEE)  # fmt: skip
    if not given:
        return matrix
    if sorted(given) != sorted(names):
        raise ConfigError("not the classes of the model", file=path, key="classes", got=", ".join(given),
                          expected=", ".join(names) or "none: the model's classes have no names",
                          next_step="name the model's classes with --labels, or leave the names out")  # fmt: skip
    order = [list(given).index(name) for name in names]
    return tuple(tuple(float(costs[row, column]) for column in order) for row in order)


def _costs_from_toml(path: Path) -> tuple[tuple[tuple[float, ...], ...], tuple[str, ...]]:
    table = _convert(_table(path), _CostFile, path).cost
    return table.matrix, table.classes


def _costs_from_csv(path: Path) -> tuple[tuple[tuple[float, ...], ...], tuple[str, ...]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        split = ";" if ";" in text else "\t" if "\t" in text else ","
        lines = csv.reader(text.splitlines(), delimiter=split)
        rows = [[cell.replace(",", ".") for cell in row] for row in lines if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot be read: {error}", file=path, next_step=_SEE) from error
    names: tuple[str, ...] = ()
    if rows and not _is_number(rows[0][-1]):
        names = tuple(cell.strip() for cell in rows[0][1:])
        rows = [row[1:] for row in rows[1:]]
    try:
        return tuple(tuple(float(cell) for cell in row) for row in rows), names
    except ValueError as error:
        raise ConfigError(f"not a number: {error}", file=path, next_step=_SEE) from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_decoding(path: Path, outputs: Outputs) -> Decoding:
    """The decoding of a detector.

    Args:
        path: TOML, as in :mod:`edgeship_agent.processing.detection`.
        outputs: of the model, to check it against.

    Raises:
        ConfigError: unreadable, an unknown key or value, or columns that the outputs do not have.
    """
    decoding = _convert(_table(path), _DecodingFile, path).detection
    for key, value, known in (
        ("format", decoding.format, FORMATS),
        ("activation", decoding.activation, ACTIVATIONS),
        ("boxes", decoding.boxes, tuple(outputs)),
        ("scores", decoding.scores, tuple(outputs)),
        ("classes", decoding.classes, ("", *outputs)),
    ):
        if value not in known:
            raise ConfigError("unknown value", file=path, key=f"detection.{key}", expected=" | ".join(known),
                              got=repr(value), next_step=_SEE)  # fmt: skip
    _check_columns(decoding, outputs, path)
    for key, number in (("score_threshold", decoding.score_threshold), ("iou_threshold", decoding.iou_threshold)):
        if not 0.0 <= number <= 1.0:
            raise ConfigError("not a share", file=path, key=f"detection.{key}", expected="0 … 1", got=number,
                              next_step=_SEE)  # fmt: skip
    if not (decoding.width > 0 and decoding.height > 0 and decoding.max_detections > 0):
        raise ConfigError(
            "not a size",
            file=path,
            key="detection.width, height, max_detections",
            expected="> 0",
            got=f"{decoding.width:g}, {decoding.height:g}, {decoding.max_detections}",
            next_step=_SEE,
        )
    return decoding


def _check_columns(decoding: Decoding, outputs: Outputs, path: Path) -> None:
    boxes, scores = (_columns(outputs, key, decoding, path) for key in ("boxes", "scores"))
    spans = [("box_columns", decoding.box_columns, boxes), ("score_columns", decoding.score_columns, scores)]
    for key, span, size in spans:
        wide = span is not None and (span[1] - span[0] == 4 or key != "box_columns")
        if span is not None and not (0 <= span[0] < span[1] <= size and wide):
            raise ConfigError("not columns of the output", file=path, key=f"detection.{key}", got=list(span),
                              expected=f"[first, end) within 0 … {size}", next_step=_SEE)  # fmt: skip
    classes = scores if decoding.score_columns is None else decoding.score_columns[1] - decoding.score_columns[0]
    if decoding.says_classes:
        _check_said(decoding, classes, outputs, path)
    for key, column, size in (("objectness_column", decoding.objectness_column, scores),
                              ("class_column", decoding.class_column, scores),
                              ("background", None if decoding.says_classes else decoding.background,
                               classes)):  # fmt: skip
        if column is not None and not 0 <= column < size:
            raise ConfigError("not in the output", file=path, key=f"detection.{key}", got=column,
                              expected=f"0 … {size - 1}", next_step=_SEE)  # fmt: skip


def _columns(outputs: Outputs, key: str, decoding: Decoding, path: Path) -> int:
    """Columns of the output of boxes or scores; where a box says its class, scores may be one a box: [N, boxes]."""
    shape = outputs[getattr(decoding, key)].shape
    if len(shape) == 2 and key == "scores" and decoding.says_classes:
        return 1
    if len(shape) < 3:
        raise ConfigError("an output that holds no list of boxes", file=path, key=f"detection.{key}",
                          expected="[N, boxes, columns]", got=list(shape),
                          next_step=_SEE)  # fmt: skip
    return int(shape[-2 if decoding.channels_first else -1])


def _check_said(decoding: Decoding, scores: int, outputs: Outputs, path: Path) -> None:
    """Of boxes that say their class: one score each, and as many classes as boxes."""
    if scores != 1:
        raise ConfigError("a box that says its class has one score", file=path, key="detection.score_columns",
                          got=f"{scores} columns", expected="one", next_step=_SEE)  # fmt: skip
    if decoding.classes and decoding.class_column is not None:
        raise ConfigError("the class of a box stands in one place", file=path, key="detection.class_column",
                          got="classes as well", next_step="leave one of the two out")  # fmt: skip
    if decoding.classes:
        axis = -1 if decoding.channels_first else -2
        boxes, said = outputs[decoding.boxes].shape[axis], outputs[decoding.classes][0].size
        if boxes != said:
            raise ConfigError("not one class a box", file=path, key="detection.classes", expected=boxes, got=said,
                              next_step=_SEE)  # fmt: skip


def _table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=path, next_step=_SEE) from error
    if table.get("schema_version", FILE_VERSION) != FILE_VERSION:
        raise ConfigError("unknown version", file=path, key="schema_version", expected=FILE_VERSION,
                          got=table["schema_version"], next_step="write schema_version = 1")  # fmt: skip
    return table


def _convert(table: Mapping[str, Any], kind: type[T], path: Path) -> T:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), file=path, next_step=_SEE) from error
