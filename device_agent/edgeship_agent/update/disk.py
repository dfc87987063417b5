"""The one port through which the agent changes its state directory.

What lies on the disk after a power cut is decided here, and by nothing else: a change is certain only after the
``sync`` of the file, or of the directory that holds the name. The primitives are the methods that a test records to
build every state which a power cut may leave (``docs/adr/0014-power-loss.md``); the other methods are made from them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

_CHUNK_BYTES: Final = 1 << 20


class OpenFile:
    """A file that is open for writing; nothing is buffered in the process.

    Args:
        file: opened without a buffer.
        path: where it lies.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self.path = path

    def write(self, data: bytes) -> None:
        """Write all of ``data`` at the file's position."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def cut(self, size_bytes: int) -> None:
        """Cut the file to a length and go to its end."""
        self._file.truncate(size_bytes)
        self._file.seek(size_bytes)

    def sync(self) -> None:
        """What was written, and the length, survive a power cut from here on."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it; that alone puts nothing on the disk."""
        self._file.close()

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Disk:
    """Changes of files and folders; every error is an OSError of the system."""

    # -- primitives --------------------------------------------------------------------------------------------------

    def open(self, path: Path, *, append: bool = False) -> OpenFile:
        """A file to write: an empty one, or with ``append`` what is there, positioned at its end."""
        file = path.open("r+b" if append and path.exists() else "wb", buffering=0)
        file.seek(0, os.SEEK_END)
        return OpenFile(file, path)

    def rename(self, source: Path, destination: Path) -> None:
        """Give a file or folder another name, in place of what has that name now."""
        source.replace(destination)

    def link(self, source: Path, destination: Path) -> None:
        """A second name for a file."""
        destination.hardlink_to(source)

    def symlink(self, path: Path, target: str) -> None:
        """A symbolic link at ``path``."""
        path.symlink_to(target)

    def unlink(self, path: Path) -> None:
        """Remove a name of a file."""
        path.unlink()

    def make_folder(self, path: Path, mode: int = 0o777) -> None:
        """Make one folder; its parent is there."""
        path.mkdir(mode=mode)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def sync_folder(self, path: Path) -> None:
        """The names in a folder survive a power cut from here on."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    # -- made from them ----------------------------------------------------------------------------------------------

    def write(self, path: Path, data: bytes) -> None:
        """A file of that content, its bytes on the disk; its name is not yet certain."""
        with self.open(path) as file:
            file.write(data)
            file.sync()

    def write_atomic(self, path: Path, data: bytes) -> None:
        """Replace ``path`` by ``data``: there in full or not at all, and certain when this returns."""
        temporary = _temporary(path)
        self.write(temporary, data)
        self.rename(temporary, path)
        self.sync_folder(path.parent)

    def write_hint(self, path: Path, data: bytes) -> None:
        """Replace ``path`` in one step for readers; a power cut may lose or damage it, so its reader must not care."""
        temporary = _temporary(path)
        with self.open(temporary) as file:
            file.write(data)
        self.rename(temporary, path)

    def point(self, link: Path, target: str, *, certain: bool = True) -> None:
        """Let the symbolic link ``link`` point to ``target`` in one step; ``certain`` makes it survive a power cut."""
        temporary = _temporary(link)
        with contextlib.suppress(FileNotFoundError):
            self.unlink(temporary)
        self.symlink(temporary, target)
        self.rename(temporary, link)
        if certain:
            self.sync_folder(link.parent)

    def make_folders(self, path: Path, mode: int = 0o777, *, certain: bool = True) -> None:
        """A folder and its parents; ``certain`` makes each that was made survive a power cut."""
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            self.make_folder(folder, mode)
            if certain:
                self.sync_folder(folder.parent)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all that is in it; nothing happens where there is none. Not yet certain."""
        for entry in sorted(path.iterdir()) if path.is_dir() else ():
            if entry.is_dir() and not entry.is_symlink():
                self.remove_tree(entry)
            else:
                self.unlink(entry)
        if path.is_dir():
            self.remove_folder(path)

    def copy(self, source: Path, destination: Path) -> None:
        """A copy of a file, its bytes on the disk; its name is not yet certain."""
        with self.open(destination) as file:
            for chunk in _chunks(source):
                file.write(chunk)
            file.sync()


#: The real disk; used wherever no other is named.
DISK: Final = Disk()


def digest_of_file(path: Path) -> str:
    """The digest of a file, read in pieces."""
    sha256 = hashlib.sha256()
    for chunk in _chunks(path):
        sha256.update(chunk)
    return f"sha256:{sha256.hexdigest()}"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
