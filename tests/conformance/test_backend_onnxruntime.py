"""The ONNX Runtime backend against the template, and what only it must do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeship.build.backends import Artifact, Backend, Job, Scheme
from edgeship.build.schemes import S8S8, U8S7, U8S8
from tests import models
from tests.conformance.backend_template import BackendTemplate


def _weight_scales(model: Path) -> list[np.ndarray]:
    graph = onnx.load(model).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [
        constants[node.input[1]]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and constants[node.input[0]].dtype == np.int8
    ]


class TestOnnxRuntime(BackendTemplate):
    runtime = "onnxruntime"

    @pytest.mark.parametrize("opset", [8, 11, 13, 17])
    def test_weights_have_one_scale_a_channel_whatever_the_opset(
        self, backend: Backend, tmp_path: Path, opset: int
    ) -> None:
        job = self.job_for(models.classifier(tmp_path / "m.onnx", opset=opset), tmp_path)
        artifact = backend.quantize(job, self.convert(backend, job), U8S7)
        assert not artifact.fallbacks
        assert "per channel" in artifact.scheme
        scales = _weight_scales(artifact.model)
        assert len(scales) >= 3
        assert all(scale.size > 1 for scale in scales)

    def test_ranges_are_static(self, int8_artifact: Artifact) -> None:
        operators = {node.op_type for node in onnx.load(int8_artifact.model).graph.node}
        assert not operators & {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul"}
        assert {"QuantizeLinear", "DequantizeLinear"} <= operators

    def test_a_softmax_in_double_precision_stays_as_it_is(self, backend: Backend, tmp_path: Path) -> None:
        job = self.job_for(models.double_softmax(tmp_path / "m.onnx"), tmp_path)
        artifact = backend.quantize(job, self.convert(backend, job), U8S7)
        assert self.error(artifact, job) < 0.05
        assert _weight_scales(artifact.model)

    def test_layers_that_share_a_bias_are_quantized(self, backend: Backend, tmp_path: Path) -> None:
        job = self.job_for(models.shared_bias(tmp_path / "m.onnx"), tmp_path)
        artifact = backend.quantize(job, self.convert(backend, job), U8S7)
        assert self.error(artifact, job) < 0.05

    def test_dynamic_products_in_the_body_of_a_loop_are_quantized_and_never_saturate(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        job = self.job_for(models.recurrent(tmp_path / "m.onnx"), tmp_path)
        artifact = self.convert(backend, job)
        dynamic = backend.quantize(job, artifact, Scheme(precision="dynamic"))
        assert dynamic.size_bytes < 0.6 * artifact.size_bytes
        assert 0.0 < self.error(dynamic, job) < 0.05
        weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(dynamic.model).graph.initializer
                   if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1]  # fmt: skip
        assert len(weights) == 2
        assert all(np.abs(weight.astype(int)).max() <= 64 for weight in weights)

    def test_schemes_differ_in_the_types_of_activations_and_the_size_of_weights(
        self, backend: Backend, job: Job, float_artifact: Artifact, int8_artifact: Artifact
    ) -> None:
        types = {}
        for scheme in (U8S8, S8S8):
            artifact = backend.quantize(job, float_artifact, scheme)
            constants = {tensor.name: tensor for tensor in onnx.load(artifact.model).graph.initializer}
            zero_points = [constants[node.input[2]].data_type for node in onnx.load(artifact.model).graph.node
                           if node.op_type == "QuantizeLinear"]  # fmt: skip
            types[scheme.name] = set(zero_points)
        assert types == {"u8s8": {onnx.TensorProto.UINT8}, "s8s8": {onnx.TensorProto.INT8}}
        weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(int8_artifact.model).graph.initializer
                   if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1]  # fmt: skip
        assert weights
        assert all(np.abs(weight.astype(int)).max() <= 64 for weight in weights)
