"""TFLite files as sources: a float one is quantized and re-targeted, a quantized one is passed through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeship.build import pipeline, toolchains
from edgeship.build.options import BuildOptions
from edgeship.build.pipeline import BuildResult
from edgeship.build.progress import Silence
from edgeship_agent.contract.errors import ConversionError, EdgeshipError, InputError
from tests import models


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """The test classifier for LiteRT: its variants are this module's sources."""
    toolchains.install("onnx2tf")
    folder = tmp_path_factory.mktemp("tflite")
    model = models.classifier(folder / "net.onnx")
    for name, count, seed in (("c", 120, 1), ("e", 700, 2)):
        np.savez(folder / f"{name}.npz", x=models.inputs(count, seed=seed))
    return _build(folder, model, "x86-64-litert")


def _build(folder: Path, model: Path, *targets: str, output: str = "first") -> BuildResult:
    options = BuildOptions(
        source=model, targets=targets, calibration=folder / "c.npz", evaluation=folder / "e.npz", max_drop=0.05,
        output=folder / output, key=folder / "author.key", task="classification",
    )  # fmt: skip
    return pipeline.build(options, Silence())


def _channels_last(folder: Path) -> None:
    for name in ("c", "e"):
        with np.load(folder / f"{name}.npz") as archive:
            x = archive["x"]
        if x.shape[1] == 1:
            np.savez(folder / f"{name}.npz", x=x.transpose(0, 2, 3, 1))


def _file(result: BuildResult, precision: str) -> Path:
    return next(Path(each.file) for each in result.document.variants if each.precision == precision)


def test_a_float_file_is_quantized_and_taken_to_another_runtime(built: BuildResult) -> None:
    folder = built.folder.parent
    _channels_last(folder)
    result = _build(folder, _file(built, "fp32"), "x86-64-litert", "intel-nuc", output="again")
    assert result.document.source is not None
    assert result.document.source.format == "tflite"
    found = {(each.runtime, each.precision): each for each in result.document.variants}
    assert found["litert", "fp32"].relative_rms == 0.0
    assert found["openvino", "fp32"].relative_rms is not None
    assert found["openvino", "fp32"].relative_rms < 1e-4
    for runtime in ("litert", "openvino"):
        assert 0.0 < (found[runtime, "int8"].relative_rms or 0.0) < 0.1


def test_a_quantized_file_is_passed_through_and_to_litert_alone(built: BuildResult) -> None:
    folder = built.folder.parent
    _channels_last(folder)
    source = _file(built, "int8")
    result = _build(folder, source, "x86-64-litert", output="through")
    (variant,) = result.document.variants
    assert (variant.precision, variant.relative_rms, variant.metric.drop) == ("int8", 0.0, 0.0)
    assert variant.chosen
    assert any("quantized already" in each.reason for each in result.document.tried)
    with pytest.raises(ConversionError, match="there is no way from this model to intel-nuc"):
        _build(folder, source, "intel-nuc", output="elsewhere")


@pytest.mark.parametrize(("keep", "kind"), [(0, InputError), (6, InputError), (0.5, EdgeshipError)])
def test_a_damaged_file_is_refused_in_words(built: BuildResult, keep: float, kind: type[EdgeshipError]) -> None:
    folder = built.folder.parent
    whole = _file(built, "fp32").read_bytes()
    short = folder / f"short{keep}.tflite"
    short.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(kind) as refusal:
        _build(folder, short, "x86-64-litert", output="short")
    assert str(short) in str(refusal.value)
    assert not (folder / "short").exists()
