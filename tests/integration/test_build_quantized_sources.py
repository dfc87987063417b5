"""Sources that are quantized already: compared by what the file says, whatever the processor makes of its products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeship.build import metrics, oracle, pipeline, sources
from edgeship.build.gate import ROUNDING_RMS
from edgeship.build.model_facts import unknown_to_openvino
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Silence
from edgeship.bundle import Bundle, verify
from edgeship_agent.runtime.isa import isa_class
from tests import models
from tests.integration.test_build_pipeline import TARGET

#: Where pairs of products with unsigned 8-bit activations are added in 16 bits.
SATURATES = isa_class() == "x86_64"
FORMS = {"u8s8": {}, "s8s8": {"signed": True}, "products alone": {"only": ["MatMul"]}}


def _session(model: Path) -> onnxruntime.InferenceSession:
    """Nothing is fused: each operator runs as it stands in the file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(model), options)


def _source(folder: Path, form: str) -> Path:
    return models.quantized(models.large_products(folder / "net.onnx"), folder / "int8.onnx", **FORMS[form])


def _options(folder: Path, source: Path, target: str, base: str) -> BuildOptions:
    session = _session(source)
    for name, count, seed in (("calibration", 40, 1), ("evaluation", 400, 2)):
        x = models.inputs(count, seed=seed)
        scores = np.concatenate([session.run(None, {"x": value[None]})[0] for value in x])
        np.savez(folder / f"{name}.npz", x=x, y=scores.argmax(1))
    (folder / f"{target}.toml").write_text(TARGET.format(name=target, base=base, more=""))
    return BuildOptions(
        source=source,
        targets=(str(folder / f"{target}.toml"),),
        calibration=folder / "calibration.npz",
        evaluation=folder / "evaluation.npz",
        output=folder / "out",
        key=folder / "author.key",
        install_toolchains=True,
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_source_says_what_its_file_says(form: str, tmp_path: Path) -> None:
    file = _source(tmp_path, form)
    samples = [{"x": value[None]} for value in models.inputs(60, seed=3)]
    said = oracle.stacked(models.answers(sources.load(file), samples, tmp_path / "o"), "source")["scores"]
    session = _session(file)
    expected = np.concatenate([session.run(None, sample)[0] for sample in samples])
    error = metrics.relative_rms(said, expected)
    assert error is not None
    assert error <= ROUNDING_RMS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("target", "base"), [("ov", "intel-nuc"), ("lite", "x86-64-litert")])
def test_other_runtimes_are_not_measured_by_products_that_saturate(
    target: str, base: str, form: str, tmp_path: Path
) -> None:
    result = pipeline.build(_options(tmp_path, _source(tmp_path, form), target, base), Silence())
    (variant,) = result.document.variants
    assert (result.verdict, variant.precision, variant.chosen) == ("pass", "int8", True)
    assert variant.relative_rms is not None
    assert variant.relative_rms <= ROUNDING_RMS
    assert verify(Bundle.open(result.folder / "bundle")).passed


@pytest.mark.parametrize("base", ["x86-64-server", "x86-64-v2"])
def test_a_source_whose_products_saturate_here_is_refused_for_that(base: str, tmp_path: Path) -> None:
    result = pipeline.build(_options(tmp_path, _source(tmp_path, "u8s8"), "ort", base), Silence())
    (variant,) = result.document.variants
    (verdict,) = result.document.targets
    assert variant.relative_rms is not None
    if SATURATES:
        assert (result.verdict, variant.chosen) == ("fail", False)
        assert "no VNNI" in verdict.reason
        assert variant.relative_rms > ROUNDING_RMS
        (distance,) = (each for each in result.document.gates if each.id == "relative_rms")
        assert "7 bits" in distance.next
    else:
        assert (result.verdict, variant.chosen) == ("pass", True)
        assert variant.relative_rms <= ROUNDING_RMS


def test_a_source_that_openvino_cannot_be_asked_about_is_converted_all_the_same(tmp_path: Path) -> None:
    """OpenVINO 2026.4 fails when it is asked which operators of this file it takes, and runs the graph made from it."""
    file = models.padded_shortcut(tmp_path / "shortcut.onnx")
    assert unknown_to_openvino(file) == ()
    result = pipeline.build(_options(tmp_path, file, "ov", "intel-nuc"), Silence())
    assert result.verdict == "pass"
