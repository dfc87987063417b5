"""``to_label.csv`` and its pictures: written for a person to fill in, and read back.

The file says nothing of what source and variant answered, so that nobody labels what is expected of him.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgeship.build.few_labels import UNKNOWN, LabellingState
from edgeship.build.unlabelled import UnlabelledSamples
from edgeship_agent.contract.errors import InputError
from edgeship_agent.runtime.engine import Array

LABELS_FILE: Final = "to_label.csv"
PICTURES_FOLDER: Final = "to_label"
_HEADER: Final = ("row", "sample", "picture", "label")
#: Smaller pictures are enlarged to about this many pixels a side, larger ones reduced.
_PICTURE_SIZE: Final = 192


def write(folder: Path, samples: UnlabelledSamples, state: LabellingState) -> None:
    """Write the table, and a picture of every sample that is one.

    Args:
        folder: of the build.
        samples: the unlabelled samples.
        state: names the rows.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for row, index in enumerate(state.rows, start=1):
        writer.writerow((row, samples.name(index), _picture(folder, samples, index, row), ""))
    (folder / LABELS_FILE).write_text(text.getvalue(), encoding="utf-8")


def read(path: Path, state: LabellingState) -> list[int | None]:
    """Classes of the labelled rows, in order; None where the person could not tell (``?``).

    Rows are in random order, so they are labelled from the top: a label below a gap could have been picked.

    Raises:
        InputError: unreadable, other rows than were written, a gap, or a class that the model does not have.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, dialect=_dialect(stream.readline(), stream)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read: {error}", file=path, next_step="save it as CSV again") from error
    missing = [name for name in ("row", "label") if rows and name not in rows[0]]
    numbers = [str(row.get("row", "")).strip() for row in rows]
    if missing or numbers != [str(row) for row in range(1, len(state.rows) + 1)]:
        expected = f"rows 1 … {len(state.rows)}, in order"
        raise InputError("not the rows that the build wrote", file=path, expected=expected, got=f"{len(rows)} rows",
                         next_step="fill in the column label and change nothing else")  # fmt: skip
    labels: list[int | None] = []
    for number, row in enumerate(rows, start=1):
        text = str(row.get("label") or "").strip()
        if not text:
            continue
        if len(labels) != number - 1:
            raise InputError("a label below a row without one", file=path, key=f"row {len(labels) + 1}", got="no label",
                             expected=f"a class, or {UNKNOWN} where nobody can tell",
                             next_step="label from the top: the rows are in random order")  # fmt: skip
        labels.append(_class(text, state, path, number))
    return labels


def _dialect(first_line: str, stream: io.TextIOBase) -> type[csv.Dialect]:
    """Comma, or the semicolon that some spreadsheets save."""
    stream.seek(0)

    class Dialect(csv.excel):
        delimiter = ";" if first_line.count(";") > first_line.count(",") else ","

    return Dialect


def _class(text: str, state: LabellingState, path: Path, row: int) -> int | None:
    if text == UNKNOWN:
        return None
    if text in state.class_names:
        return state.class_names.index(text)
    spelt = [name.casefold() for name in state.class_names]
    if spelt.count(text.casefold()) == 1:
        return spelt.index(text.casefold())
    number = text.removesuffix(".0")  # as pandas saves a column of whole numbers with gaps
    if number.lstrip("-").isdecimal():
        if named := [name for name in (number, f"{number}.0") if name in state.class_names]:
            return state.class_names.index(named[0])
        if number.isdecimal() and int(number) < state.classes and not _are_numbers(state.class_names):
            return int(number)
    names = ", ".join(state.class_names) or f"0 … {state.classes - 1}"
    raise InputError("not a class of the model", file=path, key=f"row {row}", got=repr(text[:60]),
                     expected=f"{names}, or {UNKNOWN}", next_step="correct the label")  # fmt: skip


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether classes are called by numbers, so that a number is a name and never a position."""
    return bool(names) and all(name.removesuffix(".0").lstrip("-").isdecimal() for name in names)


def _picture(folder: Path, samples: UnlabelledSamples, index: int, row: int) -> str:
    """Path of the picture below ``folder``; empty where the sample is none."""
    from PIL import Image

    pixels = as_pixels(next(iter(samples.raw(index).values())))
    if pixels is None:
        return ""
    image = Image.fromarray(pixels)
    scale = _PICTURE_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pictures = folder / PICTURES_FOLDER
    pictures.mkdir(exist_ok=True)
    name = f"{row:04}.png"
    image.resize(size, Image.Resampling.NEAREST if scale > 1.0 else Image.Resampling.BILINEAR).save(pictures / name)
    return f"{PICTURES_FOLDER}/{name}"


def as_pixels(raw: Array) -> Array | None:
    """A raw sample as 8-bit pixels, [height, width] or [height, width, 3]; None where it does not look like an image.

    >>> as_pixels(np.zeros((3, 8, 8), np.float32)).shape, as_pixels(np.zeros(64, np.float32))
    ((8, 8, 3), None)
    """
    shape = tuple(size for size in raw.shape if size != 1)
    pixels = raw.reshape(shape)
    if len(shape) == 3 and shape[0] == 3 and shape[2] != 3:
        pixels = pixels.transpose(1, 2, 0)
    flat = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not flat or min(pixels.shape[:2]) < 4 or max(pixels.shape[:2]) > 20 * min(pixels.shape[:2]):
        return None
    if pixels.dtype == np.uint8 and int(pixels.max()) > 16:
        return np.ascontiguousarray(pixels)
    # whatever its range, the darkest value becomes black and the brightest white
    low, high = float(pixels.min()), float(pixels.max())
    scaled = (pixels.astype(np.float64) - low) * (255.0 / (high - low) if high > low else 0.0)
    return np.ascontiguousarray(scaled.round().astype(np.uint8))


def labelled_rows(labels: Sequence[int | None]) -> str:
    """In words.

    >>> labelled_rows([1, None, 0])
    '3 rows labelled, 1 of them unknown'
    """
    unknown = sum(label is None for label in labels)
    return f"{len(labels)} rows labelled" + (f", {unknown} of them unknown" if unknown else "")
