"""Slots: two bundles per model and arm, and one pointer for all of them that is swapped in one step.

``slots/<model>/<arm>/{a,b}/`` hold ``slot.json``, ``edgeship.json``, ``files/…`` and the chain that proves them:
``index.json`` (its hash is the bundle's digest) names ``variant.json``, which names every file. ``staging`` is where a
new bundle is put together and checked before it takes a slot. ``slots/pointer.json`` names the active slot of every
arm: models of one release switch in one rename. ``active`` beside the slots is a symbolic link that is kept in step
with it, for agents that know nothing else and for applications that load a model themselves; it decides nothing here.
``fallback/`` in a slot is a slot of the same bundle in full precision, whole in itself, where the bundle has one.
An arm beside ``main`` also has ``traffic.json``: what it gets, written before the pointer makes it live.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct, structs

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.manifest import BundleManifest, Variant, output_contract_hash
from edgeship_agent.contract.oci import (
    MANIFEST_FILE,
    ImageIndex,
    ImageManifest,
    canonical_json,
    digest_of,
)
from edgeship_agent.contract.pointer import POINTER_FILE, SLOT_NAMES, ArmKey, Pointer, pointer_bytes, read_pointer
from edgeship_agent.contract.wire import read_json
from edgeship_agent.update.disk import DISK, Disk, digest_of_file
from edgeship_agent.update.traffic import MAIN_ARM, Traffic

SLOT_FILE: Final = "slot.json"
INDEX_FILE: Final = "index.json"
VARIANT_FILE: Final = "variant.json"
CHECKED_FILE: Final = "checked.json"
TRAFFIC_FILE: Final = "traffic.json"
FALLBACK_FOLDER: Final = "fallback"
_STAGING: Final = "staging"
_ACTIVE: Final = "active"


class SlotInfo(Struct, frozen=True, kw_only=True):
    """``slot.json``: which bundle a slot holds.

    Attributes:
        variant: ``target/runtime/precision``.
        fallback: of the variant that lies in ``fallback/``; empty for none.
    """

    schema_version: int = 1
    model: str
    version: str
    digest: str
    variant: str
    arm: str
    fallback: str = ""


class Checked(Struct, frozen=True, kw_only=True):
    """``checked.json``: the last golden check and the fingerprint of the runtime that passed it."""

    schema_version: int = 1
    fingerprint: dict[str, str]
    relative_rms: float


class Slot(Struct, frozen=True, kw_only=True):
    """A slot that holds a bundle.

    Attributes:
        traffic: what its arm gets while it is the active one.
        stands_in_for: where this is served instead of the variant that the build chose: why, as a code.
        switched: number of the swap that made it the active one; slots with the same number are of one release.
    """

    directory: Path
    info: SlotInfo
    traffic: Traffic = Traffic()
    stands_in_for: str = ""
    switched: int = 0

    def manifest(self) -> BundleManifest:
        """The bundle manifest."""
        path = self.directory / MANIFEST_FILE
        return read_json(path.read_bytes(), BundleManifest, file=path)

    def variant(self) -> Variant:
        """The variant that the slot holds.

        Raises:
            ContractError: the manifest does not name it.
        """
        for variant in self.manifest().variants:
            if variant.label == self.info.variant:
                return variant
        raise ContractError("the manifest has no such variant", file=self.directory, key=self.info.variant)

    def contract_hash(self) -> str:
        """Identity of the output contract."""
        return output_contract_hash(self.manifest().output)

    def digests(self) -> tuple[str, ...]:
        """Every blob that the slot was made from: index, variant, bundle manifest and files."""
        documents = (VARIANT_FILE, MANIFEST_FILE)
        files = tuple(file.digest for file in self.variant().files)
        fallback = self.fallback()
        return (
            self.info.digest,
            *(digest_of_file(self.directory / name) for name in documents),
            *files,
            *(() if fallback is None else fallback.digests()),
        )

    def fallback(self) -> Slot | None:
        """The same bundle in full precision, or None where the slot has none."""
        slot = read_slot(self.directory / FALLBACK_FOLDER) if self.info.fallback else None
        return slot if slot is not None and slot.info.digest == self.info.digest else None

    def checked(self) -> Checked | None:
        """The last golden check, or None."""
        path = self.directory / CHECKED_FILE
        if not path.exists():
            return None
        try:
            return read_json(path.read_bytes(), Checked, file=path)
        except ContractError:
            return None  # the check is simply made again


class SlotFile(Struct, frozen=True, kw_only=True):
    """A verified blob and the path that it gets inside ``files/``."""

    path: str
    blob: Path


class SlotContent(Struct, frozen=True, kw_only=True):
    """What a slot is made from; every byte was verified already."""

    info: SlotInfo
    index: bytes
    variant_manifest: bytes
    manifest: bytes
    files: tuple[SlotFile, ...]
    fallback: SlotContent | None = None

    def folders(self, directory: Path) -> set[Path]:
        """Every folder of the slot at ``directory``, itself included."""
        places = (directory / "files" / file.path for file in self.files)
        inside = {parent for place in places for parent in place.parents if directory in parent.parents}
        within = set() if self.fallback is None else self.fallback.folders(directory / FALLBACK_FOLDER)
        return {directory, *inside, *within}


class Slots:
    """The slots of one device.

    Args:
        root: the ``slots`` folder.
        disk: how bundles get there.
    """

    def __init__(self, root: Path, disk: Disk = DISK) -> None:
        self._root = root
        self._disk = disk
        self._links_decide = False
        disk.make_folders(root, certain=False)  # its name is on the disk with the journal's, beside it

    def settle(self, *, was_older: bool) -> None:
        """At the start of an agent, before anything is served: make the one pointer true, and the links follow it.

        What an agent without a pointer left is in its links. They are read, and the pointer is written from them: until
        it is there they decide, so that at no moment no model is active; a power cut in between has it done again.

        Args:
            was_older: an agent that knows links alone was here last: a pointer that is there may be out of date.
        """
        self._links_decide = was_older
        pointer = self._pointer()
        is_written = not self._links_decide and self._read_pointer() is not None
        try:
            if not is_written and (pointer.arms or (self._root / POINTER_FILE).exists()):
                self._write_pointer(pointer)
        except OSError:  # read-only, or full: served from the links, and tried again at the next swap
            self._links_decide = True
            return
        self._links_decide = False
        self._keep_links(pointer, self.arms())

    def arms(self) -> tuple[tuple[str, str], ...]:
        """(model, arm) of everything that has a folder."""
        return tuple(
            (_name(model.name), _name(arm.name))
            for model in sorted(self._root.iterdir())
            if model.is_dir()
            for arm in sorted(model.iterdir())
            if arm.is_dir()
        )

    def all(self) -> tuple[Slot, ...]:
        """Every slot that holds a bundle, active or not."""
        folders = (self._folder(model, arm) / name for model, arm in self.arms() for name in SLOT_NAMES)
        return tuple(slot for slot in map(read_slot, folders) if slot is not None)

    def active(self, model: str, arm: str) -> Slot | None:
        """The slot that the pointer names, or None where no model is active."""
        pointed = self._pointer().find(model, arm)
        slot = None if pointed is None else read_slot(self._folder(model, arm) / pointed.slot)
        if slot is None or pointed is None:
            return None
        traffic = slot.traffic if arm == MAIN_ARM else self._traffic(model, arm)
        return structs.replace(slot, traffic=traffic, switched=pointed.switched)

    def retained(self, model: str, arm: str) -> Slot | None:
        """The other slot: the previous bundle, or None; there even where what the pointer names cannot be read."""
        name = self._pointer().slot_of(model, arm)
        return read_slot(self._folder(model, arm) / _other(name)) if name else None

    def is_wanted(self, model: str, arm: str) -> bool:
        """Whether the pointer names a slot, whatever that holds: a model is meant to be served."""
        return bool(self._pointer().slot_of(model, arm))

    def together(self, model: str, arm: str) -> tuple[ArmKey, ...]:
        """The arms that became active in the same swap as this one, itself included; empty where it is not active."""
        return self._pointer().together(model, arm)

    def find(self, model: str, arm: str, digest: str) -> Slot | None:
        """The slot that holds a bundle, active or not, or None."""
        for name in SLOT_NAMES:
            slot = read_slot(self._folder(model, arm) / name)
            if slot is not None and slot.info.digest == digest:
                return slot
        return None

    def staged(self, model: str, arm: str, digest: str) -> Slot | None:
        """The bundle in the staging folder if it is the one of that digest."""
        slot = read_slot(self._folder(model, arm) / _STAGING)
        return slot if slot is not None and slot.info.digest == digest else None

    def stage(self, content: SlotContent) -> Slot:
        """Put a bundle together in the staging folder; ``slot.json`` is written last.

        All that the folder holds is on the disk when this returns, so that the folder can become a slot by a rename.
        Its own name is not: a staged bundle that is lost is put together again.
        """
        directory = self._folder(content.info.model, content.info.arm) / _STAGING
        self._remove(directory)
        self._disk.make_folders(directory.parent)
        folders = sorted(content.folders(directory))
        for folder in folders:
            self._disk.make_folder(folder)
        self._fill(directory, content)
        for folder in folders:
            self._disk.sync_folder(folder)
        return Slot(directory=directory, info=content.info)

    def _fill(self, directory: Path, content: SlotContent) -> None:
        if content.fallback is not None:
            self._fill(directory / FALLBACK_FOLDER, content.fallback)
        for file in content.files:
            self._place(file.blob, directory / "files" / file.path)
        for name, data in (
            (INDEX_FILE, content.index),
            (VARIANT_FILE, content.variant_manifest),
            (MANIFEST_FILE, content.manifest),
            (SLOT_FILE, canonical_json(content.info)),
        ):
            self._disk.write(directory / name, data)

    def remember_check(self, slot: Slot, checked: Checked) -> None:
        """Keep the result of a golden check beside the bundle; one that is lost is made again."""
        with contextlib.suppress(OSError):
            self._disk.write_hint(slot.directory / CHECKED_FILE, canonical_json(checked))

    def clear_staging(self, model: str, arm: str) -> None:
        """Remove what was staged."""
        self._remove(self._folder(model, arm) / _STAGING)

    def install_staged(self, model: str, arm: str, digest: str) -> Slot:
        """Move the staged bundle into the slot that is not active; repeating it is harmless.

        Raises:
            VerificationError: neither the staging folder nor a slot holds that bundle.
        """
        staged = self.staged(model, arm, digest)
        if staged is None:
            found = self.find(model, arm, digest)
            if found is None:
                raise VerificationError("nothing is staged", file=self._folder(model, arm), expected=digest)
            return found
        active = self.active(model, arm)
        destination = self._folder(model, arm) / ("a" if active is None else _other(active.directory.name))
        self._remove(destination)
        self._disk.rename(staged.directory, destination)
        self._disk.sync_folder(destination.parent)
        return Slot(directory=destination, info=staged.info)

    def set_traffic(self, model: str, arm: str, traffic: Traffic) -> None:
        """Say what an arm gets while it is active; of the main arm nothing is kept, since it gets the rest."""
        if arm != MAIN_ARM:
            folder = self._folder(model, arm)
            self._disk.make_folders(folder)
            self._disk.write_atomic(folder / TRAFFIC_FILE, canonical_json(traffic))

    def _traffic(self, model: str, arm: str) -> Traffic:
        path = self._folder(model, arm) / TRAFFIC_FILE
        try:
            return read_json(path.read_bytes(), Traffic, file=path)
        except (OSError, ContractError):
            return Traffic(share=0.0)  # nothing, until the goal is followed again

    def switch(self, slots: Iterable[Slot], withdrawn: Iterable[ArmKey] = ()) -> None:
        """Make slots the active ones of their arms, and let others have none, in one step: all of it or nothing.

        Bundles stay where they are. The links follow once the pointer is on the disk.
        """
        changes = {(slot.info.model, slot.info.arm): slot.directory.name for slot in slots}
        changes.update(dict.fromkeys(withdrawn, ""))
        before = self._pointer()
        changes = {key: name for key, name in changes.items() if before.slot_of(*key) != name}
        if changes:
            after = before.swapped(changes)
            self._write_pointer(after)
            self._links_decide = False
            self._keep_links(after, changes)

    def _pointer(self) -> Pointer:
        """The pointer; what the links say where it is not there, or is of an agent that is newer than this one."""
        found = None if self._links_decide else self._read_pointer()
        return self._of_links() if found is None else found

    def _read_pointer(self) -> Pointer | None:
        try:
            return read_pointer((self._root / POINTER_FILE).read_bytes())
        except OSError:
            return None

    def _write_pointer(self, pointer: Pointer) -> None:
        self._disk.write_atomic(self._root / POINTER_FILE, pointer_bytes(pointer))

    def _of_links(self) -> Pointer:
        found = {key: self._link_of(*key) for key in self.arms()}
        pointer = Pointer()
        for key, name in found.items():  # one swap each: nobody knows which of them belong together
            pointer = pointer.swapped({key: name}) if name in SLOT_NAMES else pointer
        return pointer

    def _link_of(self, model: str, arm: str) -> str:
        link = self._folder(model, arm) / _ACTIVE
        return str(link.readlink()) if link.is_symlink() else ""

    def _keep_links(self, pointer: Pointer, keys: Iterable[ArmKey]) -> None:
        """Let links say what the pointer says; certain when this returns, if the disk takes it."""
        for key in keys:
            wanted, link = pointer.slot_of(*key), self._folder(*key) / _ACTIVE
            if wanted == self._link_of(*key):
                continue
            with contextlib.suppress(OSError):  # the pointer is on the disk; the next start tries again
                if wanted:
                    self._disk.point(link, wanted)
                else:
                    self._disk.unlink(link)
                    self._disk.sync_folder(link.parent)

    def discard(self, slot: Slot) -> None:
        """Empty a slot that is not active: a bundle that failed here is nothing to roll back to."""
        self._remove(slot.directory)
        self._disk.sync_folder(slot.directory.parent)

    def _place(self, blob: Path, destination: Path) -> None:
        """A hard link where the file system has them, a copy otherwise."""
        try:
            self._disk.link(blob, destination)
        except OSError:
            self._disk.copy(blob, destination)

    def _remove(self, directory: Path) -> None:
        """Remove a folder; its ``slot.json`` goes first, so that half a folder is never taken for a slot."""
        with contextlib.suppress(FileNotFoundError):
            self._disk.unlink(directory / SLOT_FILE)
        self._disk.remove_tree(directory)

    def _folder(self, model: str, arm: str) -> Path:
        return self._root / _file_name(model) / _file_name(arm)


def verify_slot(slot: Slot, *, digest_of_path: Callable[[Path], str] = digest_of_file) -> None:
    """Hash a slot again, from the bundle's digest down to every file.

    Raises:
        VerificationError: a file is missing or is not the one that was signed for.
    """
    directory = slot.directory
    index = read_json(_checked_bytes(directory / INDEX_FILE, slot.info.digest), ImageIndex, file=directory / INDEX_FILE)
    variant_path = directory / VARIANT_FILE
    variant_bytes = _read(variant_path)
    if digest_of(variant_bytes) not in {descriptor.digest for descriptor in index.manifests}:
        raise VerificationError("the index does not name this variant", file=variant_path)
    layers = {layer.digest for layer in read_json(variant_bytes, ImageManifest, file=variant_path).layers}
    if digest_of(_read(directory / MANIFEST_FILE)) not in layers:
        raise VerificationError("the variant does not name this manifest", file=directory / MANIFEST_FILE)
    for file in slot.variant().files:
        path = directory / "files" / file.path
        if file.digest not in layers:
            raise VerificationError("the variant does not name this file", file=path)
        if not path.is_file() or digest_of_path(path) != file.digest:
            raise VerificationError("the file was changed after it was verified", file=path, expected=file.digest)


def verify_whole(slot: Slot) -> None:
    """Hash a slot again, and the fallback in it that its ``slot.json`` promises.

    Raises:
        VerificationError: a file of either is missing or is not the one that was signed for.
    """
    verify_slot(slot)
    if slot.info.fallback:
        fallback = slot.fallback()
        if fallback is None:
            raise VerificationError("the fallback is gone", file=slot.directory / FALLBACK_FOLDER)
        verify_slot(fallback)


def _other(name: str) -> str:
    """The other one of an arm's two slots."""
    return SLOT_NAMES[1] if name == SLOT_NAMES[0] else SLOT_NAMES[0]


def _checked_bytes(path: Path, digest: str) -> bytes:
    data = _read(path)
    if digest_of(data) != digest:
        raise VerificationError("wrong digest", file=path, expected=digest, got=digest_of(data))
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VerificationError(f"cannot be read: {error.strerror}", file=path) from error


def read_slot(directory: Path) -> Slot | None:
    """What lies in a folder, if it is a slot; nothing is hashed."""
    path = directory / SLOT_FILE
    try:
        info: Any = msgspec.json.decode(path.read_bytes(), type=SlotInfo)
    except (OSError, msgspec.MsgspecError):
        return None  # empty, or half made: not a slot
    return Slot(directory=directory, info=info)


def _file_name(name: str) -> str:
    """A model or arm name as a folder name, whatever is in it.

    >>> _file_name("a/b"), _file_name("..")
    ('a%2Fb', '%2E%2E')
    """
    if not name:
        raise ContractError("a model or arm without a name")
    return quote(name, safe="").replace(".", "%2E") if name.startswith(".") else quote(name, safe="")


def _name(file_name: str) -> str:
    return unquote(file_name)
