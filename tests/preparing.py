"""One set of preprocessing contracts and samples, prepared here and by an interpreter on other instructions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from edgeship_agent.contract.manifest import (
    Cast,
    Categories,
    ColourOrder,
    Crop,
    Dct,
    Impute,
    InputContract,
    LogMel,
    Normalize,
    OneHot,
    Resize,
    Scale,
    Transpose,
)
from edgeship_agent.processing import prepare

MEL = LogMel(rate_hz=16000, frame_length=480, hop_length=320, fft_length=512, bins=40, low_hz=20, high_hz=4000,
             power=1, offset=1e-6)  # fmt: skip
IMAGE = (Resize(height=24, width=20), Crop(height=16, width=16), ColourOrder(), Transpose(axes=(2, 0, 1)))
#: Of these the answer is the same to the bit on every machine.
EXACT = ("pixels", "nearest", "table")
CONTRACTS = (
    InputContract(tensor="pixels", dtype="uint8", shape=(31, 27, 3), steps=IMAGE),
    InputContract(tensor="nearest", dtype="int16", shape=(31, 27),
                  steps=(Resize(height=9, width=9, method="nearest"),)),
    InputContract(tensor="table", dtype="float32", shape=(4,), steps=(
        Impute(values=(1.0, 2.0, 3.0, 4.0)), OneHot(column=1, values=(0.0, 1.0, 2.0)),
        Categories(column=-1, values=(5.0, 6.0)))),
    InputContract(tensor="scaled", dtype="uint8", shape=(31, 27, 3), steps=(
        *IMAGE, Cast(dtype="float32"), Scale(factor=1 / 255),
        Normalize(mean=(0.48, 0.45, 0.4), std=(0.23, 0.22, 0.2), axis=0))),
    InputContract(tensor="bands", dtype="int16", shape=(16000,), steps=(Scale(factor=1 / 32768), MEL)),
    InputContract(tensor="cepstra", dtype="int16", shape=(16000,), steps=(
        Scale(factor=1 / 32768), MEL, Dct(coefficients=10, norm="htk"))),
    InputContract(tensor="decibels", dtype="float32", shape=(4096,), steps=(
        LogMel(rate_hz=16000, frame_length=1024, hop_length=512, bins=64, high_hz=8000, scale="slaney",
               triangles="hz", norm="slaney", log="db", floor=1e-10, centred=True),)),
)  # fmt: skip

PREPARE = """
import sys, msgspec, numpy as np
from edgeship_agent.contract.manifest import InputContract
from edgeship_agent.processing import prepare
contracts = msgspec.json.decode(open(sys.argv[1], "rb").read(), type=tuple[InputContract, ...])
with np.load(sys.argv[2]) as raw:
    made = prepare(contracts, {name: raw[name] for name in raw.files})
np.savez(sys.argv[3], **made)
"""


def samples() -> dict[str, np.ndarray]:
    """One raw sample for each contract."""
    rng = np.random.default_rng(11)
    time_s = np.arange(16000) / 16000
    speech = 9000 * np.sin(2 * np.pi * (180 + 90 * time_s) * time_s) * np.sin(9 * time_s) + rng.normal(0, 40, 16000)
    return {
        "pixels": rng.integers(0, 256, (31, 27, 3), np.uint8),
        "nearest": rng.integers(-900, 900, (31, 27)).astype(np.int16),
        "table": np.array([np.nan, 2.0, -7.5, 6.0], np.float32),
        "scaled": rng.integers(0, 256, (31, 27, 3), np.uint8),
        "bands": speech.astype(np.int16),
        "cepstra": speech.astype(np.int16),
        "decibels": (speech[:4096] / 32768).astype(np.float32),
    }


def check_elsewhere(run: Callable[[str, str, str], None], folder: Path) -> None:
    """Let ``run`` prepare the samples elsewhere: equal, or within 1e-5 and one step after quantization."""
    paths = [str(folder / name) for name in ("contracts.json", "raw.npz", "made.npz")]
    Path(paths[0]).write_bytes(msgspec.json.encode(CONTRACTS))
    np.savez(paths[1], **samples())
    run(paths[0], paths[1], paths[2])
    here = prepare(CONTRACTS, samples())
    with np.load(paths[2]) as made:
        compare(here, {name: made[name] for name in made.files})


def compare(here: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray]) -> None:
    assert set(here) == set(there)
    for name, mine in here.items():
        other = there[name]
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
        if name in EXACT:
            assert np.array_equal(mine, other), name
            continue
        np.testing.assert_allclose(other, mine, rtol=1e-5, atol=1e-7 * float(np.abs(mine).max()), err_msg=name)
        step = (float(mine.max()) - float(mine.min())) / 255
        quantized = [np.clip(np.rint((values - mine.min()) / step), 0, 255) for values in (mine, other)]
        assert np.abs(quantized[0] - quantized[1]).max() <= 1, name
