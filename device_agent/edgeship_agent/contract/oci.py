"""The bundle as an OCI image layout: media types, annotations and the JSON documents in it.

Sources: OCI image specification 1.1 (image-layout, image-index, manifest); CNCF ModelPack model specification.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

import msgspec
from msgspec import Struct, field

from edgeship_agent.contract.errors import ContractError

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
MODEL_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHT_TYPE: Final = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG_TYPE: Final = "application/vnd.cncf.model.weight.config.v1.raw"
DATASET_TYPE: Final = "application/vnd.cncf.model.dataset.v1.raw"
#: Certificate, model card, bill of materials, lineage: for people and registries; a device never loads them.
DOC_TYPE: Final = "application/vnd.cncf.model.doc.v1.raw"

ANNOTATION_FILE: Final = "org.cncf.model.filepath"
ANNOTATION_TARGET: Final = "dev.edgeship.target"
ANNOTATION_RUNTIME: Final = "dev.edgeship.runtime"
ANNOTATION_PRECISION: Final = "dev.edgeship.precision"
ANNOTATION_MEMORY: Final = "dev.edgeship.min-memory-bytes"
ANNOTATION_NAME: Final = "dev.edgeship.model"
ANNOTATION_VERSION: Final = "dev.edgeship.version"
ANNOTATION_KEY: Final = "dev.edgeship.author-key"
ANNOTATION_SIGNATURE: Final = "dev.edgeship.author-signature"

#: Name of the bundle manifest among the layers of every variant.
MANIFEST_FILE: Final = "edgeship.json"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class Platform(Struct, frozen=True, kw_only=True):
    """Platform of a variant, in the words of the Go toolchain (``amd64``, ``arm64``)."""

    architecture: str
    os: str = "linux"


class Descriptor(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Points to a blob."""

    media_type: str
    digest: str
    size: int
    artifact_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] = field(default_factory=dict)


class ImageIndex(Struct, frozen=True, kw_only=True, rename="camel"):
    """``index.json``, or the nested index of a bundle with one manifest per variant."""

    schema_version: int = 2
    media_type: str = INDEX_TYPE
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict)


class ImageManifest(Struct, frozen=True, kw_only=True, rename="camel"):
    """One variant: its configuration and its files as layers."""

    schema_version: int = 2
    media_type: str = MANIFEST_TYPE
    artifact_type: str = MODEL_TYPE
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict)


def digest_of(data: bytes) -> str:
    """The OCI digest of some bytes.

    >>> digest_of(b"")[:14]
    'sha256:e3b0c44'
    """
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(digest: str) -> str:
    """Return ``digest`` if it is ``sha256:`` and 64 hexadecimal digits.

    Raises:
        ContractError: it is not; a path is never made from such a text.
    """
    if not _DIGEST.fullmatch(digest):
        raise ContractError("not a digest", expected="sha256:<64 hexadecimal digits>", got=repr(digest[:80]))
    return digest


def hex_of(digest: str) -> str:
    """The hexadecimal half of a checked digest."""
    return check_digest(digest).removeprefix("sha256:")


def canonical_json(value: object) -> bytes:
    """Bytes that depend on the value alone: keys sorted, no white space.

    >>> canonical_json({"b": 1, "a": 2})
    b'{"a":2,"b":1}'
    >>> canonical_json({10: "class 10", 9: "class 9"})
    b'{"10":"class 10","9":"class 9"}'
    """
    return msgspec.json.encode(msgspec.to_builtins(value, str_keys=True), order="sorted")


def signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """What a signature is made over: DSSE's pre-authentication encoding.

    Source: DSSE protocol, ``PAE(type, body) = "DSSEv1" + SP + LEN(type) + SP + type + SP + LEN(body) + SP + body``.

    >>> signed_bytes("a", b"bc")
    b'DSSEv1 1 a 2 bc'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
