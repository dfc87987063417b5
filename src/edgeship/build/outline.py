"""Operators without their weights: what a search asks of them, small enough to be remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.search.graph import Layer, Operator

#: Stands for weights that nobody reads: a search asks only whether there are some.
_SOME: Final = Layer(weight=np.zeros((1, 1), np.float32), convolution=False)


class Outline(Struct, frozen=True, kw_only=True):
    """One operator; see :class:`~edgeship.build.search.graph.Operator`.

    Attributes:
        weighted: whether it has weights.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weighted: bool
    elements: int
    multiplications: int
    growth_bytes: int


def outlined(operators: Sequence[Operator]) -> tuple[Outline, ...]:
    """Without weights."""
    return tuple(
        Outline(name=each.name, kind=each.kind, inputs=each.inputs, outputs=each.outputs,
                weighted=each.layer is not None, elements=each.elements, multiplications=each.multiplications,
                growth_bytes=each.growth_bytes)
        for each in operators
    )  # fmt: skip


def restored(outlines: Sequence[Outline]) -> tuple[Operator, ...]:
    """As a search takes them.

    >>> one = Operator(name="a", kind="Relu", inputs=("x",), outputs=("y",), elements=8)
    >>> restored(outlined([one])) == (one,)
    True
    """
    return tuple(
        Operator(name=each.name, kind=each.kind, inputs=each.inputs, outputs=each.outputs,
                 layer=_SOME if each.weighted else None, elements=each.elements, multiplications=each.multiplications,
                 growth_bytes=each.growth_bytes)
        for each in outlines
    )  # fmt: skip
