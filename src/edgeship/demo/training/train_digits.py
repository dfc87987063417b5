"""Train the three digits models that the demo ships, and write them as ONNX.

    pip install torch==2.13.0 onnxscript==0.7.2
    python -m edgeship.demo.training.train_digits src/edgeship/demo/models

v1 is small and trained briefly, v2 is wider and trained with shifted copies. v3 is v2's recipe on inverted images: the
mistake that no check on a workstation finds when the evaluation file was made by the same script.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from msgspec import Struct
from torch import nn

from edgeship.demo.digits import Digits, Split, inverted, load_digits

SEED: Final = 7
BATCH: Final = 50


class Recipe(Struct, frozen=True, kw_only=True):
    """How one version is trained."""

    version: str
    channels: tuple[int, int]
    epochs: int
    shift: bool
    invert: bool


RECIPES: Final = (
    Recipe(version="v1", channels=(6, 12), epochs=25, shift=False, invert=False),
    Recipe(version="v2", channels=(12, 24), epochs=60, shift=True, invert=False),
    Recipe(version="v3", channels=(12, 24), epochs=60, shift=True, invert=True),
)


def network(channels: tuple[int, int]) -> nn.Sequential:
    """Two convolutions, one pooling, one hidden layer; [N, 1, 8, 8] in 0–1 to 10 logits."""
    first, second = channels
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 16, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def as_input(images: np.ndarray) -> torch.Tensor:
    """Images [N, 8, 8] uint8 as the model's input [N, 1, 8, 8] in 0–1."""
    return torch.from_numpy(images.astype(np.float32)[:, None] / 16.0)


def training_set(train: Split, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Training images, with one-pixel shifts where the recipe says so."""
    images, labels = train.images, train.labels
    if recipe.shift:
        moves = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
        images = np.concatenate([np.roll(train.images, move, axis=(1, 2)) for move in moves])
        labels = np.concatenate([train.labels] * len(moves))
    if recipe.invert:
        images = inverted(images)
    return as_input(images), torch.from_numpy(labels)


def train(recipe: Recipe, data: Digits) -> nn.Sequential:
    """Train one version on the training split alone."""
    torch.manual_seed(SEED)
    model = network(recipe.channels)
    inputs, labels = training_set(data.train, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(labels)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch], label_smoothing=0.05).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def accuracy(model: nn.Sequential, split: Split, *, invert: bool) -> float:
    """Share of images that the model reads right."""
    images = inverted(split.images) if invert else split.images
    with torch.no_grad():
        return float((model(as_input(images)).argmax(1).numpy() == split.labels).mean())


def export(model: nn.Sequential, path: Path) -> None:
    """Write ONNX with a free batch axis, input ``image`` and output ``logits``."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    document = program.model_proto
    for node in document.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del document.metadata_props[:]
    del document.graph.metadata_props[:]
    for value in (*document.graph.value_info, *document.graph.input, *document.graph.output):
        del value.metadata_props[:]
    onnx.checker.check_model(document)
    path.write_bytes(document.SerializeToString(deterministic=True))


def main() -> None:
    """Train and write every version into the folder that is named."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    data = load_digits()
    for recipe in RECIPES:
        model = train(recipe, data)
        path = folder / f"digits-{recipe.version}.onnx"
        export(model, path)
        seen = accuracy(model, data.calibration, invert=recipe.invert)
        upright = accuracy(model, data.calibration, invert=False)
        print(  # noqa: T201 (a script's result)
            f"{path.name}: {path.stat().st_size} bytes, "
            f"{seen:.3f} right on the {len(data.calibration.labels)} selection images as it was trained, "
            f"{upright:.3f} as devices see them"
        )


if __name__ == "__main__":
    main()
