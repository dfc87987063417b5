"""Power loss as a model: a disk that records every change, and every state that may be left when the power goes.

What is certain is what ``sync`` made certain, and nothing else: between two of them every sector (512 bytes, so that
every tear at 4 KiB is among them) of a file, its length, and every name in a folder may be on the disk in any of the
versions that they had since, each on its own. A rename is a name that appears and a name that goes, so that its halves
may be lost alone. That is more than POSIX systems do, and nothing that they may do is missing.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeship_agent.update.disk import Disk, OpenFile

SECTOR_BYTES = 512


@dataclass(frozen=True)
class Change:
    """One recorded change: what, where (relative), and its arguments; ``site`` is the code that asked for a sync."""

    what: str
    path: str
    argument: Any = None
    site: str = ""


class RecordingFile(OpenFile):
    """Records what it does."""

    def __init__(self, opened: OpenFile, disk: RecordingDisk) -> None:
        super().__init__(opened._file, opened.path)
        self._disk = disk

    def write(self, data: bytes) -> None:
        self._disk.record("write", self.path, (self._file.tell(), bytes(data)))
        super().write(data)

    def cut(self, size_bytes: int) -> None:
        self._disk.record("cut", self.path, size_bytes)
        super().cut(size_bytes)

    def sync(self) -> None:
        self._disk.record("sync", self.path, site=_site())
        super().sync()


class RecordingDisk(Disk):
    """A real disk whose changes below ``root`` are recorded; ``may_link`` says whether it knows hard links."""

    def __init__(self, root: Path, *, may_link: bool = True) -> None:
        self.root = root
        self.may_link = may_link
        self.log: list[Change] = []

    def record(self, what: str, path: Path, argument: Any = None, site: str = "") -> None:
        self.log.append(Change(what, path.relative_to(self.root).as_posix(), argument, site))

    def promise(self, name: str, value: Any) -> None:
        """Something that the code relies on from here on."""
        self.log.append(Change("promise", name, value))

    def open(self, path: Path, *, append: bool = False) -> OpenFile:
        if not (append and path.exists()):
            self.record("create", path)
        return RecordingFile(super().open(path, append=append), self)

    def rename(self, source: Path, destination: Path) -> None:
        self.record("rename", source, destination.relative_to(self.root).as_posix())
        super().rename(source, destination)

    def link(self, source: Path, destination: Path) -> None:
        if not self.may_link:
            raise OSError("no hard links here")
        self.record("link", source, destination.relative_to(self.root).as_posix())
        super().link(source, destination)

    def symlink(self, path: Path, target: str) -> None:
        self.record("symlink", path, target)
        super().symlink(path, target)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.record("unlink", path)

    def make_folder(self, path: Path, mode: int = 0o777) -> None:
        self.record("folder", path)
        super().make_folder(path, mode)

    def remove_folder(self, path: Path) -> None:
        self.record("unlink", path)
        super().remove_folder(path)

    def sync_folder(self, path: Path) -> None:
        self.record("sync", path, site=_site())
        super().sync_folder(path)


def _site() -> str:
    """The lines of the agent that asked for a sync: outermost caller in the disk's module, and who called that."""
    frame, inner = sys._getframe(2), ""
    while frame.f_code.co_filename.endswith(("update/disk.py", "tests/power_loss.py")):
        inner = frame.f_code.co_name + (f" ({inner})" if inner else "")
        assert frame.f_back is not None
        frame = frame.f_back
    where = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname if sys.version_info >= (3, 11) else ''}"
    return f"{where} {inner}".strip()


@dataclass
class Versions:
    """The values that something had since it was last certain; the first one is certain."""

    values: list[Any]

    def add(self, value: Any) -> None:
        if value != self.values[-1]:
            self.values.append(value)

    def settle(self) -> None:
        del self.values[:-1]


@dataclass
class File:
    """A file's length and its sectors."""

    size: Versions = field(default_factory=lambda: Versions([0]))
    sectors: dict[int, Versions] = field(default_factory=dict)

    def write(self, start: int, data: bytes) -> None:
        end = start + len(data)
        for number in range(start // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            first = number * SECTOR_BYTES
            versions = self.sectors.setdefault(number, Versions([b""]))
            old = versions.values[-1].ljust(SECTOR_BYTES, b"\0")
            low, high = max(start, first), min(end, first + SECTOR_BYTES)
            versions.add(old[: low - first] + data[low - start : high - start] + old[high - first :])
        self.size.add(max(self.size.values[-1], end))

    def cut(self, size_bytes: int) -> None:
        for number, versions in self.sectors.items():
            left = max(size_bytes - number * SECTOR_BYTES, 0)
            if left < SECTOR_BYTES:
                versions.add(versions.values[-1][:left].ljust(SECTOR_BYTES, b"\0"))
        self.size.add(size_bytes)

    def versions(self) -> Iterator[Versions]:
        yield self.size
        yield from self.sectors.values()


@dataclass
class Folder:
    """The names in a folder: each has held these files since it was last certain (None for none)."""

    names: dict[str, Versions] = field(default_factory=dict)

    def set(self, name: str, node: Node | None) -> None:
        versions = self.names.setdefault(name, Versions([None]))
        if node is not versions.values[-1]:
            versions.values.append(node)

    def versions(self) -> Iterator[Versions]:
        yield from self.names.values()


@dataclass
class Pointer:
    """A symbolic link; it is made whole, its name is as uncertain as any."""

    target: str

    def versions(self) -> Iterator[Versions]:
        yield from ()


Node = File | Folder | Pointer
#: path → bytes of a file, None for a folder, text for what a symbolic link points to.
Tree = dict[str, bytes | str | None]


class CrashModel:
    """What a disk may hold; changes are applied one by one."""

    def __init__(self) -> None:
        self.root = Folder()
        self._nodes: list[Node] = [self.root]

    def apply(self, change: Change) -> None:
        getattr(self, f"_{change.what}")(change)

    def node(self, path: str) -> Node:
        """What a running system sees at a path."""
        node: Node = self.root
        for name in Path(path).parts:
            assert isinstance(node, Folder)
            node = node.names[name].values[-1]
        return node

    def uncertain(self) -> list[Versions]:
        return [v for node in self._nodes for v in node.versions() if len(v.values) > 1]

    def tree(self, choice: dict[int, int]) -> Tree:
        """The state in which everything uncertain has the chosen version (by the identity of its versions)."""
        result: Tree = {}

        def pick(versions: Versions) -> Any:
            return versions.values[choice.get(id(versions), len(versions.values) - 1)]

        def walk(path: str, node: Node) -> None:
            if isinstance(node, Folder):
                result[path] = None
                for name, versions in node.names.items():
                    child = pick(versions)
                    if child is not None:
                        walk(f"{path}/{name}" if path else name, child)
            elif isinstance(node, Pointer):
                result[path] = node.target
            else:
                size = pick(node.size)
                parts = (
                    pick(node.sectors[n]).ljust(SECTOR_BYTES, b"\0") if n in node.sectors else bytes(SECTOR_BYTES)
                    for n in range(-(-size // SECTOR_BYTES))
                )
                result[path] = b"".join(parts)[:size]

        walk("", self.root)
        return result

    def _place(self, path: str) -> tuple[Folder, str]:
        folder = self.node(str(Path(path).parent)) if len(Path(path).parts) > 1 else self.root
        assert isinstance(folder, Folder)
        return folder, Path(path).name

    def _new(self, path: str, node: Node) -> None:
        folder, name = self._place(path)
        self._nodes.append(node)
        folder.set(name, node)

    def _create(self, change: Change) -> None:
        folder, name = self._place(change.path)
        known = folder.names.get(name)
        if known is not None and isinstance(known.values[-1], File):
            known.values[-1].cut(0)
        else:
            self._new(change.path, File())

    def _write(self, change: Change) -> None:
        node = self.node(change.path)
        assert isinstance(node, File)
        node.write(*change.argument)

    def _cut(self, change: Change) -> None:
        node = self.node(change.path)
        assert isinstance(node, File)
        node.cut(change.argument)

    def _rename(self, change: Change) -> None:
        node = self.node(change.path)
        source, destination = self._place(change.path), self._place(change.argument)
        destination[0].set(destination[1], node)
        source[0].set(source[1], None)

    def _link(self, change: Change) -> None:
        folder, name = self._place(change.argument)
        folder.set(name, self.node(change.path))

    def _symlink(self, change: Change) -> None:
        self._new(change.path, Pointer(change.argument))

    def _folder(self, change: Change) -> None:
        self._new(change.path, Folder())

    def _unlink(self, change: Change) -> None:
        folder, name = self._place(change.path)
        folder.set(name, None)

    def _sync(self, change: Change) -> None:
        for versions in self.node(change.path).versions():
            versions.settle()

    def _promise(self, change: Change) -> None:
        pass


@dataclass(frozen=True)
class CrashState:
    """A state after a power cut and the changes that were asked for before it."""

    position: int
    tree: Tree

    @property
    def signature(self) -> bytes:
        sha256 = hashlib.sha256()
        for path, content in sorted(self.tree.items()):
            sha256.update(repr((path, content)).encode())
        return sha256.digest()


@dataclass
class Count:
    """How many states there are, and how many of them were built."""

    points: int = 0
    possible: int = 0
    built: int = 0


def crash_states(
    log: list[Change], *, limit: int, seed: int, count: Count, dropped: int | None = None
) -> Iterator[CrashState]:
    """States that a power cut may leave, right before each sync and at the end; without the sync at ``dropped``.

    States between two syncs are among those before the second: a version that came later may always be missing. Where
    there are more than ``limit`` of a point, the extremes and a seeded sample are built. With ``dropped`` only points
    at which that sync makes a difference are looked at.
    """
    rng = random.Random(f"{seed} {dropped}")
    model, affected = CrashModel(), None
    for position, change in enumerate([*log, Change("end", "")]):
        is_open = dropped is None or affected is not None
        ends = affected is not None and change.what == "sync" and model.node(change.path) is affected
        if change.what in ("sync", "end") and is_open and position != dropped:
            yield from _at(model, position, limit, rng, count, affected)
        if ends or change.what == "end":
            if dropped is not None:
                return
            continue
        if position == dropped:
            affected = model.node(change.path)
        else:
            model.apply(change)


def kill_states(log: list[Change]) -> Iterator[CrashState]:
    """What a killed process leaves before each of its changes: all that it wrote, since the system lives on."""
    model = CrashModel()
    for position, change in enumerate(log):
        yield CrashState(position, model.tree({}))
        model.apply(change)


def _at(
    model: CrashModel, position: int, limit: int, rng: random.Random, count: Count, affected: Node | None
) -> Iterator[CrashState]:
    uncertain = model.uncertain()
    sizes = [len(versions.values) for versions in uncertain]
    possible = math.prod(sizes)
    count.points += 1
    count.possible += possible
    if possible <= limit:
        choices: Iterator[tuple[int, ...]] = itertools.product(*(range(size) for size in sizes))
    else:
        choices = itertools.islice(_sampled(uncertain, sizes, affected, rng), limit)
    for choice in choices:
        count.built += 1
        yield CrashState(position, model.tree({id(v): chosen for v, chosen in zip(uncertain, choice, strict=True)}))


def _sampled(
    uncertain: list[Versions], sizes: list[int], affected: Node | None, rng: random.Random
) -> Iterator[tuple[int, ...]]:
    """Nothing arrived, everything arrived, one thing missing or one thing alone, then at random; all different."""
    newest = tuple(size - 1 for size in sizes)
    seen = set()
    own = {id(versions) for versions in affected.versions()} if affected is not None else set()

    def candidates() -> Iterator[tuple[int, ...]]:
        if own:
            yield tuple(0 if id(v) in own else new for v, new in zip(uncertain, newest, strict=True))
            mine = [number for number, v in enumerate(uncertain) if id(v) in own]
            # a part that is late, while everything else is here or only the other parts are
            for number, late in ((mine_at, version) for mine_at in mine for version in range(newest[mine_at])):
                yield (*newest[:number], late, *newest[number + 1 :])
                others = (new if id(v) in own else 0 for v, new in zip(uncertain, newest, strict=True))
                yield tuple(late if at == number else other for at, other in enumerate(others))
        yield newest
        yield (0,) * len(sizes)
        singles = list(range(len(sizes)))
        rng.shuffle(singles)
        for number in singles:
            yield (*newest[:number], 0, *newest[number + 1 :])
            yield tuple(new if at == number else 0 for at, new in enumerate(newest))
        while True:
            bias = rng.random()
            yield tuple(size - 1 if rng.random() < bias else rng.randrange(size) for size in sizes)

    for choice in candidates():
        if choice not in seen:
            seen.add(choice)
            yield choice


def build(tree: Tree, folder: Path) -> None:
    """Lay a state out in a folder."""
    for path, content in sorted(tree.items()):
        place = folder / path
        if content is None:
            place.mkdir(parents=True, exist_ok=True)
        elif isinstance(content, str):
            place.symlink_to(content)
        else:
            place.write_bytes(content)
