"""Inputs for the models of the test data: real ones where there are, else random within the documented range.

Calibration never sees a test half. Where a set has none of its own to train on (MNIST, KWS, ToyCar), its first half by
index calibrates (of which the build takes three fifths for ranges and two fifths for selection) and its second half is
evaluated.
"""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

#: Name → array; ``y`` holds labels.
Arrays = dict[str, np.ndarray]
Pair = tuple[Arrays, Arrays]
Feed = Callable[[Path], Pair]

_CALIBRATION: Final = 200
_MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)
_STD: Final = np.array([0.229, 0.224, 0.225], np.float32)
_RANDOM_CALIBRATION: Final = 200
_RANDOM_EVALUATION: Final = 600


def _cifar(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibration images spread over the classes of the train half; images and labels of the test half."""
    with np.load(data / "data" / "cifar10jpeg_train_2000.npz") as train:
        chosen = np.linspace(0, len(train["x"]) - 1, _CALIBRATION).astype(int)
        images = train["x"][chosen]
    with np.load(data / "data" / "cifar10jpeg_test_1000.npz") as test:
        return images, test["x"], test["y"].astype(np.int64)


def cifar(data: Path) -> Pair:
    """float32 [N, 32, 32, 3], 0 … 255."""
    train, test, y = _cifar(data)
    return {"x": train.astype(np.float32)}, {"x": test.astype(np.float32), "y": y}


def cifar_int8(data: Path) -> Pair:
    """int8 [N, 32, 32, 3]: pixel − 128."""
    train, test, y = _cifar(data)
    return {"x": _less_128(train)}, {"x": _less_128(test), "y": y}


def cifar_normalised(data: Path) -> Pair:
    """float32 [N, 3, 32, 32], by the mean and deviation of ImageNet."""
    train, test, y = _cifar(data)
    return {"x": _normalised(train)}, {"x": _normalised(test), "y": y}


def _less_128(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.int16) - 128).astype(np.int8)


def _normalised(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(((images.astype(np.float32) / 255 - _MEAN) / _STD).transpose(0, 3, 1, 2))


def _scaled(data: Path, width: int, height: int, evaluation: int) -> Pair:
    with np.load(data / "data" / "cifar10jpeg_train_2000.npz") as train:
        order = np.random.default_rng(0).permutation(len(train["x"]))
        images = [np.asarray(Image.fromarray(train["x"][index]).resize((width, height)))
                  for index in order[: 60 + evaluation]]  # fmt: skip
    return {"x": np.stack(images[:60])}, {"x": np.stack(images[60:])}


def faces(data: Path) -> Pair:
    """float32 [N, 3, 240, 320], (pixel − 127) ÷ 128."""
    calibration, evaluation = _scaled(data, 320, 240, 600)
    return _faces(calibration), _faces(evaluation)


def _faces(arrays: Arrays) -> Arrays:
    return {"x": np.stack([(image.astype(np.float32).transpose(2, 0, 1) - 127) / 128 for image in arrays["x"]])}


def photos(data: Path) -> Pair:
    """uint8 [N, 128, 128, 3]."""
    return _scaled(data, 128, 128, 600)


def _mnist(data: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(data / "data" / "mnist_t10k_first2000.npz") as archive:
        return archive["x"].astype(np.float32), archive["y"].astype(np.int64)


def _halves(x: np.ndarray, y: np.ndarray | None = None) -> Pair:
    half = len(x) // 2
    if y is None:
        return {"x": x[:half]}, {"x": x[half:]}
    return {"x": x[:half]}, {"x": x[half:], "y": y[half:]}


def mnist(data: Path) -> Pair:
    """float32 [N, 1, 28, 28], 0 … 255."""
    x, y = _mnist(data)
    return _halves(x.reshape(-1, 1, 28, 28), y)


def mnist_rows(data: Path) -> Pair:
    """float32 [N, 28, 28], 0 … 1."""
    x, y = _mnist(data)
    return _halves(x.reshape(-1, 28, 28) / 255, y)


def mnist_rows_int8(data: Path) -> Pair:
    """int8 [N, 28, 28]: pixel − 128."""
    x, y = _mnist(data)
    return _halves(_less_128(x.reshape(-1, 28, 28)), y)


def _words(data: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(data / "data" / "kws_mfcc_first200.npz") as archive:
        return archive["x"][..., None], archive["y"].astype(np.int64)


def words(data: Path) -> Pair:
    """float32 [N, 49, 10, 1]: cepstra of spoken words."""
    x, y = _words(data)
    return _halves((x.astype(np.float32) - 83) * np.float32(0.58470291), y)


def words_int8(data: Path) -> Pair:
    """int8 [N, 49, 10, 1]."""
    x, y = _words(data)
    return _halves(x.astype(np.int8), y)


def words_unlabelled(data: Path) -> Pair:
    """As :func:`words`, for a model whose own front end makes them another way."""
    x, _ = _words(data)
    return _halves((x.astype(np.float32) - 83) * np.float32(0.58470291))


def machine(data: Path) -> Pair:
    """float32 [N, 640]: windows of five frames over one recording."""
    clip = np.fromfile(data / "mlperf_tiny" / "ad_toycar" / "normal_id_01_00000000_hist_librosa.bin", np.float32)
    frames = clip.reshape(200, 128)
    return _halves(np.stack([frames[start : start + 5].reshape(-1) for start in range(196)]))


def machine_int8(data: Path) -> Pair:
    """As :func:`machine`, in the file's own scale."""
    both = machine(data)
    calibration, evaluation = ({"x": _to_int8(each["x"], 0.3910152316093445, 89)} for each in both)
    return calibration, evaluation


def _to_int8(x: np.ndarray, scale: float, zero: int) -> np.ndarray:
    return np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)


def angles(_data: Path) -> Pair:
    """float32 [N, 1], 0 … 2π."""
    x = np.random.default_rng(0).uniform(0, 2 * np.pi, (1000, 1)).astype(np.float32)
    return {"x": x[:400]}, {"x": x[400:]}


def angles_int8(_data: Path) -> Pair:
    """int8 [N, 1]: every value that the file can take, and so each once: a third calibrates."""
    every = np.arange(-128, 127, dtype=np.int8)[np.random.default_rng(0).permutation(255)].reshape(-1, 1)
    return {"x": every[:85]}, {"x": every[85:]}


def contents(data: Path) -> Pair:
    """int32 [N, 1024]: begin and end of pieces of the test data's own files."""
    rng = np.random.default_rng(0)
    rows = []
    for file in sorted(path for path in data.rglob("*") if path.is_file() and path.stat().st_size > 8192):
        content = np.frombuffer(file.read_bytes(), np.uint8)
        for start in rng.integers(0, len(content) - 4096, 40):
            piece = content[start : start + 4096]
            rows.append(np.concatenate([piece[:512], piece[-512:]]).astype(np.int32))
    every = np.unique(np.stack(rows), axis=0)
    every = every[rng.permutation(len(every))]
    return {"x": every[:100]}, {"x": every[100:400]}


def _sound(data: Path) -> np.ndarray:
    with wave.open(str(data / "data" / "wav" / "silero_test_60s.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def speech_onnx(data: Path) -> Pair:
    """Frames of a minute of speech with the memory that the model itself left before each of them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(data / "silero_vad" / "silero_vad_16k_op15.onnx"))
    sound, rate = _sound(data), np.array(16000, np.int64)
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros((1, 64), np.float32)
    frames, states = [], []
    for start in range(0, len(sound) - 511, 512):
        frame = np.concatenate([context, sound[None, start : start + 512]], axis=1)
        frames.append(frame[0])
        states.append(state)
        _, state = session.run(None, {"input": frame, "state": state, "sr": rate})
        context = frame[:, -64:]
    half = len(frames) // 2
    whole = {"input": np.stack(frames), "state": np.stack(states), "sr": np.full(len(frames), 16000, np.int64)}
    return {name: x[:half] for name, x in whole.items()}, {name: x[half:] for name, x in whole.items()}


def speech_onnx_at_16k(data: Path) -> Pair:
    """The same without the rate, which is a constant of the model then."""
    first, second = speech_onnx(data)
    return ({name: x for name, x in first.items() if name != "sr"},
            {name: x for name, x in second.items() if name != "sr"})  # fmt: skip


def speech_torch(data: Path) -> Pair:
    """The same frames under the names of the TorchScript file, whose first 64 samples are an input of their own."""
    pair = []
    for part in speech_onnx(data):
        frames = part["input"]
        pair.append({"x": frames[:, 64:], "state": part["state"], "context": frames[:, :64]})
    return pair[0], pair[1]


def spectra(data: Path) -> Pair:
    """Magnitudes of a minute of speech, with the memory that the model itself left before each of them."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(data / "dtln" / "model_1.onnx"))
    sound = _sound(data)
    state = np.zeros((1, 2, 128, 2), np.float32)
    frames, states = [], []
    for start in range(0, 128 * 900, 128):
        frame = np.abs(np.fft.rfft(sound[start : start + 512])).astype(np.float32).reshape(1, 1, 257)
        frames.append(frame[0])
        states.append(state[0])
        _, state = session.run(None, {"input_2": frame, "input_3": state})
    whole = {"input_2": np.stack(frames), "input_3": np.stack(states)}
    return {name: x[:300] for name, x in whole.items()}, {name: x[300:] for name, x in whole.items()}


def random_int8(*shape: int) -> Feed:
    """Uniform int8: the whole range that the file takes."""

    def feed(_data: Path) -> Pair:
        count = _RANDOM_CALIBRATION + _RANDOM_EVALUATION
        x = np.random.default_rng(0).integers(-128, 128, (count, *shape)).astype(np.int8)
        return {"x": x[:_RANDOM_CALIBRATION]}, {"x": x[_RANDOM_CALIBRATION:]}

    return feed


def ones(_data: Path) -> Pair:
    """float32 [N, 1]: for files that are refused before any data is looked at."""
    x = np.arange(60, dtype=np.float32).reshape(-1, 1)
    return {"x": x[:20]}, {"x": x[20:]}
