"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeship_agent.contract.errors import ConfigError


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A new folder beside ``directory`` that takes its place at the end; on any error nothing is left of it.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
        try:
            temporary.chmod(0o755)
            yield temporary
            for folder, _, _ in os.walk(temporary, topdown=False):
                sync_folder(Path(folder))
            _swap(temporary, directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(directory.parent)
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=directory,
                          next_step="name another folder with -o DIR") from error  # fmt: skip


def strangers(directory: Path, own: Collection[str], marks: Collection[str]) -> list[str]:
    """What stands in the way of replacing a folder: all that is not ours in it.

    Args:
        directory: an existing folder.
        own: names that ours have.
        marks: files one of which every folder of ours holds, as paths inside it; where none is there, the folder is
            somebody else's, whatever its entries are called.
    """
    is_ours = any((directory / mark).is_file() for mark in marks)
    return sorted(entry.name for entry in directory.iterdir() if not is_ours or entry.name not in own)


def write_file(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, wanted: Path) -> None:
    """Put ``new`` in the place of ``wanted``; what stood there is kept until the new one is in place."""
    old = Path(f"{new}.old")
    if wanted.exists():
        wanted.rename(old)
    try:
        new.rename(wanted)
    except OSError:
        if old.exists():
            old.rename(wanted)
        raise
    shutil.rmtree(old, ignore_errors=True)
