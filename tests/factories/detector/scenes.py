"""Scenes for a detector: one to four handwritten digits at random places among clutter, with their boxes.

The camera sees 640 × 640 pixels; scenes are drawn at the size that the network reads, 96 × 96, and boxes are given in
the camera's pixels, so that a box's numbers go up to 640 and a score's to 1, as in YOLO's exports. Digits are
scikit-learn's, in the demo's disjoint splits: what is evaluated shares no handwriting with what was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.demo.digits import Split, load_digits
from edgeship_agent.contract.manifest import Resize
from edgeship_agent.processing.steps import apply_step

#: Sides of the network's input and of the camera's image, in pixels.
SIDE: Final = 96
CAMERA: Final = 640
CLASSES: Final = 10
#: Name → seed and number of scenes. Without any difference, 500 evaluation scenes prove a drop within one point; these
#: leave room for a small one.
PARTS: Final = {"train": (11, 8000), "calibration": (12, 200), "evaluation": (13, 800)}
_SMALLEST, _LARGEST = 16, 34
_INK: Final = 64
_TRIES: Final = 20

PREPROCESS: Final = """\
# Grey images of 96 × 96 pixels, 0–255, to the model's [1, 96, 96] in 0–1.
schema_version = 1

[[input]]
tensor = "image"
dtype = "uint8"
shape = [96, 96]
steps = [
    { op = "cast", dtype = "float32" },
    { op = "scale", factor = 0.00392156862745098 },
    { op = "reshape", shape = [1, 96, 96] },
]
"""
POSTPROCESS: Final = """\
schema_version = 1

[detection]
boxes = "detections"
scores = "detections"
box_columns = [0, 4]
score_columns = [4, 14]
channels_first = true
format = "cxcywh"
width = 640
height = 640
"""


class Scene(Struct, frozen=True, kw_only=True):
    """One image.

    Attributes:
        image: uint8 [96, 96].
        boxes: float64 [G, 4], corners x0 y0 x1 y1 in pixels of the image (not of the camera).
        classes: int64 [G].
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


def scenes(part: str, count: int | None = None) -> list[Scene]:
    """The scenes of one part, always the same.

    Args:
        part: ``train``, ``calibration`` or ``evaluation``.
        count: only the first so many.
    """
    seed, whole = PARTS[part]
    digits: Split = getattr(load_digits(), part)
    rng = np.random.default_rng(seed)
    return [_scene(digits, rng) for _ in range(whole if count is None else count)]


def _scene(digits: Split, rng: np.random.Generator) -> Scene:
    canvas = _background(rng)
    boxes: list[tuple[int, int, int, int]] = []
    classes = []
    for _ in range(int(rng.integers(1, 5))):
        index = int(rng.integers(len(digits.labels)))
        drawn = _digit(digits.images[index], rng)
        height, width = drawn.shape
        for _ in range(_TRIES):
            x, y = (int(rng.integers(0, SIDE - size + 1)) for size in (width, height))
            box = (x, y, x + width, y + height)
            if all(_apart(box, other) for other in boxes):
                canvas[y : y + height, x : x + width] = np.maximum(canvas[y : y + height, x : x + width], drawn)
                boxes.append(box)
                classes.append(int(digits.labels[index]))
                break
    noisy = canvas + rng.normal(0.0, 6.0, canvas.shape)
    return Scene(image=np.clip(np.rint(noisy), 0, 255).astype(np.uint8), boxes=np.asarray(boxes, np.float64),
                 classes=np.asarray(classes, np.int64))  # fmt: skip


def _background(rng: np.random.Generator) -> np.ndarray:
    """A slope of grey with bars and blocks that are no digits."""
    ramp = np.linspace(-1.0, 1.0, SIDE)
    slopes = rng.uniform(-20.0, 20.0, 2)
    canvas: np.ndarray = 50.0 + slopes[0] * ramp[:, None] + slopes[1] * ramp[None]
    for _ in range(int(rng.integers(2, 7))):
        x, y = rng.integers(0, SIDE - 4, 2)
        length, thick = int(rng.integers(6, 28)), int(rng.integers(1, 4))
        width, height = (length, thick) if rng.random() < 0.5 else (thick, length)
        canvas[y : y + height, x : x + width] = rng.uniform(70.0, 220.0)
    return canvas


def _digit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A digit at a random size and brightness, cut to its ink."""
    side = int(rng.integers(_SMALLEST, _LARGEST + 1))
    large = apply_step(Resize(height=side, width=side), (image * 15).astype(np.uint8)).astype(np.float64)
    rows, columns = (np.flatnonzero((large >= _INK).any(axis=axis)) for axis in (1, 0))
    cut = large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(cut * rng.uniform(0.75, 1.05))


def _apart(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def write_data(folder: Path, *, evaluation: int | None = None) -> None:
    """Write what a build reads: images, contracts, and the objects as COCO JSON and as a folder of YOLO text files.

    Args:
        folder: made where it is missing.
        evaluation: only the first so many evaluation scenes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("calibration", None), ("evaluation", evaluation)):
        found = scenes(part, count)
        np.savez_compressed(folder / f"{part}.npz", x=np.stack([scene.image for scene in found]))
    (folder / "preprocess.toml").write_text(PREPROCESS, encoding="utf-8")
    (folder / "postprocess.toml").write_text(POSTPROCESS, encoding="utf-8")
    (folder / "truth.json").write_text(json.dumps(as_coco(found)), encoding="utf-8")
    write_yolo(folder / "labels", found)


def as_coco(found: list[Scene]) -> dict[str, object]:
    """The objects of scenes in COCO's form, in the camera's pixels."""
    scale = CAMERA / SIDE
    annotations = [
        {"id": 1 + 4 * number + index, "image_id": number + 1, "category_id": int(scene.classes[index]) + 1,
         "bbox": [x0 * scale, y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale],
         "area": (x1 - x0) * (y1 - y0) * scale * scale, "iscrowd": 0}
        for number, scene in enumerate(found)
        for index, (x0, y0, x1, y1) in enumerate(scene.boxes.tolist())
    ]  # fmt: skip
    return {
        "images": [{"id": number + 1, "width": CAMERA, "height": CAMERA, "file_name": f"{number:05d}.png"}
                   for number in range(len(found))],
        "annotations": annotations,
        "categories": [{"id": index + 1, "name": str(index)} for index in range(CLASSES)],
    }  # fmt: skip


def write_yolo(folder: Path, found: list[Scene]) -> None:
    """One text file for each scene: class, centre and size as shares of the image."""
    folder.mkdir(exist_ok=True)
    for number, scene in enumerate(found):
        lines = [
            f"{index} {(x0 + x1) / 2 / SIDE:.6f} {(y0 + y1) / 2 / SIDE:.6f} "
            f"{(x1 - x0) / SIDE:.6f} {(y1 - y0) / SIDE:.6f}\n"
            for index, (x0, y0, x1, y1) in zip(scene.classes.tolist(), scene.boxes.tolist(), strict=True)
        ]
        (folder / f"{number:05d}.txt").write_text("".join(lines), encoding="utf-8")
