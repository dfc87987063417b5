"""Sound and tables: against an independent implementation, on other instructions, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import wave
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy import fft, signal

from edgeship.build.folding import shorten
from edgeship.build.preprocess import read_contracts
from edgeship_agent.contract.errors import ConfigError, ContractError, InputError
from edgeship_agent.contract.manifest import (
    Categories,
    Dct,
    Impute,
    InputContract,
    LogMel,
    OneHot,
    Scale,
    StreamWindow,
    TensorSpec,
)
from edgeship_agent.processing import prepare
from edgeship_agent.processing.steps import apply_step
from tests.preparing import MEL, PREPARE, check_elsewhere

DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
SOUND = np.random.default_rng(2).normal(0, 0.2, 5000) + 0.5 * np.sin(np.arange(5000) * 0.2)


def mel(hz: float) -> float:
    return 1127.01048 * float(np.log(1 + hz / 700))  # 2595 ÷ ln 10


def bands_by_hand(sound: np.ndarray, step: LogMel) -> np.ndarray:
    """Frame by frame with scipy's window and transform, band by band as the definition says."""
    window = signal.get_window(step.window, step.frame_length, fftbins=True)
    size = step.fft_length or step.frame_length
    corners = np.linspace(mel(step.low_hz), mel(step.high_hz), step.bins + 2)
    rows = []
    for begin in range(0, len(sound) - step.frame_length + 1, step.hop_length):
        spectrum = np.abs(fft.rfft(sound[begin : begin + step.frame_length] * window, size)) ** step.power
        row = []
        for low, middle, high in zip(corners, corners[1:], corners[2:], strict=False):
            total = 0.0
            for index in range(1, len(spectrum)):
                at = mel(index * step.rate_hz / size)
                if low < at < high:
                    total += spectrum[index] * (
                        (at - low) / (middle - low) if at <= middle else (high - at) / (high - middle)
                    )
            row.append(np.log(total + step.offset))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("changes", [{}, {"power": 2}, {"window": "hamming", "fft_length": 1024, "bins": 20}])
def test_mel_bands_and_cepstra_are_those_of_the_definition(changes: dict) -> None:
    step = LogMel(**{**{name: getattr(MEL, name) for name in MEL.__struct_fields__}, **changes})
    expected = bands_by_hand(SOUND, step)
    made = apply_step(step, SOUND)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    cepstra = fft.dct(expected, type=2, axis=-1, norm="ortho")[:, :10]
    np.testing.assert_allclose(apply_step(Dct(coefficients=10), expected), cepstra, rtol=1e-5, atol=1e-6)
    cepstra[:, 0] *= np.sqrt(2)
    np.testing.assert_allclose(apply_step(Dct(coefficients=10, norm="htk"), expected), cepstra, rtol=1e-5, atol=1e-6)


def test_slaney_bands_have_equal_area() -> None:
    step = LogMel(rate_hz=16000, frame_length=8192, hop_length=8192, bins=40, high_hz=8000, scale="slaney",
                  triangles="hz", norm="slaney", log="none", power=1, window="none")  # fmt: skip
    impulse = np.zeros(8192)
    impulse[0] = 1.0  # its spectrum is 1 everywhere
    made = apply_step(step, impulse)[0]
    np.testing.assert_allclose(made, np.full(40, 8192 / 16000), rtol=5e-3)


def features_off() -> str:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    wide = [name for name in __cpu_dispatch__ if name.startswith(("AVX512", "X86_V4")) and __cpu_features__.get(name)]
    return " ".join(wide)


def test_prepared_without_avx512_is_the_same(tmp_path: Path) -> None:
    disabled = features_off()
    if not disabled:
        pytest.skip("this processor has no AVX-512 that numpy uses")
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled, "OPENBLAS_CORETYPE": "Haswell"}

    check = (
        f"import numpy._core._multiarray_umath as u\nassert not any(u.__cpu_features__[n] for n in {disabled.split()})"
    )

    def run(*paths: str) -> None:
        code = f"{check}\n{PREPARE}"
        subprocess.run([sys.executable, "-c", code, *paths], env=environment, check=True, timeout=60)

    check_elsewhere(run, tmp_path)


@pytest.mark.skipif(not (DATA / "mlperf_tiny").is_dir(), reason="no models of others")
@pytest.mark.parametrize(("word", "index"), [("yes", 9), ("silence", 10), ("noise", 11)])
def test_a_keyword_model_of_others_hears_what_was_said(word: str, index: int) -> None:
    """MLPerf Tiny's DS-CNN (49 × 10 MFCC of TensorFlow) on tflite-micro's recordings; 11 stands for unknown."""
    pytest.importorskip("ai_edge_litert")
    from edgeship_agent.runtime import open_engine

    with wave.open(str(DATA / "data" / "wav" / f"{word}_1000ms.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)
    bands = apply_step(MEL, sound / sound.max())
    cepstra = apply_step(Dct(coefficients=10, norm="htk"), bands)
    engine = open_engine("litert", DATA / "mlperf_tiny" / "kws_dscnn" / "kws_ref_model_float32.tflite")
    assert engine.run([cepstra.reshape(1, 49, 10, 1)])[0].argmax() == index
    engine.close()


@pytest.mark.parametrize(
    ("step", "sample", "error"),
    [
        (MEL, np.zeros(100), InputError),
        (MEL, np.zeros((2, 16000)), InputError),
        (LogMel(rate_hz=8000, frame_length=256, hop_length=128, bins=8, high_hz=5000), np.zeros(999), ContractError),
        (LogMel(rate_hz=8000, frame_length=256, hop_length=0, bins=8, high_hz=4000), np.zeros(999), ContractError),
        (
            LogMel(rate_hz=8000, frame_length=256, hop_length=9, bins=8, high_hz=4000, log="e"),
            np.zeros(999),
            ContractError,
        ),
        (Dct(coefficients=5), np.zeros((3, 4)), InputError),
        (Dct(coefficients=2, norm="x"), np.zeros((3, 4)), ContractError),
        (Impute(values=(1.0, 2.0)), np.zeros(3, np.float32), InputError),
        (OneHot(column=3, values=(1.0,)), np.zeros(3, np.float32), InputError),
        (OneHot(column=0, values=(1.0,), unknown="refuse"), np.zeros(3, np.float32), InputError),
        (OneHot(column=0, values=(1.0,), unknown="what"), np.zeros(3, np.float32), ContractError),
        (Categories(column=0, values=(1.0,)), np.float32(0), InputError),
    ],
)
def test_refused(step: object, sample: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        apply_step(step, np.asarray(sample))


def test_tables() -> None:
    table = np.array([[2.0, np.nan, 0.1], [9.0, 4.0, 0.1]], np.float32)
    filled = apply_step(Impute(values=(0.0,)), table)
    hot = apply_step(OneHot(column=2, values=(0.1, 0.2)), filled)
    assert hot.tolist() == [[2.0, 0.0, 1.0, 0.0], [9.0, 4.0, 1.0, 0.0]]
    assert apply_step(Categories(column=0, values=(9.0, 2.0)), hot)[:, 0].tolist() == [1.0, 0.0]
    assert apply_step(Categories(column=0, values=(9.0,), unknown=7.0), hot)[:, 0].tolist() == [7.0, 0.0]
    assert np.isnan(table[0, 1])


def written(folder: Path, text: str) -> Path:
    path = folder / "preprocess.toml"
    path.write_text(f"schema_version = 1\n[[input]]\n{text}\n")
    return path


def test_the_build_reads_the_steps_and_the_window(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(-1, 49, 10, 1))
    text = (
        'dtype = "float32"\nshape = [16000]\nwindow = { length = 16000, hop = 8000 }\nsteps = [{ op = "log_mel", '
        "rate_hz = 16000, frame_length = 480, hop_length = 320, fft_length = 512, bins = 40, low_hz = 20, "
        'high_hz = 4000, power = 1, offset = 1e-6 }, { op = "dct", coefficients = 10, norm = "htk" }, '
        '{ op = "impute", values = [0.0] }, { op = "reshape", shape = [49, 10, 1] }]'
    )
    (contract,) = read_contracts(written(tmp_path, text), [spec])
    assert (contract.steps[0], contract.window) == (MEL, StreamWindow(length=16000, hop=8000))
    assert prepare([contract], {"x": np.ones(16000, np.float32)})["x"].shape == (1, 49, 10, 1)
    again = msgspec.json.decode(msgspec.json.encode(contract), type=InputContract)
    assert again == contract
    with pytest.raises(ConfigError, match="window"):
        read_contracts(written(tmp_path, text.replace("length = 16000, hop", "length = 9, hop")), [spec])
    with pytest.raises(ConfigError, match="centered"):
        read_contracts(written(tmp_path, text.replace("power = 1", "centered = true")), [spec])


def test_a_sound_step_behind_arithmetic_is_not_folded() -> None:
    contract = InputContract(tensor="x", dtype="uint8", shape=(16000,), steps=(Scale(factor=1 / 128), MEL))
    assert "log_mel" in shorten(contract, TensorSpec(name="x", dtype="float32", shape=(1, 49, 40)))
