"""Which arm answers a request: the same key always the same arm. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

_WHOLE: Final = float(1 << 64)


def place_of(salt: str, key: str) -> float:
    """Where a key lies between 0 and 1: evenly spread, and independent from one salt to the next.

    >>> place_of("r1", "user-1") == place_of("r1", "user-1") != place_of("r2", "user-1")
    True
    """
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=8, key=blake2b(salt.encode()).digest())
    return int.from_bytes(digest.digest(), "big") / _WHOLE


def arm_of(place: float, others: Sequence[tuple[str, float]]) -> str | None:
    """The arm for a place; None for the arm that answers the rest.

    The others' shares are taken from the upper end: where a share grows, keys that were in it stay in it.

    Args:
        place: of the key, in [0, 1).
        others: (arm, share) of every arm but the one that gets the rest.

    >>> arm_of(0.95, [("b", 0.1)]), arm_of(0.89, [("b", 0.1)]), arm_of(0.89, [("b", 0.2)])
    ('b', None, 'b')
    """
    lower = 1.0
    for arm, share in others:
        lower -= share
        if place >= lower and share > 0.0:
            return arm
    return None
