"""A bundle that something else carried to this device: a package, an update client, a USB stick.

The carrier is trusted with nothing. The author's signature vouches for the index, digests for all the rest, and the
blobs take the same way through the store as downloaded ones, so that a power cut meets the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edgeship_agent.contract.errors import ConfigError, ContractError, TransferError, VerificationError
from edgeship_agent.contract.manifest import BundleManifest
from edgeship_agent.contract.oci import (
    ANNOTATION_SIGNATURE,
    INDEX_TYPE,
    MANIFEST_FILE,
    Descriptor,
    ImageIndex,
    ImageManifest,
    digest_of,
    hex_of,
    signed_bytes,
)
from edgeship_agent.contract.wire import read_json
from edgeship_agent.update.download import Blob, BlobStore
from edgeship_agent.update.offer import manifest_layer

_INDEX_FILE: Final = "index.json"
_CHUNK_BYTES: Final = 1 << 20


class CarriedBundle:
    """An OCI layout on this device.

    Args:
        directory: the layout, or the folder of a build that holds it as ``bundle``.
        author_key: raw Ed25519 public key, 32 bytes: whose bundles this device takes.
        store: where its blobs go.

    Attributes:
        digest: the bundle's identity.
        size_bytes: length of the index that the digest is of.
        name, version: of the model, as the signed documents say.

    Raises:
        ConfigError: there is no bundle.
        ContractError: a document of it cannot be read.
        VerificationError: another key signed it, or nobody did, or a document was changed.
    """

    def __init__(self, directory: Path, author_key: bytes, store: BlobStore) -> None:
        inner = directory / "bundle"
        self._directory = inner if (inner / _INDEX_FILE).is_file() else directory
        self._store = store
        top = self._top()
        self.digest, self.size_bytes = top.digest, top.size
        self._index = self._document(top)
        self._check_signature(top, author_key)
        manifest = self._manifest()
        self.name, self.version = manifest.name, manifest.version

    def fetch_index(self, digest: str, size_bytes: int, output: Path, floor_s: float) -> None:  # noqa: ARG002 (nothing here expires)
        """Lay the signed index down.

        Raises:
            VerificationError: it is the index of another bundle.
        """
        if (digest, size_bytes) != (self.digest, self.size_bytes):
            raise VerificationError("another bundle was carried here", expected=digest, got=self.digest)
        self._store.disk.write_atomic(output, self._index)

    def fetch(self, blob: Blob, should_stop: Callable[[], bool] = lambda: False) -> Path:  # noqa: ARG002 (a copy is quick)
        """Copy a blob into the store, hashed on the way in.

        Raises:
            TransferError: the carrier left it out, or the disk failed (for good).
            VerificationError: it was changed on the way.
        """
        path, disk = self._store.path(blob.digest), self._store.disk
        if self._store.has(blob):
            return path
        partial = self._store.partial / path.name
        try:
            disk.copy(self._blob(blob.digest), partial)
            disk.rename(partial, path)
            disk.sync_folder(path.parent)
        except OSError as error:
            raise TransferError(
                f"cannot be copied: {error.strerror}", retryable=False, file=self._blob(blob.digest)
            ) from error
        if not self._store.has(blob):
            raise VerificationError("a file of the bundle was changed", file=self._blob(blob.digest))
        return path

    def holds(self, blob: Blob) -> bool:
        """Whether it has a file of that digest."""
        return self._blob(blob.digest).is_file()

    def _top(self) -> Descriptor:
        path = self._directory / _INDEX_FILE
        try:
            index = read_json(path.read_bytes(), ImageIndex, file=path)
        except OSError as error:
            raise ConfigError(
                f"not a bundle: {error.strerror}",
                file=path,
                expected="a folder that edgeship build made",
                next_step="edgeship build SOURCE -t TARGET",
            ) from error
        if len(index.manifests) != 1 or index.manifests[0].media_type != INDEX_TYPE:
            raise ContractError("not a bundle's index", file=path, expected="one nested image index")
        return index.manifests[0]

    def _check_signature(self, top: Descriptor, author_key: bytes) -> None:
        signature = top.annotations.get(ANNOTATION_SIGNATURE, "")
        try:
            Ed25519PublicKey.from_public_bytes(author_key).verify(
                bytes.fromhex(signature), signed_bytes(INDEX_TYPE, self._index)
            )
        except (ValueError, InvalidSignature) as error:
            raise VerificationError(
                "the bundle is not signed by the author whose bundles this device takes",
                file=self._directory,
                key="author_key",
                expected=f"a signature by {author_key.hex()[:16]}…",
                next_step="edgeship verify BUNDLE shows who signed it",
            ) from error

    def _manifest(self) -> BundleManifest:
        index = read_json(self._index, ImageIndex, file=self._blob(self.digest))
        if not index.manifests:
            raise ContractError("the bundle has no variant", file=self._directory)
        for entry in index.manifests:  # a carrier may have left the variants of other targets out
            if self._blob(entry.digest).is_file():
                image = read_json(self._document(entry), ImageManifest, file=self._blob(entry.digest))
                return read_json(self._document(manifest_layer(image)), BundleManifest, file=MANIFEST_FILE)
        raise ContractError("the bundle has no variant whose files are here", file=self._directory)

    def _document(self, descriptor: Descriptor) -> bytes:
        path = self._blob(descriptor.digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise VerificationError(f"cannot be read: {error.strerror}", file=path) from error
        if digest_of(data) != descriptor.digest:
            raise VerificationError("wrong digest", file=path, expected=descriptor.digest, got=digest_of(data))
        return data

    def _blob(self, digest: str) -> Path:
        return self._directory / "blobs" / "sha256" / hex_of(digest)


class CarriedBundles:
    """Several bundles on this device, of one model each; each vouches for its own.

    Args:
        bundles: that are installed together.

    Raises:
        ConfigError: two of them are of one model.
    """

    def __init__(self, bundles: Sequence[CarriedBundle]) -> None:
        self.bundles = tuple(bundles)
        names = [bundle.name for bundle in bundles]
        if len(set(names)) < len(names):
            raise ConfigError("two bundles of one model", expected="one bundle of each model", got=", ".join(names))

    def fetch_index(self, digest: str, size_bytes: int, output: Path, floor_s: float) -> None:
        """Lay the signed index of one of them down.

        Raises:
            VerificationError: it is the index of another bundle.
        """
        chosen = next((bundle for bundle in self.bundles if bundle.digest == digest), self.bundles[0])
        chosen.fetch_index(digest, size_bytes, output, floor_s)

    def fetch(self, blob: Blob, should_stop: Callable[[], bool] = lambda: False) -> Path:
        """Copy a blob into the store, from the first bundle that holds it.

        Raises:
            TransferError, VerificationError: as of one bundle.
        """
        chosen = next((bundle for bundle in self.bundles if bundle.holds(blob)), self.bundles[0])
        return chosen.fetch(blob, should_stop)
