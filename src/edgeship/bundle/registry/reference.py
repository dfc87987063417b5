"""``REGISTRY/REPOSITORY:TAG``: where a bundle stands in a registry. Pure.

Source: OCI distribution specification 1.1, "Pulling manifests", for the forms of ``<name>`` and ``<reference>``.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from msgspec import Struct

from edgeship_agent.contract import oci
from edgeship_agent.contract.errors import ConfigError

_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_MAX_REPOSITORY: Final = 255
#: The name that people write, and the host that answers.
_HOSTS: Final = {"docker.io": "registry-1.docker.io"}
_FORM: Final = "REGISTRY/REPOSITORY:TAG, such as registry.example.com/team/gauge:1.0.0"


class Reference(Struct, frozen=True, kw_only=True):
    """A place in a registry.

    Attributes:
        registry: host and port, as the user wrote them.
        tag: empty where a digest or nothing was given.
        digest: empty where a tag or nothing was given.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference.

        Raises:
            ConfigError: it has another form.

        >>> Reference.parse("localhost:5000/team/gauge:1.0")
        Reference(registry='localhost:5000', repository='team/gauge', tag='1.0', digest='')
        >>> Reference.parse("[::1]:5000/gauge").host
        '::1'
        """
        rest, _, digest = text.partition("@")
        registry, slash, path = rest.partition("/")
        repository, colon, tag = path.partition(":")
        fits = (
            slash
            and _HOST.fullmatch(registry)
            and _REPOSITORY.fullmatch(repository)
            and len(repository) <= _MAX_REPOSITORY
            and (not colon or _TAG.fullmatch(tag))
            and ("@" not in text or re.fullmatch(r"sha256:[0-9a-f]{64}", digest))
        )
        if not fits:
            raise ConfigError("not a place in a registry", expected=_FORM, got=repr(text[:120]),
                              next_step="write host, repository (lower case) and tag")  # fmt: skip
        return cls(registry=registry, repository=repository, tag="" if digest else tag, digest=digest)

    @property
    def host(self) -> str:
        """The registry without its port and brackets."""
        if self.registry.startswith("["):
            return self.registry[1:].partition("]")[0]
        return self.registry.partition(":")[0]

    @property
    def address(self) -> str:
        """Host and port that answer for the registry."""
        return _HOSTS.get(self.registry, self.registry)

    @property
    def name(self) -> str:
        """Tag or digest, as the distribution API takes it."""
        return self.digest or self.tag

    def __str__(self) -> str:
        if self.digest:
            return f"{self.registry}/{self.repository}@{self.digest}"
        return f"{self.registry}/{self.repository}" + (f":{self.tag}" if self.tag else "")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, where plain HTTP shows nothing to anyone.

    >>> is_loopback("localhost"), is_loopback("127.0.0.9"), is_loopback("::1"), is_loopback("localhost.example.com")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def fallback_tag(digest: str) -> str:
    """The tag under which referrers are listed where a registry does not list them itself.

    Source: OCI distribution specification 1.1, "Referrers Tag Schema".

    >>> fallback_tag("sha256:" + "a" * 64)[:12]
    'sha256-aaaaa'
    """
    return oci.check_digest(digest).replace(":", "-")


def tag_of_version(version: str) -> str:
    """A version as a tag: ``+`` has no place in one.

    >>> tag_of_version("1.0.0+build.7")
    '1.0.0_build.7'
    """
    return version.replace("+", "_")
