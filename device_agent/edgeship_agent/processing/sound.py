"""Sound as mel bands and cepstra, in float64: numpy's float32 log and exp differ with and without AVX-512."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.manifest import Dct, LogMel
from edgeship_agent.processing.arrays import Array

#: Slaney's scale: linear below, logarithmic above. Source: Slaney, Auditory Toolbox (1998), 3 bands a 200 Hz, 27 an
#: interval of 6.4.
_BREAK_HZ: Final = 1000.0
_LINEAR_HZ: Final = 200.0 / 3.0
_LOG_STEP: Final = float(np.log(6.4)) / 27.0
_BREAK_MEL: Final = _BREAK_HZ / _LINEAR_HZ


def log_mel(step: LogMel, sample: Array) -> Array:
    """[samples] → [frames, bins] of float32.

    Source: Davis and Mermelstein, IEEE Trans. ASSP 28 (4), 1980; the options are those in which TensorFlow's
    ``tf.signal`` and librosa differ.

    Raises:
        ValueError: not one axis, or shorter than a frame.
        ContractError: an option that is not known.

    >>> tone = np.sin(2 * np.pi * 440 * np.arange(1600) / 16000)
    >>> step = LogMel(rate_hz=16000, frame_length=400, hop_length=160, bins=20, high_hz=4000)
    >>> bands = log_mel(step, tone)
    >>> bands.shape, int(bands[0].argmax())
    ((8, 20), 4)
    """
    if sample.ndim != 1:
        raise ValueError("sound has one axis")
    sound = sample.astype(np.float64)
    size = step.fft_length or step.frame_length
    if step.centred:
        sound = np.pad(sound, size // 2, mode="reflect")
    filters, window = _filters(step), _window(step.window, step.frame_length)
    if len(sound) < step.frame_length:
        raise ValueError(f"shorter than a frame of {step.frame_length} samples")
    frames = np.lib.stride_tricks.sliding_window_view(sound, step.frame_length)[:: step.hop_length] * window
    spectrum = np.abs(np.fft.rfft(frames, n=size, axis=1))
    bands: Array = (spectrum if step.power == 1 else spectrum * spectrum) @ filters
    bands = np.maximum(bands, step.floor) + step.offset
    if step.log == "none":
        return bands.astype(np.float32)
    if step.log not in {"natural", "db"}:
        raise ContractError("unknown logarithm", key="log", expected="natural | db | none", got=step.log)
    with np.errstate(divide="ignore"):
        logarithms: Array = np.log(bands) if step.log == "natural" else 10.0 * np.log10(bands)
    return logarithms.astype(np.float32)


@lru_cache(maxsize=8)
def _window(kind: str, length: int) -> Array:
    """Periodic window, as spectra of a stream take it."""
    turn = 2.0 * np.pi * np.arange(length) / length
    if kind == "hann":
        return np.asarray(0.5 - 0.5 * np.cos(turn))
    if kind == "hamming":
        return np.asarray(0.54 - 0.46 * np.cos(turn))
    if kind == "none":
        return np.ones(length)
    raise ContractError("unknown window", key="window", expected="hann | hamming | none", got=kind)


@lru_cache(maxsize=8)
def _filters(step: LogMel) -> Array:
    """[spectrum bins, mel bins]: one triangle a band, its corners evenly spread over mel."""
    size = step.fft_length or step.frame_length
    _check(step, size)
    known_hz = np.arange(size // 2 + 1) * (step.rate_hz / size)
    low, high = _mel_of(np.array([step.low_hz, step.high_hz]), step.scale)
    corners_mel = np.linspace(low, high, step.bins + 2)
    corners_hz = _hz_of(corners_mel, step.scale)
    places, corners = known_hz, corners_hz
    if step.triangles == "mel":
        places, corners = _mel_of(known_hz, step.scale), corners_mel
    rising = (places[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - places[:, None]) / (corners[2:] - corners[1:-1])
    filters: Array = np.maximum(0.0, np.minimum(rising, falling))
    if step.triangles == "mel":
        filters[0] = 0.0  # the constant part of a sound is in no band
    if step.norm == "slaney":
        filters *= 2.0 / (corners_hz[2:] - corners_hz[:-2])
    return filters


def _check(step: LogMel, size: int) -> None:
    words = (("scale", step.scale, ("htk", "slaney")), ("triangles", step.triangles, ("mel", "hz")),
             ("norm", step.norm, ("none", "slaney")), ("power", step.power, (1, 2)))  # fmt: skip
    for key, got, known in words:
        if got not in known:
            raise ContractError("unknown option of log_mel", key=key, expected=" | ".join(map(str, known)), got=got)
    if not 0 < step.frame_length <= size or step.hop_length < 1 or step.bins < 1:
        raise ContractError("lengths of log_mel that do not fit", key="frame_length",
                            expected="1 … fft_length, hop_length ≥ 1, bins ≥ 1",
                            got=f"{step.frame_length}, {step.hop_length}, {step.bins}")  # fmt: skip
    if not 0 <= step.low_hz < step.high_hz <= step.rate_hz / 2:
        raise ContractError("bands that the sound cannot have", key="high_hz",
                            expected=f"low_hz < high_hz ≤ {step.rate_hz / 2:g}",
                            got=f"{step.low_hz:g} … {step.high_hz:g}")  # fmt: skip


def _mel_of(hz: Array, scale: str) -> Array:
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + hz / 700.0))
    above = _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _LINEAR_HZ, above)


def _hz_of(mel: Array, scale: str) -> Array:
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _LINEAR_HZ, above)


def cosine_transform(step: Dct, sample: Array) -> Array:
    """[…, N] → […, coefficients] of float32.

    Source: Ahmed, Natarajan and Rao, IEEE Trans. Computers 23 (1), 1974: DCT-II.

    Raises:
        ValueError: more coefficients than values.
        ContractError: a norm that is not known.

    >>> cosine_transform(Dct(coefficients=2), np.ones((1, 4))).round(6).tolist()
    [[2.0, 0.0]]
    """
    if not 0 < step.coefficients <= sample.shape[-1]:
        raise ValueError(f"{step.coefficients} coefficients of {sample.shape[-1]} values")
    return np.asarray(sample.astype(np.float64) @ _cosines(sample.shape[-1], step)).astype(np.float32)


@lru_cache(maxsize=8)
def _cosines(count: int, step: Dct) -> Array:
    if step.norm not in {"ortho", "htk"}:
        raise ContractError("unknown norm of dct", key="norm", expected="ortho | htk", got=step.norm)
    at, order = np.arange(count)[:, None], np.arange(step.coefficients)
    cosines = np.cos(np.pi / count * (at + 0.5) * order) * np.sqrt(2.0 / count)
    if step.norm == "ortho":
        cosines[:, 0] *= np.sqrt(0.5)
    return np.asarray(cosines)
