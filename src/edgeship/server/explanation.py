"""What an explanation is made of, the same for rollouts, incidents and refusals."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

#: Outcomes of recomputing a decision from its stored evidence.
IDENTICAL: Final = "identical"
DIFFERENT: Final = "different"
LIVE: Final = "not decided yet"
GONE: Final = "evidence is gone"


class Rule(Struct, frozen=True, kw_only=True):
    """One rule and what it found; fields as in :class:`edgeship.rollout.GateResult`."""

    id: str
    rule: str
    value: float | None
    limit: float | None
    low: float | None
    high: float | None
    n: int
    holds: bool | None
    devices: tuple[str, ...]
    sentence: str
    model: str = ""


class Explanation(Struct, frozen=True, kw_only=True):
    """Why something was decided.

    Attributes:
        sentence: the decision in words.
        state: what became of it.
        window: which data it looked at.
        rules: the ones that decided it first.
        advice: what to do, in words.
        replay: what recomputing it from the stored evidence gave: ``identical``, ``different``, ``not decided yet`` or
            ``evidence is gone``.
        history: earlier decisions about it, newest first.
        next_steps: commands.
    """

    schema_version: int = 1
    id: str
    sentence: str
    state: str
    decided_at_s: float
    window: str
    rules: list[Rule]
    advice: str
    replay: str
    history: list[str] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)


def replayed(is_same: bool) -> str:
    """The outcome of a replay in words.

    >>> replayed(True)
    'identical'
    """
    return IDENTICAL if is_same else DIFFERENT
