"""Tables: a ``.csv`` (or ``.tsv``) or ``.parquet`` file with one sample a row, and a column of right answers."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct, structs

from edgeship.build.reading.archives import joined
from edgeship.build.reading.found import LABEL_NAMES, Read, plain
from edgeship_agent.contract.errors import ConfigError, InputError
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.patterns import rows
from edgeship_agent.runtime.engine import Array

TABLES: Final = frozenset({".csv", ".tsv", ".parquet"})
_SEPARATORS: Final = ",;\t|"
#: Cells that stand for no value. Source: what pandas.read_csv takes for NaN, and the question mark of UCI's files.
_NOTHING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-", "#n/a", "<na>"})
#: Names of a first column that only counts the rows.
_INDICES: Final = frozenset({"", "index", "id", "rowid", "unnamed0"})
_MOST_NAMED: Final = 8


class Heading(StrEnum):
    """What the first row of a file is: names of its columns, a sample, or what may be either."""

    NAMES = "names"
    SAMPLE = "sample"
    UNCLEAR = "unclear"


class Table(Struct, frozen=True, kw_only=True):
    """A header, and one list of cells a row; without a header in the file, columns are numbered."""

    header: tuple[str, ...]
    lines: tuple[Sequence[Any], ...]
    decimal_comma: bool = False
    heading: Heading = Heading.NAMES


def read_table(path: Path, contracts: Sequence[InputContract], names: Sequence[str] = ()) -> Read:
    """The samples of a table, and the answers of its label column.

    Columns are read by the model's own names of its features, else by the names of inputs (``INPUT_0``, ``INPUT_1`` …,
    or ``INPUT`` for a single value), else in their order, where there are as many beside the label as the model takes.

    Args:
        path: of the table.
        contracts: of the model's inputs.
        names: what the model calls the features of its only input, in its order; empty where it does not say.

    Raises:
        ConfigError: Parquet, and no package that reads it.
        InputError: unreadable, other columns than the model takes, a cell that is no number, or a first row that may be
            a header or a sample.
    """
    table = open_table(path)
    if table.heading is Heading.UNCLEAR:
        raise InputError("is the first row a header or a sample?", file=path, got=_few(table.header),
                         next_step="put a row of names at the top, such as a,b,label; if it is one, call the column of "
                                   "right answers label")  # fmt: skip
    columns, label, notes = _columns(table, contracts, names, path)
    inputs = {each.tensor: _numbers(table, columns[each.tensor], each, path) for each in contracts}
    answers = None if label is None else answers_in([line[label] for line in table.lines], comma=table.decimal_comma)
    key = "y" if label is None else table.header[label]
    read = joined(inputs, answers, path, key, notes)
    named = {tensor: tuple(table.header[index] for index in found) for tensor, found in columns.items()}
    told = table.heading is Heading.NAMES and len(set(table.header)) == len(table.header)
    return structs.replace(read, columns=named if told else {})


def open_table(path: Path) -> Table:
    """A table as it stands in its file.

    Raises:
        ConfigError: Parquet, and no package that reads it.
        InputError: unreadable, or without a sample.
    """
    table = _parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    if not table.lines:
        raise InputError("the data set is empty", file=path, expected="a header and one sample a row", got="no rows",
                         next_step="give at least one sample")  # fmt: skip
    return table


def likely_label(table: Table) -> int | None:
    """The column of right answers, where no model says which are its own: one that is called so, else the only text.

    >>> likely_label(Table(header=("a", "b", "kind"), lines=(("1", "2", "cat"), ("3", "", "dog"))))
    2
    >>> likely_label(Table(header=("label", "b"), lines=(("1", "x"),)))
    0
    >>> likely_label(Table(header=("a", "b"), lines=(("1", "2"),))) is None
    True
    """
    called = _label_column(table, set())
    if called is not None:
        return called
    texts = [index for index in range(len(table.header)) if _holds_text(table, index)]
    return texts[0] if len(texts) == 1 else None


def check_names(
    columns: Mapping[str, Sequence[str]], contracts: Sequence[InputContract], names: Sequence[str], path: Path
) -> None:
    """Refuse columns that were read in their order, where their names are others than the model's own.

    Args:
        columns: model input → names of the columns that were read; none where the table has no names.
        contracts: of the model's inputs.
        names: what the model calls the features of its only input; empty where it does not say.
        path: of the table, for error messages.

    Raises:
        InputError: what the model calls differently, and what the table does.
    """
    contract = contracts[0]
    header = columns.get(contract.tensor, ())
    if not header or not _fit(names, contracts) or _places(header, names):
        return
    if all(_is_number(name) for name in header) or _own_columns(header, contract):
        return  # positions, not names
    known, found = {_spelt(name) for name in names}, {_spelt(name) for name in header}
    raise InputError("columns by other names than the model was trained with", file=path, key=contract.tensor,
                     expected=_few([name for name in names if _spelt(name) not in found] or names),
                     got=_few([name for name in header if _spelt(name) not in known] or header),
                     next_step=f"name the columns as the training did; or {contract.tensor}_0, {contract.tensor}_1 …, "
                               "in the order of the training")  # fmt: skip


def read_csv(path: Path) -> Table:
    """A table of text, split by what splits it into the most columns; without a header columns are numbered.

    Raises:
        InputError: unreadable, or rows of several lengths.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as text: {error}", file=path, expected="UTF-8",
                         next_step="save it as UTF-8") from error  # fmt: skip
    separator = _separator(text)
    try:
        lines = [cells for cells in csv.reader(text.splitlines(keepends=True), delimiter=separator) if cells]
    except csv.Error as error:
        raise InputError(f"cannot be read as CSV: {error}", file=path, next_step="save it again as CSV") from error
    if not lines:
        return Table(header=(), lines=())
    widths = {len(cells) for cells in lines}
    if len(widths) != 1:
        wrong = next(index for index, cells in enumerate(lines) if len(cells) != len(lines[0]))
        raise InputError("a row of another length", file=path, key=f"row {wrong}", expected=f"{len(lines[0])} cells",
                         got=f"{len(lines[wrong])} cells", next_step="correct that row")  # fmt: skip
    found = heading(lines, comma=separator == ";")
    if found is Heading.SAMPLE:
        header, samples = [f"column {index}" for index in range(len(lines[0]))], lines
    else:
        header, samples = [cell.strip() for cell in lines[0]], lines[1:]
    return Table(header=tuple(header), lines=tuple(samples), decimal_comma=separator == ";", heading=found)


def heading(lines: Sequence[Sequence[str]], *, comma: bool = False) -> Heading:
    """What the first row is.

    It is a sample where all its cells are numbers, or where some are numbers above numbers, and what else it holds is
    found again in its own column, as a class is. Names may be numbers too: those of pandas, which count from 0, and any
    beside a column that is called as labels are or a word above numbers.

    Args:
        lines: cells of every row, as many in each; at least one row.
        comma: whether numbers may be written with a decimal comma.

    >>> rows = [["5.1", "0.2", "setosa"], ["7.0", "1.4", "versicolor"], ["4.9", "0.1", "setosa"]]
    >>> heading(rows).value, heading(rows[:2]).value, heading([["0", "1", "Species"], *rows]).value
    ('sample', 'unclear', 'names')
    """
    first = [cell.strip() for cell in lines[0]]
    numbers = [index for index, cell in enumerate(first) if _is_number(cell, comma=comma)]
    others = [index for index in range(len(first)) if index not in numbers]
    if not others:
        return Heading.SAMPLE
    columns = [[line[index].strip() for line in lines[1:]] for index in range(len(first))]
    if not any(_are_numbers(columns[index], comma=comma) for index in numbers):
        return Heading.NAMES
    if any(not _is_nothing(first[index]) and _are_numbers(columns[index], comma=comma) for index in others):
        return Heading.NAMES
    if all(first[index] in columns[index] for index in others):
        return Heading.SAMPLE
    counted = [first[index] for index in numbers] == [str(count) for count in range(len(numbers))]
    if counted or any(plain(first[index]) in LABEL_NAMES for index in others):
        return Heading.NAMES
    return Heading.UNCLEAR


def _are_numbers(cells: Sequence[str], *, comma: bool) -> bool:
    """Whether a column holds nothing but numbers, and some."""
    present = [cell for cell in cells if not _is_nothing(cell)]
    return bool(present) and all(_is_number(cell, comma=comma) for cell in present)


def _separator(text: str) -> str:
    """What splits the first lines into the most columns, as many in each."""
    first = text.splitlines(keepends=True)[:20]

    def columns(separator: str) -> tuple[int, int]:
        try:
            widths = Counter(len(cells) for cells in csv.reader(first, delimiter=separator) if cells)
        except csv.Error:
            return 0, 0
        commonest = widths.most_common(1)[0][0] if widths else 0
        return commonest if len(widths) == 1 and commonest > 1 else 0, commonest

    return max(_SEPARATORS, key=columns)


def _parquet(path: Path) -> Table:
    try:
        file = rows.parquet().ParquetFile(path)
        found = file.read().to_pydict()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as Parquet: {error}", file=path,
                         next_step="save it again, or as CSV") from error  # fmt: skip
    except ConfigError as error:
        raise ConfigError("Parquet needs pyarrow, which is not installed", file=path,
                          next_step="pip install pyarrow, or save the table as .csv") from error  # fmt: skip
    found.pop("__index_level_0__", None)
    return Table(header=tuple(found), lines=tuple(zip(*found.values(), strict=True)))


def _is_number(cell: Any, *, comma: bool = False) -> bool:
    text = str(cell).strip()
    try:
        float(text.replace(",", ".") if comma else text)
    except ValueError:
        return False
    return True


def _columns(
    table: Table, contracts: Sequence[InputContract], names: Sequence[str], path: Path
) -> tuple[dict[str, list[int]], int | None, tuple[str, ...]]:
    """Columns of each input, that of the label, and what is worth saying."""
    if _fit(names, contracts) and (places := _places(table.header, names)):
        label, notes = _beside(table, places, contracts[0], path)
        return {contracts[0].tensor: places}, label, notes
    named = {contract.tensor: _own_columns(table.header, contract) for contract in contracts}
    used = {index for found in named.values() for index in found}
    label = _label_column(table, used)
    if all(named.values()):
        rest = [name for index, name in enumerate(table.header) if index not in used and index != label]
        return named, label, (f"not read: {_few(rest)}",) if rest else ()
    if len(contracts) != 1:
        missing = next(each for each in contracts if not named[each.tensor])
        raise InputError("no columns for an input", file=path, key=missing.tensor, got=_few(table.header),
                         expected=f"{missing.tensor}_0, {missing.tensor}_1 …",
                         next_step="name the columns so, or save arrays with numpy.savez")  # fmt: skip
    return _in_order(table, contracts[0], label, path)


def _beside(
    table: Table, places: Sequence[int], contract: InputContract, path: Path
) -> tuple[int | None, tuple[str, ...]]:
    """The label's column, and what is worth saying, where the model's own names tell the columns of its features."""
    label = _label_column(table, set(places))
    rest = [index for index in range(len(table.header)) if index not in {*places, label}]
    unknown = [index for index in rest if plain(table.header[index]) not in _INDICES]
    notes = ["columns are read by the names that the model has for them"] if list(places) != sorted(places) else []
    if label is None and len(unknown) == 1 and _holds_text(table, unknown[0]):
        label = unknown[0]
        rest.remove(label)
        notes.append(f"{table.header[label]} is read as the label")
    elif label is None and unknown:
        raise InputError("columns that the model does not know", file=path, key=contract.tensor,
                         got=_few([table.header[index] for index in unknown]),
                         next_step="take out what is no feature, and call that of the right answers label")  # fmt: skip
    if rest:
        notes.append(f"not read: {_few([table.header[index] for index in rest])}")
    return label, tuple(notes)


def _fit(names: Sequence[str], contracts: Sequence[InputContract]) -> bool:
    """Whether there is a name for each value of the only input."""
    return bool(names) and len(contracts) == 1 and math.prod(contracts[0].shape) == len(names)


def _places(header: Sequence[str], names: Sequence[str]) -> list[int]:
    """The column of each name, as it is written or else but for capitals and blanks; empty where one has none or two.

    >>> _places(["label", "Petal_Width", "height"], ["height", "petal width"]), _places(["a"], ["a", "b"])
    ([2, 1], [])
    """
    for form in (str.strip, _spelt):
        written = Counter(form(name) for name in header)
        place = {form(name): index for index, name in enumerate(header)}
        wanted = [form(name) for name in names]
        if len(set(wanted)) == len(wanted) and all(written[name] == 1 for name in wanted):
            return [place[name] for name in wanted]
    return []


def _spelt(name: str) -> str:
    """A name without capitals, and with underscores for blanks, as LightGBM saves it."""
    return "_".join(name.split()).casefold()


def _in_order(
    table: Table, contract: InputContract, label: int | None, path: Path
) -> tuple[dict[str, list[int]], int | None, tuple[str, ...]]:
    """As many columns beside the label as the only input takes."""
    size = math.prod(contract.shape) if -1 not in contract.shape else 0
    rest = [index for index in range(len(table.header)) if index != label]
    notes = []
    if len(rest) == size + 1 and rest[0] == 0 and plain(table.header[0]) in _INDICES:
        notes.append(
            f"the first column{f' ({table.header[0]})' if table.header[0] else ''} is not read: it numbers rows"
        )
        rest = rest[1:]
    texts = [index for index in rest if _holds_text(table, index)]
    if label is None and len(rest) == size + 1 and len(texts) == 1:
        label = texts[0]
        rest.remove(label)
    if len(rest) != size:
        besides = f" beside the label ({table.header[label]})" if label is not None else ""
        wanted = f"{size} columns of numbers" if size else "an input of a fixed shape"
        more = ", and call that of the right answers label" if label is None else ""
        raise InputError("not as many columns as the model takes", file=path, key=contract.tensor, expected=wanted,
                         got=f"{len(rest)} columns{besides}: {_few([table.header[index] for index in rest])}",
                         next_step=f"take out what is no feature{more}")  # fmt: skip
    if label is not None:
        notes.append(f"{table.header[label]} is read as the label, the other {size} columns in their order")
    return {contract.tensor: rest}, label, tuple(notes)


def _own_columns(header: Sequence[str], contract: InputContract) -> list[int]:
    size = math.prod(contract.shape) if -1 not in contract.shape else 0
    names = [f"{contract.tensor}_{index}" for index in range(size)]
    if names and set(names) <= set(header):
        return [header.index(name) for name in names]
    return [header.index(contract.tensor)] if size == 1 and contract.tensor in header else []


def _label_column(table: Table, used: set[int]) -> int | None:
    """The one column that is called as labels are."""
    found = [index for index, name in enumerate(table.header) if plain(name) in LABEL_NAMES and index not in used]
    return found[0] if len(found) == 1 else None


def _holds_text(table: Table, index: int) -> bool:
    return any(not _is_number(line[index], comma=table.decimal_comma) and not _is_nothing(line[index])
               for line in table.lines)  # fmt: skip


def _is_nothing(cell: Any) -> bool:
    return cell is None or str(cell).strip().lower() in _NOTHING


def _numbers(table: Table, columns: Sequence[int], contract: InputContract, path: Path) -> Array:
    """[N, …] of the contract's type; a cell without a value is NaN, where the type has that."""
    dtype = np.dtype(contract.dtype)
    values = [[_number(line[index], dtype, comma=table.decimal_comma) for index in columns] for line in table.lines]
    for row, line in enumerate(values):
        for index, value in zip(columns, line, strict=True):
            if value is None:
                raise InputError(f"not a number of the type {dtype.name}", file=path,
                                 key=f"{table.header[index]}, row {row + 1}", got=repr(table.lines[row][index])[:60],
                                 next_step="encode the column as the training did; fill what is missing")  # fmt: skip
    try:
        array = np.array(values, dtype)
    except (OverflowError, ValueError) as error:
        raise InputError(f"a number that the type cannot hold: {error}", file=path, key=contract.tensor,
                         expected=dtype.name, next_step="correct the table")  from error  # fmt: skip
    return array.reshape((len(values), *contract.shape))


def _number(cell: Any, dtype: np.dtype[Any], *, comma: bool) -> float | int | None:
    """A cell's value; None where it has none of that type."""
    if dtype.kind == "f" and _is_nothing(cell):
        return math.nan
    text = str(cell).strip()
    if dtype.kind == "b":
        return {"true": 1, "false": 0, "1": 1, "0": 0}.get(text.lower())
    try:
        value = float(text.replace(",", ".") if comma else text)
    except ValueError:
        return {"true": 1, "false": 0}.get(text.lower())
    if dtype.kind == "f":
        return value
    return int(value) if value.is_integer() else None


def answers_in(cells: Sequence[Any], *, comma: bool = False) -> Array:
    """Class numbers, targets or names, whichever all cells are.

    Among names only an empty cell is missing: classes are called ``none`` or ``NA``, too.

    Args:
        cells: of one column.
        comma: whether numbers may be written with a decimal comma.

    >>> answers_in(["0,5", "1,25"], comma=True).tolist(), answers_in(["2.0", "0.0"]).tolist()
    ([0.5, 1.25], [2.0, 0.0])
    """
    texts = ["" if _is_nothing(cell) else str(cell).strip() for cell in cells]
    numbers = [text.replace(",", ".") for text in texts] if comma else texts
    try:
        return np.array([int(text) for text in texts])
    except ValueError:
        pass
    try:
        return np.array([float(text or "nan") for text in numbers])
    except ValueError:
        return np.array(["" if cell is None else str(cell).strip() for cell in cells])


def _few(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
