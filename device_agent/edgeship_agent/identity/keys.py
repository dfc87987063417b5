"""Keys of a device: made here, and never anywhere else."""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from edgeship_agent.contract.enrolment import RENEWAL_CONTEXT
from edgeship_agent.contract.errors import ConfigError

_PRIVATE_MODE: Final = 0o600


def load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in a PEM file, which may hold its certificate too; made where there is none, mode 0600.

    Raises:
        ConfigError: the file holds something else, or others may read it.
    """
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(path, private_pem(key))
        return key
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError("others may read this private key", file=path, expected="mode 0600", got=f"mode {mode:04o}",
                          next_step=f"chmod 600 {path}")  # fmt: skip
    try:
        found = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise ConfigError(f"not a private key: {error}", file=path, expected="PEM, P-256") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ConfigError("wrong kind of private key", file=path, expected="P-256", got=type(found).__name__)
    return found


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as it is kept."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signing_request(key: ec.EllipticCurvePrivateKey, device_id: str) -> str:
    """A certificate signing request, PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def key_digest(key: ec.EllipticCurvePrivateKey) -> str:
    """SHA-256 of the public half (SubjectPublicKeyInfo, DER), hexadecimal: what an operator compares."""
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def sign_renewal(key: ec.EllipticCurvePrivateKey, csr_pem: str) -> str:
    """The present key's word for the next one, hexadecimal."""
    return key.sign(RENEWAL_CONTEXT + csr_pem.encode(), ec.ECDSA(hashes.SHA256())).hex()


def certificate_in(path: Path) -> x509.Certificate:
    """The certificate in a PEM file, which may hold its key too.

    Raises:
        ConfigError: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from error
    except ValueError as error:
        raise ConfigError("holds no certificate", file=path, expected="PEM") from error


def name_in(certificate: x509.Certificate) -> str:
    """Whom a certificate is issued to; empty for nobody."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def validity_s(certificate: x509.Certificate) -> tuple[float, float]:
    """From when to when a certificate is good, seconds since 1970."""
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def day(at_s: float) -> str:
    """A time as people read it."""
    return datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d")


def write_private(path: Path, data: bytes) -> None:
    """Write a file that its owner alone may read: temporary file, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_MODE)
    try:
        os.fchmod(handle, _PRIVATE_MODE)
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
