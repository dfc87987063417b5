"""Grouped convolutions of one dimension as such of two, STFTs of plain signals, and everything else as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeship.build.backends.onnx_lowered import with_lowered_forms

CHANNELS, LENGTH = 8, 40


def model(
    shape: tuple[int, ...], *, opset: int = 17, names: tuple[str, str, str] = ("x", "w", "y"), **given: Any
) -> bytes:
    """``y = Conv(x, w, b)`` of ``x`` [1, 8, 40], or [1, 8, 40, 5] with weights of four axes."""
    x, w, y = names
    rng = np.random.default_rng(2)
    constants = [numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), w),
                 numpy_helper.from_array(rng.normal(0, 0.4, shape[0]).astype(np.float32), "b")]  # fmt: skip
    sizes = [1, CHANNELS, LENGTH] + [5] * (len(shape) - 3)
    graph = helper.make_graph(
        [helper.make_node("Conv", [x, w, "b"], [y], **given)], "g",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * len(sizes))], constants)  # fmt: skip
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.checker.check_model(document, full_check=True)
    return document.SerializeToString()


def kinds(data: bytes) -> list[str]:
    """Operators in their order, convolutions with the number of their weights' axes."""
    graph = onnx.ModelProto.FromString(data).graph
    axes = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    return [f"{node.op_type}{axes[node.input[1]]}" if node.op_type == "Conv" else node.op_type for node in graph.node]


def answer(data: bytes, name: str = "x") -> np.ndarray:
    """Of 40 steps that are all different."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).normal(size=(1, CHANNELS, LENGTH)).astype(np.float32)
    return session.run(None, {name: x})[0]


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"kernel_shape": [3], "strides": [2]},
        {"kernel_shape": [3], "pads": [2, 1]},
        {"dilations": [3], "pads": [0, 4]},
        {"auto_pad": "SAME_UPPER", "strides": [3]},
        {"auto_pad": "SAME_LOWER", "strides": [2]},
    ],
    ids=str,
)
def test_it_computes_the_same(opset: int, given: dict[str, Any]) -> None:
    data = model((12, 2, 3), opset=opset, group=4, **given)
    planar = with_lowered_forms(data)
    onnx.checker.check_model(onnx.ModelProto.FromString(planar), full_check=True)
    assert kinds(planar) == ["Unsqueeze", "Conv4", "Squeeze"]
    expected = answer(data)
    assert float(np.abs(expected).max()) > 0.5
    np.testing.assert_allclose(answer(planar), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "groups"), [((12, 8, 3), 1), ((8, 1, 3), 8), ((16, 1, 3), 8), ((12, 2, 3, 3), 4)],
    ids=["one group", "depthwise", "depthwise, two of each", "two dimensions"],
)  # fmt: skip
def test_what_the_converter_takes_stays_as_it_is(shape: tuple[int, ...], groups: int) -> None:
    data = model(shape, group=groups)
    assert with_lowered_forms(data) is data


def test_weights_that_another_node_computes_stay_as_they_are() -> None:
    """The converter takes no such weights, of however many axes; folded ones are constants."""
    document = onnx.ModelProto.FromString(model((12, 2, 3), group=4, names=("x", "held", "y")))
    document.graph.node[0].input[1] = "w"
    document.graph.node.insert(0, helper.make_node("Neg", ["held"], ["w"]))
    data = document.SerializeToString()
    assert with_lowered_forms(data) is data


def test_names_that_are_taken_are_not_taken_again() -> None:
    data = model((12, 2, 3), group=4, names=("x", "x_planar", "y"))
    planar = with_lowered_forms(data)
    onnx.checker.check_model(onnx.ModelProto.FromString(planar), full_check=True)
    np.testing.assert_allclose(answer(planar), answer(data), rtol=1e-5, atol=1e-6)


def test_two_convolutions_may_share_their_weights() -> None:
    document = onnx.ModelProto.FromString(model((8, 2, 3), group=4, names=("x", "w", "inside")))
    document.graph.node.append(helper.make_node("Conv", ["inside", "w", "b"], ["y"], group=4, pads=[1, 1]))
    document.graph.output[0].name = "y"
    data = document.SerializeToString()
    planar = with_lowered_forms(data)
    onnx.checker.check_model(onnx.ModelProto.FromString(planar), full_check=True)
    assert kinds(planar) == ["Unsqueeze", "Conv4", "Squeeze"] * 2
    np.testing.assert_allclose(answer(planar), answer(data), rtol=1e-5, atol=1e-6)


def spectrum(axes: list[int | None]) -> bytes:
    """``y = STFT(x)`` with frames of 16 steps."""
    constants = [numpy_helper.from_array(value, name) for name, value in (
        ("step", np.int64(8)), ("window", np.hanning(16).astype(np.float32)), ("length", np.int64(16)))]  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["s"]),
         helper.make_node("STFT", ["s", "step", "window", "length"], ["y"], onesided=int(axes[-1] == 1))], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)], constants)  # fmt: skip
    document = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return document.SerializeToString()


def test_a_real_signal_loses_its_last_axis() -> None:
    graph = onnx.ModelProto.FromString(with_lowered_forms(spectrum([1, 64, 1]))).graph
    assert [node.op_type for node in graph.node] == ["Identity", "Squeeze", "STFT"]
    assert graph.node[2].input[0] == graph.node[1].output[0]
    (axes,) = (each for each in graph.initializer if each.name == graph.node[1].input[1])
    np.testing.assert_array_equal(numpy_helper.to_array(axes), [2])


@pytest.mark.parametrize("axes", [[1, 64, 2], [1, 64, None]], ids=["complex", "unknown"])
def test_other_signals_stay_as_they_are(axes: list[int | None]) -> None:
    data = spectrum(axes)
    assert with_lowered_forms(data) is data


def test_a_file_of_another_domain_alone_stays_as_it_is() -> None:
    """As those of trees, which import no operators of ONNX's own."""
    document = onnx.ModelProto.FromString(spectrum([1, 64, 1]))
    del document.graph.node[:]
    document.graph.node.append(helper.make_node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml"))
    del document.opset_import[:]
    document.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    data = document.SerializeToString()
    assert with_lowered_forms(data) is data
