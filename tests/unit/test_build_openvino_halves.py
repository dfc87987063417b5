"""Float weights of OpenVINO files are stored in half precision where it holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as operators

from edgeship.build.backends.openvino_halves import halve_constants, halve_float_weights

SIZE = 64


def _net(scale: float) -> Any:
    weights = np.random.default_rng(4).normal(0, scale, (SIZE, SIZE)).astype(np.float32)
    x = operators.parameter([1, SIZE], np.float32, name="x")
    product = operators.matmul(x, operators.constant(weights), transpose_a=False, transpose_b=True)
    shift = operators.constant(np.full((1, SIZE), 1e-6, np.float32))
    return openvino.Model([operators.result(operators.add(product, shift))], [x])


def _saved(network: Any, path: Path) -> int:
    openvino.save_model(network, str(path), compress_to_fp16=False)
    return path.with_suffix(".bin").stat().st_size


@pytest.mark.parametrize(("scale", "halved"), [(0.1, True), (1e6, False), (1e-9, False)])
def test_weights_are_halved_where_that_keeps_them(scale: float, halved: bool, tmp_path: Path) -> None:
    network = _net(scale)
    before = _saved(network, tmp_path / "before.xml")
    halve_float_weights(network)
    after = _saved(network, tmp_path / "after.xml")
    assert before - after == (2 * SIZE * SIZE if halved else 0)
    given = np.random.default_rng(5).normal(0, 1, (1, SIZE)).astype(np.float32)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    one, other = (openvino.compile_model(str(tmp_path / f"{name}.xml"), "CPU", settings)(given)[0]
                  for name in ("before", "after"))  # fmt: skip
    assert float(np.linalg.norm(one - other)) <= 0.001 * float(np.linalg.norm(one))


@pytest.mark.parametrize("large", [1e6, 0.5])
def test_a_number_beyond_half_precision_is_kept_and_the_rest_is_halved(large: float, tmp_path: Path) -> None:
    weights = np.random.default_rng(4).normal(0, 1, (2, SIZE, SIZE)).astype(np.float32)
    weights[0, 3, 4] = large
    x = operators.parameter([1, SIZE], np.float32, name="x")
    first = operators.matmul(x, operators.constant(weights[0]), transpose_a=False, transpose_b=True)
    last = operators.matmul(first, operators.constant(weights[1]), transpose_a=False, transpose_b=True)
    network = openvino.Model([operators.result(last)], [x])
    before = _saved(network, tmp_path / "before.xml")
    assert halve_constants(network) == (large > 65504)
    after = _saved(network, tmp_path / "after.xml")
    assert before - after == (2 * SIZE * SIZE if large > 65504 else 0)
    given = np.random.default_rng(5).normal(0, 1, (1, SIZE)).astype(np.float32)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    one, other = (openvino.compile_model(str(tmp_path / f"{name}.xml"), "CPU", settings)(given)[0]
                  for name in ("before", "after"))  # fmt: skip
    assert float(np.linalg.norm(one - other)) <= 0.001 * float(np.linalg.norm(one))
