"""What a device shows to its fleet, and TLS contexts made of it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError

IDENTITY_FILE: Final = "identity.pem"
AUTHORITY_FILE: Final = "authority.pem"
#: Chain and name are verified, dates are not. Source: OpenSSL, X509_VERIFY_PARAM_set_flags(3).
_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)


class Credentials(Struct, frozen=True, kw_only=True):
    """Files of a member of a fleet.

    Attributes:
        identity: private key and certificate in one PEM file, so that both change in one rename; mode 0600.
        authority: certificate of the fleet's authority, PEM.
    """

    identity: Path
    authority: Path

    @classmethod
    def inside(cls, folder: Path) -> Credentials:
        """Where they lie in the folder of a device's identity."""
        return cls(identity=folder / IDENTITY_FILE, authority=folder / AUTHORITY_FILE)


def client_context(credentials: Credentials, now_s: float, floor_s: float) -> ssl.SSLContext:
    """TLS to a server or broker of the fleet: TLS 1.2 or newer, its name and our certificate verified.

    Args:
        credentials: of this device; read now, so that a renewed certificate is used from the next connection on.
        now_s: the device's clock, seconds since 1970.
        floor_s: no right clock shows less. One that does was never set: dates cannot be judged then, and are not.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    try:
        context = authority_context(credentials.authority.read_text(encoding="ascii"), now_s, floor_s)
        context.load_cert_chain(str(credentials.identity))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the identity of this device cannot be used: {reason}", file=credentials.identity,
            next_step="edgeship-agent enroll URL --token TOKEN",
        ) from error  # fmt: skip
    return context


def authority_context(authority_pem: str, now_s: float, floor_s: float) -> ssl.SSLContext:
    """TLS to a server that a fleet's authority vouches for, without a certificate of ours.

    Raises:
        ssl.SSLError: not a certificate.
    """
    context = ssl.create_default_context(cadata=authority_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if now_s < floor_s:
        context.verify_flags |= _NO_CHECK_TIME
    return context
