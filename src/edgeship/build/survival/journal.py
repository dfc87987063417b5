"""What a build is at, written down where whoever outlives it can read what it died of."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from edgeship_agent.contract.errors import ConversionError


class Death(Struct, frozen=True, kw_only=True):
    """A step that killed the process that did it.

    Attributes:
        how: in words, such as ``it kills its process (signal 11)``.
        passing: whether that may be this machine's doing, so that another build shall try again.
    """

    stage: str
    how: str
    passing: bool

    def error(self) -> ConversionError:
        """As the step itself would have said it."""
        error = ConversionError(self.how)
        error.stage, error.passing = self.stage, self.passing
        return error


class Journal:
    """One process's.

    Args:
        file: an open file that outlives the process, only ever appended to.
        deaths: steps that are not tried again.
        told: lines that a former process has shown already.
        made: results that former processes have made for the same build.
        began_s: when the first of them began, on the clock that only goes forward.
    """

    def __init__(
        self, file: int, deaths: Mapping[str, Death], told: Mapping[str, int], made: Collection[str], began_s: float
    ) -> None:
        self.deaths = dict(deaths)
        self.began_s = began_s
        self.made = frozenset(made)
        self._file = file
        self._told = dict(told)

    def write(self, *entry: Any) -> None:
        """Append one entry; also a sign of life."""
        os.write(self._file, (json.dumps(entry) + "\n").encode())

    def is_news(self, line: str) -> bool:
        """Whether a line was not shown by a former process; it is from now on."""
        if self._told.get(line, 0):
            self._told[line] -= 1
            return False
        self.write("told", line)
        return True


_current: Final[ContextVar[Journal | None]] = ContextVar("journal", default=None)


def keep(journal: Journal | None) -> None:
    """From now on this process writes down what it is at."""
    _current.set(journal)


def is_kept() -> bool:
    """Whether somebody watches this process."""
    return _current.get() is not None


@contextmanager
def step(key: str, stage: str) -> Iterator[None]:
    """Something that foreign code does with a file that nobody here made; refused where it has killed a process before.

    Where nobody watches, nothing is written and nothing refused.

    Args:
        key: tells it from every other step of the same build, the same each time.
        stage: that is to blame where nothing further in says better.

    Raises:
        ConversionError: it has killed a process, needs more memory than there is, or is nested too deeply.
    """
    journal = _current.get()
    if journal is None:
        yield
        return
    if key in journal.deaths:
        raise journal.deaths[key].error()
    journal.write("begin", key, stage)
    try:
        yield
    except (MemoryError, RecursionError) as error:
        raise _refused(error, stage) from error
    finally:
        journal.write("end")


@contextmanager
def at(stage: str) -> Iterator[None]:
    """A stage inside a step."""
    journal = _current.get()
    if journal is None:
        yield
        return
    journal.write("begin", "", stage)
    try:
        yield
    except (MemoryError, RecursionError) as error:
        raise _refused(error, stage) from error
    finally:
        journal.write("end")


def _refused(error: MemoryError | RecursionError, stage: str) -> ConversionError:
    memory = isinstance(error, MemoryError)
    refused = ConversionError("it needs more memory than it may take" if memory else "it is nested too deeply")
    refused.stage, refused.passing = stage, memory
    return refused


def alive(text: str = "") -> None:
    """A sign of life from the middle of a step: how far it is, in words."""
    if (journal := _current.get()) is not None:
        journal.write("alive", text)


def began_s() -> float:
    """When the whole work began, processes before and beside this one included; now where nobody watches."""
    journal = _current.get()
    return time.monotonic() if journal is None else journal.began_s


def made(result: str) -> None:
    """A result was made, not found."""
    if (journal := _current.get()) is not None:
        journal.write("made", result)


def was_made(result: str) -> bool:
    """Whether a result that is found was made for this very build, by a process before or beside this one."""
    journal = _current.get()
    return journal is not None and result in journal.made


def is_news(line: str) -> bool:
    """Whether a line is to be shown: nobody has shown it before."""
    journal = _current.get()
    return journal is None or journal.is_news(line)


def place(draft: Path, final: Path) -> None:
    """A folder in the making, and where it shall be: to be taken away where this process cannot."""
    if (journal := _current.get()) is not None:
        journal.write("place", str(draft), str(final))


class Story(Struct, frozen=True, kw_only=True):
    """A journal, read.

    Attributes:
        key: of the innermost step that had not ended; empty for none.
        stage: the innermost.
        told: lines that were shown, in order.
        places: (draft, final), in order.
        made: results that were made.
        alive: how far it was, in words.
        outcome: exit code of finished work; None where it did not finish.
    """

    key: str
    stage: str
    told: tuple[str, ...]
    places: tuple[tuple[str, str], ...]
    made: tuple[str, ...]
    alive: str
    outcome: int | None


def read(text: str) -> Story:
    r"""Read a journal; a last line that was cut off is left out.

    >>> read('["begin", "a", "conversion"]\n["begin", "", "runtime"]\n["told", "x"]\n["beg').key
    'a'
    >>> read('["begin", "a", "conversion"]\n["end"]\n["finished", 3]\n').outcome
    3
    """
    open_: list[tuple[str, str]] = []
    facts: dict[str, list[Any]] = {"told": [], "place": [], "made": [], "alive": [""], "finished": [None]}
    for line in text.splitlines():
        try:
            kind, *rest = json.loads(line)
        except (ValueError, TypeError):  # cut off at its end, or at its beginning
            continue
        if kind == "begin":
            open_.append((rest[0], rest[1]))
        elif kind == "end" and open_:
            open_.pop()
        elif kind in facts:
            facts[kind].append(rest[0] if len(rest) == 1 else tuple(rest))
    return Story(
        key=next((key for key, _ in reversed(open_) if key), ""),
        stage=next((stage for _, stage in reversed(open_) if stage), ""),
        told=tuple(facts["told"]), places=tuple(facts["place"]), made=tuple(facts["made"]), alive=facts["alive"][-1],
        outcome=facts["finished"][-1],
    )  # fmt: skip
