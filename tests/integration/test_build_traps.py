"""Traps of the field, sprung on purpose: each of these once passed somewhere with exit code 0."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgeship.build import gate, metrics, oracle, sources, verify
from edgeship.build.backends import Artifact, open_backend
from edgeship.build.backends.base import Job
from edgeship.build.gate import Candidate, Limits
from edgeship.build.measure import Latency
from edgeship.build.progress import Silence
from edgeship.build.verify import Truth
from edgeship_agent.contract.errors import ConversionError
from tests import models

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
LIMITS = Limits(max_drop=0.01, max_relative_rms=0.1)
SAMPLES = 400


def _source(folder: Path) -> tuple[sources.SourceModel, list[dict[str, np.ndarray]], Truth]:
    source = sources.load(models.classifier(folder / "net.onnx"))
    samples = [{"x": value[None]} for value in models.inputs(SAMPLES, seed=3)]
    outputs = oracle.stacked(models.answers(source, samples, folder / "o"), "source")
    labels = tuple(int(index) for index in outputs["scores"].argmax(1))
    return source, samples, Truth(outputs=outputs, labels=labels, classes=True, metric="top1", closeness_limit=0.1)


def _gates(artifact: Artifact, samples: list[dict[str, np.ndarray]], truth: Truth) -> dict[str, bool | None]:
    bound = verify.open_artifact(artifact)
    comparison = verify.compare(truth, verify.run_all(bound.run, samples, "artifact", Silence()))
    bound.close()
    candidate = Candidate(
        target="box", runtime=artifact.runtime, precision="int8", size_bytes=1, comparison=comparison, on_target=True,
        latency=Latency(times_ms=(1.0,)), classes=True, fp32_size_bytes=4, fp32_latency=Latency(times_ms=(1.0,)),
    )  # fmt: skip
    return {each.id: each.holds for each in gate.judge(candidate, LIMITS)}


def _as_artifact(source: sources.SourceModel, model: Path, folder: Path, samples: list) -> Artifact:
    job = Job(
        source=source,
        samples=samples,
        checks=samples[:4],
        expected=models.answers(source, samples[:4], folder / "s"),
        folder=folder,
    )
    made = open_backend("onnxruntime").convert(job, source.path)
    made.model.write_bytes(model.read_bytes())
    return made


def test_a_file_that_says_one_class_is_refused_although_nothing_failed(tmp_path: Path) -> None:
    source, samples, truth = _source(tmp_path)
    dead = models.classifier(tmp_path / "dead.onnx", dead=True)
    held = _gates(_as_artifact(source, dead, tmp_path / "work", samples), samples, truth)
    assert (held["distinct"], held["relative_rms"], held["top1"]) == (False, False, False)


def test_clipped_ranges_are_refused_although_most_classes_agree(tmp_path: Path) -> None:
    source, samples, truth = _source(tmp_path)
    model = onnx.load(source.path)
    # what a mean of ranges does to the largest activations
    clip = onnx.helper.make_node("Clip", ["scores_whole", "low", "high"], ["scores"])
    model.graph.node[-1].output[0] = "scores_whole"
    model.graph.node.append(clip)
    highest = float(np.percentile(truth.outputs["scores"], 80))
    for name, value in (("low", -highest), ("high", highest)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(value), name))
    onnx.save(model, tmp_path / "clipped.onnx")
    held = _gates(_as_artifact(source, tmp_path / "clipped.onnx", tmp_path / "work", samples), samples, truth)
    assert held["distinct"] is True
    assert held["relative_rms"] is False


def test_dynamic_int8_of_convolutions_is_no_closer_than_ours(tmp_path: Path) -> None:
    source, samples, truth = _source(tmp_path)
    quantize_dynamic(str(source.path), str(tmp_path / "dynamic.onnx"), weight_type=QuantType.QInt8)
    assert "ConvInteger" in {node.op_type for node in onnx.load(tmp_path / "dynamic.onnx").graph.node}
    errors = {}
    backend = open_backend("onnxruntime")
    expected = models.answers(source, samples[:4], tmp_path / "s")
    job = Job(source=source, samples=samples[:60], checks=samples[:4], expected=expected, folder=tmp_path / "ours")
    from edgeship.build.schemes import U8S7

    ours = backend.quantize(job, backend.convert(job, source.path), U8S7)
    dynamic = _as_artifact(source, tmp_path / "dynamic.onnx", tmp_path / "work", samples)
    for name, artifact in (("ours", ours), ("dynamic", dynamic)):
        bound = verify.open_artifact(artifact)
        outputs = verify.run_all(bound.run, samples, name, Silence())
        errors[name] = metrics.relative_rms(outputs["scores"], truth.outputs["scores"])
        bound.close()
    assert errors["ours"] is not None
    assert errors["dynamic"] is not None
    assert errors["ours"] < max(errors["dynamic"], 0.05)


def test_a_file_that_answers_nan_is_refused(tmp_path: Path) -> None:
    source, samples, truth = _source(tmp_path)
    model = onnx.load(source.path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b3")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(models.CLASSES, np.nan, np.float32), "b3"))
    onnx.save(model, tmp_path / "nan.onnx")
    held = _gates(_as_artifact(source, tmp_path / "nan.onnx", tmp_path / "work", samples), samples, truth)
    assert held["relative_rms"] is False
    assert held["top1"] is False


def test_a_file_that_its_runtime_refuses_or_dies_of_ends_no_build(tmp_path: Path) -> None:
    source, samples, _ = _source(tmp_path)
    artifact = _as_artifact(source, source.path, tmp_path / "work", samples)
    artifact.model.write_bytes(source.data[:-200])
    with pytest.raises(ConversionError, match="refuses"):
        verify.open_artifact(artifact)


def test_a_file_that_kills_its_runtime_is_survived(tmp_path: Path) -> None:
    hard = TEST_DATA / "hard_cases" / "model_invoking_error.tflite"
    if not hard.is_file():
        pytest.skip("the shared test data are not here: a file that a runtime refuses was not tried")
    artifact = Artifact(runtime="litert", precision="fp32", model=hard, inputs=(), outputs=())
    with pytest.raises(ConversionError):
        verify.open_artifact(artifact)


def test_a_file_that_answers_something_else_at_each_load_is_refused(tmp_path: Path) -> None:
    source, samples, truth = _source(tmp_path)
    artifact = _as_artifact(source, source.path, tmp_path / "work", samples)
    verify.check_loads_agree(artifact, samples, truth.outputs)
    lucky = {name: array + np.float32(0.1) for name, array in truth.outputs.items()}
    with pytest.raises(ConversionError, match="each time that it loads"):
        verify.check_loads_agree(artifact, samples, lucky)
