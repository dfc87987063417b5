"""Writing a bundle: the same draft always gives the same bytes, and either the whole folder appears or nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from edgeship.bundle.disk import replacing, write_file
from edgeship.bundle.keys import AuthorKey
from edgeship.bundle.layout import (
    INDEX_FILE,
    LAYER_TYPES,
    LAYOUT_BYTES,
    LAYOUT_FILE,
    PLATFORMS,
    blob_path,
    check_file_path,
    check_label,
    check_name,
)
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError, ContractError
from edgeship_agent.contract.manifest import (
    BundleFile,
    BundleManifest,
    Feature,
    InputContract,
    Lineage,
    OutputContract,
    TensorSpec,
    Variant,
)

#: Which precision is the safest where a reader takes the first entry: the least changed one.
_SAFEST_FIRST: Final = ("fp32", "fp16", "int8")
_FORMATS: Final = {"onnx": "onnx", "tflite": "tflite", "xml": "openvino-ir"}


class DraftFile(Struct, frozen=True, kw_only=True):
    """A file of a variant before it has a digest; ``role`` as in :class:`BundleFile`."""

    path: str
    role: str
    data: bytes


class VariantDraft(Struct, frozen=True, kw_only=True):
    """A variant whose ``files`` are still empty, its files, and documents of its own (``role`` is not read)."""

    variant: Variant
    files: tuple[DraftFile, ...]
    documents: tuple[DraftFile, ...] = ()


class BundleDraft(Struct, frozen=True, kw_only=True):
    """Everything that a bundle holds; fields as in :class:`BundleManifest`.

    Attributes:
        documents: layers of every variant that no device loads (``role`` is not read).
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_contracts: tuple[InputContract, ...]
    input_schema: dict[str, tuple[Feature, ...]]
    output: OutputContract
    lineage: Lineage
    variants: tuple[VariantDraft, ...]
    documents: tuple[DraftFile, ...] = ()


class WrittenBundle(Struct, frozen=True, kw_only=True):
    """A bundle on disk.

    Attributes:
        digest: of its nested image index; its identity.
        size_bytes: of all its blobs.
    """

    directory: Path
    digest: str
    size_bytes: int


def write_bundle(directory: Path, draft: BundleDraft, key: AuthorKey) -> WrittenBundle:
    """Write a signed bundle; a bundle that is already there is replaced.

    Args:
        directory: the folder of the OCI image layout.
        draft: what it holds.
        key: signs it.

    Raises:
        ContractError: the draft has no variant, two of the same label, or a file that cannot be in a bundle.
        ConfigError: the folder holds something that is not a bundle, or cannot be written.
    """
    _check(draft)
    blobs: dict[str, bytes] = {}
    index = _nested_index(draft, blobs)
    digest = _add(blobs, index)
    top = oci.ImageIndex(
        manifests=(
            oci.Descriptor(
                media_type=oci.INDEX_TYPE,
                digest=digest,
                size=len(index),
                annotations={
                    oci.ANNOTATION_NAME: draft.name,
                    oci.ANNOTATION_VERSION: draft.version,
                    oci.ANNOTATION_KEY: key.public_hex,
                    oci.ANNOTATION_SIGNATURE: key.sign(oci.INDEX_TYPE, index),
                },
            ),
        )
    )
    _write(directory, blobs, oci.canonical_json(top))
    return WrittenBundle(directory=directory, digest=digest, size_bytes=sum(map(len, blobs.values())))


def manifest_of(draft: BundleDraft) -> BundleManifest:
    """``edgeship.json`` of a draft: its files with their digests."""
    return BundleManifest(
        name=draft.name,
        version=draft.version,
        inputs=draft.inputs,
        outputs=draft.outputs,
        input_contracts=draft.input_contracts,
        input_schema=draft.input_schema,
        output=draft.output,
        variants=tuple(_with_files(each) for each in draft.variants),
        lineage=draft.lineage,
    )


def _check(draft: BundleDraft) -> None:
    check_name(draft.name, "name")
    check_name(draft.version, "version")
    if not draft.variants:
        raise ContractError("a bundle needs a variant", key="variants", expected="at least 1", got=0)
    twice = [label for label, count in Counter(each.variant.label for each in draft.variants).items() if count > 1]
    if twice:
        raise ContractError("two variants of one label", key="variants", got=", ".join(twice))
    for each in draft.variants:
        label = each.variant.label
        for file in each.files:
            if file.role not in LAYER_TYPES:
                raise ContractError("unknown role", key=f"{label}/{file.path}", expected=", ".join(LAYER_TYPES),
                                    got=file.role)  # fmt: skip
        _check_names(label, [file.path for file in (*each.files, *each.documents, *draft.documents)])
        if [file.role for file in each.files].count("model") != 1:
            raise ContractError("a variant has exactly one model file", key=label)
        check_label(each.variant)
        if each.variant.arch not in PLATFORMS:
            raise ContractError("unknown architecture", key=label, expected=", ".join(PLATFORMS),
                                got=each.variant.arch)  # fmt: skip


def _check_names(label: str, names: list[str]) -> None:
    for name in names:
        check_file_path(name)
    if len(set(names)) != len(names):
        raise ContractError("two files of one name", key=label, got=", ".join(names))


def _add(blobs: dict[str, bytes], data: bytes) -> str:
    digest = oci.digest_of(data)
    blobs[digest] = data
    return digest


def _nested_index(draft: BundleDraft, blobs: dict[str, bytes]) -> bytes:
    """Add the blobs of every variant; returns the index that names their manifests, the safest first."""
    bundle_manifest = manifest_of(draft)
    manifest = oci.canonical_json(bundle_manifest)
    entries = []
    for variant, each in zip(bundle_manifest.variants, draft.variants, strict=True):
        for file in each.files:
            _add(blobs, file.data)
        documents = tuple(_document_layer(file, blobs) for file in (*each.documents, *draft.documents))
        layers = (*_layers(variant, manifest, blobs), *documents)
        entries.append((_rank(variant.precision), _variant_entry(draft, variant, layers, blobs)))
    entries.sort(key=lambda entry: entry[0])
    return _index_bytes(
        [entry for _, entry in entries],
        {oci.ANNOTATION_NAME: draft.name, oci.ANNOTATION_VERSION: draft.version},
    )


def _index_bytes(entries: list[oci.Descriptor], annotations: dict[str, str]) -> bytes:
    """The index in the order of keys that Go's OCI types give it.

    skopeo and other tools in Go decode an index and encode it anew when they copy it. In their order of keys, and with
    no key that older ones drop (``artifactType`` of an entry), a copy has the same bytes, digest and signature.

    Source: image-spec ``specs-go/v1``, ``Index`` and ``Descriptor``; containers/image ``manifest/oci_index.go``.
    """
    manifests = [
        {
            "mediaType": entry.media_type,
            "digest": entry.digest,
            "size": entry.size,
            "annotations": dict(sorted(entry.annotations.items())),
            "platform": {"architecture": entry.platform.architecture, "os": entry.platform.os},
        }
        for entry in entries
        if entry.platform
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": oci.INDEX_TYPE,
        "manifests": manifests,
        "annotations": dict(sorted(annotations.items())),
    }
    return msgspec.json.encode(document)


def _rank(precision: str) -> int:
    return _SAFEST_FIRST.index(precision) if precision in _SAFEST_FIRST else len(_SAFEST_FIRST)


def _with_files(draft: VariantDraft) -> Variant:
    files = tuple(
        BundleFile(path=file.path, role=file.role, digest=oci.digest_of(file.data), size_bytes=len(file.data))
        for file in draft.files
    )
    return msgspec.structs.replace(draft.variant, files=files)


def _document_layer(file: DraftFile, blobs: dict[str, bytes]) -> oci.Descriptor:
    return oci.Descriptor(
        media_type=oci.DOC_TYPE,
        digest=_add(blobs, file.data),
        size=len(file.data),
        annotations={oci.ANNOTATION_FILE: file.path},
    )


def _layers(variant: Variant, manifest: bytes, blobs: dict[str, bytes]) -> tuple[oci.Descriptor, ...]:
    """What a device loads: ``edgeship.json``, then the variant's files."""
    return (
        oci.Descriptor(
            media_type=oci.WEIGHT_CONFIG_TYPE,
            digest=_add(blobs, manifest),
            size=len(manifest),
            annotations={oci.ANNOTATION_FILE: oci.MANIFEST_FILE},
        ),
        *(
            oci.Descriptor(
                media_type=LAYER_TYPES[file.role],
                digest=file.digest,
                size=file.size_bytes,
                annotations={oci.ANNOTATION_FILE: file.path},
            )
            for file in variant.files
        ),
    )


def _variant_entry(
    draft: BundleDraft, variant: Variant, layers: tuple[oci.Descriptor, ...], blobs: dict[str, bytes]
) -> oci.Descriptor:
    """Add one variant's configuration and OCI manifest; returns the entry for the index."""
    config = oci.canonical_json(_model_config(draft, variant, layers))
    annotations = {
        oci.ANNOTATION_TARGET: variant.target,
        oci.ANNOTATION_RUNTIME: variant.runtime,
        oci.ANNOTATION_PRECISION: variant.precision,
        oci.ANNOTATION_MEMORY: str(variant.min_memory_bytes),
    }
    document = oci.canonical_json(
        oci.ImageManifest(
            config=oci.Descriptor(media_type=oci.MODEL_CONFIG_TYPE, digest=_add(blobs, config), size=len(config)),
            layers=layers,
            annotations=annotations,
        )
    )
    return oci.Descriptor(
        media_type=oci.MANIFEST_TYPE,
        digest=_add(blobs, document),
        size=len(document),
        platform=oci.Platform(architecture=PLATFORMS[variant.arch]),
        annotations=annotations,
    )


def _model_config(draft: BundleDraft, variant: Variant, layers: tuple[oci.Descriptor, ...]) -> dict[str, Any]:
    """ModelPack's configuration. Source: CNCF model specification, ``docs/config.md``; no dates, for equal bytes."""
    model = variant.file("model")
    suffix = model.path.rpartition(".")[2] if model else ""
    return {
        "descriptor": {"name": draft.name, "version": draft.version},
        "config": {"format": _FORMATS.get(suffix, suffix), "precision": variant.precision},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }


def _write(directory: Path, blobs: dict[str, bytes], index: bytes) -> None:
    """Write a folder beside the wanted one and swap the two."""
    if directory.exists() and any(directory.iterdir()) and not (directory / LAYOUT_FILE).is_file():
        raise ConfigError("the folder holds something else", file=directory, expected="nothing, or a bundle",
                          next_step="name another folder with -o DIR")  # fmt: skip
    with replacing(directory) as temporary:
        (temporary / "blobs" / "sha256").mkdir(parents=True)
        write_file(temporary / LAYOUT_FILE, LAYOUT_BYTES)
        for digest, data in blobs.items():
            write_file(blob_path(temporary, digest), data)
        write_file(temporary / INDEX_FILE, index)
