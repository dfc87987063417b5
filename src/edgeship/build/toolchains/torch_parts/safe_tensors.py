"""Weights in the safetensors format: a JSON header that says where which numbers lie, and then the numbers.

Nothing in such a file is code. Source: github.com/safetensors/safetensors, README, "Format"; the limit of the header
and that the numbers lie without holes are of the same place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .model import Refused

_LENGTH_BYTES = 8
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
#: More than any layer's weights have; PyTorch's own limits of axes and of their product lie above.
_MOST_AXES = 16
_MOST_NUMBERS = 2**62
_MOST_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One tensor, whose numbers are the bytes from ``start`` to ``stop`` behind the header."""

    dtype: Any
    shape: tuple[int, ...]
    start: int
    stop: int


def read(path: Path) -> dict[str, Any]:
    """Every tensor by its name.

    Raises:
        Refused: damaged, or with numbers of a type that is not read.
    """
    data = memoryview(path.read_bytes())
    begin = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if begin > len(data):
        raise _damaged("its header ends behind the file")
    numbers = data[begin:]
    entries = _entries(bytes(data[_LENGTH_BYTES:begin]))
    _check_places(entries, len(numbers))
    return {name: _tensor(numbers[entry.start : entry.stop], entry) for name, entry in entries.items()}


def _entries(header: bytes) -> dict[str, _Entry]:
    try:
        told = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise _damaged("its header is no JSON") from error
    if not isinstance(told, dict):
        raise _damaged("its header is no table of tensors")
    return {name: _entry(name, each) for name, each in told.items() if name != "__metadata__"}


def _entry(name: str, told: Any) -> _Entry:
    fields = told if isinstance(told, Mapping) else {}
    kind, shape, place = fields.get("dtype"), _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if not isinstance(kind, str) or shape is None or place is None or len(place) != 2 or not _is_possible(shape):
        raise _damaged(f"its header does not say what {_shown(name)} is")
    if kind not in _DTYPES:
        raise Refused(
            f"the tensor {_shown(name)} is of the type {_shown(kind)}, and what is read is {', '.join(_DTYPES)}",
            next_step="save the weights in float32",
        )
    dtype, (start, stop) = _DTYPES[kind], place
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise _damaged(f"{_shown(name)} has not as many bytes as its shape {list(shape)} of {kind} takes")
    return _Entry(dtype=dtype, shape=shape, start=start, stop=stop)


def _counts(told: Any) -> tuple[int, ...] | None:
    """Axes or offsets, where they can be such."""
    if not isinstance(told, list) or len(told) > _MOST_AXES:
        return None
    return tuple(told) if all(type(each) is int and each >= 0 for each in told) else None


def _is_possible(shape: tuple[int, ...]) -> bool:
    """Whether PyTorch can make such a tensor: its strides are products of axes, even where it has no numbers."""
    return math.prod(max(axis, 1) for axis in shape) < _MOST_NUMBERS


def _check_places(entries: Mapping[str, _Entry], size_bytes: int) -> None:
    """The tensors lie one behind the other and fill the file, so that none reads what is another's.

    Raises:
        Refused: they do not.
    """
    end = 0
    for entry in sorted(entries.values(), key=lambda each: (each.start, each.stop)):
        if entry.start != end:
            raise _damaged("its tensors overlap or leave holes")
        end = entry.stop
    if end != size_bytes:
        raise _damaged(f"its tensors take {end:,} bytes, and it has {size_bytes:,}")


def _tensor(numbers: memoryview, entry: _Entry) -> Any:
    """A copy, which is aligned however the file is; any byte but 0 is true."""
    if not numbers:
        return torch.zeros(entry.shape, dtype=entry.dtype)
    stored = torch.uint8 if entry.dtype is torch.bool else entry.dtype
    return torch.frombuffer(bytearray(numbers), dtype=stored).to(entry.dtype).reshape(entry.shape)


def _shown(name: str) -> str:
    """A name as a stranger's file has it, short and without control characters."""
    return ascii(name[:_MOST_SHOWN])[1:-1]


def _damaged(reason: str) -> Refused:
    return Refused(f"the safetensors file is damaged or truncated: {reason}",
                   next_step="copy the file again, or save it again with safetensors.torch.save_file")  # fmt: skip
