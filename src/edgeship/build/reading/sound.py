"""Sound from ``.wav`` files: 8, 16, 24 or 32 bits or floats, of one channel or several."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import numpy as np

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import InputContract, LogMel
from edgeship_agent.runtime.engine import Array

SOUNDS: Final = frozenset({".wav"})
_STEPS_OF_16_BITS: Final = 32768


def read_sound(file: Path, contract: InputContract) -> Array:
    """Samples [n] as floats of −1 … 1, or as integers of 16 bits where the contract takes those.

    Several channels are joined to their mean, as librosa does. A rate is never changed.

    Args:
        file: a ``.wav`` file.
        contract: says type and shape; the rate that its ``log_mel`` step works with must be the file's.

    Raises:
        InputError: it cannot be read, or has another rate.
    """
    from scipy.io import wavfile  # type: ignore[import-untyped, unused-ignore]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # chunks that are no sound
            rate, stored = wavfile.read(file)
    except (OSError, ValueError, EOFError, TypeError, AttributeError) as error:
        raise InputError(f"not a readable .wav file: {error}", file=file,
                         next_step="take it out or save it again, uncompressed") from error  # fmt: skip
    wanted = next((step.rate_hz for step in contract.steps if isinstance(step, LogMel)), rate)
    if rate != wanted:
        raise InputError("sound of another rate than the preprocessing contract takes", file=file,
                         expected=f"{wanted} Hz", got=f"{rate} Hz",
                         next_step=f"resample it: ffmpeg -i {file.name} -ar {wanted} out.wav")  # fmt: skip
    values = as_floats(stored)
    if contract.dtype == "int16":
        values = np.clip(np.round(values * _STEPS_OF_16_BITS), -_STEPS_OF_16_BITS, _STEPS_OF_16_BITS - 1)
    typed: Array = values.astype(contract.dtype if contract.dtype in {"int16", "float64"} else np.float32)
    fixed = [size for size in contract.shape if size != 1]
    return typed.reshape(contract.shape) if fixed == [typed.size] and -1 not in contract.shape else typed


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
