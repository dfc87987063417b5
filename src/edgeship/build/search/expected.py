"""How many candidates a search will try, for a clock that says how long it still takes. Pure."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edgeship.build.backends.base import Scheme
from edgeship.build.search import space
from edgeship.build.search.engine import MOST_LAYERS
from edgeship.build.search.graph import Operator
from edgeship.build.search.space import Effort


def most_candidates(
    bases: Sequence[Scheme], operators: Sequence[Operator], effort: Effort, most: int = sys.maxsize
) -> int:
    """Attempts of all waves, the second look at the survivors included.

    A search that is close enough ends earlier; one that comes within no limit tries more layers in float.

    Args:
        bases: plain schemes by type.
        operators: of the float file, sized; none where nothing may stay in float.
        effort: how much may be tried.
        most: candidates that are tried on few samples.

    >>> most_candidates([Scheme(), Scheme(activation="uint8")], [], space.EFFORT["quick"])
    11
    """
    first = bases[0]
    parts, fronts = space.parts(operators), space.fronts(operators)
    waves = len(bases) - 1 + sum(map(len, (space.ranges_wave(first, effort), space.rounding_wave(first, effort, parts),
                                           space.around_wave(first, effort, parts))))  # fmt: skip
    waves += len(space.rounding_wave(first, effort, fronts)) if fronts else 0
    # the types with the ends in float, where plain ones lose an output
    again = (len(bases) - 1) * (len(parts) + len(fronts))
    suspects = len(space.suspects(operators, first, effort))
    layers = suspects + min(suspects, MOST_LAYERS)
    tools = len(effort.tools) * (3 if parts else 2)
    finals = effort.survivors + len(bases) - 1 + effort.per_tensor + len(effort.tools) + bool(parts)
    return min(waves + again + layers + tools, most) + finals
