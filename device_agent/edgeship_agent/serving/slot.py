"""A slot directory: one version of one model, unpacked and ready to be run.

::

    DIR/slot.json         which model, version, bundle digest, variant and arm
    DIR/edgeship.json     the bundle manifest
    DIR/files/<path>      every file of that variant
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.frames import TensorFile
from edgeship_agent.contract.manifest import BundleFile, BundleManifest, Variant
from edgeship_agent.contract.oci import MANIFEST_FILE, digest_of, hex_of
from edgeship_agent.contract.profile import Profile
from edgeship_agent.contract.wire import read_json
from edgeship_agent.runtime.tensors import decode_tensor_file

SLOT_FILE: Final = "slot.json"
FILES_DIRECTORY: Final = "files"
_SCHEMA_VERSION: Final = 1
_NO_PROFILE: Final = Profile(sample_count=0, signals=())


class SlotFile(Struct, frozen=True, kw_only=True):
    """``slot.json``.

    Attributes:
        digest: of the bundle (its nested image index).
        variant: label ``target/runtime/precision``.
    """

    schema_version: int = _SCHEMA_VERSION
    model: str
    version: str
    digest: str
    variant: str
    arm: str


class LoadedSlot(Struct, frozen=True, kw_only=True):
    """What a slot holds, read and verified.

    Attributes:
        model_path: the model file; OpenVINO's weights lie beside it.
        profile_hash: sha256 (hex) of the profile's bytes; empty where the bundle has none.
        golden_inputs, golden_outputs: None where the bundle has none.
    """

    directory: Path
    slot: SlotFile
    manifest: BundleManifest
    variant: Variant
    model_path: Path
    profile: Profile
    profile_hash: str
    golden_inputs: TensorFile | None
    golden_outputs: TensorFile | None


def read_slot(directory: Path) -> LoadedSlot:
    """Read a slot and check every file of it against its digest.

    Raises:
        ContractError: a document is missing, damaged or of another version, or the manifest names a path outside.
        VerificationError: a file is missing or not what the manifest says.

    """
    slot = read_json(_read(directory / SLOT_FILE), SlotFile, file=directory / SLOT_FILE)
    if slot.schema_version != _SCHEMA_VERSION:
        raise ContractError(
            "unknown slot version", file=directory / SLOT_FILE, expected=_SCHEMA_VERSION, got=slot.schema_version
        )
    manifest = read_json(_read(directory / MANIFEST_FILE), BundleManifest, file=directory / MANIFEST_FILE)
    if (manifest.name, manifest.version) != (slot.model, slot.version):
        raise ContractError(
            "the slot and its manifest disagree",
            file=directory / MANIFEST_FILE,
            expected=f"{slot.model} {slot.version}",
            got=f"{manifest.name} {manifest.version}",
        )
    variant = _variant(manifest, slot, directory)
    contents = {file.role: (file_path(directory, file), _verified(directory, file)) for file in variant.files}
    if "model" not in contents:
        raise ContractError("the variant has no model file", file=directory / MANIFEST_FILE, key=variant.label)
    profile, profile_hash = _NO_PROFILE, ""
    if "profile" in contents:
        path, data = contents["profile"]
        profile, profile_hash = read_json(data, Profile, file=path), hex_of(digest_of(data))
    return LoadedSlot(
        directory=directory,
        slot=slot,
        manifest=manifest,
        variant=variant,
        model_path=contents["model"][0],
        profile=profile,
        profile_hash=profile_hash,
        golden_inputs=_golden(contents, "golden_inputs"),
        golden_outputs=_golden(contents, "golden_outputs"),
    )


def file_path(directory: Path, file: BundleFile) -> Path:
    """Where a file of the variant lies in its slot.

    Raises:
        ContractError: the manifest's path leaves the slot.
    """
    parts = PurePosixPath(file.path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in file.path or "\0" in file.path:
        raise ContractError("a path that leaves the bundle", file=directory / MANIFEST_FILE, got=repr(file.path[:80]))
    return directory / FILES_DIRECTORY / parts


def _variant(manifest: BundleManifest, slot: SlotFile, directory: Path) -> Variant:
    for variant in manifest.variants:
        if variant.label == slot.variant:
            return variant
    raise ContractError(
        "the manifest does not have the slot's variant",
        file=directory / MANIFEST_FILE,
        expected=slot.variant,
        got=", ".join(variant.label for variant in manifest.variants),
    )


def _verified(directory: Path, file: BundleFile) -> bytes:
    path = file_path(directory, file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VerificationError(f"a file of the slot cannot be read: {error.strerror}", file=path) from error
    if digest_of(data) != file.digest:
        raise VerificationError("wrong digest", file=path, expected=file.digest, got=digest_of(data))
    return data


def _golden(contents: dict[str, tuple[Path, bytes]], role: str) -> TensorFile | None:
    if role not in contents:
        return None
    path, data = contents[role]
    return decode_tensor_file(data, file=path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ContractError(f"cannot be read: {error.strerror}", file=path) from error
