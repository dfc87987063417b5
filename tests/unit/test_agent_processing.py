"""Preprocessing steps against plain numpy and against known figures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgeship_agent.contract.errors import ContractError, InputError
from edgeship_agent.contract.manifest import (
    Cast,
    ColourOrder,
    Crop,
    InputContract,
    Normalize,
    Offset,
    OutputContract,
    Pad,
    Reshape,
    Resize,
    Scale,
    Transpose,
)
from edgeship_agent.processing import check_finite, prepare
from edgeship_agent.processing.detection import Decoding
from edgeship_agent.processing.outputs import probabilities
from edgeship_agent.processing.steps import apply_step

RNG = np.random.default_rng(3)
IMAGE = RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)


def run(steps: tuple, sample: np.ndarray) -> np.ndarray:
    contract = InputContract(tensor="x", dtype=sample.dtype.name, shape=sample.shape, steps=steps)
    return prepare([contract], {"x": sample})["x"]


def test_no_steps_feed_the_array_as_it_is():
    prepared = run((), IMAGE)
    assert prepared.shape == (1, 9, 12, 3)
    assert np.shares_memory(prepared, IMAGE)


def test_arithmetic_is_float32():
    steps = (Scale(factor=1 / 255), Offset(value=-0.5), Normalize(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)))
    prepared = run(steps, IMAGE)
    expected = (IMAGE.astype(np.float32) * np.float32(1 / 255) + np.float32(-0.5)) - np.array([0.1, 0.2, 0.3], "f4")
    np.testing.assert_array_equal(prepared[0], expected / np.array([1, 2, 4], "f4"))
    assert prepared.dtype == np.float32


def test_normalize_along_the_first_axis():
    chw = np.ones((3, 2, 2), np.float32)
    prepared = run((Normalize(mean=(0, 1, 2), std=(1, 1, 1), axis=0),), chw)
    assert prepared[0, :, 0, 0].tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int8", [-300.0, -0.5, 0.5, 1.5, 2.5, 300.0], [-128, 0, 0, 2, 2, 127]),
        ("uint8", [-1.0, 254.5, 255.5, np.nan], [0, 254, 255, 0]),
        ("int32", [3e9, -3e9, np.inf], [2**31 - 1, -(2**31), 2**31 - 1]),
    ],
)
def test_cast_rounds_half_to_even_and_saturates(dtype, values, expected):
    result = apply_step(Cast(dtype=dtype), np.array(values, np.float32))
    assert result.tolist() == expected


def test_cast_to_the_largest_integers_does_not_overflow():
    result = apply_step(Cast(dtype="int64"), np.array([1e30, -1e30]))
    assert result[0] > 2**62
    assert result[1] == -(2**63)


def test_integer_cast_saturates():
    assert apply_step(Cast(dtype="int8"), np.array([200, 3], np.uint8)).tolist() == [127, 3]


def test_layout_steps():
    prepared = run((Transpose(axes=(2, 0, 1)), Reshape(shape=(3, 108))), IMAGE)
    np.testing.assert_array_equal(prepared[0], IMAGE.transpose(2, 0, 1).reshape(3, 108))
    np.testing.assert_array_equal(run((ColourOrder(),), IMAGE)[0], IMAGE[..., ::-1])
    np.testing.assert_array_equal(run((Crop(height=5, width=4),), IMAGE)[0], IMAGE[2:7, 4:8])
    padded = run((Pad(widths=((1, 2), (0, 0), (0, 0)), value=7),), IMAGE)[0]
    assert (padded.shape, padded.dtype) == ((12, 12, 3), np.uint8)
    assert (padded[0] == 7).all()
    assert (padded[-2:] == 7).all()


def test_bilinear_resize_of_integers_is_exact_where_it_can_be_told():
    row = np.array([[0, 100]], np.uint8)
    # half-pixel centres: positions -0.25, 0.25, 0.75, 1.25
    assert apply_step(Resize(height=1, width=4), row).tolist() == [[0, 25, 75, 100]]
    assert apply_step(Resize(height=9, width=12), IMAGE).tolist() == IMAGE.tolist()


def test_bilinear_upscaling_agrees_with_pillow():
    ours = apply_step(Resize(height=27, width=24), IMAGE).astype(int)
    theirs = np.asarray(Image.fromarray(IMAGE).resize((24, 27), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - theirs).max() <= 1


def test_bilinear_resize_of_floats_agrees_with_that_of_integers():
    floats = apply_step(Resize(height=5, width=7), IMAGE.astype(np.float32))
    integers = apply_step(Resize(height=5, width=7), IMAGE)
    assert floats.dtype == np.float32
    assert np.abs(floats - integers).max() <= 0.51


def test_nearest_resize():
    row = np.arange(4, dtype=np.uint8)[np.newaxis]
    assert apply_step(Resize(height=1, width=2, method="nearest"), row).tolist() == [[1, 3]]
    assert apply_step(Resize(height=2, width=8, method="nearest"), row)[1].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (np.zeros((2, 3), np.uint8), "expected float32 \\[2, any\\], got uint8"),
        (np.zeros((3, 3), np.float32), "got float32 \\[3, 3\\]"),
        (np.zeros(2, np.float32), "got float32 \\[2\\]"),
    ],
)
def test_a_wrong_raw_input_is_refused_in_words(sample, message):
    contract = InputContract(tensor="x", dtype="float32", shape=(2, -1))
    with pytest.raises(InputError, match=message):
        prepare([contract], {"x": sample})


def test_a_free_size_is_taken():
    contract = InputContract(tensor="x", dtype="float32", shape=(2, -1))
    assert prepare([contract], {"x": np.zeros((2, 9), np.float32)})["x"].shape == (1, 2, 9)


def test_a_missing_input_names_what_came():
    contract = InputContract(tensor="x", dtype="float32", shape=(2,))
    with pytest.raises(InputError, match="x: missing input \\(got y\\)"):
        prepare([contract], {"y": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    "step", [Reshape(shape=(7,)), Transpose(axes=(0, 1)), Crop(height=99, width=1), Normalize(mean=(1,) * 5, std=(1,))]
)
def test_a_step_that_does_not_fit_the_sample_is_the_inputs_fault(step):
    with pytest.raises(InputError, match=type(step).__name__.lower()):
        apply_step(step, IMAGE)


def test_what_the_manifest_asks_for_and_nobody_knows_is_the_contracts_fault():
    with pytest.raises(ContractError, match="unknown resize method"):
        apply_step(Resize(height=1, width=1, method="lanczos"), IMAGE)
    with pytest.raises(ContractError, match="unknown dtype"):
        apply_step(Cast(dtype="colour"), IMAGE)
    with pytest.raises(ContractError, match="unknown activation"):
        probabilities(OutputContract(activation="magic"), np.zeros((1, 2)))


def test_reference_data_must_be_finite():
    with pytest.raises(InputError, match="expected 0, got 2"):
        check_finite("x", np.array([1.0, np.nan, np.inf]))
    check_finite("x", np.array([1, 2]))


def test_softmax_is_stable():
    result = probabilities(OutputContract(activation="softmax"), np.array([[1e4, 1e4, -1e4]], np.float32))
    assert result.tolist() == [0.5, 0.5, 0.0]
    assert np.isnan(probabilities(OutputContract(activation="softmax"), np.array([[np.nan, 1.0]]))).all()


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(boxes="boxes", scores="scores"),
        Decoding(boxes="out [0:4] ÷", scores="wa/model/concat;0", box_columns=(1, 5), score_columns=(5, 85),
                 objectness_column=0, channels_first=True, format="xywh", width=1280.5, height=720.0,
                 activation="sigmoid", background=3, score_threshold=0.001, iou_threshold=0.7, class_aware=False,
                 max_detections=300),
        Decoding(boxes="y", scores="y", score_columns=(4, 14), format="cxcywh", activation="softmax", background=0,
                 categories=(1, 3, 90)),
    ],
)  # fmt: skip
def test_an_application_decodes_what_the_output_contract_lists(decoding: Decoding) -> None:
    assert Decoding.from_steps(decoding.steps) == decoding


@pytest.mark.parametrize("steps", [(), ("softmax",), Decoding(boxes="y", scores="y").steps[:2],
                                   (*Decoding(boxes="y", scores="y").steps, "more")])  # fmt: skip
def test_steps_that_are_no_detectors_are_refused(steps: tuple[str, ...]) -> None:
    with pytest.raises(ContractError, match="not the steps of a detector"):
        Decoding.from_steps(steps)
