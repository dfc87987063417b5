"""The output folder: it appears whole or not at all, whatever happens in between."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from edgeship.build.survival import journal
from edgeship.bundle.disk import strangers
from edgeship.bundle.layout import LAYOUT_FILE
from edgeship_agent.contract.errors import ConfigError, EdgeshipError

#: What an output folder may hold; a folder with anything else in it is not ours to replace.
ENTRIES: Final = frozenset(
    {
        "bundle",
        "variants",
        "report.html",
        "report.md",
        "build.json",
        "few_labels.json",
        "pending.msgpack",
        "to_label",
        "to_label.csv",
    }
)
#: One of them is in every folder that a build or a pull wrote.
_MARKS: Final = ("build.json", f"bundle/{LAYOUT_FILE}")
#: Where a former result waits while the new one takes its place.
_FORMER: Final = "former"
#: With less than this free, what fails is the disk's doing.
_FULL_BYTES: Final = 1 << 18


class Staging(Struct, frozen=True, kw_only=True):
    """A folder in the making.

    Attributes:
        draft: written to now.
        final: where it will be.
        scratch: for files that nobody will see.
    """

    draft: Path
    final: Path
    scratch: Path


@contextmanager
def staging(final: Path) -> Iterator[Staging]:
    """Write into a draft beside ``final``, then put it in its place in one rename; on any error nothing is left.

    Raises:
        ConfigError: ``final`` holds something that is not a build's, or cannot be written.
        EdgeshipError: the disk is full.
    """
    final = final.absolute()
    check(final)
    base = final.with_name(f".{final.name}-{secrets.token_hex(4)}")
    journal.place(base, final)  # before it is there: an interrupt may fall between any two lines
    _make(base, final)
    draft, scratch = base / "draft", base / "scratch"
    try:
        draft.mkdir()
        scratch.mkdir()
        yield Staging(draft=draft, final=final, scratch=scratch)
        _replace(draft, final, base / _FORMER)
    except Exception as error:  # a runtime that cannot write its file says so in many ways, or in none
        if _is_full(error, base):
            raise EdgeshipError("no space is left on this disk", file=final.parent,
                                got=f"{shutil.disk_usage(base).free / 1e3:,.0f} kB free",
                                next_step="free some, or name another folder with -o DIR") from error  # fmt: skip
        raise
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _make(base: Path, final: Path) -> None:
    """Make the folder that everything is written into.

    Raises:
        ConfigError: it cannot be made there.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        base.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", file=final, next_step="name another folder with -o DIR"
        ) from error


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for files that nobody will see, in the system's place for such."""
    folder = Path(tempfile.mkdtemp(prefix="edgeship-build-"))
    journal.place(folder, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def give_up(base: Path, final: Path) -> None:
    """Take away the folder of a process that died in the middle; a former result that it had moved comes back."""
    former = base / _FORMER
    if former.exists() and not final.exists():
        former.rename(final)
    shutil.rmtree(base, ignore_errors=True)


def _is_full(error: Exception, folder: Path) -> bool:
    told = any(isinstance(each, OSError) and each.errno in {errno.ENOSPC, errno.EDQUOT}
               for each in (error, error.__cause__))  # fmt: skip
    known = isinstance(error, EdgeshipError)
    return told or (not known and shutil.disk_usage(folder).free < _FULL_BYTES)


def check(final: Path) -> None:
    """Refuse a folder that is not a former build's.

    Raises:
        ConfigError: it is a file, or holds something else.
    """
    if not final.exists():
        return
    if not final.is_dir():
        raise ConfigError("is in the way", file=final, expected="a folder", next_step="name another folder with -o DIR")
    if found := strangers(final, ENTRIES, _MARKS):
        raise ConfigError("holds something that no build wrote", file=final, expected=", ".join(sorted(ENTRIES)),
                          got=", ".join(found[:5]), next_step="name another folder with -o DIR")  # fmt: skip


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_synced(path: Path, data: bytes) -> None:
    """Put a file in the place of another in one rename."""
    temporary = path.with_name(f".{path.name}.new")
    write_synced(temporary, data)
    temporary.replace(path)
    _sync_folder(path.parent)


def _replace(draft: Path, final: Path, former: Path) -> None:
    if final.exists():
        final.rename(former)
    try:
        draft.rename(final)
    except OSError:
        if former.exists():
            former.rename(final)
        raise
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
