"""Models that the benchmarks make themselves, so small that everything around them shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from benchmarks.agents.slots import Case
from onnx import TensorProto, helper, numpy_helper

_OPSET = 17
_IR_VERSION = 10


def _save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.save(model, path)
    return path


def classifier(path: Path) -> Path:
    """X [1, 64] → ten scores."""
    weights = np.random.default_rng(7).normal(size=(64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"]), helper.make_node("Softmax", ["scores"], ["y"])],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(weights, "w")],
    )
    return _save(graph, path)


def frame_model(path: Path, shape: tuple[int, int, int]) -> Path:
    """X uint8 [1, height, width, 3] → the mean of its first rows: a call that costs next to nothing but the frame."""
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["x", "zero", "rows", "axis"], ["part"]),
            helper.make_node("Cast", ["part"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers"], ["y"], axes=[1, 2], keepdims=0),
        ],
        "frame",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in _SLICE],
    )
    return _save(graph, path)


_SLICE = (("zero", 0), ("rows", 2), ("axis", 1))


def tiny_cases(folder: Path) -> list[Case]:
    """The same small classifier in ONNX Runtime and in OpenVINO."""
    import openvino

    file = classifier(folder / "tiny.onnx")
    intermediate = folder / "tiny.xml"
    openvino.save_model(openvino.convert_model(file), intermediate, compress_to_fp16=False)
    return [
        Case(name="onnxruntime", file=file, runtime="onnxruntime", shape=(64,), dtype="float32"),
        Case(name="openvino", file=intermediate, runtime="openvino", shape=(64,), dtype="float32"),
    ]


def frame_case(folder: Path, name: str, shape: tuple[int, int, int]) -> Case:
    """A model that takes whole frames as bytes."""
    file = frame_model(folder / f"{name}.onnx", shape)
    return Case(name=name, file=file, runtime="onnxruntime", shape=shape, kind="raw")
