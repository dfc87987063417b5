"""Which variant of a bundle this device takes, and whether it may: pure checks before the model is downloaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import (
    FULL_PRECISION,
    BundleManifest,
    Variant,
    output_contract_hash,
    runtime_for,
)
from edgeship_agent.contract.oci import (
    ANNOTATION_FILE,
    ANNOTATION_PRECISION,
    ANNOTATION_RUNTIME,
    ANNOTATION_TARGET,
    MANIFEST_FILE,
    Descriptor,
    ImageIndex,
    ImageManifest,
    check_digest,
)

_COMPARISON: Final = re.compile(r"\s*(>=|<=|==|!=|>|<|~=)\s*([0-9][0-9A-Za-z.+-]*)\s*")


class Promised(Struct, frozen=True, kw_only=True):
    """What other models of a release are going to take of a device's room.

    Attributes:
        models: whose.
        memory_bytes: of their workers. All start side by side, and what they replace serves until all are ready:
            nothing is freed before.
        disk_bytes: of what is still to be downloaded and copied for them.
    """

    models: tuple[str, ...] = ()
    memory_bytes: int = 0
    disk_bytes: int = 0

    def __add__(self, other: Promised) -> Promised:
        """Both together."""
        return Promised(
            models=self.models + other.models,
            memory_bytes=self.memory_bytes + other.memory_bytes,
            disk_bytes=self.disk_bytes + other.disk_bytes,
        )


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """What a device is and has.

    Attributes:
        runtimes: installed runtimes, name → version.
        memory_bytes: memory that a worker could get; 0 where unknown.
        disk_free_bytes: room for downloads, after the reserve.
        accepts: model → hashes of the output contracts that its application takes; a model that is not in it takes any.
        keeps_fallback: whether it keeps a bundle's full precision beside the chosen variant.
        promised: what of memory and disk goes to other models of the same release.
    """

    target: str
    arch: str
    runtimes: Mapping[str, str]
    memory_bytes: int
    disk_free_bytes: int
    accepts: Mapping[str, tuple[str, ...]]
    keeps_fallback: bool = True
    promised: Promised = Promised()


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a device does not take a bundle: a code and a sentence."""

    reason: str
    detail: str


def entries_for(index: ImageIndex, target: str) -> tuple[Descriptor, ...]:
    """The entries of a bundle's index for one target."""
    return tuple(entry for entry in index.manifests if entry.annotations.get(ANNOTATION_TARGET) == target)


def choose_variant(manifest: BundleManifest, facts: DeviceFacts) -> Variant | Refusal:
    """The first variant for this device's target whose runtime it has: the manifest's order is its preference.

    The server works out by the same rule, beforehand, what each device of a rollout will take.
    """
    for_target = [variant for variant in manifest.variants if variant.target == facts.target]
    for variant in for_target:
        if runtime_for(variant.runtime, facts.runtimes):
            return variant
    if not for_target:
        others = ", ".join(sorted({variant.target for variant in manifest.variants}))
        return Refusal(reason="no_variant", detail=f"the bundle has no variant for {facts.target}, only for {others}")
    wanted = ", ".join(sorted({variant.runtime for variant in for_target}))
    has = ", ".join(sorted(facts.runtimes)) or "none"
    return Refusal(reason="runtime_missing", detail=f"the variant needs {wanted}; this device has {has}")


def fallback_of(manifest: BundleManifest, chosen: Variant) -> Variant | None:
    """The variant that stands in where the chosen one is not right on a device: its full precision, or None."""
    place = (chosen.target, chosen.runtime, chosen.arch)
    for variant in manifest.variants:
        is_same_place = (variant.target, variant.runtime, variant.arch) == place
        if is_same_place and variant.precision == FULL_PRECISION and variant.label != chosen.label:
            return variant
    return None


def has_room(variant: Variant, fallback: Variant, facts: DeviceFacts, present: Collection[str]) -> bool:
    """Whether a device has room for a variant and its fallback: without it the update is taken and the fallback not.

    Args:
        variant: that the device takes.
        fallback: of the same bundle.
        facts: what the device is and has; what was downloaded already is not free any more.
        present: digests of the files that were downloaded already, of which a copy in the slot alone is to come.
    """
    needed_bytes = disk_bytes_of((variant, fallback), present) + facts.promised.disk_bytes
    fits = not 0 < facts.memory_bytes < fallback.min_memory_bytes + facts.promised.memory_bytes
    return facts.keeps_fallback and fits and needed_bytes <= facts.disk_free_bytes


def disk_bytes_of(variants: Iterable[Variant], present: Collection[str] = ()) -> int:
    """Room for the files of variants: each as a blob and, where the file system has no hard links, as its copy.

    Args:
        variants: of one bundle; a file that several of them have is counted once.
        present: digests of the files that were downloaded already.
    """
    sizes = {file.digest: file.size_bytes for each in variants for file in each.files}
    return sum(size if digest in present else 2 * size for digest, size in sizes.items())


def entry_of(index: ImageIndex, variant: Variant) -> Descriptor:
    """The index entry of a variant.

    Raises:
        ContractError: there is none.
    """
    keys = (ANNOTATION_TARGET, ANNOTATION_RUNTIME, ANNOTATION_PRECISION)
    for entry in index.manifests:
        if "/".join(entry.annotations.get(key, "") for key in keys) == variant.label:
            return entry
    raise ContractError("the index has no such variant", key=variant.label)


def manifest_layer(manifest: ImageManifest) -> Descriptor:
    """The layer that is the bundle manifest.

    Raises:
        ContractError: there is none.
    """
    for layer in manifest.layers:
        if layer.annotations.get(ANNOTATION_FILE) == MANIFEST_FILE:
            return layer
    raise ContractError("the variant has no bundle manifest", expected=MANIFEST_FILE)


def check_files(variant: Variant, manifest: ImageManifest) -> None:
    """Every file of the variant is a layer, of that length, and stays inside its folder.

    Raises:
        ContractError: one is not.
    """
    sizes = {layer.digest: layer.size for layer in manifest.layers}
    for file in variant.files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in file.path or "\0" in file.path:
            raise ContractError("a file of the bundle leaves its folder", key=repr(file.path))
        if sizes.get(check_digest(file.digest)) != file.size_bytes:
            raise ContractError("a file of the bundle is not a layer of its variant", key=file.path)
    if variant.file("model") is None:
        raise ContractError("the variant has no model file", key=variant.label)


def precheck(
    manifest: BundleManifest, variant: Variant, facts: DeviceFacts, *, model: str, version: str, retained: str | None
) -> Refusal | None:
    """Whether the device may take the variant; checked before a byte of the model is downloaded.

    Args:
        manifest: the verified bundle manifest.
        variant: the one for this device.
        facts: what the device is and has.
        model: name in the goal.
        version: version in the goal.
        retained: output contract hash of the bundle that a rollback would go to; None for no bundle.

    Returns:
        The first refusal, or None.
    """
    if (manifest.name, manifest.version) != (model, version):
        return Refusal(
            reason="wrong_bundle",
            detail=f"the goal says {model} {version}, the bundle is {manifest.name} {manifest.version}",
        )
    return (
        _check_platform(variant, facts)
        or _check_room(variant, facts)
        or check_contract(facts.accepts.get(model, ()), output_contract_hash(manifest.output), retained)
    )


def check_contract(accepted: tuple[str, ...], offered: str, retained: str | None) -> Refusal | None:
    """Whether the application takes an output contract, and that of the bundle that a rollback would go to.

    >>> check_contract((), "a", "b") is None, check_contract(("a",), "a", "b").reason
    (True, 'retained_contract')
    """
    if not accepted:
        return None
    if offered not in accepted:
        return Refusal(
            reason="output_contract",
            detail=f"the application accepts output contract {_short(accepted)}; the bundle has {offered[:12]}",
        )
    if retained is not None and retained not in accepted:
        return Refusal(
            reason="retained_contract",
            detail=f"the application accepts output contract {_short(accepted)}; "
            f"the bundle that a rollback would go to has {retained[:12]}",
        )
    return None


def in_range(version: str, wanted: str) -> bool:
    """Whether a version satisfies every comparison of a range such as ``>=1.20,<2``.

    Numbers are compared part by part, missing parts count as 0; an empty range takes anything and one that cannot be
    read takes nothing.

    >>> in_range("1.32.0", ">=1.20,<2"), in_range("2.0", ">=1.20,<2"), in_range("1.2", "~=1.1"), in_range("1", "what")
    (True, False, True, False)
    """
    parts = [part for part in wanted.split(",") if part.strip()]
    return all(_satisfies(version, part) for part in parts)


def _satisfies(version: str, comparison: str) -> bool:
    match = _COMPARISON.fullmatch(comparison)
    if match is None:
        return False
    operator, limit = match.groups()
    left, right = _numbers(version), _numbers(limit)
    if operator == "~=":
        fixed = max(len(limit.split(".")) - 1, 1)
        return left >= right and left[:fixed] == right[:fixed]
    return {
        ">=": left >= right,
        "<=": left <= right,
        ">": left > right,
        "<": left < right,
        "==": left == right,
        "!=": left != right,
    }[operator]


def _numbers(version: str) -> tuple[int, ...]:
    release = re.split(r"[-+]", version, maxsplit=1)[0]
    numbers = [int(part) for part in re.findall(r"(?:^|\.)(\d+)", release)]
    return tuple((numbers + [0] * 6)[:6])


def _check_platform(variant: Variant, facts: DeviceFacts) -> Refusal | None:
    if variant.arch != facts.arch:
        return Refusal(reason="arch", detail=f"the variant is for {variant.arch}, this device is {facts.arch}")
    name = runtime_for(variant.runtime, facts.runtimes)
    if not name:
        return Refusal(reason="runtime_missing", detail=f"the variant needs {variant.runtime}, which is not installed")
    version = facts.runtimes[name]
    if name != variant.runtime:
        return None  # it counts its versions otherwise: whether it knows the operators, the golden inputs tell
    if not in_range(version, variant.runtime_range):
        return Refusal(
            reason="runtime_version",
            detail=f"the variant needs {variant.runtime} {variant.runtime_range}, this device has {version}",
        )
    return None


def _check_room(variant: Variant, facts: DeviceFacts) -> Refusal | None:
    others = facts.promised
    beside = ", ".join(others.models)
    needed_bytes = variant.min_memory_bytes + others.memory_bytes
    if 0 < facts.memory_bytes < needed_bytes:
        what = f"the variant needs {variant.min_memory_bytes} bytes of memory"
        if others.memory_bytes:
            what = (
                f"the models of the release start side by side and need {needed_bytes} bytes of memory, "
                f"{variant.min_memory_bytes} for this one and {others.memory_bytes} for {beside}"
            )
        return Refusal(reason="memory", detail=f"{what}, {facts.memory_bytes} are available")
    needed_bytes = disk_bytes_of((variant,)) + others.disk_bytes
    if needed_bytes > facts.disk_free_bytes:
        share = f", {others.disk_bytes} of them for {beside}" if others.disk_bytes else ""
        return Refusal(
            reason="disk",
            detail=f"the update needs {needed_bytes} bytes on disk{share}, {max(facts.disk_free_bytes, 0)} are free",
        )
    return None


def _short(hashes: tuple[str, ...]) -> str:
    return " or ".join(value[:12] for value in hashes)
