"""Files that take bytes answer what the plain files answer, on every runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeship.build import folding, oracle, pipeline, sources
from edgeship.build.backends import Artifact, Backend, Job, Scheme, heads, open_backend
from edgeship.build.documents.recompute import recompute
from edgeship.build.metrics import relative_rms
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Silence
from edgeship.build.sources import SourceModel
from edgeship.build.verify import open_artifact, run_all
from edgeship.bundle import Bundle
from edgeship_agent.contract.manifest import Binding, Cast, InputContract, Normalize, Reshape, Scale, Step
from edgeship_agent.processing import prepare
from edgeship_agent.runtime.engine import Array
from tests import models
from tests.tflite_files import one_convolution

TEST_DATA = Path(os.environ.get("EDGESHIP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
SHARE = (Cast(dtype="float32"), Scale(factor=1 / 255))
UNEVEN = (Normalize(mean=(100.3,), std=(57.7,)),)
EVEN = (Normalize(mean=(128.0,), std=(64.0,)),)
COLOURS = (Normalize(mean=(120.0, 110.0, 100.0), std=(50.0, 60.0, 70.0)),)
SAMPLES = 24


class Trial:
    """A source, a contract, and its data."""

    def __init__(self, source: SourceModel, steps: tuple[Step, ...], shape: tuple[int, ...], folder: Path) -> None:
        self.source, self.folder = source, folder
        spec = source.inputs[0]
        whole = InputContract(tensor=spec.name, dtype="uint8", shape=shape, steps=steps)
        short = folding.shorten(whole, spec)
        assert isinstance(short, InputContract)
        self.short = short
        rng = np.random.default_rng(11)
        raw = [{spec.name: rng.integers(0, 256, shape, np.uint8)} for _ in range(SAMPLES)]
        self.full = [prepare([whole], each) for each in raw]
        self.fed = [prepare([short], each) for each in raw]
        self.answers = oracle.open_oracle(source, folder / "source").run(self.full, "", Silence())

    def made(self, backend: Backend, name: str, schemes: tuple[Scheme, ...]) -> Iterator[Artifact]:
        job = Job(source=self.source, samples=self.full, checks=self.full[:4], expected=self.answers[:4],
                  folder=self.folder / name)  # fmt: skip
        job.folder.mkdir()
        first = backend.convert(job, self.source.copy_to(self.folder / f"{name}-model"))
        yield first
        for scheme in schemes:
            yield backend.quantize(job, first, scheme)

    def said(self, artifact: Artifact, samples: list[dict[str, Array]]) -> Array:
        bound = open_artifact(artifact)
        try:
            return next(iter(run_all(bound.run, samples, "", Silence()).values()))
        finally:
            bound.close()


@pytest.mark.parametrize(
    ("runtime", "steps"),
    [("onnxruntime", SHARE), ("onnxruntime", UNEVEN), ("openvino", SHARE), ("openvino", UNEVEN), ("litert", SHARE),
     ("litert", EVEN)],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-steps",
)  # fmt: skip
def test_files_take_bytes_and_say_the_same(runtime: str, steps: tuple[Step, ...], tmp_path: Path) -> None:
    if runtime == "litert":
        model, shape = one_convolution(tmp_path / "net.tflite"), (8, 8, 3)
    else:
        model, shape = models.classifier(tmp_path / "net.onnx"), (8, 8)
        steps = (*steps, Reshape(shape=(1, 8, 8)))
    trial = Trial(sources.load(model), steps, shape, tmp_path)
    schemes = (Scheme(), Scheme(precision="fp16"))
    plain = list(trial.made(open_backend(runtime), "plain", schemes))
    folded = list(trial.made(open_backend(runtime, [trial.short]), "folded", schemes))
    truth = next(iter(oracle.stacked(trial.answers, "").values()))
    for before, after in zip(plain, folded, strict=True):
        assert (before.inputs[0].dtype, after.inputs[0].dtype) == ("float32", "uint8")
        assert after.notes[-1].startswith("takes bytes; in the file: ")
        said, meant = trial.said(after, trial.fed), trial.said(before, trial.full)
        if after.precision != "int8":
            assert (relative_rms(said, meant) or 0.0) <= 1e-5
        assert (relative_rms(said, truth) or 0.0) <= 1.25 * (relative_rms(meant, truth) or 0.0) + 1e-5


def test_channels_keep_their_numbers_in_another_layout(tmp_path: Path) -> None:
    """The file is NHWC where the source is NCHW."""
    binding = Binding(name="x", artifact_name="x", artifact_index=0, dtype="float32", shape=(1, 8, 8, 3),
                      transpose=(0, 2, 3, 1))  # fmt: skip
    step = Normalize(mean=(120.0, 110.0, 100.0), std=(50.0, 60.0, 70.0), axis=-3)
    head = heads.head_of(binding, (step,))
    assert [(kind, operand.shape) for kind, operand in head.operations] == [
        ("sub", (1, 1, 1, 3)),
        ("div", (1, 1, 1, 3)),
    ]
    assert head.zero_point == -1


@pytest.mark.parametrize("steps", [UNEVEN, COLOURS], ids=["uneven", "colours"])
def test_what_no_scale_says_stays_on_the_device_in_tflite(steps: tuple[Step, ...], tmp_path: Path) -> None:
    trial = Trial(sources.load(one_convolution(tmp_path / "net.tflite")), steps, (8, 8, 3), tmp_path)
    plain = list(trial.made(open_backend("litert"), "plain", (Scheme(),)))
    folded = list(trial.made(open_backend("litert", [trial.short]), "folded", (Scheme(),)))
    for before, after in zip(plain, folded, strict=True):
        assert after.inputs[0].steps == trial.short.folded
        assert after.notes[-1] == "on the device: normalize, since no scale of bytes says it"
        np.testing.assert_array_equal(trial.said(after, trial.fed), trial.said(before, trial.full))


def test_int8_inputs_leave_the_arithmetic_to_the_device(tmp_path: Path) -> None:
    trial = Trial(sources.load(one_convolution(tmp_path / "net.tflite")), SHARE, (8, 8, 3), tmp_path)
    scheme = Scheme(precision="int8io", integer_ends=True)
    _, plain = trial.made(open_backend("litert"), "plain", (scheme,))
    _, folded = trial.made(open_backend("litert", [trial.short]), "folded", (scheme,))
    assert (folded.inputs[0].dtype, folded.inputs[0].steps) == ("int8", trial.short.folded)
    assert folded.notes[-1] == "on the device: cast, scale, since the file's input is int8"
    np.testing.assert_array_equal(trial.said(folded, trial.fed), trial.said(plain, trial.full))


@pytest.mark.skipif(not (TEST_DATA / "mlperf_tiny").is_dir(), reason="no models of others")
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "plain"])
def test_a_real_model_in_one_build(tmp_path: Path, fold: bool) -> None:
    archive = np.load(TEST_DATA / "data" / "cifar10jpeg_train_2000.npz")
    np.savez(tmp_path / "c.npz", x=archive["x"][:40])
    np.savez(tmp_path / "e.npz", x=archive["x"][40:140], y=archive["y"][40:140])
    (tmp_path / "p.toml").write_text(
        'schema_version = 1\n[[input]]\ndtype = "uint8"\nshape = [32, 32, 3]\n'
        'steps = [{ op = "cast", dtype = "float32" }]\n'
    )
    options = BuildOptions(
        source=TEST_DATA / "mlperf_tiny" / "ic_resnet8" / "pretrainedResnet.tflite", targets=("x86-64-litert",),
        calibration=tmp_path / "c.npz", evaluation=tmp_path / "e.npz", preprocess=tmp_path / "p.toml", effort="quick",
        max_drop=0.2, output=tmp_path / "out", key=tmp_path / "key", fold_normalisation=fold,
    )  # fmt: skip
    result = pipeline.build(options, Silence())
    assert result.verdict == "pass"
    bundle = Bundle.open(tmp_path / "out" / "bundle")
    manifest = bundle.manifest
    sound = {each.label for each in manifest.variants}
    again = recompute(bundle, sound, options.evaluation, options.source, Silence())
    assert again.checks and all(each.holds for each in again.checks), "the source takes what the contract makes in full"
    (contract,) = manifest.input_contracts
    (binding,) = manifest.variants[0].inputs
    taken = (contract.steps, contract.folded, binding.dtype)
    step = Cast(dtype="float32")
    assert taken == (((), (step,), "uint8") if fold else ((step,), (), "float32"))
    by_precision = {each.precision: each for each in result.document.variants}
    assert (by_precision["fp32"].relative_rms or 0.0) <= 1e-5
