"""Which operators may stay in float: the cheap end of a net, what joins outputs, and the worst layers. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from edgeship.build.search.graph import Operator

#: An end that takes no more than this share of a net's multiplications and of its values is left in float at no price
#: that could be measured. Source: ADR 0010.
_CHEAP: Final = 0.03
_SMALL: Final = 0.02
#: Nor may it make the file grow by more than this share of all weights' bytes, unless that is less than a few kB.
_GROWTH: Final = 0.1
_FEW_BYTES: Final = 12_288
_LOGARITHMS: Final = frozenset({"Log", "LOG"})
#: Kinds that scale and shift numbers, and those that only carry them, in the three formats' words.
_SCALES: Final = frozenset({
    "Sub", "SUB", "Subtract", "Add", "ADD", "Mul", "MUL", "Multiply", "Div", "DIV", "Divide",
})  # fmt: skip
_CARRIES: Final = frozenset({
    "Concat", "CONCATENATION", "Reshape", "RESHAPE", "Transpose", "TRANSPOSE", "Identity", "Cast", "CAST", "Convert",
})  # fmt: skip
#: Kinds that put tensors side by side.
_JOINS: Final = frozenset({"Concat", "CONCATENATION", "Pack", "PACK", "Stack"})


def head(operators: Sequence[Operator]) -> tuple[str, ...]:
    """Names of the operators behind the last costly one: pooling, the last product of a classifier, softmax.

    Args:
        operators: sized, in the order of their execution.

    >>> from edgeship.build.search.graph import Layer
    >>> import numpy as np
    >>> body = Operator(name="conv", kind="Conv", inputs=("x",), outputs=("a",), elements=1000, multiplications=9000)
    >>> pool = Operator(name="pool", kind="GlobalAveragePool", inputs=("a",), outputs=("b",), elements=10)
    >>> head([body, pool])
    ('pool',)
    """
    most_products = _CHEAP * sum(each.multiplications for each in operators)
    most_elements = _SMALL * sum(each.elements for each in operators)
    most_bytes = max(_GROWTH / 3 * sum(each.growth_bytes for each in operators), _FEW_BYTES)
    kept: list[str] = []
    read_elsewhere: set[str] = set()
    products = elements = growth = 0
    for operator in reversed(operators):
        products_then = products + operator.multiplications
        elements_then = elements + operator.elements
        growth_then = growth + operator.growth_bytes
        fits = products_then <= most_products and elements_then <= most_elements and growth_then <= most_bytes
        if fits and not read_elsewhere.intersection(operator.outputs):
            kept.append(operator.name)
            products, elements, growth = products_then, elements_then, growth_then
        else:
            read_elsewhere.update(operator.inputs)
    return tuple(reversed(kept)) if len(kept) < len(operators) else ()


def joined_ends(operators: Sequence[Operator]) -> tuple[str, ...]:
    """Names of what joins the outputs, and of everything between it and the layers before it.

    One tensor that holds pixels and scores has one scale, and the scores vanish in it (build.md, trap 12).

    Args:
        operators: in the order of their execution.
    """
    behind: set[str] = set()
    read: set[str] = set()
    inner = {name for each in operators for name in each.inputs}
    for operator in reversed(operators):
        if (operator.layer is not None or operator.multiplications) and operator.kind not in _JOINS:
            continue
        if inner.isdisjoint(operator.outputs) or read.intersection(operator.outputs):
            behind.add(operator.name)
            read.update(operator.inputs)
    names = tuple(each.name for each in operators if each.name in behind)
    joins = any(each.kind in _JOINS for each in operators if each.name in behind)
    return names if joins else ()


def front(operators: Sequence[Operator]) -> tuple[str, ...]:
    """Names of what makes numbers alike that 8 bits cannot hold side by side, before the first layers; mostly none.

    Where a logarithm is followed by a layer, all before that layer: the quiet parts of a spectrum lie thousands of
    times below the loud ones, and a logarithm makes them as large as those. Else what scales and shifts the inputs:
    columns of a table in units of their own, pressures beside temperatures.

    Args:
        operators: in the order of their execution.

    >>> names = [("power", "Mul", 0), ("log", "Log", 0), ("dense", "Gemm", 10), ("end", "Softmax", 0)]
    >>> front([Operator(name=name, kind=kind, inputs=(f"{place}",), outputs=(f"{place + 1}",), fan_in=fan_in)
    ...        for place, (name, kind, fan_in) in enumerate(names)])
    ('power', 'log')
    """
    return _spectra(operators) or (scaling(operators) if any(map(_has_weights, operators)) else ())


def scaling(operators: Sequence[Operator]) -> tuple[str, ...]:
    """Names of what scales and shifts the inputs before anything else computes with them; mostly none.

    Args:
        operators: in the order of their execution.

    >>> steps = [("mean", "Sub", "x"), ("spread", "Mul", "mean"), ("dense", "Gemm", "spread"), ("bias", "Add", "dense")]
    >>> scaling([Operator(name=name, kind=kind, inputs=(reads,), outputs=(name,)) for name, kind, reads in steps])
    ('mean', 'spread')
    """
    made = {name for each in operators for name in each.outputs}
    scaled: set[str] = set()
    kept: list[Operator] = []
    for operator in operators:
        of_inputs = bool(operator.inputs) and all(name in scaled or name not in made for name in operator.inputs)
        if of_inputs and operator.kind in _SCALES | _CARRIES:
            kept.append(operator)
            scaled.update(operator.outputs)
    return tuple(each.name for each in kept) if any(each.kind in _SCALES for each in kept) else ()


def _spectra(operators: Sequence[Operator]) -> tuple[str, ...]:
    """Names of what lies before the first layers behind a logarithm."""
    behind_log: set[str] = set()
    behind_layer: set[str] = set()
    kept: list[Operator] = []
    for operator in operators:
        inputs = set(operator.inputs)
        if inputs & behind_layer or (_has_weights(operator) and inputs & behind_log):
            behind_layer.update(operator.outputs)
            continue
        kept.append(operator)
        if operator.kind in _LOGARITHMS or inputs & behind_log:
            behind_log.update(operator.outputs)
    return tuple(each.name for each in kept) if behind_layer else ()


def _has_weights(operator: Operator) -> bool:
    return operator.layer is not None or operator.fan_in > 0


def worst_first(errors: Mapping[str, float], operators: Sequence[Operator]) -> tuple[str, ...]:
    """Layers by what their error costs for each multiplication saved, the worst first.

    Args:
        errors: layer → by how much the whole net's squared error falls when the layer stays in float.
        operators: sized.
    """
    cost = {each.name: max(each.multiplications, 1) for each in operators}
    gains = {name: error / cost[name] for name, error in errors.items() if error > 0.0}
    return tuple(sorted(gains, key=lambda name: (-gains[name], name)))


def share(names: Collection[str], operators: Sequence[Operator]) -> float:
    """Share of a net's multiplications that these operators do.

    >>> share(["a"], [Operator(name=n, kind="", inputs=(), outputs=(), multiplications=1) for n in "ab"])
    0.5
    """
    total = sum(each.multiplications for each in operators)
    return sum(each.multiplications for each in operators if each.name in names) / total if total else 0.0
