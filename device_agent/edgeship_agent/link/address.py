"""Where a broker listens, and how long to wait before it is tried again."""

from __future__ import annotations

import random
from urllib.parse import urlsplit

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError


class Address(Struct, frozen=True, kw_only=True):
    """Where a broker listens."""

    host: str
    port: int


class Backoff(Struct, frozen=True, kw_only=True):
    """Pauses between attempts to connect: doubling from the first to the longest, each cut by up to half at random."""

    start_s: float = 0.2
    max_s: float = 60.0

    def pause_s(self, failures: int, rng: random.Random) -> float:
        """The pause after that many failures in a row (from 1).

        >>> 0.4 <= Backoff().pause_s(3, random.Random(0)) <= 0.8
        True
        """
        longest_s: float = min(self.start_s * 2.0 ** min(failures - 1, 30), self.max_s)
        return longest_s * rng.uniform(0.5, 1.0)


def parse_address(url: str) -> Address:
    """The address in ``mqtt://host[:port]``.

    Raises:
        ConfigError: another scheme, or no host.

    >>> parse_address("mqtt://127.0.0.1").port
    1883
    """
    parts = urlsplit(url)
    try:
        port = parts.port or 1883
    except ValueError:
        port = 0
    if parts.scheme != "mqtt" or not parts.hostname or not port:
        raise ConfigError("not a broker address", key="broker_url", expected="mqtt://HOST:PORT", got=url)
    return Address(host=parts.hostname, port=port)
