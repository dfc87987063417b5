"""Bytes that are looked up are the bytes that would have been calculated, all 256 of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgeship_agent.contract.errors import InputError
from edgeship_agent.contract.manifest import (
    Binding,
    Cast,
    ColourOrder,
    Crop,
    InputContract,
    LogMel,
    Normalize,
    Offset,
    Pad,
    Reshape,
    Resize,
    Scale,
    Transpose,
)
from edgeship_agent.processing import prepare
from edgeship_agent.processing.steps import apply_step
from edgeship_agent.runtime.bytewise import byte_input, byte_output
from edgeship_agent.runtime.layout import from_artifact, to_artifact

CENTRED = (Offset(value=-127.0), Scale(factor=1 / 128))
SPECTRUM = LogMel(rate_hz=16000.0, frame_length=256, hop_length=128, bins=8, low_hz=60.0, high_hz=7600.0)
#: Ways of arithmetic with one number for all channels.
ARITHMETIC = (
    (Cast(dtype="float32"),),
    (Cast(dtype="int32"),),
    (Cast(dtype="float64"), Cast(dtype="int8")),
    (Scale(factor=1 / 255),),
    (Scale(factor=1 / 127.5), Offset(value=-1.0)),
    (Scale(factor=1e9),),
    CENTRED,
    (Normalize(mean=(127.5,), std=(127.5,)),),
    (Normalize(mean=(118.3,), std=(57.1,)), Cast(dtype="float32")),
    (Normalize(mean=(3.0,), std=(0.0,)),),  # NaN and infinity
    (Scale(factor=1 / 255), Normalize(mean=(0.449,), std=(0.226,))),
)
QUANTIZATION = ((1.0, -128), (1 / 255, 0), (1 / 255, -128), (0.0078125, 128), (0.0186, -14), (0.03, 3), (700.0, 1))


def contract_of(dtype: str, shape: tuple[int, ...], steps: tuple, **fields) -> InputContract:
    return InputContract(tensor="x", dtype=dtype, shape=shape, steps=steps, **fields)


def binding_of(dtype: str, shape: tuple[int, ...], scale: float = 0.02, zero_point: int = -3, **fields) -> Binding:
    return Binding(
        name="x", artifact_name="x", artifact_index=0, dtype=dtype, shape=shape, scale=scale, zero_point=zero_point,
        **fields,
    )  # fmt: skip


@np.errstate(all="ignore")
def calculated(contract: InputContract, binding: Binding, sample: np.ndarray) -> np.ndarray:
    return to_artifact(binding, prepare([contract], {"x": sample})["x"])


@pytest.mark.parametrize("file_dtype", ["uint8", "int8"])
@pytest.mark.parametrize("raw_dtype", ["uint8", "int8"])
def test_every_byte_of_every_arithmetic_and_quantization(raw_dtype, file_dtype):
    every = np.arange(256, dtype=np.uint8).view(raw_dtype)
    results = set()
    for steps, (scale, zero_point) in itertools.product(ARITHMETIC, QUANTIZATION):
        for before in range(len(steps) + 1):  # steps that the contract keeps, and those folded into the binding
            contract = contract_of(raw_dtype, (256,), steps[:before])
            binding = binding_of(file_dtype, (1, 256), scale, zero_point, steps=steps[before:])
            found = byte_input(contract, binding)({"x": every})
            expected = calculated(contract, binding, every)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(found, expected, err_msg=f"{steps} {scale} {zero_point}")
            results.add(found.tobytes())
    assert len(results) > 20  # they do differ


@pytest.mark.parametrize(
    ("steps", "shape", "transpose"),
    [
        (CENTRED, (1, 12, 10, 3), ()),
        ((*CENTRED, Transpose(axes=(2, 0, 1))), (1, 3, 12, 10), ()),
        (CENTRED, (1, 3, 12, 10), (0, 3, 1, 2)),
        ((Resize(height=7, width=9), *CENTRED), (1, 7, 9, 3), ()),
        ((Pad(widths=((1, 0), (0, 2), (0, 0)), value=9), *CENTRED, ColourOrder()), (1, 13, 12, 3), ()),
        ((Cast(dtype="float32"), Crop(height=6, width=4), CENTRED[0], Reshape(shape=(72,)), CENTRED[1]), (1, 72), ()),
    ],
)
def test_what_only_moves_bytes_moves_them_as_before(steps, shape, transpose):
    random = np.random.default_rng(2)
    contract = contract_of("uint8", (12, 10, 3), steps)
    binding = binding_of("int8", shape, transpose=transpose)
    change = byte_input(contract, binding)
    for _ in range(3):  # the memory is used again
        sample = random.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        found = change({"x": sample})
        assert found.shape == shape
        np.testing.assert_array_equal(found, calculated(contract, binding, sample))
        mirrored = sample[::-1, ::-1]
        np.testing.assert_array_equal(change({"x": mirrored}), calculated(contract, binding, mirrored))


def test_sizes_that_change_and_scalars():
    free = contract_of("uint8", (-1,), (Scale(factor=0.5),))
    for size in (3, 5, 0, 5):
        sample = np.arange(size, dtype=np.uint8)
        np.testing.assert_array_equal(
            byte_input(free, binding_of("int8", (1, size)))({"x": sample}),
            calculated(free, binding_of("int8", (1, size)), sample),
        )
    scalar = contract_of("uint8", (), (Scale(factor=0.5),), batched=False)
    assert byte_input(scalar, binding_of("int8", (1,)))({"x": np.array(8, np.uint8)}).shape == (1,)


@pytest.mark.parametrize(
    "raw", [{}, {"x": np.zeros((4,), np.float32)}, {"x": np.zeros((5,), np.uint8)}, {"x": np.zeros((2, 2), np.uint8)}]
)
def test_a_wrong_sample_is_refused_in_the_same_words(raw):
    contract = contract_of("uint8", (4,), (Cast(dtype="float32"),))
    with pytest.raises(InputError) as calculated_error:
        prepare([contract], raw)
    with pytest.raises(InputError) as looked_up_error:
        byte_input(contract, binding_of("int8", (1, 4)))(raw)
    assert str(looked_up_error.value) == str(calculated_error.value)


@pytest.mark.parametrize(
    ("contract", "binding"),
    [
        (contract_of("float32", (4,), CENTRED), binding_of("int8", (1, 4))),
        (contract_of("uint8", (4,), CENTRED), binding_of("float32", (1, 4), 0.0, 0)),
        (contract_of("uint8", (4,), CENTRED), binding_of("int8", (1, 4), 0.0, 0)),
        (contract_of("uint8", (4,), ()), binding_of("uint8", (1, 4), 0.5, 128)),
        (contract_of("uint8", (-1, 4), CENTRED, sequence=True), binding_of("int8", (1, 4))),
        (contract_of("uint8", (2, 3), (Normalize(mean=(1.0, 2.0, 3.0), std=(1.0,)),)), binding_of("int8", (1, 2, 3))),
        (contract_of("uint8", (2, 2), (*CENTRED, Resize(height=4, width=4))), binding_of("int8", (1, 4, 4))),
        (contract_of("uint8", (2, 2), (*CENTRED, Pad(widths=((1, 1), (0, 0))))), binding_of("int8", (1, 4, 2))),
        (contract_of("int8", (400,), (Scale(factor=0.1), SPECTRUM)), binding_of("int8", (1, 2, 8))),
    ],
)  # fmt: skip
def test_what_depends_on_more_than_a_byte_is_calculated(contract, binding):
    assert byte_input(contract, binding) is None


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("shape", [(1, 256), (1, 2, 4, 32), (1, 8, 1024)])
def test_answers_in_bytes_become_the_same_floats(dtype, shape):
    values = np.resize(np.arange(256, dtype=np.uint8), shape).view(dtype)
    for scale, zero_point in QUANTIZATION:
        binding = binding_of(dtype, shape, scale, zero_point)
        found, expected = byte_output(binding)(values), from_artifact(binding, values)
        assert found.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        if len(shape) == 4:
            moved = binding_of(dtype, shape, scale, zero_point, transpose=(0, 3, 1, 2))
            np.testing.assert_array_equal(byte_output(moved)(values), from_artifact(moved, values))
    assert byte_output(binding_of("float32", shape)) is None
    assert byte_output(binding_of(dtype, shape, 0.0)) is None


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_steps_together_are_the_steps_one_by_one_and_leave_the_sample_alone(dtype):
    moves = (Transpose(axes=(2, 0, 1)), Crop(height=2, width=4), ColourOrder(), Reshape(shape=(-1,)))
    channels = Normalize(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    sample = np.random.default_rng(6).integers(0, 256, (5, 6, 3)).astype(dtype)
    before = sample.copy()
    for steps in (
        CENTRED,
        (*CENTRED, *moves, *CENTRED),
        (channels, CENTRED[1], moves[0], CENTRED[0], Cast(dtype="float32"), CENTRED[1]),
        (moves[0], Cast(dtype="float32"), CENTRED[0], Cast(dtype="float64"), CENTRED[1]),
        (moves[2], CENTRED[0], Resize(height=3, width=3), CENTRED[1]),
    ):
        expected = sample
        for step in steps:
            expected = apply_step(step, expected)
        found = prepare([contract_of(dtype, sample.shape, steps)], {"x": sample})["x"][0]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(sample, before)


def test_channels_are_normalized_by_rows_as_by_pixels():
    random = np.random.default_rng(4)
    step = Normalize(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    for shape in ((6, 5, 3), (5, 3), (2, 6, 5, 3)):
        sample = random.integers(0, 256, shape, dtype=np.uint8)
        views = (sample, sample[::-1], np.asfortranarray(sample))
        for view, one_step in itertools.product(views, (step, Normalize(mean=step.mean, std=(3.0,)))):
            found = prepare([contract_of("uint8", shape, (one_step,))], {"x": view})["x"][0]
            mean, std = (np.asarray(values, np.float32) for values in (one_step.mean, one_step.std))
            np.testing.assert_array_equal(found, (view.astype(np.float32) - mean) / std)
            assert found.dtype == np.float32
