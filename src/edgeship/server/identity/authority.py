"""The fleet's certificate authority: one key, certificates for the server and for devices, a revocation list.

Elliptic curve P-256 throughout: every broker and TLS library that devices use speaks it. Source: RFC 5280.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeship.server.disk import write_atomic
from edgeship.server.signing_keys import PRIVATE_MODE
from edgeship_agent.contract.enrolment import RENEWAL_CONTEXT, SERVER_NAME
from edgeship_agent.contract.errors import InputError, VerificationError

#: A year is two renewals away from an outage: a device renews when two thirds are gone.
DEVICE_DAYS: Final = 365
SERVER_DAYS: Final = 825
_AUTHORITY_DAYS: Final = 20 * 365
#: A device whose clock is a little behind takes a new certificate too.
_BACKDATED: Final = timedelta(days=1)
_RENEW_SHARE: Final = 0.5
_CURVE: Final = ec.SECP256R1()


class Authority:
    """Issues and revokes.

    Args:
        key: of the authority.
        certificate: self-signed.
        clock: seconds since the epoch.
    """

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Callable[[], float]
    ) -> None:
        self._key = key
        self._certificate = certificate
        self._clock = clock

    @classmethod
    def open(cls, data: Path, clock: Callable[[], float]) -> Authority:
        """The authority under a server's folder, made on first use.

        Raises:
            VerificationError: key or certificate are damaged, do not belong together, or the key is open to others.
        """
        key = load_or_create_key(data / "keys" / "authority.pem")
        file = data / "identity" / "authority.pem"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, _self_signed(key, clock()).public_bytes(Encoding.PEM))
        certificate = read_certificate(file.read_bytes(), file)
        if _public_bytes(certificate.public_key()) != _public_bytes(key.public_key()):
            raise VerificationError("the authority's certificate is not of its key", file=file,
                                    next_step="restore DATA/identity and DATA/keys from the same backup")  # fmt: skip
        return cls(key, certificate, clock)

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER), hexadecimal."""
        return hashlib.sha256(self._certificate.public_bytes(Encoding.DER)).hexdigest()

    def issue_device(self, device_id: str, csr_pem: str) -> x509.Certificate:
        """A certificate for a device's key.

        Args:
            device_id: what it is issued to, whatever the request calls itself.
            csr_pem: signing request.

        Raises:
            InputError: not a signing request, not signed by its own key, or another kind of key.
        """
        public = key_of_request(csr_pem)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
        return self._issue(name, public, timedelta(days=DEVICE_DAYS), ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def issue_stand_in(self, device_id: str, public: ec.EllipticCurvePublicKey) -> bytes:
        """A certificate of an hour in a device's name, by which the server ends its connection, PEM."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device_id)])
        issued = self._issue(name, public, timedelta(hours=1), ExtendedKeyUsageOID.CLIENT_AUTH, ())
        return issued.public_bytes(Encoding.PEM)

    def server_files(self, folder: Path, names: Sequence[str]) -> tuple[Path, Path]:
        """Key and certificate by which the server and its broker are known, issued again where they must be.

        Args:
            folder: where they lie.
            names: host names and addresses that devices reach them by.
        """
        key_file, file = folder / "server.key", folder / "server.pem"
        key = load_or_create_key(key_file)
        if not self._still_good(file, key, names):
            certificate = self._issue(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)]),
                key.public_key(), timedelta(days=SERVER_DAYS), ExtendedKeyUsageOID.SERVER_AUTH, names,
            )  # fmt: skip
            write_atomic(file, certificate.public_bytes(Encoding.PEM))
        return key_file, file

    def revocation_list(self, serials: Iterable[int]) -> bytes:
        """The list of certificates that are not valid any more, PEM."""
        now = self._now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - timedelta(seconds=1))
            .next_update(now + timedelta(days=_AUTHORITY_DAYS))
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def check_member(self, certificate_pem: str) -> x509.Certificate:
        """A certificate that this authority issued, not judged by its time.

        Raises:
            InputError: not a certificate, or not of this authority.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise InputError("not a certificate of this fleet", key="certificate") from error
        return certificate

    def _issue(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, valid: timedelta, usage: x509.ObjectIdentifier,
        names: Sequence[str],
    ) -> x509.Certificate:  # fmt: skip
        now = self._now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + valid)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            # the server is a client of its own broker
            .add_extension(
                x509.ExtendedKeyUsage([usage, ExtendedKeyUsageOID.CLIENT_AUTH] if names else [usage]), critical=False
            )
        )  # fmt: skip
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), False)
        return builder.sign(self._key, hashes.SHA256())

    def _still_good(self, file: Path, key: ec.EllipticCurvePrivateKey, names: Sequence[str]) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
            certificate.verify_directly_issued_by(self._certificate)
            listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        left = certificate.not_valid_after_utc - self._now()
        return (
            left > _RENEW_SHARE * timedelta(days=SERVER_DAYS)
            and set(listed) == {_name(each) for each in names}
            and _public_bytes(certificate.public_key()) == _public_bytes(key.public_key())
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC).replace(microsecond=0)


def common_name(certificate: x509.Certificate) -> str:
    """Whom a certificate is issued to."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def key_of_request(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request.

    Raises:
        InputError: not a signing request, not signed by its own key, or another kind of key.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        signed = request.is_signature_valid
        public = request.public_key()
    except (ValueError, TypeError) as error:
        raise InputError("not a certificate signing request", key="csr", expected="PEM") from error
    if not signed:
        raise InputError("the signing request is not signed by its own key", key="csr")
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != _CURVE.name:
        raise InputError("another kind of key", key="csr", expected="elliptic curve P-256")
    return public


def key_digest(public: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo, DER), hexadecimal."""
    return hashlib.sha256(_public_bytes(public)).hexdigest()


def check_renewal(certificate: x509.Certificate, csr_pem: str, signature_hex: str) -> None:
    """Whether the key of a certificate asks for the next one.

    Raises:
        InputError: it does not.
    """
    public = certificate.public_key()
    try:
        assert isinstance(public, ec.EllipticCurvePublicKey), "this authority signs no other keys"
        public.verify(bytes.fromhex(signature_hex), RENEWAL_CONTEXT + csr_pem.encode(), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise InputError("the renewal is not signed by the present key", key="signature") from error


def read_certificate(pem: bytes, file: Path) -> x509.Certificate:
    """A certificate from a file.

    Raises:
        VerificationError: not one.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise VerificationError("not a certificate", file=file, expected="PEM") from error


def load_or_create_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-256 private key in a PEM file, made on first use with mode 0600.

    Raises:
        VerificationError: the file is not such a key, or others may read it.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = ec.generate_private_key(_CURVE)
        write_atomic(path, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=PRIVATE_MODE)
        return made
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise VerificationError("others may read this private key", file=path, expected="mode 0600",
                                got=f"mode {mode:04o}", next_step=f"chmod 600 {path}")  # fmt: skip
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise VerificationError(f"not a private key: {error}", file=path, expected="PEM, PKCS#8, P-256") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise VerificationError("wrong kind of private key", file=path, expected="P-256", got=type(key).__name__)
    return key


def _self_signed(key: ec.EllipticCurvePrivateKey, now_s: float) -> x509.Certificate:
    now = datetime.fromtimestamp(now_s, UTC).replace(microsecond=0)
    # a name of its own, so that two fleets' authorities are told apart by those who trust both
    words = f"Edgeship fleet {hashlib.sha256(_public_bytes(key.public_key())).hexdigest()[:12]}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, words)])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _public_bytes(public: object) -> bytes:
    assert isinstance(public, ec.EllipticCurvePublicKey), "this authority makes no other keys"
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
