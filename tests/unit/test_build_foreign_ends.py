"""Files as users have them: ends of other precisions, operators numbered by old converters, constants of few axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

from edgeship.build import metrics
from edgeship.build.backends.onnx_ends import with_float_ends, with_recent_operators
from edgeship.build.backends.onnx_precisions import lower
from edgeship.build.backends.tflite_ranks import with_equal_ranks
from edgeship.build.backends.tflite_signature import with_signature
from edgeship.build.verify import Truth, compare
from edgeship.targets import ModelFacts, RuntimeEntry, Target, check
from edgeship.targets.model import Dtypes
from edgeship_agent.runtime import open_engine
from tests.tflite_files import Ops, TfliteWriter, Types, one_convolution

OTHERS = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}


def _scaled(kind: int, factor: float) -> onnx.ModelProto:
    """``y = tanh(x · w) · factor`` [1, 3] with ends of one type and float32 between them."""
    weights = np.random.default_rng(5).normal(0, 0.5, (6, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x32", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["t"]),
        helper.make_node("Mul", ["t", "factor"], ["y" if kind == TensorProto.FLOAT else "s"]),
    ]
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["s"], ["y"], to=kind))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, [1, 6])],
        [helper.make_tensor_value_info("y", kind, [1, 3])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32(factor), "factor")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _run(data: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("kind", OTHERS)
def test_ends_of_another_precision_become_float32(kind: int) -> None:
    data = _scaled(kind, 2.0).SerializeToString()
    x = np.random.default_rng(6).normal(size=(1, 6)).astype(OTHERS[kind])
    here, there = _run(data, x), _run(with_float_ends(data), x.astype(np.float32))
    assert (here.dtype, there.dtype) == (OTHERS[kind], np.float32)
    np.testing.assert_allclose(there, here, rtol=1e-6)
    plain = _scaled(TensorProto.FLOAT, 2.0).SerializeToString()
    assert with_float_ends(plain) == plain


def test_a_constant_beyond_half_precision_stays_float32(tmp_path: Path) -> None:
    """100,000 is no half: the converter alone makes 65,504 of it."""
    (tmp_path / "model.onnx").write_bytes(_scaled(TensorProto.FLOAT, 1e5).SerializeToString())
    lower(tmp_path / "model.onnx", "fp16", tmp_path / "half.onnx")
    x = np.random.default_rng(7).normal(size=(1, 6)).astype(np.float32)
    whole, half = (_run((tmp_path / name).read_bytes(), x) for name in ("model.onnx", "half.onnx"))
    assert np.abs(whole).max() > 65504
    assert metrics.relative_rms(half, whole) < 2e-3
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert kinds == {TensorProto.FLOAT16, TensorProto.FLOAT}


@pytest.mark.parametrize(("operator", "options"), [("Celu", {"alpha": 0.5}), ("CumSum", {})])
def test_operators_without_half_precision_stay_float32(
    tmp_path: Path, operator: str, options: dict[str, float]
) -> None:
    """ONNX Runtime refuses a file in which they read halves."""
    model = _scaled(TensorProto.FLOAT, 2.0)
    place, node = next((place, each) for place, each in enumerate(model.graph.node) if each.op_type == "Tanh")
    model.graph.node.remove(node)
    axis = ["axis"] if operator == "CumSum" else []
    model.graph.node.insert(place, helper.make_node(operator, [node.input[0], *axis], [node.output[0]], **options))
    model.graph.initializer.extend(numpy_helper.from_array(np.array(1), name) for name in axis)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    lower(tmp_path / "model.onnx", "fp16", tmp_path / "half.onnx")
    x = np.random.default_rng(7).normal(size=(1, 6)).astype(np.float32)
    whole, half = (_run((tmp_path / name).read_bytes(), x) for name in ("model.onnx", "half.onnx"))
    assert 0 < metrics.relative_rms(half, whole) < 2e-3
    assert [each.data_type for each in onnx.load(tmp_path / "half.onnx").graph.initializer if each.name == "w"] == [
        TensorProto.FLOAT16
    ]


@pytest.mark.parametrize(
    ("operator", "options"),
    [("Imputer", {"imputed_value_floats": [0.5], "replaced_value_float": 9.0}), ("Binarizer", {"threshold": 0.25}),
     ("Scaler", {"offset": [0.25], "scale": [2.0]})],
)  # fmt: skip
def test_what_follows_a_classical_operator_goes_back_to_half_precision(
    tmp_path: Path, operator: str, options: dict[str, Any]
) -> None:
    """They stay in single precision; where the type of what they give was unknown, halves were multiplied by it."""
    model = _scaled(TensorProto.FLOAT, 2.0)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    place, node = next((place, each) for place, each in enumerate(model.graph.node) if each.op_type == "Tanh")
    model.graph.node.remove(node)
    classical = helper.make_node(operator, [node.input[0]], ["classical"], domain="ai.onnx.ml", **options)
    doubled = helper.make_node("Mul", ["classical", "double"], [node.output[0]])
    model.graph.node.insert(place, classical)
    model.graph.node.insert(place + 1, doubled)
    model.graph.initializer.append(numpy_helper.from_array(np.full((1, 1), 2.0, np.float32), "double"))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    lower(tmp_path / "model.onnx", "fp16", tmp_path / "half.onnx")
    x = np.random.default_rng(7).normal(size=(1, 6)).astype(np.float32)
    whole, half = (_run((tmp_path / name).read_bytes(), x) for name in ("model.onnx", "half.onnx"))
    assert np.any(whole)
    assert metrics.relative_rms(half, whole) < 2e-3


def test_operators_of_old_converters_get_their_present_numbers(tmp_path: Path) -> None:
    """With 0 in the newer field every operator is an ADD to the quantizer, which then quantizes a bias as if it were a
    tensor like any other, and LiteRT refuses the file."""
    data = one_convolution(tmp_path / "new.tflite").read_bytes()
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for code in model.operatorCodes:
        code.builtinCode = 0
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    again = with_signature(bytes(builder.Output()))
    found = schema.ModelT.InitFromPackedBuf(again, 0)
    assert [code.builtinCode for code in found.operatorCodes] == [Ops.CONV_2D, Ops.MEAN]
    assert found.signatureDefs
    assert with_signature(again) == again


def test_constants_of_a_maximum_get_the_axes_of_its_output(tmp_path: Path) -> None:
    net = TfliteWriter()
    x, y = (net.tensor(name, (1, 4, 3), Types.FLOAT32) for name in ("x", "y"))
    least = net.tensor("least", (1,), Types.FLOAT32, data=np.array([0.5], np.float32))
    net.operator(Ops.MAXIMUM, [x, least], [y], options=schema.MaximumMinimumOptionsT())
    path = net.write(tmp_path / "model.tflite", [x], [y])
    data = with_equal_ranks(path.read_bytes())
    graph = schema.ModelT.InitFromPackedBuf(data, 0).subgraphs[0]
    assert graph.tensors[graph.operators[0].inputs[1]].shape.tolist() == [1, 1, 1]
    assert with_equal_ranks(data) == data
    (tmp_path / "wider.tflite").write_bytes(data)
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 4, 3)
    for file in ("model.tflite", "wider.tflite"):
        engine = open_engine("litert", tmp_path / file)
        np.testing.assert_array_equal(engine.run([values])[0], np.maximum(values, 0.5))
        engine.close()


def test_a_net_that_answers_with_a_class_is_judged_by_equality() -> None:
    meant = np.array([1, 2, 3, 9], np.int64)
    truth = Truth(outputs={"id": meant}, labels=None, classes=False, metric="closeness", closeness_limit=0.1)
    found = compare(truth, {"id": np.array([1, 2, 4, 9], np.int32)})
    assert found.exact == {"id": 0.25}
    assert found.first_is_exact
    assert found.metric.value == 0.75
    top = metrics.Top(labels=(1, 2, 4, 9))
    assert top.right(meant).tolist() == [True, True, False, True]


def _target(*io: str) -> Target:
    return Target(id="t", title="T", arch="x86_64", memory_bytes=10**9, storage_bytes=10**9,
                  runtimes=(RuntimeEntry(name="onnxruntime"),), dtypes=Dtypes(io=io))  # fmt: skip


@pytest.mark.parametrize(
    ("io", "found", "holds", "words"),
    [
        (("float32",), ("float16",), True, "instead of float16"),
        (("float32",), ("bool", "float32"), False, "takes no bool at"),
        (("int8",), ("float32", "int64"), False, "takes no int64 at"),
        (("int8",), ("float64",), True, "quantized, they are int8"),
    ],
)
def test_types_at_the_ends_name_what_is_in_the_way(
    io: tuple[str, ...], found: tuple[str, ...], holds: bool, words: str
) -> None:
    facts = ModelFacts(operators=(), weight_bytes=1, peak_activation_bytes=1, io_dtypes=found)
    result = next(each for each in check(_target(*io), facts) if each.id == "types")
    assert result.holds is holds
    assert words in result.sentence


@pytest.mark.parametrize(("opset", "raised"), [(7, 13), (11, 11)])
def test_operators_of_the_first_years_are_written_anew(opset: int, raised: int) -> None:
    nodes = [helper.make_node("Upsample", ["x"], ["large"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]),
             helper.make_node("Pad", ["large"], ["y"], pads=[0, 0, 1, 1, 0, 0, 1, 1])]  # fmt: skip
    if opset >= 11:
        nodes = [helper.make_node("Relu", ["x"], ["y"])]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, size, size])
        for name, size in (("x", 3), ("y", 8))
    ]
    if opset >= 11:
        ends[1] = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 3])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()
    written = with_recent_operators(data)
    assert onnx.ModelProto.FromString(written).opset_import[0].version == raised
    assert (written == data) == (opset >= 11)
    x = np.random.default_rng(0).normal(0, 1, (1, 2, 3, 3)).astype(np.float32)
    one, other = (onnxruntime.InferenceSession(each).run(None, {"x": x})[0] for each in (data, written))
    assert np.array_equal(one, other)
