"""Rounding weights: less error in the outputs, on a grid that a quantizer finds again, the mean kept by the bias."""

from __future__ import annotations

import numpy as np
import pytest

from edgeship.build.search import rounding
from edgeship.build.search.graph import Layer, patches
from edgeship.build.search.rounding import LayerInputs


def _convolved(layer: Layer, image: np.ndarray) -> np.ndarray:
    """[outputs, height, width] by the definition, one product after the other; zero padding, channels second."""
    padded = np.pad(image[0], ((0, 0), *layer.pads)) if layer.pads is not None else image[0]
    outputs, inputs, height, width = layer.weight.shape
    each = outputs // layer.groups
    rows = (padded.shape[1] - (height - 1) * layer.dilations[0] - 1) // layer.strides[0] + 1
    columns = (padded.shape[2] - (width - 1) * layer.dilations[1] - 1) // layer.strides[1] + 1
    result = np.zeros((outputs, rows, columns))
    for o, y, x, c, i, j in np.ndindex(outputs, rows, columns, inputs, height, width):
        channel = o // each * inputs + c
        result[o, y, x] += (
            layer.weight[o, c, i, j]
            * padded[
                channel, y * layer.strides[0] + i * layer.dilations[0], x * layer.strides[1] + j * layer.dilations[1]
            ]
        )
    return result


@pytest.mark.parametrize(
    "settings",
    [
        {"groups": 1, "strides": (1, 1), "pads": ((1, 1), (1, 1))},
        {"groups": 1, "strides": (2, 2), "pads": ((0, 1), (0, 1))},
        {"groups": 4, "strides": (1, 1), "pads": ((1, 1), (1, 1))},
        {"groups": 2, "strides": (2, 1), "pads": ((0, 0), (2, 2)), "dilations": (1, 2)},
    ],
)
def test_patches_times_weights_are_the_convolution(settings: dict) -> None:
    rng = np.random.default_rng(0)
    layer = Layer(weight=rng.normal(size=(8, 4 // settings["groups"], 3, 3)), convolution=True, **settings)
    image = rng.normal(size=(1, 4, 7, 6)).astype(np.float32)
    rows = patches(layer, image)
    weights = layer.weight.reshape(layer.groups, 8 // layer.groups, -1)
    found = np.einsum("gri,goi->gor", rows, weights).reshape(8, -1)
    np.testing.assert_allclose(found, _convolved(layer, image).reshape(8, -1), atol=1e-4)
    turned = Layer(weight=layer.weight, convolution=True, channels_last=True, **settings)
    np.testing.assert_array_equal(patches(turned, np.moveaxis(image, 1, -1)), rows)


def test_padding_that_keeps_the_size_puts_the_odd_row_last() -> None:
    layer = Layer(weight=np.ones((1, 1, 3, 3)), convolution=True, pads=None, strides=(2, 2))
    given = Layer(weight=np.ones((1, 1, 3, 3)), convolution=True, pads=((0, 1), (0, 1)), strides=(2, 2))
    image = np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)
    np.testing.assert_array_equal(patches(layer, image), patches(given, image))


def _layer_and_inputs(groups: int = 1, *, offset: float = 0.5) -> tuple[Layer, LayerInputs, np.ndarray]:
    rng = np.random.default_rng(7)
    weight = rng.normal(0, 0.2, (6, 8, 3, 3) if groups == 1 else (8, 1, 3, 3))
    layer = Layer(weight=weight, convolution=True, groups=groups, pads=((1, 1), (1, 1)))
    inputs = LayerInputs(layer)
    mixing = rng.normal(size=(8, 8))
    rows = []
    for _ in range(20):
        # neighbours that resemble each other, as in images: errors of their weights can cancel
        smooth = rng.normal(size=(8, 6, 6)).cumsum(axis=1).cumsum(axis=2)
        image = np.einsum("cd,dhw->chw", mixing, smooth)[None] + offset
        inputs.add(image.astype(np.float32))
        rows.append(patches(layer, image.astype(np.float32)))
    return layer, inputs, np.concatenate(rows, axis=1)


def _outputs(layer: Layer, weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    flat = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    return np.einsum("gri,goi->gor", rows, flat).reshape(len(weight), -1)


@pytest.mark.parametrize("groups", [1, 8])
def test_compensation_halves_the_error_of_the_outputs(groups: int) -> None:
    layer, inputs, rows = _layer_and_inputs(groups)
    steps = rounding.steps_of(layer.weight, bits=8, per_channel=True)
    wanted = _outputs(layer, layer.weight, rows)
    errors = [
        float(((_outputs(layer, weight, rows) - wanted) ** 2).sum())
        for weight in (rounding.nearest(layer.weight, steps), rounding.compensated(layer, inputs, steps))
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_min_max_quantizer_finds_the_same_numbers_again(bits: int, per_channel: bool) -> None:
    layer, inputs, _ = _layer_and_inputs()
    steps = rounding.steps_of(layer.weight, bits=bits, per_channel=per_channel)
    rounded = rounding.compensated(layer, inputs, steps)
    again = rounding.steps_of(rounded, bits=bits, per_channel=per_channel)
    np.testing.assert_allclose(again, steps, rtol=1e-12)
    np.testing.assert_allclose(
        rounding.nearest(rounded.astype(np.float32), again.astype(np.float32)), rounded, rtol=1e-5
    )
    column = steps.reshape(-1, 1, 1, 1)
    assert np.abs(rounded / column).max() <= {8: 127, 7: 64}[bits] + 1e-9


def test_the_bias_keeps_the_mean_of_the_outputs() -> None:
    layer, inputs, rows = _layer_and_inputs(offset=3.0)
    steps = rounding.steps_of(layer.weight, bits=8, per_channel=True)
    rounded = rounding.nearest(layer.weight, steps)
    gain = rounding.bias_correction(layer, inputs, rounded)
    shift = (_outputs(layer, rounded, rows) - _outputs(layer, layer.weight, rows)).mean(axis=1)
    np.testing.assert_allclose(gain, -shift, atol=1e-5)
    assert np.abs(shift).max() > 1e-4


def test_a_layer_with_too_many_inputs_is_rounded_to_nearest() -> None:
    rng = np.random.default_rng(1)
    layer = Layer(weight=rng.normal(size=(2, rounding.MOST_INPUTS + 1)), convolution=False)
    inputs = LayerInputs(layer)
    inputs.add(rng.normal(size=(1, rounding.MOST_INPUTS + 1)).astype(np.float32))
    steps = rounding.steps_of(layer.weight, bits=8, per_channel=True)
    np.testing.assert_array_equal(rounding.compensated(layer, inputs, steps), rounding.nearest(layer.weight, steps))


def test_inputs_that_are_always_zero_are_no_error() -> None:
    rng = np.random.default_rng(2)
    layer = Layer(weight=rng.normal(size=(3, 5)), convolution=False)
    inputs = LayerInputs(layer)
    row = rng.normal(size=(40, 5)).astype(np.float32)
    row[:, 2] = 0.0
    inputs.add(row)
    steps = rounding.steps_of(layer.weight, bits=8, per_channel=True)
    assert np.isfinite(rounding.compensated(layer, inputs, steps)).all()


def _one_after_the_other(weight: np.ndarray, moments: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """One group by the definition: every input's weights rounded, and their errors made good before the next."""
    limits = np.rint(np.abs(weight).max(axis=1) / steps)
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)] + np.eye(len(moments)) * 0.01 * np.diag(moments).mean()
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left, result = weight[:, order].copy(), np.zeros_like(weight)
    for index, place in enumerate(order):
        result[:, place] = np.clip(np.rint(left[:, index] / steps), -limits, limits) * steps
        left -= np.outer((left[:, index] - result[:, place]) / upper[index, index], upper[index])
    for row, place in enumerate(np.abs(weight).argmax(axis=1)):
        result[row, place] = np.sign(weight[row, place]) * limits[row] * steps[row]
    return result


@pytest.mark.parametrize(("groups", "inputs"), [(1, 9), (1, 200), (3, 72), (8, 9)])
def test_groups_together_are_rounded_as_each_alone(groups: int, inputs: int) -> None:
    rng = np.random.default_rng(groups + inputs)
    layer = Layer(weight=rng.normal(size=(4 * groups, inputs, 1, 1)), convolution=True, groups=groups)
    seen = LayerInputs(layer)
    for _ in range(6):
        seen.add(rng.normal(size=(1, groups * inputs, 8, 8)).cumsum(axis=1).astype(np.float32))
    steps = rounding.steps_of(layer.weight, bits=8, per_channel=True)
    assert seen.moments is not None
    parts = zip(layer.weight.reshape(groups, 4, -1), seen.moments, steps.reshape(groups, 4), strict=True)
    wanted = np.concatenate([_one_after_the_other(*each) for each in parts])
    found = rounding.compensated(layer, seen, steps).reshape(4 * groups, -1)
    np.testing.assert_allclose(found / steps[:, None], wanted / steps[:, None], atol=1e-9)


def test_groups_share_one_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A depthwise layer of a thousand channels is one piece of work, not a thousand."""
    calls: list[tuple[int, ...]] = []
    cholesky = np.linalg.cholesky

    def counted(matrices: np.ndarray) -> np.ndarray:
        calls.append(matrices.shape)
        return cholesky(matrices)

    monkeypatch.setattr(np.linalg, "cholesky", counted)
    layer, inputs, _ = _layer_and_inputs(groups=8)
    rounding.compensated(layer, inputs, rounding.steps_of(layer.weight, bits=8, per_channel=True))
    assert calls == [(8, 9, 9)]
