"""Which candidates a search tries, in waves: each wave starts from what the last one found. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct, structs

from edgeship.build.backends.base import Scheme
from edgeship.build.search import floats
from edgeship.build.search.graph import Operator

#: Candidates that a search tries however large the graph is: plain types, another range, rounded weights.
_FEWEST_TRIED: Final = 6
EFFORTS: Final = ("quick", "normal", "thorough")


class Effort(Struct, frozen=True, kw_only=True):
    """How much a search may try. Counts and not seconds: the same inputs must give the same choice on a busy machine.

    Attributes:
        estimators: of ranges.
        roundings: of weights, besides to nearest.
        suspects: layers that are tried in float.
        float_share: share of a net's multiplications that such layers may take.
        proxy_samples: samples on which every candidate is judged, 0 for all; survivors see the whole selection part.
        survivors: candidates that see it.
        tools: other quantizers for the same runtime: NNCF for ONNX files, and its own bias corrections.
        per_tensor: whether the winner is also made with one scale for all weights of a layer.
        symmetric: whether the best is also made without zero points, or with them.
        work: operators × candidates that a search may go through; see :func:`most_tried`.
    """

    estimators: tuple[str, ...]
    roundings: tuple[str, ...]
    suspects: int
    float_share: float
    proxy_samples: int
    survivors: int
    tools: tuple[str, ...] = ()
    per_tensor: bool = True
    symmetric: bool = True
    work: int = 10_000


EFFORT: Final = {
    "quick": Effort(estimators=("minmax", "p99.999"), roundings=("compensated",), suspects=0, float_share=0.0,
                    proxy_samples=16, survivors=2, per_tensor=False),
    "normal": Effort(estimators=("minmax", "p99.999", "p99.99", "mse"), roundings=("compensated",), suspects=3,
                     float_share=0.04, proxy_samples=128, survivors=4, tools=("nncf",), work=40_000),
    "thorough": Effort(
        estimators=("minmax", "p99.999", "p99.99", "p99.9", "mse", "mean", "average"),
        roundings=("compensated", "corrected"), suspects=12, float_share=0.1, proxy_samples=128, survivors=8,
        tools=("nncf", "fast", "full"), work=160_000,
    ),
}  # fmt: skip


def most_tried(effort: Effort, operator_count: int) -> int:
    """Candidates that may be tried on few samples: fewer of a graph of a thousand operators, whose every file is dear.

    A count and not a time: the same graph gets the same candidates on a busy machine.

    Args:
        effort: that was asked for.
        operator_count: of the float file.

    >>> most_tried(EFFORT["quick"], 40), most_tried(EFFORT["quick"], 1_250), most_tried(EFFORT["quick"], 9_000)
    (250, 8, 6)
    """
    return max(effort.work // max(operator_count, 1), _FEWEST_TRIED)


class Part(Struct, frozen=True, kw_only=True):
    """Operators that stay in float together.

    Attributes:
        exact: those of them whose weights stay in float too.
    """

    word: str
    names: tuple[str, ...]
    exact: tuple[str, ...] = ()


def parts(operators: Sequence[Operator]) -> tuple[Part, ...]:
    """The cheap end of a net, and what joins its outputs; none where there is no such thing."""
    head, joined = floats.head(operators), floats.joined_ends(operators)
    found = {"head": head, "ends": joined, "head+ends": tuple(dict.fromkeys((*head, *joined)))}
    if not (head and joined):
        del found["head+ends"]
    return tuple(Part(word=word, names=names) for word, names in found.items() if names)


def fronts(operators: Sequence[Operator]) -> tuple[Part, ...]:
    """What makes spectra or scales the inputs, alone and with each other part; none where nothing does.

    It is no cheap part: its weights stay as large as they are. It is for nets that do not hold without it.
    """
    front = floats.front(operators)
    if not front:
        return ()
    both = (Part(word=f"front+{each.word}", names=tuple(dict.fromkeys((*front, *each.names))), exact=front)
            for each in parts(operators))  # fmt: skip
    return (Part(word="front", names=front, exact=front), *both)


def ranges_wave(base: Scheme, effort: Effort) -> list[Scheme]:
    """Where ranges come from, everything else being plain."""
    return [structs.replace(base, estimator=name) for name in effort.estimators]


def rounding_wave(base: Scheme, effort: Effort, found: Sequence[Part]) -> list[Scheme]:
    """The same ranges again, with rounded weights and each float part: what is best alone is rarely best together."""
    return [
        in_float(structs.replace(base, estimator=estimator, rounding=rounding), part)
        for rounding in effort.roundings
        for part in (found or (None,))
        for estimator in effort.estimators
    ]


def around_wave(best: Scheme, effort: Effort, found: Sequence[Part]) -> list[Scheme]:
    """The best so far with one thing taken away or changed."""
    bare = in_float(best, None)
    near = [bare, structs.replace(best, rounding="nearest")]
    near += [structs.replace(best, symmetric=not best.symmetric)] if effort.symmetric else []
    near += [in_float(best, part) for part in found]
    if len(effort.roundings) > 1:
        near.append(structs.replace(best, rounding="corrected"))
    return near


def suspects(operators: Sequence[Operator], best: Scheme, effort: Effort) -> tuple[str, ...]:
    """Layers that are tried in float: those that cost least, the first and the last among them.

    Args:
        operators: sized.
        best: what stays in float already is no suspect.
        effort: how many, and how much they may cost.
    """
    layers = [each for each in operators if each.layer is not None and each.name not in best.floats]
    affordable = [each for each in layers if floats.share([each.name], operators) <= effort.float_share]
    ends = [each.name for each in (layers[:1] + layers[-1:]) if each in affordable]
    cheap = [each.name for each in sorted(affordable, key=lambda each: each.multiplications)]
    return tuple(dict.fromkeys([*ends, *cheap]))[: effort.suspects]


def in_float(scheme: Scheme, part: Part | None) -> Scheme:
    """A scheme with another float part.

    >>> in_float(Scheme(), Part(word="head", names=("pool",))).text
    's8s8 per channel, min–max, head in float'
    """
    if part is None:
        return structs.replace(scheme, floats=(), exact=(), part="")
    return structs.replace(scheme, floats=part.names, exact=part.exact, part=part.word)


def with_layers(scheme: Scheme, names: Sequence[str]) -> Scheme:
    """A scheme with more layers in float.

    >>> with_layers(Scheme(part="head", floats=("pool",)), ["a", "b"]).text
    's8s8 per channel, min–max, head and 2 layers (a, b) in float'
    """
    if not names:
        return scheme
    words = f"{len(names)} layer{'s' if len(names) > 1 else ''} ({', '.join(names)})"
    part = f"{scheme.part} and {words}" if scheme.part else words
    return structs.replace(scheme, floats=(*scheme.floats, *names), part=part)
