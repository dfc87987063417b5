"""The author's signature as an artifact of its own, which refers to the bundle's index. Pure.

In a bundle's folder the signature stands in ``index.json``, which no registry stores. In a registry it is a manifest
whose ``subject`` is the bundle's index and whose layer is a DSSE envelope: the very signature over the very bytes.

Sources: OCI image specification 1.1, manifest, "Guidelines for Artifact Usage"; DSSE envelope specification 1.0.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec
from msgspec import Struct

from edgeship.bundle.keys import verify_author_signature
from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ContractError, VerificationError

SIGNATURE_TYPE: Final = "application/vnd.edgeship.author-signature.v1+json"
EVIDENCE_TYPE: Final = "application/vnd.edgeship.build.v1+json"
ENVELOPE_TYPE: Final = "application/vnd.dsse.envelope.v1+json"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY: Final = b"{}"
ANNOTATION_TITLE: Final = "org.opencontainers.image.title"
ANNOTATION_CREATED: Final = "org.opencontainers.image.created"


class Artifact(oci.ImageManifest, frozen=True, kw_only=True, rename="camel"):
    """A manifest that refers to another one."""

    subject: oci.Descriptor


class _Signature(Struct, frozen=True, kw_only=True):
    keyid: str
    sig: str


class Envelope(Struct, frozen=True, kw_only=True, rename="camel"):
    """A DSSE envelope; ``keyid`` is the author's public key, hexadecimal."""

    payload_type: str
    payload: str
    signatures: tuple[_Signature, ...]


class Signed(Struct, frozen=True, kw_only=True):
    """A signature that was checked."""

    author_key: str
    signature: str


def envelope(index: bytes, author_key: str, signature: str) -> bytes:
    """A signature over a bundle's index as a DSSE envelope.

    Args:
        index: the nested image index.
        author_key: hexadecimal.
        signature: hexadecimal, over DSSE's encoding of ``index``.
    """
    return oci.canonical_json(
        Envelope(
            payload_type=oci.INDEX_TYPE,
            payload=base64.b64encode(index).decode(),
            signatures=(_Signature(keyid=author_key, sig=base64.b64encode(bytes.fromhex(signature)).decode()),),
        )
    )


def open_envelope(data: bytes, index: bytes) -> Signed:
    """Check an envelope against the index that it is said to sign.

    Raises:
        ContractError: it is no envelope.
        VerificationError: it signs something else, or the signature does not fit.
    """
    try:
        found = msgspec.json.decode(data, type=Envelope)
        payload = base64.b64decode(found.payload, validate=True)
        pairs = [(each.keyid, base64.b64decode(each.sig, validate=True).hex()) for each in found.signatures]
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError) as error:
        raise ContractError(f"not a signature: {error}", key=ENVELOPE_TYPE) from error
    if found.payload_type != oci.INDEX_TYPE or payload != index or not pairs:
        raise VerificationError("the signature is of something else", key=ENVELOPE_TYPE,
                                expected=oci.digest_of(index), got=oci.digest_of(payload))  # fmt: skip
    author_key, signature = pairs[0]
    verify_author_signature(index, author_key, signature)
    return Signed(author_key=author_key, signature=signature)


def artifact(kind: str, subject: oci.Descriptor, layers: tuple[oci.Descriptor, ...], created: str = "") -> Artifact:
    """A manifest of layers that refers to a bundle's index.

    Args:
        kind: its artifact type.
        subject: the index.
        layers: what it holds.
        created: RFC 3339, for evidence that is not reproducible; empty for a signature.
    """
    return Artifact(
        artifact_type=kind,
        config=oci.Descriptor(media_type=EMPTY_TYPE, digest=oci.digest_of(EMPTY), size=len(EMPTY)),
        layers=layers,
        subject=oci.Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations={ANNOTATION_CREATED: created} if created else {},
    )
