"""Right answers as people keep them: class numbers, one-hot rows, names, or numbers to be predicted. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import InputError
from edgeship_agent.runtime.engine import Array

_SUPPLY: Final = "save y as one class index (0, 1, …) per sample, or as float targets"
_MOST_NAMED: Final = 8


class Answers(Struct, frozen=True, kw_only=True):
    """Right answers; fields as in :class:`~edgeship.build.reading.found.Read`."""

    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    targets: Array | None = None
    notes: tuple[str, ...] = ()


def answers_of(array: Array, count: int, path: Path, key: str = "y") -> Answers:
    """Right answers from an array.

    Args:
        array: numbers, booleans or text: one a sample, or one-hot rows; floats of any shape, and several whole numbers
            a sample, are targets.
        count: of the samples.
        path: of the file, for error messages.
        key: what the array is called there.

    Raises:
        InputError: not one answer a sample, negative, or not finite.

    >>> answers_of(np.array([[2], [0]]), 2, Path("d.npz")).labels
    (2, 0)
    >>> answers_of(np.array(["dog", "cat"]), 2, Path("d.npz")).class_names
    ('cat', 'dog')
    """
    if array.dtype.kind in "US":
        return _of_text(array, count, path, key)
    if array.dtype.kind == "f":
        return _of_floats(array, count, path, key)
    flat = _one_each(array) if array.dtype.kind in "iub" else array
    if hot := _one_hot(flat, count, key):
        return hot
    if array.dtype.kind in "iub" and flat.ndim > 1 and len(flat) == count:
        return Answers(targets=array)  # masks, or several labels a sample: for a metric of one's own
    if flat.shape != (count,) or array.dtype.kind not in "iub":
        raise InputError("not one class index per sample", file=path, key=key, expected=f"integers [{count}]",
                         got=f"{array.dtype} {list(array.shape)}", next_step=_SUPPLY)  # fmt: skip
    if flat.size and int(flat.min()) < 0:
        raise InputError("a negative class index", file=path, key=key, got=int(flat.min()), next_step=_SUPPLY)
    return Answers(labels=tuple(int(label) for label in flat))


def _one_each(array: Array) -> Array:
    """Without axes of one behind the first: [N, 1] is [N]."""
    rest = array.shape[1:]
    return array.reshape(len(array)) if array.ndim > 1 and rest == (1,) * len(rest) else array


def _one_hot(array: Array, count: int, key: str) -> Answers | None:
    """Classes, where every row holds one 1 and else zeros; None where that is not so."""
    if array.ndim != 2 or len(array) != count or not count or array.shape[1] < 2:
        return None
    if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1) == 1).all()):
        return None
    return Answers(labels=tuple(int(label) for label in array.argmax(axis=1)),
                   notes=(f"{key} is one-hot: read as {array.shape[1]} classes",))  # fmt: skip


def _of_floats(array: Array, count: int, path: Path, key: str) -> Answers:
    if not array.ndim or len(array) != count:
        raise InputError("not one target per sample", file=path, key=key, expected=f"floats [{count}, …]",
                         got=f"{array.dtype} {list(array.shape)}", next_step=_SUPPLY)  # fmt: skip
    if not np.isfinite(array).all():
        raise InputError("NaN or infinity among the targets", file=path, key=key, expected="finite numbers",
                         got=f"{int((~np.isfinite(array)).sum())} that are not",
                         next_step="take such samples out")  # fmt: skip
    return _one_hot(array, count, key) or Answers(targets=array)


def _of_text(array: Array, count: int, path: Path, key: str) -> Answers:
    flat = _one_each(array)
    if flat.shape != (count,):
        raise InputError("not one class per sample", file=path, key=key, expected=f"text [{count}]",
                         got=f"text {list(array.shape)}", next_step=_SUPPLY)  # fmt: skip
    texts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in flat.tolist()]
    texts = [text.strip() for text in texts]
    if empty := [index for index, text in enumerate(texts) if not text]:
        raise InputError("a sample without a label", file=path, key=f"{key}, sample {empty[0]}",
                         got=f"{len(empty)} of {count} are empty",
                         next_step="fill them in, or take such samples out")  # fmt: skip
    names = tuple(sorted(set(texts)))
    position = {name: index for index, name in enumerate(names)}
    return Answers(labels=tuple(position[text] for text in texts), class_names=names)


def renumber(
    labels: Sequence[int], names: Sequence[str], classes: Sequence[str], path: Path
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Labels as positions among the model's classes.

    A name is first looked up as it is written, then with blanks, underscores and capitals aside, where that leaves one
    class. Names that are none of the model's are taken in its order only where they are in alphabetical order
    themselves, as folders are; columns of a table in another order tell nothing.

    Args:
        labels: positions among ``names``; where there are none, class numbers.
        names: what the data calls its classes; empty for numbers.
        classes: the model's, in the order of its output.
        path: of the data, for error messages.

    Returns:
        The labels, and what is worth saying.

    Raises:
        InputError: a class that the model does not have, or a name that could be several of them.

    >>> renumber([0, 1], ("bird", "cat"), ("cat", "dog", "bird"), Path("d"))[0]
    (2, 0)
    >>> renumber([0, 1], ("A", "a"), ("a", "A"), Path("d"))[0]
    (1, 0)
    >>> renumber([3, 1], (), ("1", "3"), Path("d"))[0]
    (1, 0)
    """
    if not names:
        return _renumber_numbers(labels, classes, path), ()
    found = _positions(names, classes)
    missing = [name for name in names if name not in found]
    if not missing:
        return tuple(found[names[label]] for label in labels), ()
    if {_spelt(name) for name in names} & {_spelt(name) for name in classes}:
        raise _unknown(missing, classes, path)
    if all(name.isdecimal() and int(name) < len(classes) for name in names):
        return tuple(int(names[label]) for label in labels), ()
    if len(names) != len(classes) or list(names) != sorted(names):
        raise _unknown(missing, classes, path)
    said = f"its classes ({_few(names)}) are taken in alphabetical order for {_few(classes)}"
    return tuple(labels), (said,)


def _renumber_numbers(labels: Sequence[int], classes: Sequence[str], path: Path) -> tuple[int, ...]:
    """Numbers are positions, unless the classes themselves are called by numbers."""
    if not all(each.lstrip("-").isdecimal() for each in classes):
        return tuple(labels)
    position = {int(name): index for index, name in enumerate(classes)}
    if foreign := sorted(set(labels) - set(position)):
        raise _unknown([str(each) for each in foreign], classes, path)
    return tuple(position[label] for label in labels)


def _positions(names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Name → position of the one class that it means; names that mean none or several are left out."""
    exact, spelt = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for index, each in enumerate(classes):
        exact[each].append(index)
        spelt[_spelt(each)].append(index)
    meant = {name: exact.get(name) or spelt.get(_spelt(name), []) for name in names}
    return {name: indices[0] for name, indices in meant.items() if len(indices) == 1}


def _spelt(name: str) -> str:
    """A name as it is compared: blanks, underscores and capitals aside."""
    return name.strip().replace("_", " ").casefold()


def _unknown(missing: Sequence[str], classes: Sequence[str], path: Path) -> InputError:
    return InputError("classes that the model does not have, or has twice", file=path, key="y", expected=_few(classes),
                      got=_few(missing), next_step="name every class of the model, in the order of its output, "
                      "with --labels A,B,C")  # fmt: skip


def _few(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
