"""Reading a bundle: nothing is handed out that its digest does not vouch for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from edgeship.bundle.keys import verify_author_signature
from edgeship.bundle.layout import (
    INDEX_FILE,
    LAYOUT_FILE,
    MAX_DOCUMENT_BYTES,
    blob_path,
    check_file_path,
    check_label,
    check_name,
)
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError, ContractError, VerificationError
from edgeship_agent.contract.manifest import MANIFEST_VERSION, BundleManifest, Variant

T = TypeVar("T")
_MEND = "build the bundle again, or copy it again from where it is whole"


class Bundle:
    """An opened bundle. Made by :meth:`open`, which reads and checks every document but not the large files.

    Attributes:
        directory: the OCI image layout.
        entry: what ``index.json`` says about the nested index.
        index_bytes: the nested index as it is signed; ``index`` is the same, decoded.
        manifest: ``edgeship.json``.
    """

    def __init__(self, directory: Path, entry: oci.Descriptor) -> None:
        self.directory = directory
        self.entry = entry
        self.index_bytes = self._document(entry)
        self.index = _decode(self.index_bytes, oci.ImageIndex, blob_path(directory, entry.digest))
        self._manifests = {each.digest: self._image_manifest(each) for each in self.index.manifests}
        self.manifest = self._read_manifest()
        self._check_variants()

    @classmethod
    def open(cls, directory: Path) -> Bundle:
        """Open a bundle.

        Raises:
            ConfigError: there is no bundle at that place.
            ContractError: a document is not what the layout asks for.
            VerificationError: a document's bytes are not those of its digest, or two documents contradict each other.
        """
        directory = Path(directory)
        if not (directory / LAYOUT_FILE).is_file():
            raise ConfigError("not a bundle", file=directory, expected=f"a folder with {LAYOUT_FILE}",
                              next_step="edgeship build SOURCE -t TARGET …")  # fmt: skip
        path = directory / INDEX_FILE
        index = _decode(_read(path, MAX_DOCUMENT_BYTES), oci.ImageIndex, path)
        if len(index.manifests) != 1 or index.manifests[0].media_type != oci.INDEX_TYPE:
            raise ContractError("not a bundle's index", file=path, key="manifests", expected="one nested image index",
                                got=f"{len(index.manifests)} entries")  # fmt: skip
        return cls(directory, index.manifests[0])

    @property
    def digest(self) -> str:
        """Identity of the bundle: digest of its nested image index."""
        return self.entry.digest

    @property
    def manifest_digest(self) -> str:
        """Digest of ``edgeship.json``."""
        return self._manifest_layer().digest

    @property
    def author_key(self) -> str:
        """The author's public key (hexadecimal), empty where the bundle is not signed."""
        return self.entry.annotations.get(oci.ANNOTATION_KEY, "")

    @cached_property
    def size_bytes(self) -> int:
        """Size of all blobs."""
        return sum({each.digest: each.size for each in self.descriptors()}.values())

    def verify_signature(self) -> str:
        """Check the author's signature.

        Returns:
            The author's public key, hexadecimal.

        Raises:
            VerificationError: missing or wrong.
        """
        signature = self.entry.annotations.get(oci.ANNOTATION_SIGNATURE, "")
        if not signature or not self.author_key:
            raise VerificationError("the bundle is not signed", file=self.directory / INDEX_FILE,
                                    key=oci.ANNOTATION_SIGNATURE, next_step=_MEND)  # fmt: skip
        verify_author_signature(self.index_bytes, self.author_key, signature)
        return self.author_key

    def verify_digests(self) -> int:
        """Read every blob and compare its digest.

        Returns:
            How many blobs there are.

        Raises:
            VerificationError: one is missing or altered.
        """
        wanted = {each.digest: each.size for each in self.descriptors()}
        for digest, size in wanted.items():
            self._checked(digest, size)
        return len(wanted)

    def blob(self, digest: str) -> bytes:
        """Bytes of a blob that this bundle names.

        Raises:
            VerificationError: it is not one of the bundle's, or its bytes are not those of the digest.
        """
        for each in self.descriptors():
            if each.digest == digest:
                return self._checked(digest, each.size)
        raise VerificationError("the bundle names no such blob", file=self.directory, got=digest)

    def descriptors(self) -> Iterator[oci.Descriptor]:
        """Every blob of the bundle: the nested index, the manifests, their configurations and layers."""
        yield self.entry
        for each in self.index.manifests:
            yield each
            manifest = self._manifests[each.digest]
            yield manifest.config
            yield from manifest.layers

    def variant(self, label: str) -> Variant:
        """The variant of a label (``target/runtime/precision``).

        Raises:
            ConfigError: the bundle has none of that label.
        """
        for each in self.manifest.variants:
            if each.label == label:
                return each
        labels = ", ".join(each.label for each in self.manifest.variants)
        raise ConfigError("no such variant", file=self.directory, expected=labels, got=label)

    def variant_manifest(self, label: str) -> oci.ImageManifest:
        """The OCI manifest of a variant."""
        return self._manifests[self.variant_descriptor(label).digest]

    def variant_descriptor(self, label: str) -> oci.Descriptor:
        """The entry of a variant in the nested index."""
        self.variant(label)
        return next(each for each in self.index.manifests if _label(each) == label)

    def documents(self, label: str) -> dict[str, bytes]:
        """Name → content of the documents that go with a variant: its own and those that all variants share.

        Raises:
            VerificationError: one is missing or altered.
            ContractError: one is too long to be read.
        """
        layers = self.variant_manifest(label).layers
        return {
            layer.annotations[oci.ANNOTATION_FILE]: self._document(layer)
            for layer in layers
            if layer.media_type == oci.DOC_TYPE
        }

    def _checked(self, digest: str, size: int) -> bytes:
        path = blob_path(self.directory, digest)
        try:
            data = _read(path, size)
        except ContractError as error:
            raise VerificationError("a blob is longer than its index says", file=path, expected=f"{size} bytes",
                                    next_step=_MEND) from error  # fmt: skip
        found = oci.digest_of(data)
        if found != digest or len(data) != size:
            raise VerificationError("a blob was altered", file=path, expected=f"{digest}, {size} bytes",
                                    got=f"{found}, {len(data)} bytes", next_step=_MEND)  # fmt: skip
        return data

    def _document(self, descriptor: oci.Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT_BYTES:
            raise ContractError("a document is too long", file=self.directory, expected=f"≤ {MAX_DOCUMENT_BYTES} bytes",
                                got=f"{descriptor.size} bytes")  # fmt: skip
        return self._checked(descriptor.digest, descriptor.size)

    def _image_manifest(self, descriptor: oci.Descriptor) -> oci.ImageManifest:
        path = blob_path(self.directory, descriptor.digest)
        manifest = _decode(self._document(descriptor), oci.ImageManifest, path)
        names = [layer.annotations.get(oci.ANNOTATION_FILE, "") for layer in manifest.layers]
        for name in names:
            if name != oci.MANIFEST_FILE:
                check_file_path(name)
        if len(set(names)) != len(names) or oci.MANIFEST_FILE not in names:
            raise ContractError("layers need names, each its own, one of them " + oci.MANIFEST_FILE, file=path,
                                key=oci.ANNOTATION_FILE, got=", ".join(names))  # fmt: skip
        return manifest

    def _manifest_layer(self) -> oci.Descriptor:
        layers = {
            layer.digest: layer
            for manifest in self._manifests.values()
            for layer in manifest.layers
            if layer.annotations.get(oci.ANNOTATION_FILE) == oci.MANIFEST_FILE
        }
        if len(layers) != 1:
            raise ContractError(f"every variant shares one {oci.MANIFEST_FILE}", file=self.directory, expected=1,
                                got=len(layers))  # fmt: skip
        return next(iter(layers.values()))

    def _read_manifest(self) -> BundleManifest:
        layer = self._manifest_layer()
        path = blob_path(self.directory, layer.digest)
        manifest = _decode(self._document(layer), BundleManifest, path)
        if not 1 <= manifest.schema_version <= MANIFEST_VERSION:
            raise ContractError("made by a newer edgeship", file=path, key="schema_version",
                                expected=f"at most {MANIFEST_VERSION}", got=manifest.schema_version,
                                next_step="pip install --upgrade edgeship")  # fmt: skip
        check_name(manifest.name, "name", path)
        check_name(manifest.version, "version", path)
        for variant in manifest.variants:
            check_label(variant, path)
        return manifest

    def _check_variants(self) -> None:
        """The index, the OCI manifests and ``edgeship.json`` must tell the same story."""
        entries = {_label(each): self._manifests[each.digest] for each in self.index.manifests}
        variants = {each.label: each for each in self.manifest.variants}
        claimed = (self.entry.annotations.get(oci.ANNOTATION_NAME), self.entry.annotations.get(oci.ANNOTATION_VERSION))
        if self.author_key and claimed != (self.manifest.name, self.manifest.version):
            self._contradiction("name and version", f"{self.manifest.name} {self.manifest.version}", claimed)
        if len(entries) != len(self.index.manifests) or entries.keys() != variants.keys():
            self._contradiction("variants", ", ".join(sorted(variants)), ", ".join(sorted(entries)))
        for label, variant in variants.items():
            files = {(file.path, file.digest, file.size_bytes) for file in variant.files}
            layers = {
                (layer.annotations[oci.ANNOTATION_FILE], layer.digest, layer.size)
                for layer in entries[label].layers
                if layer.annotations[oci.ANNOTATION_FILE] != oci.MANIFEST_FILE and layer.media_type != oci.DOC_TYPE
            }
            if files != layers:
                self._contradiction(label, sorted(files), sorted(layers))

    def _contradiction(self, key: str, expected: object, got: object) -> None:
        raise VerificationError(f"the index and {oci.MANIFEST_FILE} contradict each other", file=self.directory,
                                key=key, expected=expected, got=got, next_step=_MEND)  # fmt: skip


def _label(descriptor: oci.Descriptor) -> str:
    names = (oci.ANNOTATION_TARGET, oci.ANNOTATION_RUNTIME, oci.ANNOTATION_PRECISION)
    return "/".join(descriptor.annotations.get(name, "") for name in names)


def _read(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= limit else b""
    except OSError as error:
        raise VerificationError(f"a file of the bundle cannot be read: {error.strerror}", file=path,
                                next_step=_MEND) from error  # fmt: skip
    if size > limit:
        raise ContractError("too long", file=path, expected=f"at most {limit} bytes", got=f"{size} bytes")
    return data


def _decode(data: bytes, kind: type[T], path: Path) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"not a document of a bundle: {error}", file=path, next_step=_MEND) from error
