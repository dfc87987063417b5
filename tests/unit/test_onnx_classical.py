"""ONNX files of classical models as exporters write them by default: maps and texts give way to tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeship.build import sources
from edgeship.build.sources import onnx_classical
from edgeship.build.sources.request import SourceRequest
from edgeship_agent.contract.errors import InputError

ML = "ai.onnx.ml"
CLASSES = {"ints": [0, 1, 2], "other ints": [3, 5, 9], "texts": ["cat", "dog", "owl"]}


def _classifier(classes: list[Any], *, main_domain: bool = True, batch: int | str = "N") -> onnx.ModelProto:
    """As skl2onnx and CatBoost write it: the label first, then a map from class to probability for each sample."""
    texts = isinstance(classes[0], str)
    kind, key = (TensorProto.STRING, "classlabels_strings") if texts else (TensorProto.INT64, "classlabels_int64s")
    weights = np.random.default_rng(1).normal(size=12).astype(np.float32)
    nodes = [
        helper.make_node("LinearClassifier", ["x"], ["found", "shares"], domain=ML, coefficients=weights.tolist(),
                         intercepts=[0.1, 0.2, 0.3], multi_class=1, post_transform="SOFTMAX",
                         **{"classlabels_strings" if texts else "classlabels_ints": classes}),
        helper.make_node("ZipMap", ["shares"], ["probabilities"], domain=ML, **{key: classes}),
    ]  # fmt: skip
    label = "found"
    if main_domain:
        nodes.append(helper.make_node("Identity", ["found"], ["label"]))
        label = "label"
    maps = helper.make_sequence_type_proto(
        helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    graph = helper.make_graph(
        nodes, "classifier", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info(label, kind, [batch]), helper.make_value_info("probabilities", maps)],
    )  # fmt: skip
    opsets = [helper.make_opsetid(ML, 1), *([helper.make_opsetid("", 13)] if main_domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=7)


@pytest.mark.parametrize("main_domain", [True, False])
@pytest.mark.parametrize("named", sorted(CLASSES))
def test_a_map_becomes_the_tensor_that_it_is_made_from(tmp_path: Path, named: str, *, main_domain: bool) -> None:
    classes, file = CLASSES[named], tmp_path / "classifier.onnx"
    onnx.save(_classifier(classes, main_domain=main_domain), file)
    source = sources.load(file)
    outputs = {each.name: (each.dtype, each.shape) for each in source.outputs}
    label = "label" if main_domain else "found"
    numbers = {} if named == "texts" else {label: ("int64", (-1,))}
    assert outputs == {"probabilities": ("float32", (-1, 3)), **numbers}
    assert next(iter(outputs)) == "probabilities"  # the scores are judged, and a drift baseline is made of them
    assert source.classes == (() if named == "ints" else tuple(map(str, classes)))
    assert any("maps from class to score" in note for note in source.notes)
    assert any(f"{label}: texts, left out" in note for note in source.notes) == (named == "texts")

    assert source.data is not None
    x = np.random.default_rng(2).normal(size=(1, 4)).astype(np.float32)
    found, wanted = (
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(["probabilities"], {"x": x})[0]
        for data in (source.data, file.read_bytes())
    )
    np.testing.assert_array_equal(found[0], [wanted[0][name] for name in classes])
    assert file.read_bytes() == _classifier(classes, main_domain=main_domain).SerializeToString()


def test_what_only_the_text_label_needed_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "classifier.onnx"
    onnx.save(_classifier(CLASSES["texts"]), file)
    data = sources.load(file).data
    assert data is not None
    kinds = [node.op_type for node in onnx.ModelProto.FromString(data).graph.node]
    assert kinds == ["LinearClassifier", "Identity"]


def test_checks_see_the_file_as_it_is_read(tmp_path: Path) -> None:
    file, plain = tmp_path / "classifier.onnx", tmp_path / "plain.onnx"
    model = _classifier(CLASSES["ints"], batch=1)
    onnx.save(model, file)
    checked = sources.file_to_check(SourceRequest(text=str(file)), tmp_path / "checked")
    assert "ZipMap" not in {node.op_type for node in onnx.load(str(checked)).graph.node}
    assert [axis.dim_value for axis in onnx.load(str(checked)).graph.output[0].type.tensor_type.shape.dim] == [1, 3]
    assert onnx_classical.take_away(model) is not None
    onnx.save(model, plain)
    assert sources.file_to_check(SourceRequest(text=str(plain)), tmp_path / "again") == plain


@pytest.mark.parametrize("targets", [1, 2])
def test_a_regression_has_two_axes_whatever_the_file_says(tmp_path: Path, targets: int) -> None:
    node = helper.make_node("LinearRegressor", ["x"], ["y"], domain=ML, coefficients=[0.5] * 3 * targets,
                            intercepts=[0.0] * targets, targets=targets)  # fmt: skip
    graph = helper.make_graph([node], "regression", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])])  # fmt: skip
    file = tmp_path / "regression.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid(ML, 1)], ir_version=7), file)
    source = sources.load(file)
    assert [each.shape for each in source.outputs] == [(-1, targets)]
    assert source.data != file.read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [("net.cbm", "CBM1"), ("net.json", '{"features_info": {}, "model_info": {"catboost_version_info": "1.2"}}')],
)
def test_catboosts_own_files_name_the_way_out(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        sources.toolchain_of(SourceRequest(text=str(tmp_path / name)))
    assert 'save_model("model.onnx", format="onnx")' in (caught.value.next_step or "")
