"""The quantizer at once: the library's own file byte for byte, and work that grows as the graph does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from edgeship.build.backends.onnx_quantizer import IndexedModel, WholeTensorQuantizer

FLOAT = onnx.TensorProto.FLOAT


def _net(blocks: int = 1, *, shared_bias: bool = False) -> onnx.ModelProto:
    """Convolutions, plain and depthwise, branches that meet again, a Gemm and a MatMul; a channel without weights."""
    rng = np.random.default_rng(blocks)
    weights: dict[str, np.ndarray] = {}
    nodes = []

    def constant(name: str, *shape: int) -> str:
        weights[name] = rng.normal(size=shape).astype(np.float32)
        return name

    last = "x"
    for block in range(blocks):
        wide, narrow = constant(f"w{block}", 6, 6, 3, 3), constant(f"d{block}", 6, 1, 3, 3)
        weights[wide][2] = 0.0
        biases = [constant("b", 6)] * 2 if shared_bias else [constant(f"b{block}", 6), constant(f"c{block}", 6)]
        weights[biases[1]] *= np.float32(1e4)  # too large for the scales as they are
        nodes += [
            helper.make_node("Conv", [last, wide, biases[0]], [f"p{block}"], name=f"conv{block}", pads=[1] * 4),
            helper.make_node("Relu", [f"p{block}"], [f"r{block}"], name=f"relu{block}"),
            helper.make_node("Conv", [f"r{block}", narrow, biases[1]], [f"q{block}"], name=f"deep{block}",
                             pads=[1] * 4, group=6),
            helper.make_node("Add", [f"q{block}", f"r{block}"], [f"s{block}"], name=f"add{block}"),
        ]  # fmt: skip
        last = f"s{block}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", constant("wg", 5, 6), constant("bg", 5)], ["h"], name="gemm", transB=1),
        helper.make_node("MatMul", ["h", constant("wm", 5, 4)], ["m"], name="product"),
        helper.make_node("Add", ["m", constant("k", 4)], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", FLOAT, [1, 6, 8, 8])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _quantized(kind: Any, model: onnx.ModelProto, *, activation: Any = QuantType.QInt8, per_channel: bool = True,
               seven_bits: bool = False, floats: tuple[str, ...] = ()) -> onnx.ModelProto:  # fmt: skip
    names = ["x", *(name for node in model.graph.node for name in node.output)]
    ranges = {name: TensorData(lowest=np.float32(-1.5), highest=np.float32(2.5)) for name in names}
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    made = kind(copy, per_channel, seven_bits, QuantType.QInt8, activation,
                TensorsData(CalibrationMethod.MinMax, ranges), [], list(floats),
                ["Conv", "Gemm", "MatMul", "Add", "Relu", "GlobalAveragePool"],
                {"ActivationSymmetric": False, "WeightSymmetric": True})  # fmt: skip
    made.quantize_model()
    return made.model.model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": QuantType.QUInt8},
        {"seven_bits": True},
        {"per_channel": False},
        {"floats": ("deep0", "gemm")},
    ],
)
@pytest.mark.parametrize("shared_bias", [False, True])
def test_the_file_is_the_librarys_own(settings: dict[str, Any], *, shared_bias: bool) -> None:
    model = _net(2, shared_bias=shared_bias)
    found, wanted = (_quantized(kind, model, **settings) for kind in (WholeTensorQuantizer, QDQQuantizer))
    assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
    assert sum(node.op_type == "DequantizeLinear" for node in found.graph.node) > 10


def test_the_library_is_left_as_it_was() -> None:
    model = _net()
    before = _quantized(QDQQuantizer, model).SerializeToString(deterministic=True)
    with pytest.raises(ValueError, match="not specified"):
        WholeTensorQuantizer(
            onnx.ModelProto.FromString(model.SerializeToString()), True, False, QuantType.QInt8, QuantType.QInt8,
            TensorsData(CalibrationMethod.MinMax, {}), [], [], ["Conv"], {},
        ).quantize_model()  # fmt: skip
    assert _quantized(QDQQuantizer, model).SerializeToString(deterministic=True) == before


def test_four_times_the_graph_is_four_times_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library looks at every node for each tensor that it renames, at every channel for its scale."""
    seen: Counter[str] = Counter()
    replace = ONNXModel.replace_node_input

    def counted(node: Any, old: str, new: str) -> None:
        seen["nodes"] += 1
        replace(node, old, new)

    monkeypatch.setattr(ONNXModel, "replace_node_input", staticmethod(counted))
    counts = {}
    for kind in (WholeTensorQuantizer, QDQQuantizer):
        for blocks in (5, 20):
            seen.clear()
            _quantized(kind, _net(blocks))
            counts[kind, blocks] = seen["nodes"]
    assert counts[WholeTensorQuantizer, 20] <= 4 * counts[WholeTensorQuantizer, 5]
    assert counts[QDQQuantizer, 20] >= 10 * counts[QDQQuantizer, 5]


def test_what_is_taken_away_is_found_no_more() -> None:
    model = IndexedModel(_net())
    model.remove_initializer(model.get_initializer("wg"))
    assert model.get_initializer("wg") is None
    model.add_initializer(numpy_helper.from_array(np.ones(3, np.float32), "wg"))
    model.add_initializer(numpy_helper.from_array(np.ones(4, np.float32), "wg"))  # taken: the first stays
    assert list(model.get_initializer("wg").dims) == [3]
