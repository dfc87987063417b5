"""How a device becomes a member of a fleet: the token that an operator hands out, and what is said over HTTPS.

A token names the fleet's certificate authority by its fingerprint, so that a device that has nothing else yet talks to
no other server, and carries a secret, so that the server lets in no other device.
"""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct, field

from edgeship_agent.contract.errors import ConfigError

ENROL_VERSION: Final = 1
#: Where the enrolment service answers.
AUTHORITY_PATH: Final = "/enrol/v1/authority"
ENROL_PATH: Final = "/enrol/v1/devices"
RENEW_PATH: Final = "/enrol/v1/renewals"
#: The broker's name for the server itself; no device may have it.
SERVER_NAME: Final = "edgeship-server"
#: What a renewal is signed over, before the request itself: a signature for one purpose is worth nothing for another.
RENEWAL_CONTEXT: Final = b"edgeship renewal v1\n"
_FINGERPRINT_DIGITS: Final = 32
_TOKEN: Final = re.compile(r"es1\.([0-9a-f]{32})\.([a-z2-7]{26,64})")


class Token(Struct, frozen=True, kw_only=True):
    """An invitation.

    Attributes:
        authority: first 128 bits of the SHA-256 of the authority's certificate (DER), hexadecimal.
        secret: base32, at least 130 bits.
    """

    authority: str
    secret: str

    @property
    def text(self) -> str:
        """As it is handed out.

        >>> Token(authority="ab" * 16, secret="a" * 26).text
        'es1.abababababababababababababababab.aaaaaaaaaaaaaaaaaaaaaaaaaa'
        """
        return f"es1.{self.authority}.{self.secret}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token back.

        Raises:
            ConfigError: not a token; what was given is not repeated, since it may be a secret.
        """
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                "not an enrolment token", key="--token", expected="es1.AUTHORITY.SECRET",
                next_step="edgeship devices enroll, on the server, prints one",
            )  # fmt: skip
        return cls(authority=match[1], secret=match[2])


def short_fingerprint(digest: str) -> str:
    """What a token holds of a SHA-256 in hexadecimal digits."""
    return digest[:_FINGERPRINT_DIGITS]


class EnrolRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device asks to be let in; asking again with the same key is answered the same way.

    Attributes:
        secret: of the token.
        csr: certificate signing request, PEM; its key never leaves the device.
        target: id of the target, for the operator to see.
    """

    schema_version: int = ENROL_VERSION
    secret: str
    device_id: str
    csr: str
    target: str = ""


class RenewRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A member asks for a new certificate.

    Attributes:
        certificate: the present one, PEM.
        csr: for the next key, PEM.
        signature: by the present key over :data:`RENEWAL_CONTEXT` and the bytes of ``csr``, hexadecimal.
    """

    schema_version: int = ENROL_VERSION
    certificate: str
    csr: str
    signature: str


class EnrolAnswer(Struct, frozen=True, kw_only=True):
    """What a device needs to live in the fleet.

    Attributes:
        state: ``enrolled`` or ``pending`` (an operator has to approve; nothing else is filled in then).
        certificate: for the key of the request, PEM.
        authority: certificate of the fleet's authority, PEM.
        root: root metadata of the update repository, JSON.
        goal_key: raw Ed25519 public key, hexadecimal.
        server_url: where bundles come from.
        broker_url: where goals come from and telemetry goes.
        tags: of the group that the token is bound to; the server holds a device to them.
    """

    schema_version: int = ENROL_VERSION
    state: str
    certificate: str = ""
    authority: str = ""
    root: str = ""
    goal_key: str = ""
    server_url: str = ""
    broker_url: str = ""
    tags: dict[str, str] = field(default_factory=dict)
