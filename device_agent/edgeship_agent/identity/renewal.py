"""The next certificate, long before the present one ends."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgeship_agent.contract.enrolment import RenewRequest
from edgeship_agent.identity.credentials import Credentials
from edgeship_agent.identity.keys import (
    certificate_in,
    load_or_make_key,
    name_in,
    private_pem,
    sign_renewal,
    signing_request,
    validity_s,
    write_private,
)
from edgeship_agent.identity.service import EnrolmentService

NEXT_KEY_FILE: Final = "next-key.pem"
#: Renewed once this share of its life is over.
_RENEW_SHARE: Final = 2.0 / 3.0


def is_due(credentials: Credentials, now_s: float, floor_s: float) -> bool:
    """Whether the certificate should be renewed now; with a clock that was never set, judged by the floor.

    Raises:
        ConfigError: there is no certificate.
    """
    from_s, until_s = validity_s(certificate_in(credentials.identity))
    return max(now_s, floor_s) >= from_s + _RENEW_SHARE * (until_s - from_s)


def renew(credentials: Credentials, url: str, now_s: float, floor_s: float) -> float:
    """Get the next certificate, for a new key; until when it is good, seconds since 1970.

    The next key is on disk before it is named to anybody, so that a lost answer is asked for again.

    Raises:
        ConfigError: a file is missing or damaged.
        TransferError: not reached, or refused.
    """
    folder = credentials.identity.parent
    present, certificate = load_or_make_key(credentials.identity), certificate_in(credentials.identity)
    key = load_or_make_key(folder / NEXT_KEY_FILE)
    csr = signing_request(key, name_in(certificate))
    request = RenewRequest(certificate=_pem(certificate), csr=csr, signature=sign_renewal(present, csr))
    authority = credentials.authority.read_text(encoding="ascii")
    answer = EnrolmentService(url, now_s, floor_s).renew(authority, request)
    write_private(credentials.identity, private_pem(key) + answer.certificate.encode())
    (folder / NEXT_KEY_FILE).unlink()
    return validity_s(certificate_in(credentials.identity))[1]


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
