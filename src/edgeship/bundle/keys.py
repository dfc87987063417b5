"""The author's Ed25519 key: made on first use, kept in the user's data folder, readable by the user alone."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

import platformdirs
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError, VerificationError

_KEY_FILE: Final = "author.key"
_PRIVATE_MODE: Final = 0o600


def default_key_path() -> Path:
    """``author.key`` in the XDG data folder."""
    return Path(platformdirs.user_data_dir("edgeship")) / _KEY_FILE


class AuthorKey:
    """A private key that signs bundles.

    Args:
        private: the Ed25519 key.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def load_or_create(cls, path: Path | None = None) -> AuthorKey:
        """Read the key (PEM, PKCS#8), or make one where there is none.

        Args:
            path: ``None`` for the user's own key.

        Raises:
            ConfigError: the file is no Ed25519 key, or others may read it.
        """
        path = path or default_key_path()
        if not path.exists():
            _create(path)
        return cls(_load(path))

    @property
    def public_hex(self) -> str:
        """The public half: 32 bytes, hexadecimal."""
        raw = self._private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return raw.hex()

    def sign(self, payload_type: str, payload: bytes) -> str:
        """Sign a payload under its type.

        Returns:
            64 bytes, hexadecimal.
        """
        return self._private.sign(oci.signed_bytes(payload_type, payload)).hex()


def verify_author_signature(index: bytes, public_hex: str, signature_hex: str) -> None:
    """Check that the holder of a key signed a bundle's nested image index.

    Raises:
        VerificationError: not a key, not a signature, or not of these bytes.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
        key.verify(bytes.fromhex(signature_hex), oci.signed_bytes(oci.INDEX_TYPE, index))
    except (ValueError, InvalidSignature) as error:
        raise VerificationError(
            "the author's signature does not fit the bundle",
            key=oci.ANNOTATION_SIGNATURE,
            expected=f"an Ed25519 signature by {public_hex[:16] or 'an author key'}… over {oci.digest_of(index)}",
            next_step="build the bundle again, or ask its author for an unchanged copy",
        ) from error


def _create(path: Path) -> None:
    """Make a key file; of two processes that do so at once, one wins and both read the same key."""
    data = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".author-")  # mode 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            Path(temporary).unlink()
    except OSError as error:
        raise ConfigError(f"the author key cannot be written: {error.strerror}", file=path,
                          next_step="name a place with --key FILE") from error  # fmt: skip


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(
                "others may read the author key", file=path, expected=f"mode {_PRIVATE_MODE:o}", got=f"{mode:o}",
                next_step=f"chmod 600 {path}",
            )  # fmt: skip
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("not a key that can be read", file=path, expected="an unencrypted Ed25519 key (PEM, PKCS#8)",
                          next_step="openssl genpkey -algorithm ed25519") from error  # fmt: skip
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("not an Ed25519 key", file=path, expected="an Ed25519 key (PEM, PKCS#8)",
                          got=type(key).__name__, next_step="openssl genpkey -algorithm ed25519")  # fmt: skip
    return key
