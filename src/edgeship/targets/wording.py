"""Names and sizes for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_SHOWN: Final = 6


def listed(names: Sequence[str]) -> str:
    """The first few names.

    >>> listed(["Conv", "Relu"]), listed([str(index) for index in range(8)])
    ('Conv, Relu', '0, 1, 2, 3, 4, 5 and 2 more')
    """
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def size_text(size_bytes: int) -> str:
    """Decimal megabytes or kilobytes, with a digit after the point where it says something.

    >>> size_text(12_400_000), size_text(2_500_000), size_text(262_144), size_text(2_500), size_text(32)
    ('12 MB', '2.5 MB', '262 kB', '2.5 kB', '32 bytes')
    """
    for unit, factor in (("MB", 1_000_000), ("kB", 1_000)):
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{size_bytes} bytes"


def free_shape(name: str, shape: Sequence[int]) -> str:
    """The option that gives an input's free axes sizes, to start from: 1 for the batch and SIZE for the rest.

    >>> free_shape("audio", (-1, 80, -1))
    '--input-shape audio=1,80,SIZE'
    """
    sizes = (str(size) if size >= 0 else "1" if axis == 0 else "SIZE" for axis, size in enumerate(shape))
    return f"--input-shape {name}={','.join(sizes)}"
