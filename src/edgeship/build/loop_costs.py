"""Whether a loop is worth writing out step by step: from counts, so that it is the same on any day. Pure."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from msgspec import Struct
from onnx import shape_inference

#: A graph written out is larger: it has to be so much faster than the loop.
_WORTH: Final = 1.5
#: Operators' names in a graph that was written out, up to the step; see unroll.py and unroll_loops.py.
_LOOP_STEP: Final = re.compile(r"(?:.*/)?steps\d+/\d+/")
_LAYER_STEP: Final = re.compile(r"unrolled\d+_\d+_\d+_")
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})


class Costs(Struct, frozen=True, kw_only=True):
    """What a runtime takes, on one thread of an x86-64 core with vectors of 512 bits.

    Attributes:
        step_us: to start a loop's body once more, what the body's small operators take included.
        gathering_us: what a step takes longer in a loop that hands over what each step gave.
        operator_us: of one small operator in a graph without loops.
        product_us: of a million multiplications.
        copied_us: of a million multiplications behind the first million of a graph written out. XNNPACK lays weights
            out anew for each step, and a million of them are 4 MB: more than the second cache holds.
    """

    step_us: float
    gathering_us: float
    operator_us: float
    product_us: float
    copied_us: float


class Counts(Struct, frozen=True, kw_only=True):
    """What a graph that was written out holds.

    Attributes:
        loop_steps: of Loop and Scan, all of them together.
        layer_steps: of LSTM and GRU layers, each direction's.
        operators: of the whole graph.
        multiplications: in matrix products.
    """

    loop_steps: int
    layer_steps: int
    operators: int
    multiplications: int


#: Runtime → costs, from the nets of ADR 0020.
COSTS: Final = {
    "openvino": Costs(step_us=5.0, gathering_us=0.0, operator_us=0.1, product_us=44.0, copied_us=44.0),
    "litert": Costs(step_us=2.4, gathering_us=3.5, operator_us=0.1, product_us=60.0, copied_us=175.0),
}


def counted(document: Any) -> Counts:
    """What an ONNX graph that was written out holds.

    Args:
        document: as :func:`edgeship.build.unroll.unroll` wrote it.
    """
    graph = shape_inference.infer_shapes(document).graph
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
              for value in (*graph.input, *graph.value_info, *graph.output)}  # fmt: skip
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    names = [name for node in graph.node for name in node.output]
    return Counts(
        loop_steps=len({found[0] for name in names if (found := _LOOP_STEP.match(name))}),
        layer_steps=len({found[0] for name in names if (found := _LAYER_STEP.match(name))}),
        operators=len(graph.node),
        multiplications=sum(
            math.prod(shapes.get(node.output[0], [0])) * (shapes.get(node.input[0]) or [0])[-1]
            for node in graph.node if node.op_type in _PRODUCTS
        ),
    )  # fmt: skip


def gain(costs: Costs, counts: Counts, steps: int, gathering: float) -> float:
    """How many times as fast the graph written out is held to be as the loop.

    Args:
        costs: of the runtime.
        counts: of the graph written out.
        steps: that the other form loops through.
        gathering: share of its loops that hand over what each step gave.

    >>> net = Counts(loop_steps=40, layer_steps=0, operators=811, multiplications=184_448)
    >>> round(gain(COSTS["openvino"], net, 40, 0.0), 1), round(gain(COSTS["litert"], net, 40, 0.0), 1)
    (2.3, 1.2)
    """
    millions = counts.multiplications / 1e6
    loop = steps * (costs.step_us + gathering * costs.gathering_us) + millions * costs.product_us
    products = min(millions, 1.0) * costs.product_us + max(millions - 1.0, 0.0) * costs.copied_us
    return loop / (counts.operators * costs.operator_us + products)


def is_worth(costs: Costs, counts: Counts, steps: int, gathering: float) -> bool:
    """Whether a graph written out is so much faster than the loop that its size is worth it; see :func:`gain`."""
    return gain(costs, counts, steps, gathering) >= _WORTH
