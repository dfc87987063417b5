"""TFLite files with free axes: pinned by ``--input-shape``, and asked for by name where no sizes are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeship.build import sources, target_files
from edgeship.build.backends.tflite_edit import edited
from edgeship.build.model_facts import facts_of
from edgeship.build.sources import InputShape, SourceRequest
from edgeship.build.tflite_file import parse_tflite, read_tflite
from edgeship.targets import check
from edgeship_agent.contract.errors import ConfigError, InputError
from tests.tflite_files import Ops, TfliteWriter, Types

_RANDOM = np.random.default_rng(11)


def _free(path: Path, *, second: bool = False) -> Path:
    """``audio`` [?, ?, 3] through a product to [?, ?, 2], its shape written back by a RESHAPE that computes it."""
    writer = TfliteWriter()
    audio = writer.tensor("audio", [-1, -1, 3], Types.FLOAT32)
    weights = writer.tensor("weights", [2, 3], Types.FLOAT32, data=_RANDOM.normal(size=(2, 3)).astype(np.float32))
    product = writer.tensor("product", [-1, -1, 2], Types.FLOAT32)
    sizes = writer.tensor("sizes", [3], Types.INT32)
    answer = writer.tensor("answer", [-1, -1, 2], Types.FLOAT32)
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    writer.operator(Ops.FULLY_CONNECTED, [audio, weights, -1], [product], options=options)
    writer.operator(Ops.SHAPE, [product], [sizes], options=_int32_shape())
    writer.operator(Ops.RESHAPE, [product, sizes], [answer])
    outputs = [answer]
    if second:  # where it is not zero: as long as the values say
        truth = writer.tensor("truth", [-1, -1, 2], Types.BOOL)
        zero = writer.tensor("zero", [], Types.FLOAT32, data=np.zeros((), np.float32))
        where = writer.tensor("where", [-1, 3], Types.INT64)
        writer.operator(Ops.NOT_EQUAL, [answer, zero], [truth])
        writer.operator(Ops.WHERE, [truth], [where])
        turned = writer.tensor("turned", [3, -1], Types.INT64)
        order = writer.tensor("order", [2], Types.INT32, data=np.array([1, 0], np.int32))
        writer.operator(Ops.TRANSPOSE, [where, order], [turned])
        outputs.append(turned)
    return writer.write(path, [audio], outputs)


def _int32_shape() -> Any:
    options = schema.ShapeOptionsT()
    options.outType = Types.INT32
    return options


def _pinned(path: Path, *shapes: str) -> sources.SourceModel:
    return sources.load(SourceRequest(text=str(path), input_shapes=tuple(InputShape.parse(text) for text in shapes)))


def _answer(data: bytes, value: Any, *, resized: bool) -> Any:
    interpreter: Any = Interpreter(
        model_content=data, num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if resized
        else OpResolverType.AUTO,
    )  # fmt: skip
    if resized:
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], value.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value)
    interpreter.invoke()
    return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def test_given_sizes_are_written_to_every_tensor_with_the_same_answers(tmp_path: Path) -> None:
    path = _free(tmp_path / "free.tflite")
    source = _pinned(path, "audio=1,5,3")
    assert [each.shape for each in (*source.inputs, *source.outputs)] == [(1, 5, 3), (1, 5, 2)]
    tensors = parse_tflite(source.data).main.tensors
    assert {each.name: each.shape for each in tensors} == {
        "audio": (1, 5, 3), "weights": (2, 3), "product": (1, 5, 2), "sizes": (3,), "answer": (1, 5, 2),
    }  # fmt: skip
    assert not any(each.free_axes for each in tensors)
    value = _RANDOM.normal(size=(1, 5, 3)).astype(np.float32)
    expected = _answer(path.read_bytes(), value, resized=True)
    np.testing.assert_allclose(_answer(source.data, value, resized=False), expected, rtol=1e-6)
    assert source.key != _pinned(path, "1,7,3").key  # what was remembered of one is not taken for the other
    assert source.digest == _pinned(path, "1,7,3").digest


def test_what_is_looked_into_before_a_build_is_the_pinned_file(tmp_path: Path) -> None:
    request = SourceRequest(text=str(_free(tmp_path / "free.tflite")), input_shapes=(InputShape(shape=(1, 5, 3)),))
    file = sources.file_to_check(request, tmp_path / "pinned")
    facts = facts_of(file, ("litert",))
    assert facts.dynamic_inputs == ()
    assert facts.peak_activation_bytes is not None
    assert facts.peak_activation_bytes >= 5 * (3 + 2) * 4
    assert not facts.partitions["litert"].refused
    assert read_tflite(file).main.tensors[0].shape == (1, 5, 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [("image=1,5,3", "not an input"), ("1,5,4", "does not fit"), ("1,5", "does not fit"), ("1,0,3", "does not fit"),
     ("1,99999999999,3", "cannot work with these sizes")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        _pinned(_free(tmp_path / "free.tflite"), given)
    assert "--input-shape" in (refused.value.key or "")


def test_a_fixed_file_takes_its_own_sizes_and_no_others(tmp_path: Path) -> None:
    writer = TfliteWriter()
    value = writer.tensor("value", [1, 4], Types.FLOAT32)
    answer = writer.tensor("answer", [1, 4], Types.FLOAT32)
    writer.operator(Ops.RELU, [value], [answer])
    path = writer.write(tmp_path / "fixed.tflite", [value], [answer])
    assert _pinned(path, "1,4").inputs[0].shape == (1, 4)
    with pytest.raises(ConfigError, match="does not fit"):
        _pinned(path, "1,8")


def test_free_sizes_are_asked_for_with_the_option_that_gives_them(tmp_path: Path) -> None:
    path = _free(tmp_path / "free.tflite")
    with pytest.raises(InputError) as refused:
        sources.load(path)
    option = "--input-shape audio=1,SIZE,3"
    assert refused.value.next_step == f"give its sizes: {option}"
    facts = facts_of(path, ("litert",))
    results = {each.id: each for each in check(target_files.load("x86-64-litert"), facts)}
    for name in ("operators", "shapes"):
        assert results[name].holds is None
        assert "audio" in results[name].sentence
        assert option in results[name].next_step
    assert results["memory"].holds is None  # sizes of 1 say nothing of it


def test_a_size_that_depends_on_values_stays_free_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="turned: an output whose size") as refused:
        _pinned(_free(tmp_path / "free.tflite", second=True), "1,5,3")
    assert "--input-shape" not in (refused.value.next_step or "")


def test_a_model_that_cannot_work_with_zeros_is_pinned_all_the_same(tmp_path: Path) -> None:
    writer = TfliteWriter()
    value, answer = (writer.tensor(name, [1, -1], Types.INT32) for name in ("value", "answer"))
    writer.operator(Ops.FLOOR_MOD, [value, value], [answer], options=schema.FloorModOptionsT())
    path = writer.write(tmp_path / "modulo.tflite", [value], [answer])
    assert _pinned(path, "1,6").outputs[0].shape == (1, 6)


def test_a_free_batch_alone_needs_no_sizes(tmp_path: Path) -> None:
    def fix(model: Any, _schema: Any) -> bool:
        for tensor in model.subgraphs[0].tensors:
            if tensor.shapeSignature is not None:
                tensor.shapeSignature = np.array([-1, *tensor.shape[1:]], np.int32)
        return True

    path = tmp_path / "batch.tflite"
    path.write_bytes(edited(_free(tmp_path / "free.tflite").read_bytes(), fix))
    assert sources.load(path).inputs[0].shape == (-1, 1, 3)
    facts = facts_of(path, ())
    assert (facts.dynamic_inputs, facts.shape_options) == ((), ())
