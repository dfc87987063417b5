"""Several looks at the same claim: each has its own share of the error that all of them together may make."""

from __future__ import annotations

from typing import Final

from edgeship_agent.contract.errors import InputError

#: How often, at most, something worse than the margin may pass by any of the looks: one-sided.
FAMILY_ERROR: Final = 0.05


def confidence_of_look(position: int, claims: int = 1) -> float:
    """Two-sided confidence of the ``position``-th look (from 1) in an order that was fixed before the data were seen.

    The first look has the ordinary 95 % interval, each further one half the error of the one before. The errors of the
    upper ends, each half of 1 − confidence, then add up to less than :data:`FAMILY_ERROR`, however many looks there are
    and however they depend on each other, and no number of looks must be known beforehand. A plain fixed
    sequence, in which every look keeps the whole error, does not apply: it stops at the first look that proves nothing,
    and a ladder of fallbacks goes on there.

    Args:
        position: of the look.
        claims: how many share the error that is allowed, where each may be looked at several times.

    Raises:
        InputError: a position or a number of claims below 1.

    Source: B. L. Wiens (2003), A fixed sequence Bonferroni procedure for testing multiple endpoints, Pharmaceutical
    Statistics 2, 211–215; ADR 0009.

    >>> [confidence_of_look(position) for position in (1, 2, 3)]
    [0.95, 0.975, 0.9875]
    >>> confidence_of_look(1, claims=2)
    0.975
    """
    for key, value in (("position", position), ("claims", claims)):
        if value < 1:
            raise InputError("not a count", key=key, expected="≥ 1", got=value)
    return 1.0 - FAMILY_ERROR / (claims * 2.0 ** (position - 1))
