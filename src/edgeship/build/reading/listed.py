"""Labels of a folder without sub-folders: a table in it that names its files; else what can be said about labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeship.build.reading.found import LABEL_NAMES, plain
from edgeship.build.reading.labels import Answers, answers_of
from edgeship.build.reading.tables import Table, answers_in, read_csv
from edgeship_agent.contract.errors import InputError
from edgeship_agent.runtime.engine import Array

_TABLES: Final = frozenset({".csv", ".tsv"})
_MOST_NAMED: Final = 3
#: Words in front of a number, as in ``cat_0012`` or ``dog.7``: a class in a file's name.
_WORD_AND_NUMBER: Final = re.compile(r"([^\W\d_]+(?:[ _-][^\W\d_]+)*)[ ._-]*\(?\d+\)?")
_CLASS_SIZE: Final = 2
#: What :func:`~edgeship.build.reading.tables.read_csv` calls columns without a header.
_NUMBERED: Final = re.compile(r"column \d+")


def listed_labels(folder: Path, files: Sequence[Path]) -> tuple[Answers, Path | None]:
    """The right answers that a table in the folder gives for its files.

    Args:
        folder: that holds the files themselves.
        files: the samples, in order.

    Returns:
        The answers and their table; nothing and None where there is no table that names the files.

    Raises:
        InputError: the table lacks some of the files, names one twice, or has several columns that may be the labels.
    """
    for path in sorted(each for each in folder.iterdir() if each.suffix.lower() in _TABLES):
        table = read_csv(path)
        column = _column_of_files(table, files)
        if column is not None:
            return _answers(table, column, files, path), path
    return Answers(), None


def _spellings(file: Path) -> tuple[str, str]:
    return file.name, file.stem


def _column_of_files(table: Table, files: Sequence[Path]) -> int | None:
    """The column most of whose cells are names of the files."""
    known = {spelling for file in files for spelling in _spellings(file)}
    for index in range(len(table.header)):
        found = sum(_name(line[index]) in known for line in table.lines)
        if found > len(table.lines) // 2 or found >= len(files) > 0:
            return index
    return None


def _name(cell: Any) -> str:
    return str(cell).strip().replace("\\", "/").rsplit("/", 1)[-1]


def _answers(table: Table, column: int, files: Sequence[Path], path: Path) -> Answers:
    rows: dict[str, Sequence[Any]] = {}
    for line in table.lines:
        name = _name(line[column])
        if name in rows:
            raise InputError("a file that is listed twice", file=path, key=table.header[column], got=name,
                             next_step="leave one line of it")  # fmt: skip
        rows[name] = line
    lines = [next((rows[each] for each in _spellings(file) if each in rows), None) for file in files]
    missing = [file.name for file, line in zip(files, lines, strict=True) if line is None]
    if missing:
        raise InputError("files without a line in the table of labels", file=path, expected=f"{len(files)} files",
                         got=f"none for {len(missing)} of them, such as {missing[0]}",
                         next_step="add their lines, or take those files out")  # fmt: skip
    whole = [line for line in lines if line is not None]
    if hot := _one_hot(table, column, whole, path):
        return hot
    chosen = _label_column(table, column, path)
    array: Array = answers_in([line[chosen] for line in whole], comma=table.decimal_comma)
    found = answers_of(array, len(files), path, table.header[chosen])
    note = f"labels are read from {path.name}, column {table.header[chosen]}"
    return Answers(labels=found.labels, class_names=found.class_names, targets=found.targets,
                   notes=(note, *found.notes))  # fmt: skip


def _one_hot(table: Table, column: int, lines: Sequence[Sequence[Any]], path: Path) -> Answers | None:
    """Classes, where every other column is one of them and holds 1 or 0; None where that is not so."""
    others = [index for index in range(len(table.header)) if index != column]
    cells = {str(line[index]).strip() for line in lines for index in others}
    named = any(plain(table.header[index]) in LABEL_NAMES for index in others)
    if named or len(others) < 2 or not cells <= {"0", "1", "0.0", "1.0"}:
        return None
    rows = np.array([[float(line[index]) for index in others] for line in lines])
    if not (rows.sum(axis=1) == 1).all():
        return None
    header = [table.header[index] for index in others]
    names = _class_names(header, path)
    few = ", ".join(header[:_MOST_NAMED]) + (" …" if len(others) > _MOST_NAMED else "")
    classes = "the classes" if names else f"classes 0 … {len(others) - 1}"
    return Answers(labels=tuple(int(label) for label in rows.argmax(axis=1)), class_names=names,
                   notes=(f"labels are read from {path.name}: its columns {few} are {classes}",))  # fmt: skip


def _class_names(header: Sequence[str], path: Path) -> tuple[str, ...]:
    """Classes by the names of their columns; none where the table has no header.

    Raises:
        InputError: a column without a name, or two of one name.
    """
    if all(_NUMBERED.fullmatch(name) for name in header):
        return ()
    unclear = sorted(name for name, count in Counter(header).items() if count > 1 or not name)
    if unclear:
        raise InputError("columns of classes that no name tells apart", file=path, key="header",
                         expected="a name of its own for each", got=", ".join(map(repr, unclear)),
                         next_step="correct the header")  # fmt: skip
    return tuple(header)


def _label_column(table: Table, column: int, path: Path) -> int:
    others = [index for index in range(len(table.header)) if index != column]
    named = [index for index in others if plain(table.header[index]) in LABEL_NAMES]
    chosen = named if len(named) == 1 else others
    if len(chosen) != 1:
        raise InputError("which column holds the labels?", file=path, got=", ".join(table.header),
                         expected="one of files, and one called label", next_step="call it label")  # fmt: skip
    return chosen[0]


def how_to_label(files: Sequence[str]) -> str:
    """What is said of files that lie in the folder itself, so that nothing tells their labels.

    >>> how_to_label(["cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png"]).split(": ")[1]
    'names of files are not read as labels, though these look like 2 classes (cat, dog)'
    """
    classes = classes_in_names(files)
    few = ", ".join(classes[:_MOST_NAMED]) + (" …" if len(classes) > _MOST_NAMED else "")
    looks = f", though these look like {len(classes)} classes ({few})" if classes else ""
    return (
        f"its {len(files)} files have no labels: names of files are not read as labels{looks}: give one sub-folder per "
        "class, or a labels.csv in it with the columns file and label"
    )


def classes_in_names(files: Sequence[str]) -> tuple[str, ...]:
    """Classes that the names of files seem to begin with: words in front of numbers, each of several files; else none.

    >>> classes_in_names(["cat.1.jpg", "cat.2.jpg", "dog.1.jpg", "dog.2.jpg"]), classes_in_names(["a1.jpg", "a2.jpg"])
    (('cat', 'dog'), ())
    """
    found = [_WORD_AND_NUMBER.fullmatch(Path(each).stem) for each in files]
    counts = Counter(match[1] for match in found if match)
    repeated = tuple(sorted(word for word, count in counts.items() if count >= _CLASS_SIZE))
    is_told = sum(counts[word] for word in repeated) == len(files) and len(repeated) > 1
    return repeated if is_told else ()
