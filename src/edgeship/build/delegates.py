"""How the runtime here splits a built LiteRT file between XNNPACK and its own kernels, in one line of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgeship.build import partitions
from edgeship.build.backends import Artifact
from edgeship.build.cache.memory import Memory
from edgeship.targets import Partitions, RuntimeEntry
from edgeship_agent.contract.errors import ConversionError

_PROVIDER: Final = "XNNPACK"
_MOST_KINDS: Final = 4


def note_of(entry: RuntimeEntry, artifact: Artifact, memory: Memory) -> tuple[str, ...]:
    """The line; nothing for other runtimes, and for microcontrollers, which have no delegate.

    Args:
        entry: the target's runtime.
        artifact: a file of it.
        memory: of earlier builds, so that a runtime is asked once.
    """
    if artifact.runtime != "litert" or entry.is_micro:
        return ()
    key = {"provider": _PROVIDER, "artifact": memory.key_of(artifact)}
    try:
        found = memory.figures("partitions", key, Partitions, lambda: _asked(artifact.model))
    except ConversionError as error:
        found = Partitions(provider=_PROVIDER, refused=error.message)
    return (words(found),)


def _asked(model: Path) -> Partitions:
    """What the runtime says.

    Raises:
        ConversionError: it did not load the file, for reasons that may be the machine's: they are not remembered.
    """
    found = partitions.of_model("litert", _PROVIDER, model)
    if found.refused:
        refusal = ConversionError(found.refused)
        refusal.passing = True
        raise refusal
    return found


def words(found: Partitions) -> str:
    """A split in words.

    >>> words(Partitions(provider="XNNPACK", count=2, inside=9, outside={"SOFTMAX": 1}))
    '9 of 10 operators in 2 XNNPACK partitions; outside: SOFTMAX'
    >>> words(Partitions(provider="XNNPACK", count=1, inside=3))
    '3 of 3 operators in 1 XNNPACK partition'
    """
    if found.refused:
        return f"not known how {found.provider} splits it: {found.refused}"
    total = found.inside + sum(found.outside.values())
    pieces = f"{found.count} {found.provider} partition{'' if found.count == 1 else 's'}"
    kinds = [f"{kind} × {count}" if count > 1 else kind for kind, count in found.outside.items()]
    more = f" and {len(kinds) - _MOST_KINDS} more kinds" if len(kinds) > _MOST_KINDS else ""
    outside = f"; outside: {', '.join(kinds[:_MOST_KINDS])}{more}" if kinds else ""
    return f"{found.inside} of {total} operators in {pieces}{outside}"
