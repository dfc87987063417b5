"""How a runtime splits a model: the walk by hand, and the runtimes themselves on real files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeship.build import partitions
from edgeship.build.partitions import Node, of_assignment, of_nodes
from tests import models
from tests.tflite_files import int8_net

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def node(op: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Node:
    return Node(op=op, inputs=inputs, outputs=outputs)


def test_two_pieces_around_one_operator() -> None:
    graph = [
        node("CONV_2D", (0, 10), (1,)),
        node("CONV_2D", (1, 11), (2,)),
        node("TOPK", (2,), (3,)),
        node("ADD", (1, 3), (4,)),
        node("DELEGATE", (0, 10, 11), (1, 2)),
        node("DELEGATE", (1, 3), (4,)),
    ]
    found = of_nodes("XNNPACK", graph)
    assert (found.count, found.inside, found.outside) == (2, 3, {"TOPK": 1})


def test_nothing_taken() -> None:
    found = of_nodes("XNNPACK", [node("A", (0,), (1,)), node("A", (1,), (2,))])
    assert (found.count, found.inside, found.outside) == (0, 0, {"A": 2})


def test_pieces_of_an_execution_provider() -> None:
    assert of_assignment("CPU", []).count == 0
    found = of_assignment("GPU", [("CPU", "Shape"), ("GPU", "Conv"), ("GPU", "Conv"), ("CPU", "Shape")])
    assert (found.count, found.inside, found.outside) == (1, 2, {"Shape": 2})


def test_runtimes_answer_for_real_files(tmp_path: Path) -> None:
    own = partitions.of_model("litert", "XNNPACK", int8_net(tmp_path / "m.tflite"))
    assert (own.count, own.inside, own.outside, own.refused) == (1, 2, {}, "")
    model = models.classifier(tmp_path / "m.onnx")
    onnx = partitions.of_model("onnxruntime", "CPUExecutionProvider", model)
    assert onnx.count == 1
    assert onnx.inside > 0
    assert onnx.outside == {}
    missing = partitions.of_model("onnxruntime", "NoSuchExecutionProvider", model)
    assert "has no NoSuchExecutionProvider" in missing.refused


def test_file_that_is_refused_says_why(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"\x00" * 64)
    assert partitions.of_model("litert", "XNNPACK", path).refused
    custom = partitions.of_model("litert", "XNNPACK", int8_net(path, custom="Mystery"))
    assert "Mystery" in custom.refused


@pytest.mark.parametrize(
    ("name", "count", "inside", "outside"),
    [
        ("mlperf_tiny/ic_resnet8/pretrainedResnet.tflite", 1, 16, {}),
        ("mlperf_tiny/ic_resnet8/pretrainedResnet_quant.tflite", 2, 14, {"AVERAGE_POOL_2D": 1, "SOFTMAX": 1}),
    ],
)
def test_published_models(name: str, count: int, inside: int, outside: dict[str, int]) -> None:
    if not (TEST_DATA / name).is_file():
        pytest.skip(f"not tried: {TEST_DATA / name} is not there")
    found = partitions.of_model("litert", "XNNPACK", TEST_DATA / name)
    assert (found.count, found.inside, found.outside) == (count, inside, outside)
