"""Models and data of the quality benchmark: committed ones, and others' where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build.options import BuildOptions
from edgeship.build.sources import InputShape
from edgeship.build.toolchains import install
from edgeship.demo.building import write_data
from tests.factories.detector.scenes import write_data as write_scenes

TEST_DATA: Final = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
DEMO_MODELS: Final = Path(__file__).parents[2] / "src" / "edgeship" / "demo" / "models"
DETECTOR: Final = Path(__file__).parents[2] / "tests" / "factories" / "detector" / "detector.onnx"
FACTORY: Final = Path(__file__).parents[2] / "tests" / "factories" / "cifar_resnet.py"
RUNTIMES: Final = ("onnxruntime", "openvino", "litert")
#: Calibration samples, as in the comparison that the design was made from.
CALIBRATION: Final = 300


class Case(Struct, frozen=True, kw_only=True):
    """One model with its data.

    Attributes:
        keras: the Keras file or SavedModel of the same weights, for quantizers that start from one.
    """

    name: str
    options: BuildOptions
    keras: Path | None = None


def _digits(version: str) -> Callable[[Path], Case]:
    """One of the demo's committed models."""

    def make(folder: Path) -> Case:
        write_data(folder)
        options = BuildOptions(
            source=DEMO_MODELS / f"digits-{version}.onnx", targets=(), calibration=folder / "calibration.npz",
            evaluation=folder / "evaluation.npz", preprocess=folder / "preprocess.toml",
            fold_normalisation=False,  # peers' files take what the source takes
        )  # fmt: skip
        return Case(name=f"digits-{version}", options=options)

    return make


def detector(folder: Path) -> Case:
    """Ours: boxes in pixels and scores in one output, judged by mean average precision."""
    write_scenes(folder)
    options = BuildOptions(
        fold_normalisation=False,
        source=DETECTOR, targets=(), calibration=folder / "calibration.npz", evaluation=folder / "evaluation.npz",
        preprocess=folder / "preprocess.toml", metric="map", postprocess=folder / "postprocess.toml",
        ground_truth=folder / "truth.json",
    )  # fmt: skip
    return Case(name="detector", options=options)


def _mnist(folder: Path) -> Case:
    model, data = _found("onnx/mnist_cntk.onnx"), _found("data/mnist_t10k_first2000.npz")
    with np.load(data) as archive:
        x, y = archive["x"][:, None].astype(np.float32), archive["y"].astype(np.int64)
    # by index, before any result was seen: 30 % calibration, 20 % selection, 50 % claim
    return Case(name="mnist-cntk", options=_written(folder, model, (x[:1000], y[:1000]), (x[1000:], y[1000:])))


def _resnet8(folder: Path) -> Case:
    model = _found("mlperf_tiny/ic_resnet8/pretrainedResnet.tflite")
    (x, y), (test_x, test_y) = _cifar(), _cifar("test_1000")
    options = _written(folder, model, (x[:CALIBRATION], y[:CALIBRATION]), (test_x, test_y))
    keras = _found("mlperf_tiny/ic_resnet8/pretrainedResnet.h5")
    install("tensorflow")
    return Case(name="resnet-8", options=options, keras=keras)


def _keywords(folder: Path) -> Case:
    data = _found("data/kws_mfcc_first200.npz")
    model = _found("mlperf_tiny/kws_dscnn/kws_ref_model/saved_model.pb").parent
    with np.load(data) as archive:
        # the features' own scale and zero point
        x = ((archive["x"].astype(np.float32) - 83) * np.float32(0.58470291))[..., None]
        y = archive["y"].astype(np.int64)
    # by index, before any result was seen: 30 % calibration, 20 % selection, 50 % claim
    options = _written(folder, model, (x[:100], y[:100]), (x[100:], y[100:]))
    install("tensorflow")
    return Case(name="ds-cnn", options=options, keras=model)


def _toycar(folder: Path) -> Case:
    model = _found("mlperf_tiny/ad_toycar/ad01.h5")
    clip = np.fromfile(_found("mlperf_tiny/ad_toycar/normal_id_01_00000000_hist_librosa.bin"), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(clip.reshape(200, 128), (5, 128)).reshape(196, 640)
    # by index, before any result was seen: 30 % calibration, 20 % selection, 50 % claim; the last windows before the
    # claim, which share frames with it, are left out. One recording of a sound machine: no labels, no anomalies.
    folder.mkdir(parents=True)
    np.savez(folder / "calibration.npz", x=windows[:94])
    np.savez(folder / "evaluation.npz", x=windows[98:])
    options = BuildOptions(source=model, targets=(), calibration=folder / "calibration.npz",
                           evaluation=folder / "evaluation.npz")  # fmt: skip
    install("tensorflow")
    return Case(name="toycar", options=options, keras=model)


def _resnet(depth: int, file: str) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        weights = _found(f"pytorch_cifar10/{file}")
        install("torch")
        sets = [(_normalised(x), y) for x, y in (_cifar(), _cifar("test_1000"))]
        calibration = (sets[0][0][:CALIBRATION], sets[0][1][:CALIBRATION])
        options = _written(folder, Path(f"{FACTORY}:resnet{depth}"), calibration, sets[1])
        return Case(name=f"resnet-{depth}", options=_with_weights(options, weights))

    return make


def _with_weights(options: BuildOptions, weights: Path) -> BuildOptions:
    from msgspec import structs

    return structs.replace(options, weights=weights, input_shapes=(InputShape(shape=(1, 3, 32, 32)),))


def _cifar(part: str = "train_2000") -> tuple[np.ndarray, np.ndarray]:
    with np.load(_found(f"data/cifar10jpeg_{part}.npz")) as archive:
        return archive["x"].astype(np.float32), archive["y"].astype(np.int64)


def _normalised(x: np.ndarray) -> np.ndarray:
    """As the authors trained: channels first, mean and deviation of ImageNet."""
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return np.ascontiguousarray(((x / 255.0 - mean) / deviation).transpose(0, 3, 1, 2), dtype=np.float32)


_Set = tuple[np.ndarray, np.ndarray]


def _written(folder: Path, source: Path, calibration: _Set, evaluation: _Set) -> BuildOptions:
    folder.mkdir(parents=True)
    for name, (x, y) in (("calibration", calibration), ("evaluation", evaluation)):
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return BuildOptions(source=source, targets=(), calibration=folder / "calibration.npz",
                        evaluation=folder / "evaluation.npz")  # fmt: skip


def _found(path: str) -> Path:
    if not (TEST_DATA / path).is_file():
        raise FileNotFoundError(f"{TEST_DATA / path} is not here")
    return TEST_DATA / path


#: Name → what makes the case.
CASES: Final[dict[str, Callable[[Path], Case]]] = {
    "resnet-8": _resnet8,
    "resnet-20": _resnet(20, "resnet20-12fca82f.th"),
    "resnet-32": _resnet(32, "resnet32-d509ac18.th"),
    "ds-cnn": _keywords,
    "mnist-cntk": _mnist,
    "toycar": _toycar,
    "digits-v1": _digits("v1"),
    "digits-v2": _digits("v2"),
}
