"""Pulling a bundle: everything is checked against its digest and the author's signature before it gets its place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from edgeship.bundle.disk import replacing, strangers, write_file
from edgeship.bundle.layout import INDEX_FILE, LAYOUT_BYTES, LAYOUT_FILE, blob_path
from edgeship.bundle.read import Bundle
from edgeship.bundle.registry.client import Manifest, RegistryClient
from edgeship.bundle.registry.push import EVIDENCE, Counting
from edgeship.bundle.registry.reference import Reference
from edgeship.bundle.registry.signature import (
    ANNOTATION_CREATED,
    ANNOTATION_TITLE,
    ENVELOPE_TYPE,
    EVIDENCE_TYPE,
    SIGNATURE_TYPE,
    Artifact,
    Signed,
    open_envelope,
)
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError, ContractError, EdgeshipError, VerificationError

T = TypeVar("T")
#: More variants than this are no bundle of ours.
_MAX_MANIFESTS: Final = 1000
_MAX_EVIDENCE_BYTES: Final = 256 << 20
_ENTRIES: Final = frozenset({"bundle", *EVIDENCE})
#: Every pull writes it.
_MARK: Final = f"bundle/{LAYOUT_FILE}"


class Pulled(Struct, frozen=True, kw_only=True):
    """What was pulled.

    Attributes:
        downloaded, downloaded_bytes: blobs that were not there already.
        evidence: files of the build that came along.
    """

    digest: str
    author_key: str
    downloaded: int
    downloaded_bytes: int
    known: int
    evidence: tuple[str, ...]


def pull(
    client: RegistryClient, reference: Reference, directory: Path, *, author_key: str = "", counting: Counting
) -> Pulled:
    """Pull a bundle into ``directory/bundle``, and the build's evidence beside it.

    Args:
        client: of the repository.
        reference: what to pull.
        directory: new, empty, or what an earlier pull wrote, which is replaced; its blobs are used again.
        author_key: the key (hexadecimal) that must have signed it; empty for any.
        counting: told how far it is.

    Raises:
        ConfigError: there is no such bundle, or the folder holds something else.
        ContractError: what stands there is no bundle.
        VerificationError: it is not signed (by that key), or altered.
        TransferError: the registry does not give it.
    """
    directory = directory.absolute()
    _check_place(directory)
    index = client.manifest(reference.name)
    if index is None:
        raise ConfigError("not in the registry", file=reference, expected="a tag or digest that was pushed",
                          next_step=f"edgeship push BUNDLE {reference}")  # fmt: skip
    if index.media_type != oci.INDEX_TYPE:
        raise ContractError("not a bundle", file=reference, expected=oci.INDEX_TYPE,
                            got=repr(index.media_type[:80]))  # fmt: skip
    referrers = client.referrers(index.digest)
    signed = _signed(client, index, referrers, author_key)
    with replacing(directory) as draft:
        store = _Store(client, draft / "bundle", directory / "bundle", counting)
        store.take(index)
        entry = _entry(index, store.name_and_version(), signed)
        write_file(draft / "bundle" / INDEX_FILE, oci.canonical_json(oci.ImageIndex(manifests=(entry,))))
        opened = Bundle.open(draft / "bundle")
        opened.verify_signature()
        opened.verify_digests()
        evidence = _take_evidence(client, referrers, draft)
    return Pulled(digest=index.digest, author_key=signed.author_key, downloaded=store.downloaded,
                  downloaded_bytes=store.downloaded_bytes, known=store.known, evidence=evidence)  # fmt: skip


def _check_place(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError("is in the way", file=directory, expected="a folder", next_step="name another with -o DIR")
    if found := strangers(directory, _ENTRIES, [_MARK]):
        raise ConfigError("holds something that no pull wrote", file=directory, expected=", ".join(sorted(_ENTRIES)),
                          got=", ".join(found[:5]), next_step="name another folder with -o DIR")  # fmt: skip


def _signed(client: RegistryClient, index: Manifest, referrers: tuple[oci.Descriptor, ...], author_key: str) -> Signed:
    """The signature over an index: the first that fits, by the wanted key if one is wanted."""
    wrong: list[EdgeshipError] = []
    found: list[Signed] = []
    for entry in referrers:
        if entry.artifact_type not in {SIGNATURE_TYPE, ""}:
            continue
        try:
            envelope = _envelope(client, entry)
            if envelope is not None:
                found.append(open_envelope(envelope, index.data))
        except (ContractError, VerificationError) as error:
            wrong.append(error)
    wanted = [each for each in found if author_key in {"", each.author_key}]
    if wanted:
        return wanted[0]
    if found:
        raise VerificationError("signed by another author key", key=index.digest, expected=f"{author_key[:16]}…",
                                got=", ".join(f"{each.author_key[:16]}…" for each in found),
                                next_step="ask its author which key is right")  # fmt: skip
    raise VerificationError("the bundle is not signed" if not wrong else "the bundle's signature does not fit",
                            key=index.digest, expected=f"a referrer of type {SIGNATURE_TYPE}",
                            got=str(wrong[0]) if wrong else f"{len(referrers)} referrers, none of them a signature",
                            next_step="edgeship push BUNDLE REFERENCE attaches the signature")  # fmt: skip


def _envelope(client: RegistryClient, entry: oci.Descriptor) -> bytes | None:
    manifest = _artifact(client, entry)
    if manifest is None or manifest.artifact_type != SIGNATURE_TYPE:
        return None
    layers = [layer for layer in manifest.layers if layer.media_type == ENVELOPE_TYPE]
    if len(layers) != 1:
        raise ContractError("a signature has one envelope", key=entry.digest, expected=1, got=len(layers))
    return client.document(layers[0])


def _artifact(client: RegistryClient, entry: oci.Descriptor) -> Artifact | None:
    """A referrer's manifest; None where it is of a kind that is not ours."""
    manifest = client.manifest(oci.check_digest(entry.digest))
    if manifest is None or manifest.media_type != oci.MANIFEST_TYPE:
        return None
    try:
        return msgspec.json.decode(manifest.data, type=Artifact)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _entry(index: Manifest, named: tuple[str, str], signed: Signed) -> oci.Descriptor:
    """What ``index.json`` says of the bundle: what it said where the bundle was built."""
    return oci.Descriptor(
        media_type=oci.INDEX_TYPE,
        digest=index.digest,
        size=len(index.data),
        annotations={
            oci.ANNOTATION_NAME: named[0],
            oci.ANNOTATION_VERSION: named[1],
            oci.ANNOTATION_KEY: signed.author_key,
            oci.ANNOTATION_SIGNATURE: signed.signature,
        },
    )


class _Store:
    """The blobs of a bundle in the making.

    Args:
        client: of the repository.
        draft: the layout that is written.
        former: a layout whose blobs may be used again.
        counting: told how far it is.
    """

    def __init__(self, client: RegistryClient, draft: Path, former: Path, counting: Counting) -> None:
        self._client = client
        self._draft = draft
        self._former = former
        self._counting = counting
        self._index: oci.ImageIndex | None = None
        self._done = 0
        self.downloaded = self.downloaded_bytes = self.known = 0
        (draft / "blobs" / "sha256").mkdir(parents=True)
        write_file(draft / LAYOUT_FILE, LAYOUT_BYTES)

    def take(self, index: Manifest) -> None:
        """Everything that an index names.

        Raises:
            ContractError: a document is not one.
            ConfigError: the disk has no room for it.
        """
        self._index = _decode(index.data, oci.ImageIndex, index.digest)
        if len(self._index.manifests) > _MAX_MANIFESTS:
            raise ContractError("more variants than a bundle has", key=index.digest, expected=f"≤ {_MAX_MANIFESTS}",
                                got=len(self._index.manifests))  # fmt: skip
        write_file(blob_path(self._draft, index.digest), index.data)
        wanted: dict[str, oci.Descriptor] = {}
        for entry in self._index.manifests:
            data = self._manifest(entry)
            write_file(blob_path(self._draft, entry.digest), data)
            manifest = _decode(data, oci.ImageManifest, entry.digest)
            wanted |= {each.digest: each for each in (manifest.config, *manifest.layers)}
        total = sum(each.size for each in wanted.values())
        self._check_room(total)
        for descriptor in wanted.values():
            self._blob(descriptor, total)

    def name_and_version(self) -> tuple[str, str]:
        """As the index says."""
        annotations = self._index.annotations if self._index else {}
        return annotations.get(oci.ANNOTATION_NAME, ""), annotations.get(oci.ANNOTATION_VERSION, "")

    def _manifest(self, entry: oci.Descriptor) -> bytes:
        found = self._client.manifest(oci.check_digest(entry.digest))
        if found is None:
            raise VerificationError("the registry has lost a manifest of the bundle", key=entry.digest,
                                    next_step="push the bundle again")  # fmt: skip
        if len(found.data) != entry.size:
            raise VerificationError("a manifest has another length than the index says", key=entry.digest,
                                    expected=entry.size, got=len(found.data))  # fmt: skip
        return found.data

    def _check_room(self, total: int) -> None:
        free = shutil.disk_usage(self._draft).free
        if total > free:
            raise ConfigError("the disk has no room for the bundle", file=self._draft.parent,
                              expected=f"{total:,} bytes", got=f"{free:,} bytes free",
                              next_step="name a folder on another disk with -o DIR")  # fmt: skip

    def _blob(self, descriptor: oci.Descriptor, total: int) -> None:
        path = blob_path(self._draft, descriptor.digest)
        if self._reuse(descriptor, path):
            self.known += 1
            self._count(descriptor.size, total)
            return
        self._client.pull_blob(descriptor, path, lambda count: self._count(count, total))
        self.downloaded += 1
        self.downloaded_bytes += descriptor.size

    def _reuse(self, descriptor: oci.Descriptor, path: Path) -> bool:
        """Take a blob from the folder that is being replaced; whether it is whole there."""
        former = blob_path(self._former, descriptor.digest)
        try:
            if former.stat().st_size != descriptor.size:
                return False
            data = former.read_bytes()
        except OSError:
            return False
        if oci.digest_of(data) != descriptor.digest:
            return False
        write_file(path, data)
        return True

    def _count(self, count: int, total: int) -> None:
        self._done += count
        self._counting("pull", self._done, total)


def _take_evidence(client: RegistryClient, referrers: tuple[oci.Descriptor, ...], draft: Path) -> tuple[str, ...]:
    """The newest evidence of a build, where there is any that can be read: a bundle is whole without it."""
    newest: Artifact | None = None
    for entry in referrers:
        manifest = _artifact(client, entry) if entry.artifact_type in {EVIDENCE_TYPE, ""} else None
        if manifest is not None and manifest.artifact_type == EVIDENCE_TYPE:
            newest = manifest if newest is None or _created(manifest) > _created(newest) else newest
    names: list[str] = []
    for layer in newest.layers if newest else ():
        name = layer.annotations.get(ANNOTATION_TITLE, "")
        if name in EVIDENCE and name not in names and layer.size <= _MAX_EVIDENCE_BYTES:
            client.pull_blob(layer, draft / name, lambda _: None)
            names.append(name)
    return tuple(names)


def _created(manifest: Artifact) -> str:
    return manifest.annotations.get(ANNOTATION_CREATED, "")


def _decode(data: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"not a document of a bundle: {error}", key=name) from error
