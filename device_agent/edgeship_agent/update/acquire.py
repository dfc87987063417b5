"""From a digest in a goal to verified files on disk: index, variant, bundle manifest, then the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from edgeship_agent.contract.errors import ContractError, VerificationError
from edgeship_agent.contract.manifest import BundleManifest, Variant
from edgeship_agent.contract.oci import MANIFEST_FILE, Descriptor, ImageIndex, ImageManifest, check_digest, digest_of
from edgeship_agent.contract.wire import read_json
from edgeship_agent.update.attempt import Attempt
from edgeship_agent.update.download import Blob, BlobStore
from edgeship_agent.update.offer import (
    DeviceFacts,
    Promised,
    Refusal,
    check_files,
    choose_variant,
    disk_bytes_of,
    entries_for,
    entry_of,
    fallback_of,
    has_room,
    manifest_layer,
    precheck,
)
from edgeship_agent.update.slots import SlotContent, SlotFile, SlotInfo


class Trusted(Protocol):
    """Vouches for the index of a bundle."""

    def fetch_index(self, digest: str, size_bytes: int, output: Path, floor_s: float) -> None:
        """Lay the index down at ``output``; what lies there afterwards was signed for."""
        ...


class Fetcher(Protocol):
    """Brings blobs into the store."""

    def fetch(self, blob: Blob, should_stop: Callable[[], bool] = ...) -> Path:
        """The verified blob."""
        ...


class Fallback(Struct, frozen=True, kw_only=True):
    """The variant that stands in for the chosen one, and its document."""

    variant_manifest: bytes
    variant: Variant


class Offer(Struct, frozen=True, kw_only=True):
    """A bundle's small documents, each verified against the one before it, and the variant for this device."""

    index: bytes
    variant_manifest: bytes
    manifest_bytes: bytes
    manifest: BundleManifest
    variant: Variant
    fallback: Fallback | None = None

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is downloaded: the variant, then the one that stands in for it."""
        return (self.variant,) if self.fallback is None else (self.variant, self.fallback.variant)

    def blobs(self) -> tuple[Blob, ...]:
        """Their files, each once."""
        return tuple(dict.fromkeys(blob for variant in self.variants for blob in _blobs(variant)))


class Acquirer:
    """Obtains bundles.

    Args:
        store: verified blobs on disk.
        downloader: fetches blobs.
        trusted: the verified list of bundles that exist.
        facts: what the device is and has, asked each time.
    """

    def __init__(
        self, store: BlobStore, downloader: Fetcher, trusted: Trusted, facts: Callable[[], DeviceFacts]
    ) -> None:
        self._store = store
        self._downloader = downloader
        self._trusted = trusted
        self._facts = facts

    @property
    def facts(self) -> DeviceFacts:
        """What the device is and has, now."""
        return self._facts()

    def obtain(
        self,
        attempt: Attempt,
        *,
        floor_s: float,
        retained: str | None,
        promised: Promised,
        should_stop: Callable[[], bool],
    ) -> Offer | Refusal:
        """Verify that the fleet's keys signed the bundle, choose a variant, and check that the device may take it.

        Args:
            attempt: names model, version, digest and length.
            floor_s: no clock below this is believed.
            retained: output contract hash of the bundle that a rollback would go to, or None.
            promised: what of memory and disk goes to other models of the same release.
            should_stop: whether transfers shall end.

        Raises:
            TransferError: the server cannot be reached.
            VerificationError: something is not what was signed.
            ContractError: something that was signed is not a bundle.
        """
        check_digest(attempt.digest)
        self._trusted.fetch_index(attempt.digest, attempt.size_bytes, self._store.path(attempt.digest), floor_s)
        facts = replace(self._facts(), promised=promised)
        offer = self._read(attempt.digest, facts, should_stop)
        if isinstance(offer, Refusal):
            return offer
        refusal = precheck(
            offer.manifest, offer.variant, facts, model=attempt.model, version=attempt.version, retained=retained
        )
        return refusal or offer

    def stored(self, attempt: Attempt) -> Offer:
        """The offer of an attempt that passed its checks before, from the disk alone.

        Raises:
            VerificationError: its documents are not there any more.
            ContractError: they are not a bundle for this device any more.
        """
        offer = self._read(attempt.digest, self._facts(), None)
        if isinstance(offer, Refusal):
            raise ContractError(offer.detail)
        return offer

    def promised(self, attempt: Attempt) -> Promised:
        """What an attempt that passed its checks before is going to take, from the disk alone.

        Raises:
            VerificationError, ContractError: as :meth:`stored`.
        """
        offer = self.stored(attempt)
        present = {blob.digest for blob in offer.blobs() if self._store.path(blob.digest).is_file()}
        return Promised(
            models=(attempt.model,),
            memory_bytes=offer.variant.min_memory_bytes,
            disk_bytes=disk_bytes_of(offer.variants, present),
        )

    def download(self, offer: Offer, should_stop: Callable[[], bool]) -> None:
        """Fetch every file that is not here yet.

        Raises:
            TransferError, VerificationError: see :class:`edgeship_agent.update.download.Downloader`.
        """
        for blob in offer.blobs():
            self._downloader.fetch(blob, should_stop)

    def content(self, offer: Offer, attempt: Attempt) -> SlotContent:
        """What a slot is made from; every blob is hashed again here.

        Raises:
            VerificationError: a blob was damaged; it is gone now.
        """
        fallback = offer.fallback
        if fallback is not None and not all(self._store.has(blob) for blob in _blobs(fallback.variant)):
            fallback = None  # there was no room for it when the rest was downloaded
        for blob in _blobs(offer.variant):
            if not self._store.has(blob):
                raise VerificationError("a downloaded file was damaged on disk", file=self._store.path(blob.digest))
        chosen = self._slot_of(offer, attempt, offer.variant, offer.variant_manifest)
        if fallback is None:
            return chosen
        spare = self._slot_of(offer, attempt, fallback.variant, fallback.variant_manifest)
        return replace(chosen, info=replace(chosen.info, fallback=fallback.variant.label), fallback=spare)

    def _slot_of(self, offer: Offer, attempt: Attempt, variant: Variant, document: bytes) -> SlotContent:
        info = SlotInfo(
            model=attempt.model,
            version=attempt.version,
            digest=attempt.digest,
            variant=variant.label,
            arm=attempt.arm,
        )
        files = tuple(SlotFile(path=file.path, blob=self._store.path(file.digest)) for file in variant.files)
        return SlotContent(
            info=info, index=offer.index, variant_manifest=document, manifest=offer.manifest_bytes, files=files
        )

    def _read(self, digest: str, facts: DeviceFacts, should_stop: Callable[[], bool] | None) -> Offer | Refusal:
        """The offer; with ``should_stop`` what is missing of it is fetched, with None the disk has to do."""
        index_path = self._store.path(digest)
        index_bytes = _read_checked(index_path, digest)
        index = read_json(index_bytes, ImageIndex, file=index_path)
        entries = entries_for(index, facts.target) or index.manifests[:1]
        if not entries:
            raise ContractError("the bundle has no variant", file=index_path)
        # every variant carries the same bundle manifest: any of them leads to it
        manifest_bytes, _, _ = self._manifest(entries[0], should_stop)
        chosen = choose_variant(read_json(manifest_bytes, BundleManifest, file=MANIFEST_FILE), facts)
        if isinstance(chosen, Refusal):
            return chosen
        manifest_bytes, variant_bytes, image = self._manifest(entry_of(index, chosen), should_stop)
        manifest = read_json(manifest_bytes, BundleManifest, file=MANIFEST_FILE)
        variant = next((each for each in manifest.variants if each.label == chosen.label), None)
        if variant is None:
            raise ContractError("the variants of the bundle disagree about its manifest", key=chosen.label)
        check_files(variant, image)
        return Offer(
            index=index_bytes,
            variant_manifest=variant_bytes,
            manifest_bytes=manifest_bytes,
            manifest=manifest,
            variant=variant,
            fallback=self._fallback(index, (variant, fallback_of(manifest, variant)), facts, should_stop),
        )

    def _fallback(
        self,
        index: ImageIndex,
        pair: tuple[Variant, Variant | None],
        facts: DeviceFacts,
        should_stop: Callable[[], bool] | None,
    ) -> Fallback | None:
        """What stands in for the chosen variant, where there is room for it."""
        chosen, variant = pair
        if variant is None:
            return None
        files = (file.digest for each in (chosen, variant) for file in each.files)
        present = {digest for digest in files if self._store.path(digest).is_file()}
        if not has_room(chosen, variant, facts, present):
            return None
        entry = entry_of(index, variant)
        if should_stop is None and not self._store.path(check_digest(entry.digest)).is_file():
            return None  # there was no room when the bundle was obtained
        path = self._document(entry, should_stop)
        document = _read_checked(path, entry.digest)
        check_files(variant, read_json(document, ImageManifest, file=path))
        return Fallback(variant_manifest=document, variant=variant)

    def _manifest(
        self, entry: Descriptor, should_stop: Callable[[], bool] | None
    ) -> tuple[bytes, bytes, ImageManifest]:
        """Bundle manifest, variant manifest as bytes, variant manifest as a document."""
        variant_path = self._document(entry, should_stop)
        variant_bytes = _read_checked(variant_path, entry.digest)
        image = read_json(variant_bytes, ImageManifest, file=variant_path)
        layer = manifest_layer(image)
        return _read_checked(self._document(layer, should_stop), layer.digest), variant_bytes, image

    def _document(self, descriptor: Descriptor, should_stop: Callable[[], bool] | None) -> Path:
        blob = Blob(digest=check_digest(descriptor.digest), size_bytes=descriptor.size)
        return self._store.path(blob.digest) if should_stop is None else self._downloader.fetch(blob, should_stop)


def _blobs(variant: Variant) -> tuple[Blob, ...]:
    return tuple(Blob(digest=file.digest, size_bytes=file.size_bytes) for file in variant.files)


def _read_checked(path: Path, digest: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VerificationError(f"cannot be read: {error.strerror}", file=path) from error
    if digest_of(data) != digest:
        raise VerificationError("wrong digest", file=path, expected=digest, got=digest_of(data))
    return data
