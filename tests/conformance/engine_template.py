"""What every inference engine must do: one template, subclassed once per runtime, always on a real runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeship_agent.contract.errors import EngineError, InputError
from edgeship_agent.runtime import EngineOptions, open_engine, runtime_in_place

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def save_onnx(path: Path, nodes: list, inputs: list, outputs: list, constants: tuple = ()) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def value(name: str, shape: list, dtype: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name: str, array: np.ndarray):
    return onnx.numpy_helper.from_array(array, name)


WEIGHTS = (np.arange(12, dtype=np.float32).reshape(4, 3) - 5.0) / 7.0


def linear_onnx(path: Path, batch: object = "N") -> Path:
    return save_onnx(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", [batch, 4])],
        [value("y", [batch, 3])],
        (constant("w", WEIGHTS),),
    )


class EngineConformance:
    """Subclasses say how a model of each kind is had in their format; ``reference`` is what it computes."""

    runtime: ClassVar[str]

    def model(self, folder: Path) -> Path:
        raise pytest.skip.Exception("no model")

    def samples(self) -> list[np.ndarray]:
        return [np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32) for seed in range(5)]

    def reference(self, sample: np.ndarray) -> np.ndarray:
        return sample @ WEIGHTS

    def wide(self, folder: Path) -> tuple[Path, np.ndarray]:
        """A model and a sample of several values, so that their order in memory can be told."""
        return self.model(folder), self.samples()[-1]

    def broken_file(self, folder: Path) -> Path:
        model = self.model(folder)
        broken = folder / f"broken{model.suffix}"
        broken.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
        return broken

    @pytest.fixture
    def engine(self, tmp_path):
        engine = open_engine(self.runtime, self.model(tmp_path))
        yield engine
        engine.close()

    def test_it_is_installed(self):
        assert runtime_in_place(self.runtime)[1]

    def test_a_free_batch_axis_is_pinned_to_one(self, engine):
        (info,) = engine.signature.inputs
        sample = self.samples()[0]
        assert (info.shape, info.dtype, info.index) == (sample.shape, "float32", 0)
        assert engine.signature.outputs[0].shape == self.reference(sample).shape

    def test_it_computes_the_model(self, engine):
        for sample in self.samples():
            (result,) = engine.run([sample])
            np.testing.assert_allclose(result, self.reference(sample), rtol=1e-4, atol=1e-4)

    def test_results_belong_to_the_caller(self, engine):
        first_sample, second_sample = self.samples()[:2]
        (first,) = engine.run([first_sample])
        kept = first.copy()
        engine.run([second_sample])
        np.testing.assert_array_equal(first, kept)
        first += 1.0

    def test_a_result_held_does_not_stop_the_next_call(self, engine):
        held = [engine.run([sample]) for sample in self.samples() * 3]
        assert len(held) == 15

    def test_arrays_that_are_not_contiguous_are_taken(self, tmp_path):
        model, sample = self.wide(tmp_path)
        engine = open_engine(self.runtime, model)
        strided = np.stack([sample, sample + 1], axis=-1)[..., 0]
        assert not strided.flags.c_contiguous
        np.testing.assert_array_equal(engine.run([strided])[0], engine.run([sample])[0])
        engine.close()

    def test_read_only_arrays_are_taken(self, engine):
        sample = self.samples()[-1]
        frozen = np.frombuffer(sample.tobytes(), np.float32).reshape(sample.shape)
        np.testing.assert_array_equal(engine.run([frozen])[0], engine.run([sample])[0])

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_types_that_are_numpys_own_only_in_value_are_taken(self, engine, order):
        sample = self.samples()[-1]
        assert sample.any()  # zeros are the same in every order
        other = sample.astype(sample.dtype.newbyteorder(order))
        assert other.dtype is not np.dtype(sample.dtype.name)
        np.testing.assert_array_equal(engine.run([other])[0], engine.run([sample])[0])

    def test_repeated_calls_give_the_same_bits(self, engine):
        sample = self.samples()[0]
        np.testing.assert_array_equal(engine.run([sample])[0], engine.run([sample])[0])

    def test_two_engines_do_not_share_state(self, tmp_path, engine):
        first_sample, second_sample = self.samples()[:2]
        other = open_engine(self.runtime, self.model(tmp_path))
        (before,) = engine.run([first_sample])
        other.run([second_sample])
        np.testing.assert_array_equal(engine.run([first_sample])[0], before)
        other.close()

    @pytest.mark.parametrize("threads", [1, 2])
    def test_threads_are_taken(self, tmp_path, threads):
        engine = open_engine(self.runtime, self.model(tmp_path), EngineOptions(threads=threads))
        assert len(engine.run([self.samples()[0]])) == 1
        engine.close()

    def test_a_wrong_array_is_refused_in_words_and_the_engine_lives_on(self, engine):
        sample = self.samples()[0]
        for wrong in ([], [sample, sample], [sample[..., :-1]], [sample.astype(np.float64)], [sample[0]]):
            with pytest.raises(EngineError, match=r"wrong (number of inputs|input)"):
                engine.run(wrong)
        assert len(engine.run([sample])) == 1

    def test_nan_goes_through(self, engine):
        sample = np.full_like(self.samples()[0], np.nan)
        assert np.isnan(engine.run([sample])[0]).any()

    def test_half_a_file_is_refused(self, tmp_path):
        broken = self.broken_file(tmp_path)
        with pytest.raises(EngineError, match="refused the model") as caught:
            open_engine(self.runtime, broken)
        assert caught.value.file == str(broken)
        assert "\n" not in str(caught.value)

    def test_a_file_of_something_else_is_refused(self, tmp_path):
        other = tmp_path / f"text{self.model(tmp_path).suffix}"
        for content in (b"", b"this is no model\n" * 50):
            other.write_bytes(content)
            with pytest.raises(EngineError, match="refused the model"):
                open_engine(self.runtime, other)

    def test_no_file_is_the_users_mistake(self, tmp_path):
        with pytest.raises(InputError, match="no such model file"):
            open_engine(self.runtime, tmp_path / "absent.bin")

    def test_a_closed_engine_says_so(self, tmp_path):
        engine = open_engine(self.runtime, self.model(tmp_path))
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine.run([self.samples()[0]])


class OnnxSourceConformance(EngineConformance):
    """More of the template, for the runtimes whose models a test can write with onnx.helper."""

    def convert(self, onnx_file: Path) -> Path:
        raise NotADirectoryError(onnx_file)

    def model(self, folder: Path) -> Path:
        return self.convert(linear_onnx(folder / "linear.onnx"))

    def test_several_inputs_and_outputs_keep_their_order(self, tmp_path):
        file = save_onnx(
            tmp_path / "two.onnx",
            [helper.make_node("Sub", ["b", "a"], ["difference"]), helper.make_node("Add", ["a", "b"], ["total"])],
            [value("b", [1, 2]), value("a", [1, 2])],
            [value("total", [1, 2]), value("difference", [1, 2])],
        )
        engine = open_engine(self.runtime, self.convert(file))
        assert [info.name for info in engine.signature.inputs] == ["b", "a"]
        assert [info.name for info in engine.signature.outputs] == ["total", "difference"]
        total, difference = engine.run([np.full((1, 2), 5, np.float32), np.full((1, 2), 3, np.float32)])
        assert (total.tolist(), difference.tolist()) == ([[8, 8]], [[2, 2]])
        engine.close()

    def test_integer_tensors(self, tmp_path):
        file = save_onnx(
            tmp_path / "integers.onnx",
            [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT32)],
            [value("x", ["N", 3], TensorProto.UINT8)],
            [value("y", ["N", 3], TensorProto.INT32)],
        )
        engine = open_engine(self.runtime, self.convert(file))
        assert (engine.signature.inputs[0].dtype, engine.signature.outputs[0].dtype) == ("uint8", "int32")
        (result,) = engine.run([np.array([[1, 2, 255]], np.uint8)])
        assert (result.dtype, result.tolist()) == (np.int32, [[1, 2, 255]])
        engine.close()

    @pytest.mark.parametrize("name", ["uint8", "int8", "int32", "int64"])
    @pytest.mark.parametrize("count", [2, 5000])
    def test_few_and_many_integers_arrive_as_they_are(self, tmp_path, name, count):
        kind = np.dtype(name)
        onnx_kind = helper.np_dtype_to_tensor_dtype(kind)
        file = save_onnx(
            tmp_path / "many.onnx",
            [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
            [value("x", ["N", count], onnx_kind)],
            [value("y", ["N", count])],
        )
        engine = open_engine(self.runtime, self.convert(file))
        lowest, highest = max(np.iinfo(kind).min, -(2**24)), min(np.iinfo(kind).max, 2**24)  # that a float holds
        sample = np.linspace(lowest, highest, count).astype(kind).reshape(1, count)
        for way in (sample, np.repeat(sample, 2, axis=1)[:, ::2], sample.astype(kind.newbyteorder(">"))):
            np.testing.assert_array_equal(engine.run([way])[0], sample.astype(np.float32))
        with pytest.raises(EngineError, match="wrong input"):
            engine.run([sample.view(f"{'i' if kind.kind == 'u' else 'u'}{kind.itemsize}")])
        engine.close()

    def test_a_free_axis_besides_the_batch_is_refused(self, tmp_path):
        file = save_onnx(
            tmp_path / "free.onnx",
            [helper.make_node("Relu", ["x"], ["y"])],
            [value("x", ["N", 3, "height"])],
            [value("y", ["N", 3, "height"])],
        )
        with pytest.raises(EngineError, match="no fixed size") as caught:
            open_engine(self.runtime, self.convert(file))
        assert caught.value.next_step

    def test_an_output_whose_size_depends_on_the_data(self, tmp_path):
        file = save_onnx(
            tmp_path / "nonzero.onnx",
            [helper.make_node("NonZero", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
            [value("x", [1, 4])],
            [value("y", [2, "found"], TensorProto.INT64), value("z", [1, 4])],
        )
        engine = open_engine(self.runtime, self.convert(file))
        assert engine.signature.outputs[0].shape == (2, -1)
        for sample, found in (([[1, 0, 2, 0]], 2), ([[0, 0, 0, 0]], 0), ([[1, 1, 1, 1]], 4)):
            result, negated = engine.run([np.array(sample, np.float32)])
            assert result.shape == (2, found)
            assert negated.sum() == -np.sum(sample)
        engine.close()
