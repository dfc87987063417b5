"""What stops a build before it begins."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeship.build import checks, target_files
from edgeship.build.check_routes import check_all
from edgeship.build.model_facts import facts_of
from edgeship.build.sources import InputShape, InputValue, SourceRequest
from edgeship.targets import Target
from edgeship_agent.contract.errors import ConfigError, ConversionError
from tests import models
from tests.tflite_files import int8_net


class Lines:
    """Listens to what is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def step(self, label: str, text: str, glyph: str = "done") -> None:
        self.lines.append((label, text))

    def count(self, label: str, done: int, total: int) -> None:
        raise AssertionError("nothing is counted")


def small(name: str, memory_bytes: int) -> Target:
    return msgspec.structs.replace(target_files.load(name), memory_bytes=memory_bytes)


def test_what_holds_is_told_in_a_line_a_target(tmp_path: Path) -> None:
    heard = Lines()
    targets = [target_files.load("raspberry-pi-4"), target_files.load("intel-nuc")]
    checks.before_build(models.classifier(tmp_path / "m.onnx"), targets, heard)
    assert [line[0] for line in heard.lines] == ["checked", "checked"]
    assert heard.lines[0][1] == "raspberry-pi-4 · 12 of 12 checks hold"


@pytest.mark.parametrize("first", [1, "batch"])
def test_activations_are_known_where_sizes_inside_are_computed_from_given_ones(
    tmp_path: Path, first: int | str
) -> None:
    half = numpy_helper.from_array(np.array([1, 0.5, 1], np.float32), "half")
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]), helper.make_node("Cast", ["sizes"], ["floats"], to=1),
        helper.make_node("Mul", ["floats", "half"], ["halved"]), helper.make_node("Cast", ["halved"], ["wanted"], to=7),
        helper.make_node("ConstantOfShape", ["wanted"], ["zeros"]),
        helper.make_node("Concat", ["x", "zeros"], ["y"], axis=1),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, 1, [first, size, 8]) for name, size in (("x", "steps"), ("y", None))]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [half]),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    assert facts_of(tmp_path / "m.onnx", (), pieces=False).peak_activation_bytes is None
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 100
    onnx.save(model, tmp_path / "m.onnx")
    peak = facts_of(tmp_path / "m.onnx", (), pieces=False).peak_activation_bytes
    assert peak == (100 + 150) * 8 * 4  # the zeros became a constant


def test_sure_failure_stops_with_its_reason(tmp_path: Path) -> None:
    target = small("intel-nuc", 50_000_000)
    with pytest.raises(
        ConversionError, match="no way from this model to intel-nuc: about 100 MB for a worker"
    ) as caught:
        checks.before_build(models.classifier(tmp_path / "m.onnx"), [target], Lines())
    assert caught.value.exit_code == 1
    assert caught.value.next_step == "use a smaller model, or a target with more memory"


def test_one_runtime_that_works_is_enough(tmp_path: Path) -> None:
    # 45 MB hold LiteRT (40 MB) and not ONNX Runtime (60 MB)
    model = models.classifier(tmp_path / "m.onnx")
    checks.before_build(model, [small("raspberry-pi-4", 45_000_000)], Lines())
    with pytest.raises(ConversionError, match="raspberry-pi-4"):
        checks.before_build(model, [small("raspberry-pi-4", 39_000_000)], Lines())


def test_operator_without_a_kernel_stops_every_runtime(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="does not take CUSTOM::Mystery"):
        checks.before_build(int8_net(tmp_path / "m.tflite", custom="Mystery"), [target_files.load("cortex-m")], Lines())


def test_what_cannot_be_looked_into_is_left_to_its_reader(tmp_path: Path) -> None:
    heard = Lines()
    damaged = tmp_path / "m.onnx"
    damaged.write_bytes(b"no model")
    for path in (damaged, tmp_path / "m.keras", tmp_path / "missing.onnx"):
        checks.before_build(path, [small("raspberry-pi-4", 1)], heard)
    assert heard.lines == []


def test_one_hopeless_target_of_two_is_left_out_with_its_reason(tmp_path: Path) -> None:
    heard = Lines()
    targets = [small("intel-nuc", 50_000_000), target_files.load("raspberry-pi-4")]
    hopeless = checks.before_build(models.classifier(tmp_path / "m.onnx"), targets, heard)
    assert list(hopeless) == ["intel-nuc"]
    assert "about 100 MB for a worker" in hopeless["intel-nuc"]
    assert [line[1].split(" · ")[0] for line in heard.lines] == ["raspberry-pi-4"]


def test_what_a_tree_learnt_counts_as_weights(tmp_path: Path) -> None:
    leaves = 1000
    tree = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
                            nodes_values=[0.5] * leaves, target_weights=[1.5] * leaves)  # fmt: skip
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, size]) for name, size in (("x", 4), ("y", 1))
    ]
    graph = helper.make_graph([tree], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "trees.onnx")
    assert 8 * leaves <= facts_of(tmp_path / "trees.onnx", ()).weight_bytes < 9 * leaves


def test_shapes_and_values_are_set_before_a_model_is_checked(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "factor"], ["scaled"]), helper.make_node("Relu", ["scaled"], ["y"])]
    ends = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", "length"]),
            helper.make_tensor_value_info("factor", onnx.TensorProto.FLOAT, []),
            helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", "length"])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    target = target_files.load("x86-64-server")

    def told(**options: object) -> dict[str, bool | None]:
        request = SourceRequest(text=str(tmp_path / "m.onnx"), **options)
        return {each.id: each.holds for each in check_all(request, [target], Lines())[target.id]}

    shape = InputShape(name="x", shape=(1, 8))
    assert told()["memory"] is None
    assert told(input_shapes=(shape,), input_values=(InputValue(name="factor", value=2.0),))["memory"]
    with pytest.raises(ConfigError, match="not an input of the model"):
        told(input_shapes=(InputShape(name="other", shape=(1, 8)),))
