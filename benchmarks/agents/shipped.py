"""A model as the build ships it: quantized by its search for the machine that the benchmark runs on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.agents.slots import DATA
from PIL import Image

from edgeship.build import inputs, routes, target_files, toolchains
from edgeship.build.candidates import Goals, Workshop
from edgeship.build.options import MAX_RELATIVE_RMS, BuildOptions
from edgeship.build.progress import Silence
from edgeship_agent.runtime.isa import isa_class, isa_class_of

_TARGET = "x86-64-server"
#: Images that give the ranges, and images that the choice is judged by.
_CALIBRATION, _EVALUATION = 60, 200
_WIDTH, _HEIGHT = 320, 240


def face_detector_int8(source: Path, folder: Path) -> Path:
    """The face detector in int8 for ONNX Runtime; its file.

    Args:
        source: the ONNX file in fp32.
        folder: where the build works.

    Raises:
        FileNotFoundError: the images for its calibration are not in EDGESHIP_TEST_DATA.
    """
    folder.mkdir(parents=True)
    images = _images(_CALIBRATION + _EVALUATION)
    np.savez(folder / "calibration.npz", x=images[:_CALIBRATION])
    np.savez(folder / "evaluation.npz", x=images[_CALIBRATION:])
    options = BuildOptions(source=source, targets=(), calibration=folder / "calibration.npz",
                           evaluation=folder / "evaluation.npz")  # fmt: skip
    read = inputs.read(options, folder / "source", Silence())
    forms = routes.Forms(read.source, folder / "forms", toolchains.install)
    workshop = Workshop(read, folder, forms, Goals(max_relative_rms=MAX_RELATIVE_RMS), Silence())
    target = target_files.load(_TARGET)
    try:
        on_target = isa_class_of(target.arch, target.isa) == isa_class()
        return workshop.quantized_variant(target, "onnxruntime", "int8", on_target=on_target).artifact.model
    finally:
        workshop.close()


def _images(count: int) -> np.ndarray:
    """Photographs, scaled up and centred as the detector's authors do: float32 [count, 3, 240, 320]."""
    with np.load(DATA / "data" / "cifar10jpeg_train_2000.npz") as archive:
        chosen = archive["x"][np.random.default_rng(0).permutation(len(archive["x"]))[:count]]
    scaled = np.stack([np.asarray(Image.fromarray(each).resize((_WIDTH, _HEIGHT))) for each in chosen])
    return ((scaled.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2)
