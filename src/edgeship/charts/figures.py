"""Numbers as people read them: units, signs, intervals, and "no data" where there is none."""

from __future__ import annotations

import math
from typing import Final, Literal

Unit = Literal["", "fraction", "ms", "us", "s", "bytes", "count", "dB"]

NO_DATA: Final = "no data"
_MINUS: Final = "−"


def format_value(value: float | None, unit: Unit = "", *, signed: bool = False) -> str:
    """A number with its unit; None and NaN are "no data", never 0.

    Args:
        value: in the unit given; a ``fraction`` is shown in percent.
        unit: what the number counts.
        signed: whether a positive number carries its sign, for differences.

    >>> format_value(0.0712, "fraction"), format_value(-0.007, "fraction", signed=True), format_value(None)
    ('7.1 %', '−0.7 %', 'no data')
    >>> format_value(3_600_000, "bytes"), format_value(1234, "count"), format_value(1.9, "ms")
    ('3.6 MB', '1,234', '1.9 ms')
    """
    if value is None or math.isnan(value):
        return NO_DATA
    sign = _MINUS if value < 0 else ("+" if signed and value > 0 else "")
    return sign + _magnitude(abs(value), unit)


def format_interval(
    low: float | None, high: float | None, unit: Unit = "", *, signed: bool = False, level_percent: int = 95
) -> str:
    """An interval with its confidence level, in the unit of the value beside it, or nothing where there is none.

    >>> format_interval(0.084, 0.129, "fraction", signed=True), format_interval(None, None)
    ('95 % +8.4…+12.9', '')
    """
    if low is None or high is None:
        return ""
    ends = [format_value(end, unit, signed=signed) for end in (low, high)]
    suffix = {"fraction": " %", "ms": " ms", "us": " µs", "s": " s", "dB": " dB"}.get(unit, "")
    return f"{level_percent} % {ends[0].removesuffix(suffix)}…{ends[1].removesuffix(suffix)}"


def _magnitude(value: float, unit: Unit) -> str:
    if math.isinf(value):
        return "∞"
    if unit == "fraction":
        return f"{_decimal(100.0 * value, 1 if value >= 0.001 or value == 0 else 2)} %"
    if unit == "bytes":
        return _bytes(value)
    if unit == "count":
        return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
    text = _significant(value)
    return f"{text} {'µs' if unit == 'us' else unit}" if unit else text


def _bytes(value: float) -> str:
    for factor, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{_significant(value / factor)} {name}"
    return f"{value:.0f} bytes"


def _decimal(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removesuffix(".0") if value == round(value) else text


def _significant(value: float) -> str:
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(value))) if value >= 0.0001 else 6
    text = f"{value:.{min(digits, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
