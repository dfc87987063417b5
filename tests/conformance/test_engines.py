"""The engine template, once per runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgeship_agent.contract.errors import ConfigError, EngineError
from edgeship_agent.runtime import RUNTIMES, EngineOptions, open_engine, runtime_version
from tests.conformance.engine_template import TEST_DATA, EngineConformance, OnnxSourceConformance, save_onnx, value


class TestOnnxRuntime(OnnxSourceConformance):
    runtime = "onnxruntime"

    def convert(self, onnx_file: Path) -> Path:
        return onnx_file

    def test_an_unknown_operator_domain_is_refused(self, tmp_path):
        file = tmp_path / "foreign.onnx"
        node = helper.make_node("Magic", ["x"], ["y"], domain="com.nobody")
        graph = helper.make_graph([node], "g", [value("x", [1, 4])], [value("y", [1, 4])])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.nobody", 1)]
        file.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
        with pytest.raises(EngineError, match=r"com\.nobody"):
            open_engine(self.runtime, file)

    def test_a_failure_while_running_is_wrapped_and_the_engine_lives_on(self, tmp_path):
        file = save_onnx(
            tmp_path / "gather.onnx",
            [helper.make_node("Gather", ["x", "i"], ["y"])],
            [value("x", [4]), value("i", [1], 7)],
            [value("y", [1])],
        )
        engine = open_engine(self.runtime, file)
        data = np.arange(4, dtype=np.float32)
        with pytest.raises(EngineError, match="ONNX Runtime failed"):
            engine.run([data, np.array([99], np.int64)])
        assert engine.run([data, np.array([2], np.int64)])[0].tolist() == [2.0]
        engine.close()


class TestOpenVino(OnnxSourceConformance):
    runtime = "openvino"

    def convert(self, onnx_file: Path) -> Path:
        file = onnx_file.with_suffix(".xml")
        import openvino  # not there on every machine that the others run on

        openvino.save_model(openvino.convert_model(onnx_file), file, compress_to_fp16=False)
        return file

    def test_the_arithmetic_is_f32_unless_asked(self, tmp_path):
        model = self.model(tmp_path)
        engine = open_engine(self.runtime, model)
        assert engine.execution_precision() in {"f32", "float32"}
        engine.close()
        with pytest.raises(ConfigError, match="unknown precision"):
            open_engine(self.runtime, model, EngineOptions(precision="int3"))

    def test_weights_that_are_missing_are_refused(self, tmp_path):
        model = self.model(tmp_path)
        model.with_suffix(".bin").unlink()
        with pytest.raises(EngineError, match="refused the model"):
            open_engine(self.runtime, model)


@pytest.mark.skipif(not (TEST_DATA / "tflite").is_dir(), reason=f"no test models in {TEST_DATA}")
class TestLiteRt(EngineConformance):
    runtime = "litert"

    def model(self, folder: Path) -> Path:
        copy = folder / "hello_world_float.tflite"
        copy.write_bytes((TEST_DATA / "tflite" / copy.name).read_bytes())
        return copy

    def samples(self) -> list[np.ndarray]:
        return [np.array([[x]], np.float32) for x in (0.0, 0.5, 1.5, 3.0, 6.0)]

    def reference(self, sample: np.ndarray) -> np.ndarray:
        return np.sin(sample)

    def wide(self, folder: Path) -> tuple[Path, np.ndarray]:
        sample = np.random.default_rng(6).normal(size=(1, 32, 32, 3)).astype(np.float32)
        return TEST_DATA / "mlperf_tiny" / "ic_resnet8" / "pretrainedResnet.tflite", sample

    def test_it_computes_the_model(self, engine):
        for sample in self.samples():
            np.testing.assert_allclose(engine.run([sample])[0], self.reference(sample), atol=0.15)

    def test_integer_tensors_carry_scale_and_zero_point(self):
        engine = open_engine(self.runtime, TEST_DATA / "tflite" / "hello_world_int8.tflite")
        (info,), (output,) = engine.signature.inputs, engine.signature.outputs
        assert (info.dtype, info.zero_point, output.dtype, output.zero_point) == ("int8", -128, "int8", 5)
        assert 0.024 < info.scale < 0.025
        engine.close()

    def test_an_unknown_operator_is_refused(self):
        model = TEST_DATA / "hard_cases" / "model_invoking_error.tflite"
        with pytest.raises(EngineError, match="refused the model"):
            open_engine(self.runtime, model)


def test_every_runtime_has_its_conformance_class():
    assert {cls.runtime for cls in (TestOnnxRuntime, TestOpenVino, TestLiteRt)} == set(RUNTIMES)


def test_an_unknown_runtime_is_a_usage_error(tmp_path):
    with pytest.raises(ConfigError, match=r"litert \| onnxruntime \| openvino"):
        open_engine("abacus", tmp_path / "m")
    with pytest.raises(ConfigError, match="unknown runtime"):
        runtime_version("abacus")


def test_where_a_runtime_has_no_call_below_its_python_layer_that_layer_is_called():
    from edgeship_agent.runtime import litert, onnx_runtime, open_vino

    asked: list[object] = []

    class Older:
        set_tensor = invoke = get_tensor = None

        def run_with_iobinding(self, binding: object) -> None:
            asked.append(binding)

        def infer(self, share_outputs: bool) -> None:
            asked.append(share_outputs)

    older = Older()
    onnx_runtime._bare_call(older, "binding")()
    open_vino._bare_call(older)()
    assert asked == ["binding", True]
    older.set_tensor, older.invoke, older.get_tensor = "set", "invoke", "get"
    assert litert._bare_calls(older) == ("set", "invoke", "get")
