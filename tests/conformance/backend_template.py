"""What every build backend must do: one template, subclassed once per runtime, always with the real tools."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from msgspec import structs

from edgeship.build import metrics, routes, sources, toolchains, verify
from edgeship.build.backends import Artifact, Backend, Job, Scheme, open_backend
from edgeship.build.progress import Silence
from edgeship.build.quiet import quiet
from edgeship.build.schemes import U8S7
from edgeship.build.search import space
from edgeship.build.search.graph import patches
from tests import models

SAMPLES = 60
#: One calibration sample is so many times as large as the others: an average of ranges would clip it.
OUTLIER = 20.0
LOWEST = float(np.finfo(np.float32).min)


class BackendTemplate:
    """Subclass per runtime."""

    runtime: ClassVar[str]
    #: Never saturates, so that the figures are those of the quantizer on a processor without VNNI too.
    scheme: ClassVar[Scheme] = U8S7

    @pytest.fixture(scope="class")
    @classmethod
    def job(cls, tmp_path_factory: pytest.TempPathFactory) -> Job:
        if cls.runtime == "litert":
            toolchains.install("onnx2tf")
        folder = tmp_path_factory.mktemp(cls.runtime)
        return cls.job_for(models.classifier(folder / "m.onnx"), folder)

    @classmethod
    def job_for(
        cls, path: Path, folder: Path, *, channels: int = 1, outlier: float = 1.0, in_columns: bool = False
    ) -> Job:
        source = sources.load(path)
        name = source.inputs[0].name
        values = models.inputs(SAMPLES, channels=channels)
        values[7] *= outlier
        if in_columns:
            values = values * models.WIDTHS + models.CENTERS
        samples = [{name: value[None]} for value in values]
        expected = models.answers(source, samples, folder / "oracle")
        return Job(source=source, samples=samples, checks=samples, expected=expected, folder=folder / "work")

    @classmethod
    def convert(cls, backend: Backend, job: Job) -> Artifact:
        forms = routes.Forms(job.source, job.folder / "forms", lambda _name: None)
        return backend.convert(job, forms.file(routes.plan(job.source.format, cls.runtime)[0]))

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Backend:
        return open_backend(cls.runtime)

    @pytest.fixture(scope="class")
    @classmethod
    def float_artifact(cls, backend: Backend, job: Job) -> Artifact:
        return cls.convert(backend, job)

    @pytest.fixture(scope="class")
    @classmethod
    def int8_artifact(cls, backend: Backend, job: Job, float_artifact: Artifact) -> Artifact:
        return backend.quantize(job, float_artifact, cls.scheme)

    def outputs(self, artifact: Artifact, job: Job, indices: slice = slice(None)) -> dict[str, np.ndarray]:
        bound = verify.open_artifact(artifact)
        try:
            return verify.run_all(bound.run, job.samples[indices], "test", Silence())
        finally:
            bound.close()

    def error(self, artifact: Artifact, job: Job, indices: slice = slice(None)) -> float:
        name = job.source.outputs[0].name
        wanted = np.concatenate([sample[name] for sample in job.expected[indices]])
        value = metrics.relative_rms(self.outputs(artifact, job, indices)[name], wanted)
        assert value is not None
        return value

    def test_float_computes_what_the_source_computes(self, float_artifact: Artifact, job: Job) -> None:
        assert self.error(float_artifact, job) < 1e-4

    def test_int8_is_close_and_not_degenerate(self, int8_artifact: Artifact, job: Job) -> None:
        assert 0.0 < self.error(int8_artifact, job) < 0.05
        scores = self.outputs(int8_artifact, job)["scores"]
        wanted = np.concatenate([sample["scores"] for sample in job.expected])
        assert len(set(scores.argmax(1))) == len(set(wanted.argmax(1)))

    def test_int8_weights_are_smaller(self, int8_artifact: Artifact, float_artifact: Artifact) -> None:
        assert int8_artifact.size_bytes < float_artifact.size_bytes

    def test_no_value_of_the_calibration_is_clipped(self, backend: Backend, tmp_path: Path) -> None:
        job = self.job_for(models.classifier(tmp_path / "m.onnx"), tmp_path, outlier=OUTLIER)
        artifact = backend.quantize(job, self.convert(backend, job), self.scheme)
        assert self.error(artifact, job, slice(7, 8)) < 0.05

    def test_the_source_is_untouched(self, int8_artifact: Artifact, float_artifact: Artifact, job: Job) -> None:
        assert int8_artifact.model != float_artifact.model
        job.source.check_unchanged()
        assert job.source.path.read_bytes() == job.source.data

    def test_the_same_input_gives_the_same_bytes(
        self, backend: Backend, int8_artifact: Artifact, float_artifact: Artifact, job: Job, tmp_path: Path
    ) -> None:
        again = structs.replace(job, folder=tmp_path / "again")
        twice = self.convert(backend, again)
        assert _digests(twice) == _digests(float_artifact)
        assert _digests(backend.quantize(again, twice, self.scheme)) == _digests(int8_artifact)

    def test_two_outputs_of_several_axes_keep_names_and_layout(self, backend: Backend, tmp_path: Path) -> None:
        job = self.job_for(models.two_outputs(tmp_path / "m.onnx"), tmp_path, channels=2)
        artifact = self.convert(backend, job)
        assert [each.name for each in artifact.outputs] == ["map", "mean"]
        for precision in (artifact, backend.quantize(job, artifact, self.scheme)):
            found = self.outputs(precision, job)
            for name in ("map", "mean"):
                wanted = np.concatenate([sample[name] for sample in job.expected])
                assert (metrics.relative_rms(found[name], wanted) or 0.0) < 0.05

    @pytest.mark.parametrize("make", [models.grouped, models.grouped_signal])
    def test_convolutions_in_groups_are_rounded_by_what_they_are_multiplied_with(
        self, backend: Backend, tmp_path: Path, make: Callable[[Path], Path]
    ) -> None:
        job = self.job_for(make(tmp_path / "m.onnx"), tmp_path, channels=8)
        artifact = self.convert(backend, job)
        nearest, compensated = (
            self.error(backend.quantize(job, artifact, structs.replace(self.scheme, rounding=rounding)), job)
            for rounding in ("nearest", "compensated")
        )
        assert 0.0 < compensated < nearest < 0.05

    @pytest.mark.parametrize("make", [models.grouped, models.grouped_signal])
    def test_patches_times_weights_are_what_a_convolution_gives(
        self, backend: Backend, tmp_path: Path, make: Callable[[Path], Path]
    ) -> None:
        """The last one's: its products without a bias, against the source's answer."""
        job = self.job_for(make(tmp_path / "m.onnx"), tmp_path, channels=8)
        calibration = backend.calibration(job, self.convert(backend, job))
        convolutions = [each for each in calibration.operators if each.layer is not None and each.layer.convolution]
        assert len(convolutions) >= 2
        last = convolutions[-1]
        assert last.layer is not None
        with quiet():
            tensors = next(calibration._watched(job.samples[:1]))
        rows = patches(last.layer, tensors[last.inputs[0]])
        weights = last.layer.weight.reshape(last.layer.groups, -1, last.layer.fan_in)
        products = np.einsum("grk,gok->rgo", rows, weights).reshape(rows.shape[1], -1)
        expected = np.moveaxis(job.expected[0]["y"], 1, -1).reshape(-1, products.shape[1])
        assert len(products) == len(expected)
        np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("lowest", "fixed"),
        [(-100.0, False), (-10_000.0, False), (LOWEST, False), (-100.0, True), (LOWEST, True), (-np.inf, True)],
    )
    def test_masked_scores_take_no_part_in_a_softmax_of_eight_bits(
        self, backend: Backend, tmp_path: Path, lowest: float, *, fixed: bool
    ) -> None:
        """They cost no more than the steps that they take; without room for them it is some ten times as much."""
        errors = []
        for name, value in (("open", 0.0), ("masked", lowest)):
            folder = tmp_path / name
            folder.mkdir()
            job = self.job_for(models.attention(folder / "m.onnx", value, fixed=fixed), folder)
            artifact = self.convert(backend, job)
            assert self.error(artifact, job) < 1e-5
            errors.append(self.error(backend.quantize(job, artifact, self.scheme), job))
        assert errors[1] < 1.5 * errors[0] < 0.1

    def test_columns_of_unlike_size_are_made_alike_in_float(self, backend: Backend, tmp_path: Path) -> None:
        """Eight bits hold the largest column alone; half precision holds 300 to a quarter."""
        job = self.job_for(models.columns(tmp_path / "m.onnx"), tmp_path, in_columns=True)
        artifact = self.convert(backend, job)
        (front, *_) = space.fronts(backend.calibration(job, artifact).operators)
        plain, kept = (
            self.error(backend.quantize(job, artifact, scheme), job)
            for scheme in (self.scheme, space.in_float(self.scheme, front))
        )
        assert plain > 0.3
        assert kept < 0.03
        half = backend.quantize(job, artifact, Scheme(precision="fp16"))
        assert self.error(half, job) < 2e-3

    def test_an_old_opset_is_built_too(self, backend: Backend, tmp_path: Path) -> None:
        job = self.job_for(models.classifier(tmp_path / "m.onnx", opset=11, bias_rows=True), tmp_path)
        artifact = backend.quantize(job, self.convert(backend, job), self.scheme)
        assert self.error(artifact, job) < 0.05

    def test_one_thread_does_the_work(self, int8_artifact: Artifact) -> None:
        # processor time by thread, so that what else the machine does changes nothing
        code = (
            "import sys, time\nfrom pathlib import Path\nimport numpy as np, psutil\n"
            "from edgeship_agent.runtime import open_engine\n"
            "engine = open_engine(sys.argv[1], Path(sys.argv[2]))\n"
            "run = lambda: engine.run([np.zeros(i.shape, i.dtype) for i in engine.signature.inputs])\n"
            "spent = lambda: {t.id: t.user_time + t.system_time for t in psutil.Process().threads()}\n"
            "run()\n"
            "before, started = spent(), time.process_time()\n"
            "while time.process_time() - started < 1.0:\n    run()\n"
            "by_thread = [after - before.get(thread, 0.0) for thread, after in spent().items()]\n"
            "print(max(by_thread) / sum(by_thread))\n"
        )
        command = [sys.executable, "-c", code, self.runtime, str(int8_artifact.model)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        assert float(said.splitlines()[-1]) > 0.9, "share of the busiest thread: more than one was at work"


def _digests(artifact: Artifact) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in artifact.files]
