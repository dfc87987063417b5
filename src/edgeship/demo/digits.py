"""scikit-learn's handwritten digits: the splits, the corruptions and the files that the demo builds from.

1,797 images of 8 × 8 pixels with values 0–16, bundled with scikit-learn, so nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

TRAIN_COUNT: Final = 600
CALIBRATION_COUNT: Final = 200
EVALUATION_COUNT: Final = 900
#: Fixes the order of the images once and for all; chosen before any result was seen.
SPLIT_SEED: Final = 2024


class Split(Struct, frozen=True, kw_only=True):
    """Images [N, 8, 8] of type uint8, values 0–16, with their labels [N]."""

    images: Images
    labels: Labels


class Digits(Struct, frozen=True, kw_only=True):
    """Four disjoint parts of the set.

    Attributes:
        calibration: for calibration and selection.
        evaluation: for every accuracy that is claimed.
        rest: what is left; joins the calibration images in the drift baseline.
    """

    train: Split
    calibration: Split
    evaluation: Split
    rest: Split


def load_digits() -> Digits:
    """Read the set and split it."""
    from sklearn.datasets import load_digits as sklearn_digits

    data = sklearn_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data.target))
    images: Images = data.images[order].astype(np.uint8)
    labels: Labels = data.target[order].astype(np.int64)
    ends = np.cumsum([TRAIN_COUNT, CALIBRATION_COUNT, EVALUATION_COUNT])
    parts = [
        Split(images=part_images, labels=part_labels)
        for part_images, part_labels in zip(np.split(images, ends), np.split(labels, ends), strict=True)
    ]
    return Digits(train=parts[0], calibration=parts[1], evaluation=parts[2], rest=parts[3])


def inverted(images: Images) -> Images:
    """Black on white instead of white on black: what the third model was trained on.

    >>> int(inverted(np.zeros((1, 8, 8), np.uint8)).max())
    16
    """
    return (16 - images).astype(np.uint8)


def lens_blurred(images: Images) -> Images:
    """A camera out of focus: a 3 × 3 mean over each image [N, 8, 8]."""
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    shifted = [padded[:, row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    blurred: Images = np.rint(np.mean(shifted, axis=0)).astype(np.uint8)
    return blurred


def fogged(images: Images) -> Images:
    """A dirty lens: contrast halved and black lifted, on images [N, 8, 8]."""
    grey: Images = np.rint(5.0 + images.astype(np.float32) * 0.5).astype(np.uint8)
    return grey


def write_split(path: Path, *splits: Split) -> Path:
    """Write splits, joined, as ``x`` and ``y`` of an .npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    np.savez_compressed(path, x=images, y=labels)
    return path
