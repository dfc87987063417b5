"""Making the candidates of a target: convert, quantize, pick the scheme, run, measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from edgeship.build import data, routes, verify
from edgeship.build.backends import Artifact, Backend, Job, Scheme, open_backend
from edgeship.build.inputs import Inputs
from edgeship.build.measure import measure
from edgeship.build.progress import Progress
from edgeship.build.schema import Attempt
from edgeship.build.schemes import schemes
from edgeship.build.unlabelled import AnswerSet, Field
from edgeship.build.verify import Comparison, Truth
from edgeship.targets import Measure, Target
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.runtime.bound import BoundModel

#: A scheme is kept unless another is closer to the source by more than this factor.
_CLEARLY_CLOSER: Final = 1.5
#: A scheme other than the target's default must be this much faster where speed is measured on the target: schemes that
#: differ, differ by a factor of 1.25 to 2 (build.md, b), and a choice that noise could turn would change the bundle.
_CLEARLY_FASTER: Final = 0.75
_SCREEN: Final = Measure(warm_up=20, min_queries=400, min_seconds=0.2)


class Built(Struct, frozen=True, kw_only=True):
    """An artifact that runs, and how it compares with the source on the evaluation set.

    Attributes:
        classes: whether its first output is read as classes.
        disagreements: unlabelled samples on which a quantized one's answer is not the source's: position → its answer;
            None where there are no such samples.
    """

    artifact: Artifact
    comparison: Comparison
    bound: BoundModel
    classes: bool
    disagreements: Mapping[int, AnswerSet] | None = None


class Workshop:
    """Makes artifacts once and shares them between targets that want the same.

    Args:
        inputs: what to build from.
        folder: private, for this build.
        forms: the source in other formats.
        max_relative_rms: limit of a quantized variant.
        progress: told what goes on.
    """

    def __init__(
        self, inputs: Inputs, folder: Path, forms: routes.Forms, max_relative_rms: float, progress: Progress
    ) -> None:
        self._inputs = inputs
        self._folder = folder
        self._forms = forms
        self._limit = max_relative_rms
        self._progress = progress
        self._backends: dict[str, Backend] = {}
        self._artifacts: dict[tuple[str, str], Artifact | ConversionError] = {}
        self._built: dict[Path, Built] = {}
        ranges, selection = data.split(len(inputs.calibration))
        self._ranges = ranges
        self._selection = selection or ranges
        self.tried: list[Attempt] = []

    def float_variant(self, runtime: str) -> Built:
        """The float variant of a runtime.

        Raises:
            ConversionError: there is none.
        """
        return self._run(self._artifact(runtime, None))

    def int8_variant(self, target: Target, runtime: str, *, on_target: bool) -> Built:
        """The int8 variant of a runtime by the scheme that fits the target.

        Raises:
            ConversionError: none of the schemes gives a file that runs.
        """
        if self._inputs.source.quantized:
            raise ConversionError("the source is quantized already, and is never quantized twice", target=runtime)
        found: dict[str, tuple[Artifact, Comparison]] = {}
        allowed = schemes(target, runtime, on_target=on_target)
        for scheme in allowed:
            self._try(runtime, scheme, target, found)
            compared = [comparison for _, comparison in found.values()]
            speed_matters = on_target and runtime == "onnxruntime"
            if compared and _good(compared[0], self._limit) and not speed_matters:
                break
        if not found:
            reasons = [each.reason for each in self.tried if each.target == target.id and each.runtime == runtime]
            raise ConversionError(reasons[-1] if reasons else "no scheme applies", target=runtime)
        name = self._pick(found, on_target=on_target)
        self._record(target, runtime, found, name)
        return self._run(found[name][0])

    @property
    def inputs(self) -> Inputs:
        """What is built from."""
        return self._inputs

    @property
    def field(self) -> Field | None:
        """Unlabelled samples, where the build was given some."""
        return self._inputs.field

    def close(self) -> None:
        """Release every engine."""
        for built in self._built.values():
            built.bound.close()

    def _job(self, runtime: str, indices: Sequence[int]) -> Job:
        inputs = self._inputs
        samples = [inputs.calibration_inputs[index] for index in indices]
        return Job(source=inputs.source, samples=samples, checks=inputs.calibration_inputs[: len(inputs.answers)],
                   expected=inputs.answers, folder=self._folder / runtime)  # fmt: skip

    def _converted(self, backend: Backend, job: Job, runtime: str) -> Artifact:
        """The float artifact by the first route that keeps the source's meaning.

        Raises:
            ConversionError: none does; the reason is the last route's.
        """
        source = self._inputs.source
        if source.format == "tflite" and source.quantized and runtime != "litert":
            reason = "a quantized TFLite file is passed through to LiteRT alone: build from its float model"
            raise ConversionError(reason, target=runtime)
        gave_up: list[str] = []
        for position, route in enumerate(routes.plan(source.format, runtime)):
            by = routes.words(source.format, route)
            try:
                attempt = structs.replace(job, folder=job.folder / f"route{position}")
                artifact = backend.convert(attempt, self._forms.file(route))
            except (ConversionError, EngineError) as error:
                gave_up.append(f"{by}: {error.message}")
                continue
            gave_up += self._forms.fallbacks(route)
            return structs.replace(artifact, notes=(*artifact.notes, f"converted by {by}", *gave_up),
                                   fallbacks=(*artifact.fallbacks, *gave_up))  # fmt: skip
        raise ConversionError("; ".join(gave_up), target=runtime)

    def _artifact(self, runtime: str, scheme: Scheme | None) -> Artifact:
        key = (runtime, scheme.name if scheme else "fp32")
        if key not in self._artifacts:
            try:
                self._artifacts[key] = self._make(runtime, scheme)
            except (ConversionError, EngineError) as error:
                self._artifacts[key] = (
                    error if isinstance(error, ConversionError) else ConversionError(error.sentence(), target=runtime)
                )
        made = self._artifacts[key]
        if isinstance(made, ConversionError):
            raise made
        return made

    def _make(self, runtime: str, scheme: Scheme | None) -> Artifact:
        backend = self._backends.setdefault(runtime, open_backend(runtime))
        job = self._job(runtime, self._ranges)
        if scheme is None:
            return self._converted(backend, job, runtime)
        return backend.quantize(job, self._artifact(runtime, None), scheme)

    def _try(self, runtime: str, scheme: Scheme, target: Target, found: dict[str, tuple[Artifact, Comparison]]) -> None:
        self._progress.count(f"{runtime} {scheme.name}", 0, 1)
        try:
            artifact = self._artifact(runtime, scheme)
            found[scheme.name] = (artifact, self._screen(artifact))
        except ConversionError as error:
            self.tried.append(Attempt(target=target.id, runtime=runtime, precision="int8", outcome="failed",
                                      reason=f"{scheme.text}: {error.message}"))  # fmt: skip

    def _screen(self, artifact: Artifact) -> Comparison:
        """Compare on the selection part of the calibration data: the evaluation set is for claims alone."""
        bound = verify.open_artifact(artifact)
        try:
            outputs = verify.run_all(bound.run, [self._inputs.calibration_inputs[i] for i in self._selection],
                                     f"select {artifact.runtime}", self._progress)  # fmt: skip
        finally:
            bound.close()
        whole = self._inputs.truth
        reference = {name: array[self._selection] for name, array in self._inputs.calibration_outputs.items()}
        metric = "agreement" if whole.classes else "closeness"
        truth = Truth(outputs=reference, labels=None, classes=whole.classes, metric=metric,
                      closeness_limit=whole.closeness_limit)  # fmt: skip
        return verify.compare(truth, outputs)

    def _pick(self, found: Mapping[str, tuple[Artifact, Comparison]], *, on_target: bool) -> str:
        """The first scheme, unless another is clearly closer, or as close and clearly faster on the target."""
        errors = {name: _error(comparison) for name, (_, comparison) in found.items()}
        allowed = [name for name, error in errors.items() if error <= _CLEARLY_CLOSER * min(errors.values())]
        chosen = allowed[0]
        if not on_target or len(allowed) == 1:
            return chosen
        runs = {name: verify.open_artifact(found[name][0]) for name in allowed}
        times = measure({name: bound.run for name, bound in runs.items()}, self._inputs.calibration_inputs, _SCREEN,
                        self._progress)  # fmt: skip
        for bound in runs.values():
            bound.close()
        fastest = min(times, key=lambda name: times[name].p50_ms)
        return fastest if times[fastest].p50_ms < _CLEARLY_FASTER * times[chosen].p50_ms else chosen

    def _record(
        self, target: Target, runtime: str, found: Mapping[str, tuple[Artifact, Comparison]], chosen: str
    ) -> None:
        for name, (artifact, comparison) in found.items():
            if name != chosen:
                error = comparison.relative_rms
                shown = "not a number" if error is None else f"{error:.3g}"
                self.tried.append(
                    Attempt(target=target.id, runtime=runtime, precision="int8", outcome="not chosen",
                            reason=f"{artifact.scheme}: relative RMS {shown} on the selection samples, "
                                   f"{chosen} fits better")
                )  # fmt: skip

    def _run(self, artifact: Artifact) -> Built:
        if artifact.model not in self._built:
            bound = verify.open_artifact(artifact)
            label = f"verify {artifact.runtime} {artifact.precision}"
            try:
                outputs = verify.run_all(bound.run, self._inputs.evaluation_inputs, label, self._progress)
                disagreements = self._disagreements(bound, artifact)
            except EngineError as error:
                raise ConversionError(error.sentence(), target=artifact.runtime) from error
            self._built[artifact.model] = Built(
                artifact=artifact,
                comparison=verify.compare(self._inputs.truth, outputs),
                bound=bound,
                classes=self._inputs.truth.classes,
                disagreements=disagreements,
            )
        return self._built[artifact.model]

    def _disagreements(self, bound: BoundModel, artifact: Artifact) -> Mapping[int, AnswerSet] | None:
        field = self._inputs.field
        if field is None or artifact.precision == "fp32":
            return None
        return field.variant(bound, f"unlabelled {artifact.runtime} {artifact.precision}", self._progress)


def _error(comparison: Comparison) -> float:
    return float("inf") if comparison.relative_rms is None else comparison.relative_rms


def _good(comparison: Comparison, limit: float) -> bool:
    """Well within the limit, so that no other scheme needs a try."""
    return _error(comparison) <= limit / 2.0
