"""Half-precision constants and a custom transposed convolution, written plainly with the same answers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from edgeship.build.backends.tflite_edit import edited
from edgeship.build.backends.tflite_plain import (
    TRANSPOSED,
    with_builtin_operators,
    with_plain_operators,
    with_separate_biases,
)
from edgeship.build.sources import load
from edgeship.build.tflite_facts import facts_of_tflite
from edgeship.build.tflite_file import parse_tflite
from tests.tflite_files import Ops, TfliteWriter, Types

_RANDOM = np.random.default_rng(5)


def _half_dense(path: Path) -> Path:
    """A product whose weights are stored in half precision."""
    writer = TfliteWriter()
    value = writer.tensor("value", [1, 6], Types.FLOAT32)
    half = writer.tensor("half", [4, 6], Types.FLOAT16, data=_RANDOM.normal(size=(4, 6)).astype(np.float16))
    wide = writer.tensor("wide", [4, 6], Types.FLOAT32)
    bias = writer.tensor("bias", [4], Types.FLOAT32, data=np.arange(4, dtype=np.float32))
    answer = writer.tensor("answer", [1, 4], Types.FLOAT32)
    writer.operator(Ops.DEQUANTIZE, [half], [wide])
    writer.operator(Ops.FULLY_CONNECTED, [value, wide, bias], [answer], options=schema.FullyConnectedOptionsT())
    return writer.write(path, [value], [answer])


def _transposed(path: Path) -> Path:
    """A transposed convolution with a bias, as MediaPipe's files have it."""
    writer = TfliteWriter()
    value = writer.tensor("value", [1, 5, 5, 3], Types.FLOAT32)
    weights = writer.tensor("weights", [2, 2, 2, 3], Types.FLOAT32,
                            data=_RANDOM.normal(size=(2, 2, 2, 3)).astype(np.float32))  # fmt: skip
    bias = writer.tensor("bias", [2], Types.FLOAT32, data=np.array([0.5, -2], np.float32))
    answer = writer.tensor("answer", [1, 10, 10, 2], Types.FLOAT32)
    writer.operator(0, [value, weights, bias], [answer], custom=TRANSPOSED)
    writer.write(path, [value], [answer])

    def give_options(model: Any, _schema: Any) -> bool:
        model.subgraphs[0].operators[0].customOptions = list(struct.pack("<iii", 1, 2, 2))
        return True

    path.write_bytes(edited(path.read_bytes(), give_options))
    return path


def _answer(data: bytes, value: Any) -> Any:
    interpreter: Any = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value)
    interpreter.invoke()
    return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def _kinds(data: bytes) -> list[str]:
    return [operator.name for operator in parse_tflite(data).operators]


def test_half_precision_constants_stand_in_the_file_with_the_same_answers(tmp_path: Path) -> None:
    data = _half_dense(tmp_path / "half.tflite").read_bytes()
    plain = with_plain_operators(data)
    assert _kinds(data) == ["DEQUANTIZE", "FULLY_CONNECTED"]
    assert _kinds(plain) == ["FULLY_CONNECTED"]
    value = _RANDOM.normal(size=(1, 6)).astype(np.float32)
    np.testing.assert_array_equal(_answer(plain, value), _answer(data, value))
    assert parse_tflite(plain).weight_bytes == (24 + 4) * 4  # the half-precision values are gone
    assert with_builtin_operators(data) is data
    assert with_plain_operators(plain) is plain


def test_the_custom_transposed_convolution_becomes_the_built_in_one(tmp_path: Path) -> None:
    data = _transposed(tmp_path / "transposed.tflite").read_bytes()
    built_in = with_builtin_operators(data)
    assert _kinds(data) == [f"CUSTOM::{TRANSPOSED}"]
    assert _kinds(built_in) == ["TRANSPOSE_CONV"]
    value = _RANDOM.normal(size=(1, 5, 5, 3)).astype(np.float32)
    answer = _answer(built_in, value)
    np.testing.assert_array_equal(answer, _answer(data, value))
    assert np.ptp(answer) > 1


def test_a_file_with_the_custom_transposed_convolution_is_read_and_checked(tmp_path: Path) -> None:
    path = _transposed(tmp_path / "transposed.tflite")
    assert load(path).operators == 1
    facts = facts_of_tflite(path, ("litert", "openvino"))
    assert [use.op for use in facts.operators] == ["TRANSPOSE_CONV"]
    assert facts.unsupported == {"tflm": (), "litert": (), "openvino": ()}


def test_the_bias_of_a_transposed_convolution_is_added_behind_it(tmp_path: Path) -> None:
    built_in = with_builtin_operators(_transposed(tmp_path / "transposed.tflite").read_bytes())
    separate = with_separate_biases(built_in)
    assert _kinds(separate) == ["TRANSPOSE_CONV", "ADD"]
    value = _RANDOM.normal(size=(1, 5, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(_answer(separate, value), _answer(built_in, value), rtol=1e-5, atol=1e-6)
    assert with_separate_biases(separate) is separate


def test_weights_are_counted_in_float32(tmp_path: Path) -> None:
    facts = facts_of_tflite(_half_dense(tmp_path / "half.tflite"), ())
    assert facts.weight_bytes == (24 + 4) * 4
    assert not facts.quantized
