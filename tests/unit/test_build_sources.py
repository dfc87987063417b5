"""ONNX files that are read, and ones that are refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgeship.build import sources
from edgeship_agent.contract.errors import ConfigError, ConversionError, InputError, VerificationError
from tests import models


def test_a_model_is_described(tmp_path: Path) -> None:
    source = sources.load(models.classifier(tmp_path / "m.onnx"))
    assert (source.opset, source.operators) == (17, 10)
    assert [(spec.name, spec.shape) for spec in source.inputs] == [("x", (-1, 1, 8, 8))]
    assert [(spec.name, spec.shape) for spec in source.outputs] == [("scores", (-1, models.CLASSES))]
    assert source.copy_to(tmp_path / "copy").read_bytes() == source.path.read_bytes()


def test_weights_that_stand_in_the_graph_as_constants_are_counted(tmp_path: Path) -> None:
    """As PaddlePaddle writes them; the sizes and axes beside them are no weights."""
    file = models.classifier(tmp_path / "m.onnx")
    expected = sources.load(file).parameters
    document = onnx.load(file)
    tensors = [each for each in document.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    for tensor in tensors:
        document.graph.initializer.remove(tensor)
        document.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    onnx.save(document, file)
    assert sources.load(file).parameters == expected > 0


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_unusable_input(tmp_path: Path, share: float) -> None:
    whole = models.classifier(tmp_path / "m.onnx").read_bytes()
    short = tmp_path / "short.onnx"
    short.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError) as refusal:
        sources.load(short)
    assert refusal.value.exit_code == 2
    assert refusal.value.file == str(short)


def test_an_unknown_domain_is_named_with_its_operator(tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as refusal:
        sources.load(models.classifier(tmp_path / "m.onnx", domain="com.example.private"))
    assert refusal.value.exit_code == 1
    assert "'com.example.private'" in str(refusal.value)
    assert "Conv" in str(refusal.value)


def test_a_domain_inside_a_branch_is_found_too(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    model = onnx.load(path)
    hidden = onnx.helper.make_graph([onnx.helper.make_node("Odd", [], ["o"], domain="hidden")], "b", [],
                                    [onnx.helper.make_tensor_value_info("o", 1, [1])])  # fmt: skip
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["i"], then_branch=hidden, else_branch=hidden))
    onnx.save(model, path)
    with pytest.raises(ConversionError, match="hidden"):
        sources.load(path)


def test_weights_beside_the_model_belong_to_it(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="m.weights", size_threshold=0)
    source = sources.load(path)
    assert [file.name for file in source.files] == ["m.onnx", "m.weights"]
    alone = tmp_path / "alone" / "model.onnx"
    assert onnx.load(source.copy_to(alone.parent)).graph.initializer[0].raw_data
    (tmp_path / "m.weights").unlink()
    with pytest.raises(InputError, match="weight file is missing"):
        sources.load(path)


def test_a_free_axis_besides_the_batch_is_refused(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, path)
    with pytest.raises(InputError, match="height"):
        sources.load(path)


def test_free_axes_are_pinned_by_the_user(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, path)
    before = path.read_bytes()
    given = sources.InputShape(shape=(1, 1, 8, 8))
    source = sources.load(sources.SourceRequest(text=str(path), input_shapes=(given,)))
    assert source.inputs[0].shape == (1, 1, 8, 8)
    assert path.read_bytes() == before
    wrong = sources.InputShape(shape=(1, 2, 8, 8))
    with pytest.raises(ConfigError, match="does not fit"):
        sources.load(sources.SourceRequest(text=str(path), input_shapes=(wrong,)))


def test_axes_written_as_minus_one_are_free(tmp_path: Path) -> None:
    """PaddlePaddle's exporter writes the sizes that it does not know so."""
    path = models.classifier(tmp_path / "m.onnx")
    model = onnx.load(str(path))
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = -1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(model, str(path))
    with pytest.raises(InputError) as refusal:
        sources.load(path)
    assert refusal.value.next_step == "give its sizes: --input-shape x=1,1,SIZE,SIZE"
    shape = sources.InputShape(name="x", shape=(1, 1, 8, 8))
    pinned = sources.load(sources.SourceRequest(text=str(path), input_shapes=(shape,)))
    assert [spec.shape for spec in (*pinned.inputs, *pinned.outputs)] == [(1, 1, 8, 8), (1, models.CLASSES)]


def test_a_change_of_the_source_during_the_build_is_noticed(tmp_path: Path) -> None:
    source = sources.load(models.classifier(tmp_path / "m.onnx"))
    source.check_unchanged()
    source.path.write_bytes(source.data + b" ")
    with pytest.raises(VerificationError, match="changed during the build"):
        source.check_unchanged()


@pytest.mark.parametrize("name", ["m.mat", "m.bin", "model"])
def test_another_format_is_told_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(InputError, match="unknown model format") as refusal:
        sources.load(tmp_path / name)
    assert refusal.value.next_step is not None
    assert "ONNX" in refusal.value.next_step
