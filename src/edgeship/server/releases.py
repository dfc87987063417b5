"""Registering a release: nothing is believed, everything is read from the blobs and checked; then all of it or nothing.

Order: signature over the index → every manifest and layer is there → edgeship.json says the same name and version →
author key is the one that the model was first signed with → database → update repository.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from sqlalchemy import Connection

from edgeship.server import signing_keys
from edgeship.server.blob_store import blob_size, read_blob
from edgeship.server.context import ServerContext
from edgeship.server.store import joint
from edgeship.server.store import releases as store
from edgeship.server.store.releases import Release, ReleaseFiles
from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.manifest import BundleManifest
from edgeship_agent.contract.oci import (
    ANNOTATION_FILE,
    INDEX_TYPE,
    MANIFEST_FILE,
    Descriptor,
    ImageIndex,
    ImageManifest,
    check_digest,
    signed_bytes,
)
from edgeship_agent.contract.wire import read_json


class ReleaseRequest(Struct, frozen=True, kw_only=True):
    """Body of ``POST /api/v1/releases``; the blobs were uploaded before.

    Attributes:
        digest: of the bundle's nested image index.
        author_key: Ed25519 public key, hex.
        signature: over ``signed_bytes(INDEX_TYPE, index)``, hex.
        build: text of build.json; empty where it did not come along.
        report: text of report.html; empty where it did not come along.
    """

    digest: str
    author_key: str
    signature: str
    build: str = ""
    report: str = ""


class AddedRelease(Struct, frozen=True, kw_only=True):
    """Answer to a registration.

    Attributes:
        created: False where exactly this bundle was registered before.
    """

    schema_version: int = 1
    created: bool
    release: Release


def register(context: ServerContext, request: ReleaseRequest) -> AddedRelease:
    """Check a bundle that was uploaded, and make it a release.

    Raises:
        VerificationError: signature, digest, size or author key is wrong, a blob is missing, or the version exists
            with another digest.
        ContractError: a document in the bundle does not follow the contract.
    """
    index_bytes = read_blob(context.blobs, check_digest(request.digest))
    signature_message = signed_bytes(INDEX_TYPE, index_bytes)
    if not signing_keys.verify(request.author_key, _unhex(request.signature), signature_message):
        raise VerificationError(
            "the author's signature does not fit the bundle",
            key=request.digest,
            next_step="edgeship verify BUNDLE shows what was changed; build it again",
        )
    manifest_bytes = check_blobs(context.blobs, index_bytes)
    manifest = read_json(manifest_bytes, BundleManifest, file=MANIFEST_FILE)
    release = Release(
        model=manifest.name,
        version=manifest.version,
        digest=request.digest,
        size_bytes=len(index_bytes),
        author_key=request.author_key.lower(),
        added_at_s=context.clock(),
    )
    files = ReleaseFiles(
        manifest=manifest_bytes, build=request.build.encode() or None, report=request.report.encode() or None
    )
    with context.write() as connection:
        added = _store(context, connection, release, files)
    context.trust.repository.add(request.digest, index_bytes)
    return added


def publish_all(context: ServerContext) -> None:
    """Make every release a target of the update repository: mends a stop between the database and the repository."""
    with context.read() as connection:
        known = store.list_all(connection)
    for release in known:
        if not context.trust.repository.has(release.digest):
            context.trust.repository.add(release.digest, read_blob(context.blobs, release.digest))


def check_blobs(root: Path, index_bytes: bytes) -> bytes:
    """Check that everything that an index names is there, in the right length.

    Returns:
        ``edgeship.json``, which every variant must share.

    Raises:
        VerificationError: a blob is missing or of another length.
        ContractError: an index or manifest is not one, or the variants do not share one edgeship.json.
    """
    index = read_json(index_bytes, ImageIndex, file="image index")
    if not index.manifests:
        raise ContractError("the bundle has no variant", file="image index", key="manifests")
    shared: set[str] = set()
    layers: set[str] = set()
    for descriptor in index.manifests:
        _check_blob(root, descriptor)
        manifest = read_json(read_blob(root, descriptor.digest), ImageManifest, file=descriptor.digest)
        for part in (manifest.config, *manifest.layers):
            _check_blob(root, part)
        layers |= {layer.digest for layer in manifest.layers}
        shared |= {layer.digest for layer in manifest.layers if layer.annotations.get(ANNOTATION_FILE) == MANIFEST_FILE}
    if len(shared) != 1:
        raise ContractError("every variant must carry the same manifest", file=MANIFEST_FILE, got=f"{len(shared)}")
    manifest_bytes = read_blob(root, shared.pop())
    _check_files(read_json(manifest_bytes, BundleManifest, file=MANIFEST_FILE), layers)
    return manifest_bytes


def _check_files(manifest: BundleManifest, layers: set[str]) -> None:
    for variant in manifest.variants:
        for file in variant.files:
            if file.digest not in layers:
                raise ContractError(
                    "a file is no layer of the bundle", file=MANIFEST_FILE, key=f"{variant.label}: {file.path}"
                )


def _check_blob(root: Path, descriptor: Descriptor) -> None:
    size = blob_size(root, descriptor.digest)
    if size != descriptor.size:
        raise VerificationError(
            "blob was not uploaded" if size is None else "blob has another length",
            key=descriptor.digest,
            expected=f"{descriptor.size} bytes",
            got=None if size is None else f"{size} bytes",
            next_step="edgeship releases add BUNDLE uploads what is missing",
        )


def _store(context: ServerContext, connection: Connection, release: Release, files: ReleaseFiles) -> AddedRelease:
    known = store.find(connection, release.model, release.version)
    if known is not None and known.digest != release.digest:
        raise VerificationError(
            "this version exists with another content, and a version never changes",
            key=f"{release.model} {release.version}",
            expected=known.digest,
            got=release.digest,
            next_step="build it again with another --version",
        )
    if joint.of_name(connection, release.model):
        raise VerificationError(
            "a joint release has this name, and a model needs one of its own",
            key=release.model,
            next_step="build it with another --name",
        )
    _check_author(context, connection, release)
    if known is not None:
        store.replace_documents(connection, release, files)
        return AddedRelease(created=False, release=known)
    store.add(connection, release, files)
    context.record(
        connection,
        "release_added",
        f"release/{release.model}/{release.version}",
        f"{release.model} {release.version} was added",
        {"digest": release.digest, "author_key": release.author_key},
    )
    return AddedRelease(created=True, release=release)


def _check_author(context: ServerContext, connection: Connection, release: Release) -> None:
    """The first key that signs a model is pinned; another one is refused."""
    trusted = store.trusted_keys(connection, release.model)
    if not trusted:
        store.trust_key(connection, release.model, release.author_key, context.clock())
        context.record(
            connection,
            "author_key_trusted",
            f"release/{release.model}/{release.version}",
            f"releases of {release.model} are signed by {release.author_key[:16]}… from now on",
            {"key": release.author_key},
        )
    elif release.author_key not in trusted:
        raise VerificationError(
            "signed by an author key that this model does not trust",
            key=f"{release.model} {release.version}",
            expected=" or ".join(f"{key[:16]}…" for key in sorted(trusted)),
            got=f"{release.author_key[:16]}…",
            next_step="build it with the key that signed the releases before (edgeship build --key FILE)",
        )


def _unhex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ContractError("not hexadecimal", key="signature", got=repr(text[:16])) from error
