"""``ssh://user@host:port``: which device is meant. Pure."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError

#: Nothing that a shell or ssh could take for more than a name: no leading hyphen, no space, no quote.
_ADDRESS: Final = re.compile(
    r"ssh://(?P<user>[A-Za-z_][A-Za-z0-9_.-]{0,31})@"
    r"(?:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)|\[(?P<literal>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)
_MAX_PORT: Final = 65535


class Address(Struct, frozen=True, kw_only=True):
    """A device and the account on it.

    Attributes:
        port: 0 for ssh's own choice, which its configuration may change.
    """

    user: str
    host: str
    port: int = 0

    @property
    def text(self) -> str:
        """``user@host``, with the port where one was named."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" + (f":{self.port}" if self.port else "")


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        ConfigError: it is none.

    >>> parse_address("ssh://pi@kitchen.local:2222").text
    'pi@kitchen.local:2222'
    >>> parse_address("ssh://root@[fe80::1]").host
    'fe80::1'
    """
    found = _ADDRESS.fullmatch(text)
    port = int(found["port"] or 0) if found else 0
    if found is None or port > _MAX_PORT or (found["port"] and not port):
        raise ConfigError("not the address of a device", key="--measure", expected="ssh://user@host or "
                          "ssh://user@host:port", got=repr(text),
                          next_step="name the account and the device, as in ssh://pi@raspberrypi.local")  # fmt: skip
    return Address(user=found["user"], host=found["name"] or found["literal"], port=port)
