"""Masks before a softmax: values so low that they stand for "not this one". Pure.

A mask is minus infinity, or −10,000, or the lowest number that there is. Counted like other values, it leaves the
scores beside it one step of 8 bits; left out, it becomes the lowest score, and takes its share of the softmax. What
such a value has to be is low enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from edgeship.build.search.graph import Operator
from edgeship.build.search.ranges import Range

#: At or below this, a value on the way to a softmax stands for none, if others of its sample lie above.
MASKED: Final = -50.0
#: By so much a masked score lies below all others: its share of the softmax is at most e⁻¹², .000006.
BELOW: Final = 12.0
#: What a constant that masks is at least in 8 bits; the ranges of the tensors around it are narrower still.
LOWEST: Final = -128.0
_SOFTMAX: Final = frozenset({"Softmax", "LogSoftmax", "SOFTMAX", "LOG_SOFTMAX"})
#: Operators that hand values on as they are, in the formats' words.
_MOVES: Final = frozenset({
    "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Broadcast", "Identity", "Slice", "StridedSlice", "Tile",
    "Where", "Select", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "BROADCAST_TO", "STRIDED_SLICE", "SLICE",
    "TILE", "SELECT", "SELECT_V2",
})  # fmt: skip
_SUMS: Final = frozenset({"Add", "ADD"})
#: With one input that is computed, they scale it: converters spread a tensor so, or make a mask of zeros and ones.
_PRODUCTS: Final = frozenset({"Mul", "Multiply", "MUL"})


class Logits(Struct, frozen=True, kw_only=True):
    """Tensors on the way to a softmax.

    Attributes:
        scores: what a softmax reads, moved at most.
        terms: what scores are sums of.
    """

    scores: frozenset[str]
    terms: frozenset[str]

    def __contains__(self, name: object) -> bool:
        return name in self.scores or name in self.terms


def logits_of(operators: Iterable[Operator]) -> Logits:
    """Find them, from each softmax backwards.

    >>> add = Operator(name="add", kind="Add", inputs=("q", "mask"), outputs=("sum",))
    >>> softmax = Operator(name="softmax", kind="Softmax", inputs=("sum",), outputs=("y",))
    >>> found = logits_of([add, softmax])
    >>> sorted(found.scores), sorted(found.terms)
    (['sum'], ['mask', 'q'])
    """
    made_by: dict[str, Operator] = {}
    waiting: list[tuple[str, bool]] = []
    for operator in operators:
        made_by.update(dict.fromkeys(operator.outputs, operator))
        if operator.kind in _SOFTMAX:
            waiting += [(name, False) for name in operator.inputs]
    seen: set[tuple[str, bool]] = set()
    while waiting:
        name, is_term = waiting.pop()
        if (name, is_term) in seen:
            continue
        seen.add((name, is_term))
        maker = made_by.get(name)
        if maker is not None and (maker.kind in _MOVES | _SUMS or _scales(maker)):
            waiting += [(each, is_term or maker.kind not in _MOVES) for each in maker.inputs]
    terms = frozenset(name for name, is_term in seen if is_term)
    return Logits(scores=frozenset(name for name, _ in seen) - terms, terms=terms)


def pure(ranges: Mapping[str, Range], lowest: Mapping[str, float]) -> frozenset[str]:
    """Tensors of nothing but zeros and masked values; whatever made them by a product had a mask for its factor.

    Args:
        ranges: of every tensor, masked values left out, with no room for them.
        lowest: see :func:`with_room`.

    >>> sorted(pure({"mask": (0.0, 0.0), "scores": (-2.0, 3.0)}, {"mask": -1e9, "scores": -1e9}))
    ['mask']
    """
    return frozenset(name for name in lowest if ranges[name] == (0.0, 0.0))


def _scales(operator: Operator) -> bool:
    return operator.kind in _PRODUCTS and len(operator.inputs) == 1


def with_room(ranges: Mapping[str, Range], lowest: Mapping[str, float], logits: Logits) -> dict[str, Range]:
    """Ranges with room for masked values where there were some.

    A masked score lies below all others. A masked term lies so low that its sum with the highest of others does.

    Args:
        ranges: of every tensor, masked values left out.
        lowest: tensor on the way to a softmax that had masked values → the lowest of them.
        logits: which tensors are scores, and which are terms of them.
    """
    spans = [ranges[name][1] - ranges[name][0] for name in logits.scores | logits.terms if name in ranges]
    span = max(spans, default=0.0)
    found = dict(ranges)
    for name, masked in lowest.items():
        low, high = ranges[name]
        room = BELOW + (span if name in logits.terms else 0.0)
        found[name] = (max(low - room, masked), high)
    return found
