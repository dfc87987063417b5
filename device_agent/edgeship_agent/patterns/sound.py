"""Sound from ``.wav`` files, as builds and devices both read it: 8 to 64 bits or floats, of one channel or several."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract, LogMel
from edgeship_agent.processing.arrays import Array

SOUNDS: Final = frozenset({".wav"})
_STEPS_OF_16_BITS: Final = 32768
#: Tags of a format. Source: RFC 2361; the extensible one holds the tag as the first bytes of its GUID.
_INTEGERS: Final = 1
_FLOATS: Final = 3
_EXTENSIBLE: Final = 0xFFFE
_TAG_IN_EXTENSION: Final = slice(24, 26)
#: Tag, channels, rate, bytes a second, bytes of all channels' samples, bits a sample.
_FORMAT: Final = struct.Struct("<HHIIHH")


class _Format(Struct, frozen=True, kw_only=True):
    tag: int
    channels: int
    rate_hz: int
    sample_bytes: int


def read_sound(file: Path, contract: InputContract) -> Array:
    """Samples [n] as floats of −1 … 1, or as integers of 16 bits where the contract takes those.

    Several channels are joined to their mean, as librosa does. A rate is never changed.

    Args:
        file: a ``.wav`` file.
        contract: says type and shape; the rate that its ``log_mel`` step works with must be the file's.

    Raises:
        InputError: it cannot be read, or has another rate.
    """
    try:
        rate, stored = parse(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"not a readable .wav file: {error}", file=file,
                         next_step="take it out or save it again, uncompressed") from error  # fmt: skip
    wanted = next((step.rate_hz for step in contract.steps if isinstance(step, LogMel)), rate)
    if rate != wanted:
        raise InputError("sound of another rate than the preprocessing contract takes", file=file,
                         expected=f"{wanted:g} Hz", got=f"{rate} Hz",
                         next_step=f"resample it: ffmpeg -i {file.name} -ar {wanted:g} out.wav")  # fmt: skip
    values = as_floats(stored)
    if contract.dtype == "int16":
        values = np.clip(np.round(values * _STEPS_OF_16_BITS), -_STEPS_OF_16_BITS, _STEPS_OF_16_BITS - 1)
    typed: Array = values.astype(contract.dtype if contract.dtype in {"int16", "float64"} else np.float32)
    fixed = [size for size in contract.shape if size != 1]
    return typed.reshape(contract.shape) if fixed == [typed.size] and -1 not in contract.shape else typed


def parse(data: bytes) -> tuple[int, Array]:
    """Rate in Hz and samples as they are stored, [n, channels]; integers of 24 bits are the upper ones of 32.

    A file that was written to a pipe declares no length, or the longest: its samples end where the file does.

    Raises:
        ValueError: no such file, cut off, or packed.

    >>> head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    >>> parse(b"RIFF" + struct.pack("<I", 40) + head + b"data" + struct.pack("<Ihh", 4, 1, -2))
    (8000, array([[ 1],
           [-2]], dtype=int16))
    """
    if data[:4] not in {b"RIFF", b"RF64"} or data[8:12] != b"WAVE":
        raise ValueError("it does not begin as one")
    format_, place = None, 12
    while place + 8 <= len(data):
        name, (size,) = data[place : place + 4], struct.unpack_from("<I", data, place + 4)
        body = data[place + 8 : place + 8 + size]
        if name == b"fmt ":
            format_ = _format(body)
        elif name == b"data":
            if format_ is None:
                raise ValueError("its samples come before their format")
            streamed = size in {0, 0xFFFFFFFF} or data[:4] == b"RF64"
            if len(body) < size and not streamed:
                raise ValueError(f"{size} bytes of samples are announced, and {len(body)} are there")
            return format_.rate_hz, _samples(data[place + 8 :] if size == 0 else body, format_)
        place += 8 + size + size % 2
    raise ValueError("it holds no samples")


def _format(body: bytes) -> _Format:
    if len(body) < _FORMAT.size:
        raise ValueError("its format is cut off")
    tag, channels, rate, _, frame_bytes, bits = _FORMAT.unpack_from(body)
    if tag == _EXTENSIBLE and len(body) >= _TAG_IN_EXTENSION.stop:
        tag = int.from_bytes(body[_TAG_IN_EXTENSION], "little")
    width = frame_bytes // channels if channels else 0
    known = (_INTEGERS, 1), (_INTEGERS, 2), (_INTEGERS, 3), (_INTEGERS, 4), (_INTEGERS, 8), (_FLOATS, 4), (_FLOATS, 8)
    if (tag, width) not in known or not 8 * (width - 1) < bits <= 8 * width or not rate:
        raise ValueError(f"format {tag} with {bits} bits and {channels} channels is not plain samples")
    return _Format(tag=tag, channels=channels, rate_hz=rate, sample_bytes=width)


def _samples(body: bytes, format_: _Format) -> Array:
    width = format_.sample_bytes
    whole = len(body) // (width * format_.channels) * width * format_.channels
    if not whole:
        raise ValueError("it holds no samples")
    if width == 3:
        raw = np.frombuffer(body, np.uint8, whole).reshape(-1, 3)
        wide = np.zeros((len(raw), 4), np.uint8)
        wide[:, 1:] = raw
        stored: Array = wide.view("<i4").reshape(-1)
    else:
        kind = "f" if format_.tag == _FLOATS else "u" if width == 1 else "i"
        stored = np.frombuffer(body, f"<{kind}{width}", whole // width)
    return stored.reshape(-1, format_.channels)


def as_floats(stored: Array) -> Array:
    """Float64 of −1 … 1, one channel: [n].

    Args:
        stored: [n] or [n, channels]; bytes are unsigned, other integers signed and left-aligned.

    >>> as_floats(np.array([0, 128, 255], np.uint8)).tolist()
    [-1.0, 0.0, 0.9921875]
    >>> as_floats(np.array([[16384, 0]], np.int16)).tolist()
    [0.25]
    """
    if stored.dtype == np.uint8:
        values = (stored.astype(np.float64) - 128.0) / 128.0
    elif stored.dtype.kind == "i":
        values = stored.astype(np.float64) / float(2 ** (8 * stored.dtype.itemsize - 1))
    else:
        values = stored.astype(np.float64)
    joined: Array = values.mean(axis=1) if values.ndim == 2 else values
    return joined
