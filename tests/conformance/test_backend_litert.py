"""The LiteRT backend against the template, and what only it must do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from msgspec import structs

from edgeship.build import layout, sources, toolchains
from edgeship.build.backends import Artifact, Backend, Job, open_backend, tflite_quantizer
from edgeship.build.backends.base import Scheme
from edgeship.build.schemes import S8S8
from edgeship.build.tflite_file import read_tflite
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime import open_engine
from tests import models, tflite_files
from tests.conformance.backend_template import BackendTemplate
from tests.tflite_files import Ops, TfliteWriter, Types


class TestLiteRt(BackendTemplate):
    runtime = "litert"
    scheme = S8S8

    def test_weights_stored_in_half_precision_are_quantized(self, backend: Backend, tmp_path: Path) -> None:
        """As the files of MediaPipe store theirs."""
        writer = TfliteWriter()
        weights = np.random.default_rng(6).normal(0, 0.4, (4, 1, 1, 8)).astype(np.float16)
        value = writer.tensor("x", [1, 1, 8, 8], Types.FLOAT32)
        half = writer.tensor("half", weights.shape, Types.FLOAT16, data=weights)
        wide = writer.tensor("wide", weights.shape, Types.FLOAT32)
        bias = writer.tensor("bias", [4], Types.FLOAT32, data=np.zeros(4, np.float32))
        answer = writer.tensor("y", [1, 1, 8, 4], Types.FLOAT32)
        options = schema.Conv2DOptionsT()
        options.strideH, options.strideW, options.dilationHFactor, options.dilationWFactor = 1, 1, 1, 1
        writer.operator(Ops.DEQUANTIZE, [half], [wide])
        writer.operator(Ops.CONV_2D, [value, wide, bias], [answer], options=options)
        job = self.job_for(writer.write(tmp_path / "m.tflite", [value], [answer]), tmp_path)
        artifact = backend.quantize(job, self.convert(backend, job), S8S8)
        assert self.error(artifact, job) < 0.02
        kept = [tensor.dtype for tensor in read_tflite(artifact.model).main.tensors if tensor.constant]
        assert set(kept) == {"int8", "int32"}

    def test_the_layout_is_found_and_recorded(self, float_artifact: Artifact) -> None:
        (image,) = float_artifact.inputs
        assert image.shape == (1, models.SIDE, models.SIDE, 1)
        assert image.transpose == (0, 2, 3, 1)

    def test_one_scale_for_all_weights_of_a_layer(
        self, backend: Backend, job: Job, float_artifact: Artifact, int8_artifact: Artifact
    ) -> None:
        artifact = backend.quantize(job, float_artifact, structs.replace(S8S8, per_channel=False))
        assert set(_weight_scales(artifact.model)) == {1}
        assert max(_weight_scales(int8_artifact.model)) > 1
        assert artifact.size_bytes < int8_artifact.size_bytes
        assert self.error(artifact, job) < 0.1

    def test_a_product_in_float_reads_weights_of_8_bits(
        self, backend: Backend, job: Job, float_artifact: Artifact, int8_artifact: Artifact
    ) -> None:
        operators = backend.calibration(job, float_artifact).operators
        place = max(index for index, each in enumerate(operators) if each.kind == "FULLY_CONNECTED")
        layer = operators[place].layer
        assert layer is not None
        head = tuple(each.name for each in operators[place:])
        artifact = backend.quantize(job, float_artifact, structs.replace(S8S8, floats=head, part="head"))
        assert operators[place].growth_bytes == 0
        assert layer.weight.size in _weight_sizes(artifact.model)
        assert self.error(artifact, job) < self.error(int8_artifact, job)

    def test_sixteen_bits_inside_have_float_ends_like_eight(
        self, backend: Backend, job: Job, float_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scheme = Scheme(precision="int16x8")
        artifact = backend.quantize(job, float_artifact, scheme)
        assert {each.dtype for each in (*artifact.inputs, *artifact.outputs)} == {"float32"}
        monkeypatch.setattr(tflite_quantizer, "_keep_ends", lambda *_arguments, **_options: None)
        other = structs.replace(job, folder=job.folder / "integers")
        integers = backend.quantize(other, float_artifact, scheme)
        assert {each.dtype for each in (*integers.inputs, *integers.outputs)} == {"int16"}
        for name, expected in self.outputs(integers, job).items():  # what the caller did is done inside
            np.testing.assert_array_equal(self.outputs(artifact, job)[name], expected)

    def test_the_converter_rewrites_its_input_and_gets_a_copy(self, job: Job, tmp_path: Path) -> None:
        copy = job.source.copy_to(tmp_path)
        before = hashlib.sha256(copy.read_bytes()).hexdigest()
        toolchains.convert_onnx(copy, tmp_path / "out")
        assert hashlib.sha256(copy.read_bytes()).hexdigest() != before, "onnx2tf no longer writes to its input"
        job.source.check_unchanged()

    @pytest.mark.parametrize(("make", "channels"), [(models.grouped_signal, 8), (models.spectrum, 1)])
    def test_forms_that_the_converter_does_not_lower_reach_it_in_others(
        self, backend: Backend, tmp_path: Path, make: Callable[[Path], Path], channels: int
    ) -> None:
        job = self.job_for(make(tmp_path / "m.onnx"), tmp_path, channels=channels)
        alone = job.source.copy_to(tmp_path)
        with pytest.raises(ConversionError, match="custom operators"):
            toolchains.convert_onnx(alone, tmp_path / "alone")
        artifact = self.convert(backend, job)
        assert self.error(artifact, job) < 1e-5
        assert self.error(backend.quantize(job, artifact, S8S8), job) < 0.05

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

    @pytest.mark.parametrize(
        ("make", "shape"), [(tflite_files.split, (8,)), (tflite_files.padded_maximum, (5, 5, 2))],
        ids=["a part that nobody reads", "a padded maximum"],
    )  # fmt: skip
    def test_what_the_quantizer_stumbles_over_is_quantized(
        self, tmp_path: Path, make: Callable[[Path], Path], shape: tuple[int, ...]
    ) -> None:
        source = sources.load(make(tmp_path / "m.tflite"))
        values = np.random.default_rng(2).normal(0, 1, (60, *shape)).astype(np.float32)
        samples = [{"x": value[None]} for value in values]
        expected = models.answers(source, samples, tmp_path / "oracle")
        job = Job(source=source, samples=samples, checks=samples, expected=expected, folder=tmp_path / "work")
        backend = open_backend("litert")
        quantized = backend.quantize(job, self.convert(backend, job), self.scheme)
        assert 0.0 < self.error(quantized, job) < 0.05


def _weight_scales(model: Path) -> list[int]:
    """Of every filter of a convolution: how many scales it has."""
    return [len(each["quantization_parameters"]["scales"]) for each in _int8_constants(model) if len(each["shape"]) > 2]


def _weight_sizes(model: Path) -> list[int]:
    return [int(np.prod(each["shape"])) for each in _int8_constants(model)]


def _int8_constants(model: Path) -> list[dict[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    made = {index for each in interpreter._get_ops_details() for index in each["outputs"]}
    ends = {each["index"] for each in interpreter.get_input_details()}
    return [each for each in interpreter.get_tensor_details()
            if each["dtype"] is np.int8 and each["index"] not in made | ends and len(each["shape"]) > 1]  # fmt: skip
