"""Where a broker listens, and how long to wait before it is tried again."""

from __future__ import annotations

import random
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from edgeship_agent.contract.errors import ConfigError

#: Scheme → its usual port: MQTT, MQTT over TLS, MQTT over WebSockets over TLS.
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "wss": 443}


class Address(Struct, frozen=True, kw_only=True):
    """Where a broker listens.

    Attributes:
        tls: whether it speaks TLS.
        path: of MQTT over WebSockets; empty for MQTT over TCP.
    """

    host: str
    port: int
    tls: bool = False
    path: str = ""


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
    """The address in ``mqtt://host[:port]``, ``mqtts://host[:port]`` or ``wss://host[:port][/path]``.

    Raises:
        ConfigError: another scheme, or no host.

    >>> parse_address("mqtt://127.0.0.1").port, parse_address("mqtts://fleet.example.org").port
    (1883, 8883)
    >>> parse_address("wss://fleet.example.org").path
    '/mqtt'
    """
    parts = urlsplit(url)
    try:
        port = _PORTS.get(parts.scheme, 0) if parts.port is None else parts.port
    except ValueError:
        port = 0
    if parts.scheme not in _PORTS or not parts.hostname or not port:
        raise ConfigError("not a broker address", key="broker_url", expected="mqtts://HOST:PORT", got=url)
    path = (parts.path.rstrip("/") or "/mqtt") if parts.scheme == "wss" else ""
    return Address(host=parts.hostname, port=port, tls=parts.scheme != "mqtt", path=path)
