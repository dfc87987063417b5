"""What moves into the files, what stays on the device, and that both together are what the contract says."""

from __future__ import annotations

import numpy as np
import pytest

from edgeship.build import folding
from edgeship_agent.contract.manifest import (
    Cast,
    ColourOrder,
    Crop,
    InputContract,
    Normalize,
    Offset,
    Pad,
    Reshape,
    Resize,
    Scale,
    Step,
    TensorSpec,
    Transpose,
)
from edgeship_agent.processing import prepare

IMAGE = np.random.default_rng(7).integers(0, 256, (12, 10, 3), dtype=np.uint8)
FLOAT = Cast(dtype="float32")
SHARE = Scale(factor=1 / 255)
COLOURS = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
FLOATS = TensorSpec(name="x", dtype="float32", shape=(-1, 3, 12, 10))


def contract(*steps: Step, dtype: str = "uint8") -> InputContract:
    return InputContract(tensor="x", dtype=dtype, shape=IMAGE.shape, steps=steps)


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ((FLOAT,), ()),
        ((SHARE, COLOURS, Transpose(axes=(2, 0, 1))), (Transpose(axes=(2, 0, 1)),)),
        ((Transpose(axes=(2, 0, 1)), FLOAT, Normalize(mean=COLOURS.mean, std=COLOURS.std, axis=0)),
         (Transpose(axes=(2, 0, 1)),)),
        ((Resize(height=6, width=5), SHARE, COLOURS, ColourOrder()), (Resize(height=6, width=5), ColourOrder())),
        ((SHARE, COLOURS, Crop(height=8, width=8)), (Crop(height=8, width=8),)),
        ((SHARE, Offset(value=-0.5), Reshape(shape=(360,))), (Reshape(shape=(360,)),)),
        ((SHARE, COLOURS, ColourOrder(), Transpose(axes=(2, 0, 1)), Scale(factor=2.0)),
         (ColourOrder(), Transpose(axes=(2, 0, 1)))),
    ],
)  # fmt: skip
def test_integers_stay_and_arithmetic_moves_with_the_same_numbers(
    steps: tuple[Step, ...], left: tuple[Step, ...]
) -> None:
    whole = contract(*steps)
    short = folding.shorten(whole, FLOATS)
    assert isinstance(short, InputContract)
    assert short.steps == left
    fed = prepare([short], {"x": IMAGE})
    assert fed["x"].dtype == np.uint8
    wanted = prepare([whole], {"x": IMAGE})["x"]
    np.testing.assert_array_equal(folding.source_sample([short], fed)["x"], wanted)
    made = fed["x"].astype(np.float32)
    for kind, operand in folding.operations_of(short.folded, made.ndim):
        made = {"mul": np.multiply, "add": np.add, "sub": np.subtract, "div": np.divide}[kind](made, operand)
    np.testing.assert_array_equal(made, wanted)
    np.testing.assert_array_equal(prepare([folding.whole(short)], {"x": IMAGE})["x"], wanted)


@pytest.mark.parametrize(
    ("steps", "dtype", "takes", "reason"),
    [
        ((Transpose(axes=(2, 0, 1)),), "uint8", "uint8", ""),
        ((SHARE,), "float32", "float32", "the raw input is float32, not bytes"),
        ((SHARE, Cast(dtype="float64")), "uint8", "float32", "it casts to float64 on the way"),
        ((SHARE,), "uint8", "float64", "the model takes float64"),
        ((Cast(dtype="int16"), SHARE), "uint8", "float32", "the integers before it are not bytes any more"),
        ((SHARE, Pad(widths=((1, 1), (1, 1), (0, 0)))), "uint8", "float32",
         "it pads behind the normalisation, with a number that no byte stands for"),
        ((SHARE, Resize(height=6, width=5)), "uint8", "float32",
         "it resizes behind the normalisation, which rounds otherwise in bytes"),
        ((COLOURS, Reshape(shape=(360,))), "uint8", "float32", "it reshapes channels that were normalised one by one"),
    ],
)  # fmt: skip
def test_what_cannot_move_says_why(steps: tuple[Step, ...], dtype: str, takes: str, reason: str) -> None:
    spec = TensorSpec(name="x", dtype=takes, shape=(-1, 3, 12, 10))
    assert folding.shorten(contract(*steps, dtype=dtype), spec) == reason


@pytest.mark.parametrize(
    ("steps", "scale"),
    [
        ((SHARE,), (pytest.approx(1 / 255), 0)),
        ((Normalize(mean=(128.0,), std=(64.0,)),), (1 / 64, 128)),
        ((Normalize(mean=(127.5,), std=(127.5,)),), None),
        ((COLOURS,), None),
        ((Scale(factor=-1.0),), None),
        ((Offset(value=-300.0),), None),
    ],
)
def test_a_scale_says_it_all_where_a_byte_stands_for_zero(steps: tuple[Step, ...], scale: object) -> None:
    assert folding.scale_of(steps, 4) == scale
