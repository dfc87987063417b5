"""The server's own Ed25519 keys: one PEM file a role under ``DATA/keys``, readable by its owner alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from edgeship.server.disk import write_atomic
from edgeship_agent.contract.errors import VerificationError

PRIVATE_MODE: Final = 0o600


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """The private key in a PEM file, made on first use with mode 0600.

    Raises:
        VerificationError: the file is not an Ed25519 key, or others may read it.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        key = Ed25519PrivateKey.generate()
        write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=PRIVATE_MODE)
        return key
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise VerificationError(
            "others may read this private key",
            file=path,
            expected="mode 0600",
            got=f"mode {mode:04o}",
            next_step=f"chmod 600 {path}",
        )
    try:
        loaded = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise VerificationError(f"not a private key: {error}", file=path, expected="PEM, PKCS#8, Ed25519") from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise VerificationError("wrong kind of private key", file=path, expected="Ed25519", got=type(loaded).__name__)
    return loaded


def raw_public(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes of the public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def key_id(public: bytes) -> str:
    """sha256 (hex) of a raw public key.

    >>> key_id(bytes(32))[:8]
    '66687aad'
    """
    return hashlib.sha256(public).hexdigest()


def verify(public_hex: str, signature: bytes, message: bytes) -> bool:
    """Whether an Ed25519 signature holds; a malformed key or signature does not."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
