"""Pushing a bundle: blobs, manifests, signature, and last of all the tag, so that a tag never names half a bundle."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from edgeship.bundle.layout import blob_path
from edgeship.bundle.read import Bundle
from edgeship.bundle.registry.client import RegistryClient
from edgeship.bundle.registry.signature import (
    ANNOTATION_TITLE,
    EMPTY,
    ENVELOPE_TYPE,
    EVIDENCE_TYPE,
    SIGNATURE_TYPE,
    Artifact,
    artifact,
    envelope,
)
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError

_CHUNK_BYTES: Final = 1 << 20
#: What a build writes beside a bundle, and the type of each.
EVIDENCE: Final = {"build.json": "application/json", "report.html": "text/html", "report.md": "text/markdown"}


class Counting(Protocol):
    """Told how far a transfer is."""

    def __call__(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes."""


class Pushed(Struct, frozen=True, kw_only=True):
    """What was pushed.

    Attributes:
        uploaded: blobs and manifests that the registry did not have.
        moved_from: digest that the tag named before, empty where it is new or the same.
        evidence: names of the files that went along as a referrer.
    """

    digest: str
    uploaded: int
    uploaded_bytes: int
    known: int
    moved_from: str
    evidence: tuple[str, ...]


class _Tally:
    """Counts what was sent."""

    def __init__(self, client: RegistryClient, counting: Counting, total: int) -> None:
        self._client = client
        self._counting = counting
        self._total = total
        self._seen = 0
        self.uploaded = self.uploaded_bytes = self.known = 0

    def from_file(self, descriptor: oci.Descriptor, path: Path) -> None:
        """A blob from a file."""
        self._count(self._client.push_blob(descriptor.digest, descriptor.size, lambda: _chunks(path)), descriptor.size)

    def from_memory(self, data: bytes) -> None:
        """A blob from memory."""
        self._count(self._client.push_blob(oci.digest_of(data), len(data), lambda: iter((data,))), len(data))

    def manifest(self, data: bytes, media_type: str) -> bool:
        """A manifest under its digest; whether the registry lists it as a referrer by itself."""
        digest = oci.digest_of(data)
        if self._client.has_manifest(digest):
            self._count(False, len(data))
            return False
        listed = self._client.put_manifest(digest, data, media_type)
        self._count(True, len(data))
        return listed

    def _count(self, new: bool, size: int) -> None:
        if new:
            self.uploaded += 1
            self.uploaded_bytes += size
        else:
            self.known += 1
        self._seen += size
        self._counting("push", self._seen, max(self._total, self._seen))


class _Built(Struct, frozen=True, kw_only=True):
    """The part of build.json that says which bundle it is about."""

    bundle_digest: str = ""


def find_evidence(bundle: Bundle) -> Path | None:
    """The folder of the build that wrote a bundle, where its build.json lies beside it and is about this bundle."""
    folder = bundle.directory.absolute().parent
    try:
        built = msgspec.json.decode((folder / "build.json").read_bytes(), type=_Built)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return folder if built.bundle_digest == bundle.digest else None


def push(bundle: Bundle, client: RegistryClient, tag: str, *, evidence: Path | None, counting: Counting) -> Pushed:
    """Push a bundle; what the registry holds already is not sent again.

    Args:
        bundle: an opened bundle; its signature and digests are checked first.
        client: of the repository.
        tag: that it gets.
        evidence: folder whose ``build.json``, ``report.html`` and ``report.md`` go along, or None.
        counting: told how far it is.

    Raises:
        VerificationError: the bundle is not signed, or altered.
        TransferError: the registry does not take it.
    """
    author_key = bundle.verify_signature()
    bundle.verify_digests()
    signature = bundle.entry.annotations[oci.ANNOTATION_SIGNATURE]
    tally = _Tally(client, counting, bundle.size_bytes)
    manifests = {each.digest for each in bundle.index.manifests}
    for descriptor in {each.digest: each for each in bundle.descriptors()}.values():
        if descriptor.digest not in manifests | {bundle.digest}:
            tally.from_file(descriptor, blob_path(bundle.directory, descriptor.digest))
    for entry in bundle.index.manifests:
        tally.manifest(bundle.blob(entry.digest), entry.media_type)
    tally.manifest(bundle.index_bytes, oci.INDEX_TYPE)
    signed = _layer(tally, envelope(bundle.index_bytes, author_key, signature), ENVELOPE_TYPE)
    _refer(client, tally, artifact(SIGNATURE_TYPE, bundle.entry, (signed,)))
    names = _push_evidence(client, tally, bundle.entry, evidence) if evidence else ()
    before = client.manifest(tag)
    if before is None or before.digest != bundle.digest:
        client.put_manifest(tag, bundle.index_bytes, oci.INDEX_TYPE)
    moved_from = before.digest if before is not None and before.digest != bundle.digest else ""
    return Pushed(digest=bundle.digest, uploaded=tally.uploaded, uploaded_bytes=tally.uploaded_bytes,
                  known=tally.known, moved_from=moved_from, evidence=names)  # fmt: skip


def _push_evidence(client: RegistryClient, tally: _Tally, subject: oci.Descriptor, folder: Path) -> tuple[str, ...]:
    """What the build wrote beside the bundle, dated by its ``build.json``."""
    files = {name: folder / name for name in EVIDENCE if (folder / name).is_file()}
    if "build.json" not in files:
        return ()
    try:
        layers = tuple(_layer(tally, path.read_bytes(), EVIDENCE[name], name) for name, path in files.items())
        written = datetime.datetime.fromtimestamp(int(files["build.json"].stat().st_mtime), datetime.UTC)
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", file=folder,
            next_step="push a copy of the bundle's own folder, without these files",
        ) from error  # fmt: skip
    _refer(client, tally, artifact(EVIDENCE_TYPE, subject, layers, created=written.isoformat().replace("+00:00", "Z")))
    return tuple(files)


def _layer(tally: _Tally, data: bytes, media_type: str, title: str = "") -> oci.Descriptor:
    tally.from_memory(data)
    annotations = {ANNOTATION_TITLE: title} if title else {}
    return oci.Descriptor(media_type=media_type, digest=oci.digest_of(data), size=len(data), annotations=annotations)


def _refer(client: RegistryClient, tally: _Tally, manifest: Artifact) -> None:
    """Push a referrer, and name it under the fallback tag where the registry does not list it."""
    tally.from_memory(EMPTY)
    data = oci.canonical_json(manifest)
    entry = oci.Descriptor(media_type=oci.MANIFEST_TYPE, digest=oci.digest_of(data), size=len(data),
                           artifact_type=manifest.artifact_type, annotations=manifest.annotations)  # fmt: skip
    listed = tally.manifest(data, oci.MANIFEST_TYPE)
    if not listed and entry.digest not in {each.digest for each in client.referrers(manifest.subject.digest)}:
        client.add_referrer(manifest.subject.digest, entry)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
