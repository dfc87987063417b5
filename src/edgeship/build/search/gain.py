"""Whether int8 can gain anything on a graph of thousands of operators, whose every candidate takes long. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeship.build.search.graph import PRODUCTS, Operator

#: Graphs of fewer operators are searched in any case: their candidates are cheap.
_MANY: Final = 1_000
#: Bytes that a quantizer adds to a file of OpenVINO, which describes each with its four constants in XML: 1,702 in a
#: graph with 1,484 of them, 2,000 in one with 168. Source: ADR 0020.
_QUANTIZER_BYTES: Final = 1_700
#: Precision → share of the float weights' bytes that is gone.
_SAVED: Final = {"int8": 0.75, "fp16": 0.5, "int4": 0.875}
#: A file that is smaller by less is as large as it was; the gate asks for the same. Source: ``gate.WORTH``.
_SMALLER: Final = 0.05
#: Multiplications of an operator, on average, below which a graph spends its time between its operators: one core with
#: vectors of 512 bits does a thousand in a tenth of a microsecond. A graph of 300 an operator took 20 ms in int8 where
#: it took 0.5 ms in float, and 24 ms where it took 0.4 ms with its weights in half precision. Source: ADR 0020.
_FEW: Final = 1_000


def is_fine(operators: Sequence[Operator]) -> bool:
    """Whether a graph is one of many small operators, as loops are that were written out.

    Args:
        operators: of the float file, sized.
    """
    return len(operators) >= _MANY and _multiplications(operators) < _FEW


def no_gain(operators: Sequence[Operator], precision: str, weight_bytes: int, size_bytes: int) -> str:
    """Why another precision of a graph of OpenVINO's can be neither smaller nor faster; empty where that is not known.

    Args:
        operators: of the float file, sized.
        precision: that is asked for.
        weight_bytes: of the float file's weights.
        size_bytes: of the whole float file.

    >>> cell = [Operator(name="m", kind="MatMul", inputs=("a",), outputs=("b",), multiplications=2_304)]
    >>> steps = [*cell, *[Operator(name="s", kind="Tanh", inputs=("b",), outputs=("c",))] * 9] * 240
    >>> no_gain(steps, "int8", 66_056, 1_700_000).split(": ")[1]
    'it would save 50 kB of 1,700 and add 408, and the 2,400 operators do 230 multiplications each on average'
    >>> no_gain(steps, "int8", 4_000_000, 5_600_000), no_gain(cell, "int8", 100, 200)
    ('', '')
    """
    if precision not in _SAVED or not is_fine(operators):
        return ""
    products = sum(each.kind in PRODUCTS for each in operators) if precision == "int8" else 0
    more, less = products * _QUANTIZER_BYTES, weight_bytes * _SAVED[precision]
    if less - more >= _SMALLER * size_bytes:
        return ""
    added = f" and add {more / 1000:,.0f}" if more else ""
    return (f"{precision} would be neither smaller nor faster: it would save {less / 1000:,.0f} kB of "
            f"{size_bytes / 1000:,.0f}{added}, and the {len(operators):,} operators do {_multiplications(operators):,} "
            "multiplications each on average")  # fmt: skip


def _multiplications(operators: Sequence[Operator]) -> int:
    """Of an operator on average."""
    return sum(each.multiplications for each in operators) // len(operators)
