"""A folder of results, each under the SHA-256 of everything that it depends on.

An entry is written beside its place, synced and renamed, so that one that is there is whole; its files are hashed again
whenever they are read. Two builds may work at once: whoever is later finds the entry there and drops its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from edgeship.build.survival import journal, turns
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.contract.oci import canonical_json

#: Pass → stage that is to blame where it kills its process and nothing further in says better.
_STAGES: Final = {"facts": "check", "describe": "conversion", "convert": "conversion", "operators": "quantization",
                  "trial": "quantization", "quantize": "quantization"}  # fmt: skip
#: Passes whose result is time.
_MEASURING: Final = frozenset({"latency", "screening"})
ENTRY_FILE: Final = "entry.json"
FILES_FOLDER: Final = "files"
_SCHEMA_VERSION: Final = 1
#: What is not used for the longest time goes first when the folder grows beyond this.
MAX_BYTES: Final = 5_000_000_000


class Made(Struct, frozen=True, kw_only=True):
    """What a pass made.

    Attributes:
        value: as JSON holds it.
        files: that belong to it, inside the folder of the build.
    """

    value: Any = None
    files: tuple[Path, ...] = ()


class Failure(Struct, frozen=True, kw_only=True):
    """A pass that cannot be done: the same inputs will fail in the same way."""

    message: str
    target: str = ""
    stage: str = ""
    next_step: str = ""


class Entry(Struct, frozen=True, kw_only=True):
    """``entry.json``.

    Attributes:
        key: everything that the result depends on.
        files: path inside the folder → sha256, hexadecimal.
    """

    schema_version: int = _SCHEMA_VERSION
    name: str
    key: dict[str, Any]
    made_at_s: float
    seconds: float
    value: Any = None
    files: dict[str, str] = field(default_factory=dict)
    failure: Failure | None = None


class Found(Struct, frozen=True, kw_only=True):
    """An entry and where it lies."""

    entry: Entry
    folder: Path
    size_bytes: int
    used_at_s: float


class Cache:
    """Remembers what passes made.

    Args:
        root: the folder; None remembers nothing.
        basis: what every result depends on besides its own key, such as the code that made it.
        on_damage: told in a sentence when an entry is not what was written; it is removed and made again.
    """

    def __init__(
        self,
        root: Path | None,
        basis: Mapping[str, Any] | None = None,
        on_damage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.root = root
        self._basis = dict(basis or {})
        self._on_damage = on_damage
        self._used: set[Path] = set()
        #: Pass → [found, made].
        self.counts: dict[str, list[int]] = {}
        self.saved_s = 0.0

    def remember(self, name: str, key: Mapping[str, Any], base: Path, make: Callable[[], Made]) -> Any:
        """What a pass makes, now or before.

        Args:
            name: of the pass.
            key: everything that the result depends on, as JSON holds it.
            base: folder of the build that files belong under; found ones are put there.
            make: does it; raises ConversionError where it cannot be done, which is remembered too.

        Raises:
            ConversionError: it cannot be done, now or before.
        """
        whole = {"pass": name, **self._basis, **key}
        digest = hashlib.sha256(canonical_json(whole)).hexdigest()
        if self.root is None:
            return _done(name, digest, make).value
        folder = self.root / name / digest
        counts = self.counts.setdefault(name, [0, 0])
        entry = self._read(folder, whole, base)
        if entry is not None and journal.was_made(f"{name}/{digest}"):
            counts[1] += 1
        elif entry is not None:
            counts[0] += 1
            self.saved_s += entry.seconds
        else:
            counts[1] += 1
            entry = self._make(name, whole, base, make, folder)
        self._used.add(folder)
        if entry.failure is not None:
            raise _error(entry.failure)
        return entry.value

    def found(self, name: str) -> bool:
        """Whether this build found everything of a pass that it asked for, and asked for it."""
        return name in self.counts and not self.counts[name][1]

    def trim(self, max_bytes: int | None = None) -> int:
        """Remove what was not used for the longest time until the rest fits; never what this build used.

        Returns:
            How many bytes went.
        """
        found = sorted(_weighed(self.root), key=lambda each: each[1])
        excess = sum(size_bytes for _, _, size_bytes in found) - (MAX_BYTES if max_bytes is None else max_bytes)
        removed = 0
        for folder, _, size_bytes in found:
            if excess <= removed:
                break
            if folder not in self._used:
                shutil.rmtree(folder, ignore_errors=True)
                removed += size_bytes
        return removed

    def _make(self, name: str, key: dict[str, Any], base: Path, make: Callable[[], Made], folder: Path) -> Entry:
        started = time.monotonic()
        made, failure = Made(), None
        try:
            made = _done(name, folder.name, make)
        except ConversionError as error:
            if error.passing:
                raise  # what the machine did, not what the inputs are: the next time may be better
            failure = Failure(message=error.message, target=error.target or "", stage=error.stage,
                              next_step=error.next_step or "")  # fmt: skip
        entry = Entry(
            name=name, key=key, made_at_s=time.time(), seconds=round(time.monotonic() - started, 3), value=made.value,
            failure=failure,
        )  # fmt: skip
        journal.made(f"{name}/{folder.name}")
        return self._write(entry, made.files, base, folder)

    def _write(self, entry: Entry, files: Sequence[Path], base: Path, folder: Path) -> Entry:
        assert self.root is not None, "asked for by remember alone"
        fresh = self.root / f".new-{os.getpid()}-{secrets.token_hex(6)}"
        digests: dict[str, str] = {}
        try:
            (fresh / FILES_FOLDER).mkdir(parents=True, mode=0o700)
            for file in files:
                inside = file.relative_to(base)
                digests[inside.as_posix()] = _copied(file, fresh / FILES_FOLDER / inside, synced=True)
            whole = msgspec.structs.replace(entry, files=digests)
            _write_synced(fresh / ENTRY_FILE, msgspec.json.encode(whole))
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh.rename(folder)
            _sync_folder(folder.parent)
        except OSError:
            # a full disk, or another build was faster: the result is good all the same
            shutil.rmtree(fresh, ignore_errors=True)
        return entry

    def _read(self, folder: Path, key: dict[str, Any], base: Path) -> Entry | None:
        if not folder.is_dir():
            return None
        try:
            entry = msgspec.json.decode((folder / ENTRY_FILE).read_bytes(), type=Entry)
            sound = entry.schema_version == _SCHEMA_VERSION and canonical_json(entry.key) == canonical_json(key)
            if sound and entry.files:
                sound = _fetched(folder / FILES_FOLDER, entry.files, base)
        except (OSError, msgspec.MsgspecError):
            sound = False
        if not sound:
            self._on_damage(f"cache: an entry of {folder.parent.name} is damaged; removed, and made again")
            shutil.rmtree(folder, ignore_errors=True)
            return None
        os.utime(folder)  # when it was used last
        return entry


def _done(name: str, digest: str, make: Callable[[], Made]) -> Made:
    """A pass: its turn among other processes of the build, and its name for whoever outlives it."""
    with turns.turn(measures=name in _MEASURING), journal.step(f"{name}/{digest}", _STAGES.get(name, "runtime")):
        return make()


def _weighed(root: Path | None) -> list[tuple[Path, float, int]]:
    """Every entry's folder, when it was used last in s, and its size in bytes; nothing is opened."""
    found = []
    for file in root.glob(f"*/*/{ENTRY_FILE}") if root is not None else ():
        with contextlib.suppress(OSError):
            found.append((file.parent, file.parent.stat().st_mtime, _size_bytes(file.parent)))
    return found


def _size_bytes(folder: Path) -> int:
    return sum((Path(place) / name).stat().st_size for place, _, names in os.walk(folder) for name in names)


def entries(root: Path | None) -> list[Found]:
    """Every whole entry; what cannot be read is left out."""
    found = []
    for file in root.glob(f"*/*/{ENTRY_FILE}") if root is not None else ():
        try:
            entry = msgspec.json.decode(file.read_bytes(), type=Entry)
            size = _size_bytes(file.parent)
            used_at_s = file.parent.stat().st_mtime
        except (OSError, msgspec.MsgspecError):
            continue
        found.append(Found(entry=entry, folder=file.parent, size_bytes=size, used_at_s=used_at_s))
    return found


def damaged(root: Path) -> list[Path]:
    """Folders whose content is not what was written."""
    bad = []
    for folder in root.glob("*/*"):
        if folder.parent.name.startswith("."):
            continue
        try:
            entry = msgspec.json.decode((folder / ENTRY_FILE).read_bytes(), type=Entry)
            sound = folder.name == hashlib.sha256(canonical_json(entry.key)).hexdigest() and all(
                _digest(folder / FILES_FOLDER / inside) == digest for inside, digest in entry.files.items()
            )
        except (OSError, msgspec.MsgspecError):
            sound = False
        if not sound:
            bad.append(folder)
    return bad


def _error(failure: Failure) -> ConversionError:
    error = ConversionError(failure.message, target=failure.target or None, next_step=failure.next_step or None)
    error.stage = failure.stage
    return error


def _fetched(folder: Path, files: Mapping[str, str], base: Path) -> bool:
    """Copy what an entry holds into a build's folder; whether all of it is what was written.

    Beside their places first: what is damaged must leave nothing where the pass will write. Nothing is synced, since a
    build's folder does not outlive it.
    """
    mark = secrets.token_hex(6)
    staged = {base / inside: base / f".found-{mark}-{index}" for index, inside in enumerate(files)}
    try:
        for (inside, digest), stage in zip(files.items(), staged.values(), strict=True):
            if _copied(folder / inside, stage) != digest:
                return False
        for final, stage in staged.items():
            final.parent.mkdir(parents=True, exist_ok=True)
            stage.replace(final)
        return True
    finally:
        for stage in staged.values():
            stage.unlink(missing_ok=True)


def _copied(source: Path, target: Path, *, synced: bool = False) -> str:
    """Copy a file; the sha256 of what was read."""
    state = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(1 << 20):
            state.update(chunk)
            writer.write(chunk)
        if synced:
            writer.flush()
            os.fsync(writer.fileno())
    return state.hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_synced(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
