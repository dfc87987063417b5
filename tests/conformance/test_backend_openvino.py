"""The OpenVINO backend against the template, and what only it must do."""

from __future__ import annotations

from edgeship.build.backends import Artifact
from edgeship_agent.runtime import EngineOptions
from edgeship_agent.runtime.open_vino import OpenVinoEngine
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
