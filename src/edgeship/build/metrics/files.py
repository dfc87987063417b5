"""What metrics read from files: a cost matrix, the decoding of a detector, and what is in the images."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from edgeship.build.metrics.average_precision import Objects
from edgeship.build.metrics.paired import Outputs
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.processing.detection import ACTIVATIONS, FORMATS, Decoding, corners

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


class _CocoImage(Struct, frozen=True, kw_only=True):
    id: int
    width: float
    height: float
    file_name: str = ""


class _CocoAnnotation(Struct, frozen=True, kw_only=True):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _CocoCategory(Struct, frozen=True, kw_only=True):
    id: int
    name: str = ""


class _CocoFile(Struct, frozen=True, kw_only=True):
    images: tuple[_CocoImage, ...]
    annotations: tuple[_CocoAnnotation, ...]
    categories: tuple[_CocoCategory, ...]


def read_costs(path: Path, classes: int, names: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """A cost matrix, [right class, said class], in the order of the model's classes.

    Args:
        path: TOML with ``[cost] matrix`` and, if in another order, ``classes``; or CSV, plain numbers or with the
            classes' names in the first row and column.
        classes: of the model.
        names: of its classes, where known.

    Raises:
        ConfigError: unreadable, of another size, with a negative cost, or with names that are not the model's.
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
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
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
    axis = -2 if decoding.channels_first else -1
    for key, name in (("boxes", decoding.boxes), ("scores", decoding.scores)):
        if outputs[name].ndim < 3:
            raise ConfigError(
                "an output that holds no list of boxes",
                file=path,
                key=f"detection.{key}",
                expected="[N, boxes, columns]",
                got=list(outputs[name].shape),
                next_step=_SEE,
            )
    boxes, scores = outputs[decoding.boxes].shape[axis], outputs[decoding.scores].shape[axis]
    spans = [("box_columns", decoding.box_columns, boxes), ("score_columns", decoding.score_columns, scores)]
    for key, span, size in spans:
        wide = span is not None and (span[1] - span[0] == 4 or key != "box_columns")
        if span is not None and not (0 <= span[0] < span[1] <= size and wide):
            raise ConfigError("not columns of the output", file=path, key=f"detection.{key}", got=list(span),
                              expected=f"[first, end) within 0 … {size}", next_step=_SEE)  # fmt: skip
    classes = scores if decoding.score_columns is None else decoding.score_columns[1] - decoding.score_columns[0]
    for key, column, size in (("objectness_column", decoding.objectness_column, scores),
                              ("background", decoding.background, classes)):  # fmt: skip
        if column is not None and not 0 <= column < size:
            raise ConfigError("not in the output", file=path, key=f"detection.{key}", got=column,
                              expected=f"0 … {size - 1}", next_step=_SEE)  # fmt: skip


def read_objects(path: Path, decoding: Decoding, count: int, files: Sequence[str]) -> tuple[Objects, ...]:
    """What is in every image of the evaluation data.

    Args:
        path: COCO JSON, or a folder of YOLO text files.
        decoding: which class is no object, and the categories of the others.
        count: samples.
        files: names of the samples, matched by name; without them, the order decides.

    Raises:
        InputError: unreadable, or other images than the data's.
    """
    read = _from_yolo if path.is_dir() else _from_coco
    found = read(path, decoding, count, files)
    if not any(len(each.classes) for each in found):
        raise InputError("no object in any image", file=path, expected="objects to be found",
                         next_step="check the paths and the names of the images")  # fmt: skip
    return found


def _from_coco(path: Path, decoding: Decoding, count: int, files: Sequence[str]) -> tuple[Objects, ...]:
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_CocoFile)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"not a readable COCO file: {error}", file=path, next_step=_SEE) from error
    by_name = {Path(image.file_name).name: image for image in document.images}
    images = [by_name.get(Path(name).name) for name in files] if files else list(document.images)
    missing = [name for name, image in zip(files, images, strict=False) if image is None]
    if missing or len(images) != count:
        raise InputError(
            "other images than the evaluation data's",
            file=path,
            key="images",
            expected=f"{count} images",
            got=f"none for {missing[0]}" if missing else len(images),
            next_step="list every evaluation image, in the order of the data where it is an .npz",
        )
    classes = _class_of_category(document, decoding, path)
    boxes: dict[int, list[tuple[tuple[float, ...], int, bool]]] = {}
    for each in document.annotations:
        if each.category_id in classes:
            boxes.setdefault(each.image_id, []).append((each.bbox, classes[each.category_id], bool(each.iscrowd)))
    return tuple(
        _objects(
            boxes.get(image.id, []),
            Decoding(boxes="", scores="", format="xywh", width=image.width, height=image.height),
        )
        for image in images
        if image is not None
    )


def _class_of_category(document: _CocoFile, decoding: Decoding, path: Path) -> Mapping[int, int]:
    categories = decoding.categories or tuple(sorted(category.id for category in document.categories))
    known = {category.id for category in document.categories}
    if not set(categories) <= known:
        raise ConfigError("categories that the ground truth does not have", file=path, key="detection.categories",
                          expected=sorted(known), got=list(categories), next_step=_SEE)  # fmt: skip
    return {category: _after_background(index, decoding) for index, category in enumerate(categories)}


def _after_background(index: int, decoding: Decoding) -> int:
    """The model's class of the ``index``-th kind of object."""
    return index + 1 if decoding.background is not None and index >= decoding.background else index


def _from_yolo(path: Path, decoding: Decoding, count: int, files: Sequence[str]) -> tuple[Objects, ...]:
    texts = sorted(each for each in path.glob("*.txt") if each.name != "classes.txt")
    if files:
        listed: list[Path] = [path / f"{Path(name).stem}.txt" for name in files]
    elif len(texts) == count:
        listed = texts
    else:
        raise InputError("not one text file for each image", file=path, expected=count, got=len(texts),
                         next_step="write an empty file for an image without objects")  # fmt: skip
    return tuple(_read_yolo(each, decoding) for each in listed)


def _read_yolo(path: Path, decoding: Decoding) -> Objects:
    if not path.exists():
        return _objects([], decoding)  # by the format's convention an image without objects has no file
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        try:
            box = tuple(float(part) for part in parts[1:5])
            index = int(parts[0])
        except ValueError:
            box, index = (), -1
        if len(box) != 4 or index < 0 or not np.isfinite(box).all():
            raise InputError("not a box", file=path, key=f"line {number}", got=repr(line[:60]),
                             expected="class, centre x, centre y, width, height as shares of the image",
                             next_step="write the file again")  # fmt: skip
        rows.append((box, _after_background(index, decoding), False))
    return _objects(rows, Decoding(boxes="", scores="", format="cxcywh"))


def _objects(rows: Sequence[tuple[tuple[float, ...], int, bool]], decoding: Decoding) -> Objects:
    boxes = np.asarray([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    return Objects(
        boxes=corners(boxes, decoding) if len(rows) else boxes,
        classes=np.asarray([index for _, index, _ in rows], np.int64),
        crowd=np.asarray([crowd for _, _, crowd in rows], bool),
    )


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
