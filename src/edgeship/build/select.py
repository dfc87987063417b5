"""Choosing what ships to one target. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from edgeship.build.schema import GateReport

#: Worst first.
_ORDER = ("fail", "inconclusive", "pass")


class Judged(Struct, frozen=True, kw_only=True):
    """A candidate with its verdict.

    Attributes:
        label: ``target/runtime/precision``.
        fallbacks: what was given up to build it; ``--strict`` does not accept any.
    """

    label: str
    verdict: str
    gates: tuple[GateReport, ...]
    fallbacks: tuple[str, ...] = ()


class Choice(Struct, frozen=True, kw_only=True):
    """What was decided for a target.

    Attributes:
        chosen: label of what ships, or empty.
        reason: in one sentence.
    """

    verdict: str
    chosen: str
    reason: str


def choose(candidates: Sequence[Judged], *, strict: bool, refused: Sequence[str] = ()) -> Choice:
    """The first candidate that holds to every rule.

    Args:
        candidates: in order of preference, fp32 last.
        strict: anything but the first choice, built without a fallback, is a failure.
        refused: sentences about candidates that could not be built at all.

    >>> int8 = Judged(label="t/litert/int8", verdict="inconclusive", gates=())
    >>> fp32 = Judged(label="t/litert/fp32", verdict="pass", gates=())
    >>> choose([int8, fp32], strict=False).chosen
    't/litert/fp32'
    >>> choose([int8], strict=False).verdict
    'inconclusive'
    >>> choose([], strict=False, refused=["t/litert/int8: too large"]).reason
    't/litert/int8: too large'
    """
    passed = next((each for each in candidates if each.verdict == "pass"), None)
    if passed is None:
        verdict = max((each.verdict for each in candidates), key=_ORDER.index, default="fail")
        reasons = [f"{each.label}: {why}" for each in candidates for why in broken(each.gates)[:1]]
        return Choice(verdict=verdict, chosen="", reason="; ".join((*refused, *reasons)))
    gave_up = [*refused, *(f"{each.label}: {why}" for each in _before(candidates, passed)
                           for why in broken(each.gates)[:1]), *passed.fallbacks]  # fmt: skip
    if strict and gave_up:
        return Choice(verdict="fail", chosen="", reason=f"strict: {gave_up[0]}")
    reason = "holds to every rule" if not gave_up else f"the next that holds to every rule; {gave_up[0]}"
    return Choice(verdict="pass", chosen=passed.label, reason=reason)


def broken(gates: Sequence[GateReport]) -> list[str]:
    """Sentences of the rules that do not hold, broken ones before undecided ones."""
    return [gate.sentence for gate in gates if gate.holds is False] + [
        gate.sentence for gate in gates if gate.holds is None
    ]


def overall(verdicts: Sequence[str]) -> str:
    """The build's verdict: any ``fail``, else any ``inconclusive``, else ``pass``.

    >>> overall(["pass", "inconclusive"])
    'inconclusive'
    """
    return min(verdicts, key=_ORDER.index)


def _before(candidates: Sequence[Judged], one: Judged) -> Sequence[Judged]:
    return candidates[: list(candidates).index(one)]
