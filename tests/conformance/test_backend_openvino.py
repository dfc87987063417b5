"""The OpenVINO backend against the template, and what only it must do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import pytest
from msgspec import structs

from edgeship.build.backends import Artifact, Backend
from edgeship_agent.runtime import EngineOptions
from edgeship_agent.runtime.open_vino import OpenVinoEngine
from tests import models
from tests.conformance.backend_template import BackendTemplate


class TestOpenVino(BackendTemplate):
    runtime = "openvino"

    def test_it_is_verified_in_float32_where_the_processor_would_take_less(self, float_artifact: Artifact) -> None:
        engine = OpenVinoEngine(float_artifact.model, EngineOptions())
        assert engine.execution_precision() == "f32"
        engine.close()

    def test_weights_lie_beside_the_model_in_full_precision(self, float_artifact: Artifact) -> None:
        assert float_artifact.weights is not None
        assert float_artifact.weights.name == "model.bin"
        assert 'element_type="f16"' not in float_artifact.model.read_text()

    def test_ranges_are_true_and_no_bias_was_corrected(self, int8_artifact: Artifact) -> None:
        text = int8_artifact.model.read_text()
        assert "'disable_bias_correction': True" in text
        assert "'aggregator_type': 'mean'" not in text
        assert "FakeQuantize" in text

    @pytest.mark.parametrize(("make", "channels"), [(models.classifier, 1), (models.grouped, 8)])
    def test_weights_of_7_bits_keep_the_grid_that_they_were_rounded_on(
        self, backend: Backend, tmp_path: Path, make: Callable[[Path], Path], channels: int
    ) -> None:
        job = self.job_for(make(tmp_path / "m.onnx"), tmp_path, channels=channels)
        floating = self.convert(backend, job)
        scheme = structs.replace(self.scheme, rounding="compensated")
        rounded = _weights(backend.calibration(job, floating).file(scheme))
        found = _weights(backend.quantize(job, floating, scheme).model)
        assert found.keys() == rounded.keys()
        for name, (integers, values) in found.items():
            assert integers is not None
            assert np.abs(integers).max() == 64
            np.testing.assert_allclose(values, rounded[name][1], rtol=1e-5, atol=1e-7)


def _weights(model: Path) -> dict[str, tuple[np.ndarray | None, np.ndarray]]:
    """A product's place among the products → its integers, if it has any, and the weights that they stand for."""
    found: dict[str, tuple[np.ndarray | None, np.ndarray]] = {}
    network = openvino.Core().read_model(str(model))
    for node in network.get_ordered_ops():
        if node.get_type_name() not in {"Convolution", "GroupConvolution", "MatMul"}:
            continue
        port = node.input_value(1)
        tail = port.get_node()
        while tail.get_type_name() in {"Reshape", "Transpose"}:
            tail = tail.input_value(0).get_node()
        integers = None
        if tail.get_type_name() == "Multiply":
            integers = np.array(tail.input_value(0).get_node().input_value(0).get_node().data, np.int32)
        alone = openvino.compile_model(openvino.Model([openvino.opset13.result(port)], []), "CPU")
        found[f"{node.get_type_name()} {len(found)}"] = integers, np.array(next(iter(alone([]).values())))
    return found
