"""The LiteRT backend against the template, and what only it must do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edgeship.build import layout, sources, toolchains
from edgeship.build.backends import Artifact, Job, open_backend
from edgeship.build.schemes import S8S8
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime import open_engine
from tests import models, tflite_files
from tests.conformance.backend_template import BackendTemplate


class TestLiteRt(BackendTemplate):
    runtime = "litert"
    scheme = S8S8

    def test_the_layout_is_found_and_recorded(self, float_artifact: Artifact) -> None:
        (image,) = float_artifact.inputs
        assert image.shape == (1, models.SIDE, models.SIDE, 1)
        assert image.transpose == (0, 2, 3, 1)

    def test_the_converter_rewrites_its_input_and_gets_a_copy(self, job: Job, tmp_path: Path) -> None:
        copy = job.source.copy_to(tmp_path)
        before = hashlib.sha256(copy.read_bytes()).hexdigest()
        toolchains.convert_onnx(copy, tmp_path / "out")
        assert hashlib.sha256(copy.read_bytes()).hexdigest() != before, "onnx2tf no longer writes to its input"
        job.source.check_unchanged()

    def test_an_error_beside_a_plausible_file_is_an_error(self, float_artifact: Artifact, tmp_path: Path) -> None:
        source = models.beyond_the_converter(tmp_path / "model.onnx")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "model_float32.tflite").write_bytes(float_artifact.model.read_bytes())
        with pytest.raises(ConversionError, match="onnx2tf"):
            toolchains.convert_onnx(source, tmp_path / "out")

    def test_a_file_that_computes_something_else_is_refused(self, float_artifact: Artifact, job: Job) -> None:
        engine = open_engine("litert", float_artifact.model)
        wrong = [{name: -value for name, value in sample.items()} for sample in job.expected]
        with pytest.raises(ConversionError, match="does not compute what the source computes"):
            layout.find_bindings(structs.replace(job, expected=wrong), engine, "litert")
        engine.close()

    def test_a_conversion_that_takes_too_long_is_ended(self, job: Job, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="took longer"):
            toolchains.convert_onnx(job.source.copy_to(tmp_path), tmp_path / "out", timeout_s=0.01)

    def test_equal_axes_are_told_apart_by_running(self, tmp_path: Path) -> None:
        # 8 channels on 8 × 8 pixels: the shapes alone say nothing
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        weights = np.random.default_rng(1).normal(0, 0.3, (8, 8, 3, 3)).astype(np.float32)
        nodes = [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 8, 8]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "cube", value[:1], value[1:], [numpy_helper.from_array(weights, "w")])
        path = tmp_path / "cube.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
        job = self.job_for(path, tmp_path, channels=8)
        artifact = self.convert(open_backend("litert"), job)
        assert self.error(artifact, job) < 1e-4
        assert sources.load(path).digest == job.source.digest

    def test_a_split_of_which_nobody_reads_one_part_is_quantized(self, tmp_path: Path) -> None:
        source = sources.load(tflite_files.split(tmp_path / "split.tflite"))
        samples = [{"x": value[None]} for value in np.random.default_rng(2).normal(0, 1, (60, 8)).astype(np.float32)]
        expected = models.answers(source, samples, tmp_path / "oracle")
        job = Job(source=source, samples=samples, checks=samples, expected=expected, folder=tmp_path / "work")
        backend = open_backend("litert")
        quantized = backend.quantize(job, self.convert(backend, job), self.scheme)
        assert 0.0 < self.error(quantized, job) < 0.05
