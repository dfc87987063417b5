"""A model over many rows: killed anywhere, the same command goes on where it stopped.

Finished rows lie in ``OUT.part`` as chunks, whose names say which rows they hold and how many of these are bad::

    OUT.part/run.json                                  what is run over what
    OUT.part/000000000000-000000000256-000000.jsonl    rows 0 … 255, none of them bad
    OUT.part/done.json                                 the summary, written before OUT gets its name

A chunk gets its name in one rename, after its bytes are on the disk, so a row is in one chunk or in none. OUT appears
in one rename when all rows are there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError, EdgeshipError
from edgeship_agent.patterns.answers import Reader, fault
from edgeship_agent.patterns.model import OpenModel
from edgeship_agent.patterns.outcome import write_outcome
from edgeship_agent.patterns.rows import Row, Rows
from edgeship_agent.update.disk import DISK

SCHEMA_VERSION: Final = 1
#: A chunk is closed at so many rows, or after this time: what a kill can cost is at most that much work.
CHUNK_ROWS: Final = 256
CHUNK_S: Final = 2.0
_MOST_BAD_SHOWN: Final = 20
_ROW_DIGITS: Final = 12
_BAD_DIGITS: Final = 6


class Identity(Struct, frozen=True, kw_only=True):
    """``run.json``: a part folder is continued by a run of the same identity alone."""

    schema_version: int = SCHEMA_VERSION
    digest: str
    variant: str
    input: str
    output: str


class Summary(Struct, frozen=True, kw_only=True):
    """What a batch did.

    Attributes:
        rows: in the output, bad ones included.
        bad: rows without an answer.
        bad_rows: the first of them, with row, key and error.
        resumed_at: row that this run began with.
        seconds: of this run.
    """

    schema_version: int = SCHEMA_VERSION
    output: str
    model: str
    version: str
    release_digest: str
    variant: str
    rows: int
    bad: int
    bad_rows: tuple[dict[str, Any], ...]
    resumed_at: int
    seconds: float


class Chunk(Struct, frozen=True, kw_only=True):
    """A finished chunk: rows ``first`` … ``end − 1``."""

    path: Path
    first: int
    end: int
    bad: int


class Batch:
    """One run of a model over rows.

    Args:
        model: opened.
        rows: of the input.
        output: file to write; its suffix says in which form.
        clock: monotonic seconds.
        say: takes a line of progress.
    """

    def __init__(
        self, model: OpenModel, rows: Rows, output: Path, clock: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self._model = model
        self._reader = Reader(model.manifest.output)
        self._rows = rows
        self._output = output
        self._part = output.with_name(output.name + ".part")
        self._clock, self._say = clock, say
        self._encoder = msgspec.json.Encoder()
        self._bad = 0
        self._bad_rows: list[dict[str, Any]] = []

    def run(self, *, restart: bool = False) -> Summary:
        """Do the rows that are missing, then write the output.

        Args:
            restart: forget what an earlier run did, and replace its output.

        Raises:
            ConfigError: the output exists, another run writes it, or the part folder is of another run.
            KeyboardInterrupt: with every finished row kept.
        """
        try:
            with self._locked(restart):
                return self._summary_of_earlier() or self._run(restart)
        except OSError as error:
            raise EdgeshipError(f"the disk failed: {error.strerror}", file=error.filename or self._output,
                                next_step="the same command goes on where this one stopped") from error  # fmt: skip

    @contextlib.contextmanager
    def _locked(self, restart: bool) -> Iterator[None]:
        if self._output.exists() and not restart and not (self._part / "done.json").is_file():
            raise ConfigError("exists already", file=self._output, key="--output",
                              next_step="name another file, or --restart to replace it")  # fmt: skip
        if not self._output.parent.is_dir():
            raise ConfigError("no such folder", file=self._output.parent, key="--output")
        DISK.make_folders(self._part)
        lock = os.open(self._part / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise ConfigError("another run writes this output", file=self._part) from error
        try:
            if restart:
                for path in self._part.iterdir():
                    if path.name != "lock":
                        path.unlink()
            yield
        finally:
            os.close(lock)

    def _summary_of_earlier(self) -> Summary | None:
        """The summary of a run that was killed between its last rename and the removal of its part folder."""
        path = self._part / "done.json"
        if not (path.is_file() and self._output.exists()):
            return None
        summary = msgspec.json.decode(path.read_bytes(), type=Summary)
        shutil.rmtree(self._part)
        return summary

    def _run(self, restart: bool) -> Summary:
        started_s = self._clock()
        self._check_identity(restart)
        chunks = self._chunks()
        first = chunks[-1].end if chunks else 0
        self._bad = sum(chunk.bad for chunk in chunks)
        if first:
            self._say(f"continues at row {first}")
        self._remember_bad(chunks)
        end = self._work(first)
        slot = self._model.slot.slot
        summary = Summary(output=str(self._output.absolute()), model=slot.model, version=slot.version,
                          release_digest=slot.digest, variant=slot.variant, rows=end, bad=self._bad,
                          bad_rows=tuple(self._bad_rows), resumed_at=first,
                          seconds=round(self._clock() - started_s, 3))  # fmt: skip
        made = self._part / "outcome"
        write_outcome(made, self._output.suffix.lower(), [chunk.path for chunk in self._chunks()])
        DISK.write_atomic(self._part / "done.json", msgspec.json.encode(summary))
        DISK.rename(made, self._output)
        DISK.sync_folder(self._output.parent)
        shutil.rmtree(self._part)
        return summary

    def _check_identity(self, restart: bool) -> None:
        slot = self._model.slot.slot
        mine = Identity(digest=slot.digest, variant=slot.variant, input=self._rows.identity,
                        output=self._output.suffix.lower())  # fmt: skip
        path = self._part / "run.json"
        if path.is_file() and not restart:
            try:
                earlier = msgspec.json.decode(path.read_bytes(), type=Identity)
            except msgspec.MsgspecError:
                earlier = None
            if earlier != mine:
                raise ConfigError("the unfinished run was of another model or input", file=self._part,
                                  next_step="--restart begins anew")  # fmt: skip
            return
        DISK.write_atomic(path, msgspec.json.encode(mine))

    def _chunks(self) -> list[Chunk]:
        """Finished chunks in their order; what follows a gap does not count."""
        known: list[Chunk] = []
        for path in sorted(self._part.glob("*.jsonl")):
            first, end, bad = (int(part) for part in path.stem.split("-"))
            if first == (known[-1].end if known else 0):
                known.append(Chunk(path=path, first=first, end=end, bad=bad))
        return known

    def _remember_bad(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            if chunk.bad and len(self._bad_rows) < _MOST_BAD_SHOWN:
                rows = [msgspec.json.decode(line) for line in chunk.path.read_bytes().splitlines()]
                self._bad_rows += [row for row in rows if "error" in row][: _MOST_BAD_SHOWN - len(self._bad_rows)]

    def _work(self, first: int) -> int:
        """Run the rows from ``first`` on; the number of rows."""
        progress = Progress(self._rows.count, first, self._clock, self._say)
        lines: list[bytes] = []
        start, bad, begun_s = first, 0, self._clock()
        try:
            for row in self._rows.begin(first):
                document = self._answer(row)
                bad += "error" in document
                lines.append(self._encoder.encode(document))
                now_s = self._clock()
                if len(lines) >= CHUNK_ROWS or now_s - begun_s >= CHUNK_S:
                    self._write(start, lines, bad)
                    start, lines, bad, begun_s = start + len(lines), [], 0, now_s
                progress.tell(start + len(lines), self._bad + bad)
        except KeyboardInterrupt:
            # a row is finished when its line is there
            self._write(start, lines, sum(b'"error":' in line for line in lines))
            raise
        self._write(start, lines, bad)
        return start + len(lines)

    def _write(self, first: int, lines: list[bytes], bad: int) -> None:
        if not lines:
            return
        name = f"{first:0{_ROW_DIGITS}d}-{first + len(lines):0{_ROW_DIGITS}d}-{bad:0{_BAD_DIGITS}d}.jsonl"
        DISK.write_atomic(self._part / name, b"\n".join(lines) + b"\n")
        self._bad += bad

    def _answer(self, row: Row) -> dict[str, Any]:
        document: dict[str, Any] = {"row": row.index, "key": row.key}
        error = row.error
        if error is None and row.raw is not None:
            try:
                return document | self._reader.read(self._model.predict(row.raw))
            except EdgeshipError as raised:
                error = raised
        assert error is not None
        if isinstance(error, ConfigError):
            raise error  # a package is missing: no row of this kind can be read
        document["error"] = fault(error)
        if len(self._bad_rows) < _MOST_BAD_SHOWN:
            self._bad_rows.append(document)
            self._say(f"bad row {row.index} ({row.key}): {error.sentence()}")
        return document


class Progress:
    """Says how far a batch is, at most once in a while.

    Args:
        total: rows; None where it is not known.
        first: row that this run began with.
        clock: monotonic seconds.
        say: takes a line.
        every_s: between two lines.
    """

    def __init__(
        self,
        total: int | None,
        first: int,
        clock: Callable[[], float],
        say: Callable[[str], None],
        every_s: float = 2.0,
    ) -> None:
        self._total, self._first, self._clock, self._say, self._every_s = total, first, clock, say, every_s
        self._started_s = self._said_s = clock()

    def tell(self, done: int, bad: int) -> None:
        """So many rows are done, so many of them bad."""
        now_s = self._clock()
        if now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        speed = (done - self._first) / max(now_s - self._started_s, 1e-9)
        text = f"rows {done}" + ("" if self._total is None else f" of {self._total}") + f" · {bad} bad · {speed:.0f}/s"
        if self._total is not None and speed > 0:
            left_s = int((self._total - done) / speed)
            text += f" · {left_s // 60} min {left_s % 60:02d} s left"
        self._say(text)
