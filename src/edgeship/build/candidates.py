"""Making the candidates of a target: convert, search for the best quantized file, run, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field, structs

from edgeship.build import data, routes, verify
from edgeship.build.backends import Artifact, Backend, Job, Scheme, open_backend
from edgeship.build.backends.calibration import Calibration
from edgeship.build.inputs import Inputs, inputs_are_sequences
from edgeship.build.keep_float import KeepFloat, kept
from edgeship.build.lazy_model import LazyModel
from edgeship.build.measure import measure
from edgeship.build.microcontroller.c_source import C_ARRAY
from edgeship.build.oracle import stacked
from edgeship.build.outline import Outline, outlined, restored
from edgeship.build.probing import Prober
from edgeship.build.progress import CANDIDATES, SELECT, Progress
from edgeship.build.schema import Attempt
from edgeship.build.schemes import guarded, schemes
from edgeship.build.search.engine import Outcome, Search, Terms, speed_class
from edgeship.build.search.expected import most_candidates
from edgeship.build.search.graph import Operator
from edgeship.build.search.halving import Trial
from edgeship.build.search.space import EFFORT, Effort, most_tried
from edgeship.build.stages import at, named
from edgeship.build.trial_figures import by_group, error_of, faulty, said
from edgeship.build.unlabelled import AnswerSet, Field
from edgeship.build.verify import Comparison, Truth
from edgeship.targets import Measure, Target
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.runtime.engine import Array
from edgeship_agent.runtime.isa import cpu_name

#: Medians that decide between 15 % and more: a slow net says them in a hundred queries.
_SCREEN: Final = Measure(warm_up=10, min_queries=100, min_seconds=0.4)
#: Every sample costs a slow net time: multiplications that one proxy may take. Source: ADR 0022.
_PROXY_WORK: Final = 1e10
_FEWEST_SAMPLES: Final = 8
#: Quantizers besides a runtime's first: NNCF for ONNX files, NNCF's own bias corrections for OpenVINO.
_TOOLS: Final = {"onnxruntime": ("nncf",), "openvino": ("fast", "full"), "litert": ()}

#: Runtimes whose quantizers can be told to take one scale for all weights of a layer; NNCF decides itself.
_PER_TENSOR: Final = frozenset({"onnxruntime", "litert"})
#: Runtimes whose quantizers can be told to do without zero points; ai-edge-quantizer makes the same file either way.
_SYMMETRIC: Final = frozenset({"onnxruntime", "openvino"})


class Built(Struct, frozen=True, kw_only=True):
    """An artifact that runs, and how it compares with the source on the evaluation set.

    Attributes:
        classes: whether its first output is read as classes.
        disagreements: unlabelled samples on which a quantized one's answer is not the source's: position → its answer;
            None where there are no such samples.
    """

    artifact: Artifact
    comparison: Comparison
    bound: LazyModel
    classes: bool
    disagreements: Mapping[int, AnswerSet] | None = None


class Goals(Struct, frozen=True, kw_only=True):
    """What a search works towards.

    Attributes:
        max_relative_rms: limit of a quantized variant.
        size_bytes: budget, 0 for none.
        effort: ``quick``, ``normal`` or ``thorough``.
        keep_float: operators that int8 leaves in float.
    """

    max_relative_rms: float
    size_bytes: int = 0
    effort: str = "normal"
    keep_float: KeepFloat = field(default_factory=KeepFloat)


class Workshop:
    """Makes artifacts once and shares them between targets that want the same.

    Args:
        inputs: what to build from.
        folder: private, for this build.
        forms: the source in other formats.
        goals: what a quantized variant must keep to, and how much may be tried.
        progress: told what goes on.
    """

    def __init__(self, inputs: Inputs, folder: Path, forms: routes.Forms, goals: Goals, progress: Progress) -> None:
        self._inputs = inputs
        self._memory = inputs.memory
        self._folder = folder
        self._forms = forms
        self._goals = goals
        self._progress = progress
        self._backends: dict[str, Backend] = {}
        self._jobs: dict[str, Job] = {}
        self._artifacts: dict[tuple[str, str], Artifact | ConversionError] = {}
        self._trials: dict[tuple[Path, int], Comparison | ConversionError] = {}
        self._saturating: dict[tuple[str, str], tuple[str, ...]] = {}
        self._built: dict[tuple[Path, bool], Built] = {}
        ranges, selection = data.split(len(inputs.calibration))
        self._ranges = ranges
        self._selection = selection or ranges
        self._prober = Prober()
        self.tried: list[Attempt] = []
        self.searches: dict[str, Outcome] = {}
        self.keep_float = goals.keep_float

    def float_variant(self, runtime: str, target: Target) -> Built:
        """The float variant of a runtime; of a source that was quantized before, the source's own.

        Raises:
            ConversionError: there is none.
        """
        return self._run(as_on(target, self._artifact(runtime, None)))

    def quantized_variant(self, target: Target, runtime: str, precision: str, *, on_target: bool) -> Built:
        """A variant of a runtime in another precision; int8 is searched for.

        Raises:
            ConversionError: none can be made.
        """
        if precision != "int8":
            scheme = self._scheme(f"{target.id}/{runtime}", precision)
            return self._run(as_on(target, self._final(runtime, scheme)))
        known = self._operators(runtime)
        effort = self._effort(runtime, known)
        terms = Terms(effort=effort, limit=self._goals.max_relative_rms, size_bytes=self._goals.size_bytes,
                      most=most_tried(effort, len(known)))  # fmt: skip
        bases = schemes(target, runtime, on_target=on_target)
        floats = not target.dtypes.activations or "float32" in target.dtypes.activations
        keep = self.keep_float.among(known, runtime, allowed=floats)
        operators = known if floats else ()
        most = most_candidates(bases, operators, effort, terms.most)
        bench = _Trials(self, target, runtime, on_target=on_target, plan=(keep, most))
        outcome = Search(bases, operators, bench, terms).run()
        if outcome is None:
            tried = [each for each in self.tried if each.target == target.id and each.runtime == runtime]
            failure = ConversionError(tried[-1].reason if tried else "no scheme applies", target=runtime)
            failure.stage = tried[-1].stage if tried else "quantization"
            raise failure
        self._record(target, runtime, outcome, len(known))
        outcome = structs.replace(outcome, chosen=kept(outcome.chosen, keep))
        self.searches[f"{target.id}/{runtime}"] = outcome
        return self._run(as_on(target, self._final(runtime, outcome.chosen)))

    def _scheme(self, searched: str, precision: str) -> Scheme:
        """How another precision is made: static ones in the manner that the search for int8 found."""
        outcome = self.searches.get(searched)
        if precision == "int8io":
            found = outcome.chosen if outcome is not None else Scheme(rounding="compensated")
            return structs.replace(found, precision=precision, integer_ends=True)
        return Scheme(precision=precision, rounding="compensated" if precision == "int16x8" else "nearest")

    def attempt(self, target: Target, runtime: str, scheme: Scheme, samples: int, *, on_target: bool) -> Trial | None:
        """Compare a candidate with the source on the selection part of the calibration data.

        The evaluation set is for claims alone.

        Args:
            target: for the record of what could not be made.
            runtime: where it runs.
            scheme: how it is made.
            samples: how many of the selection samples; 0 for all of them.
            on_target: whether this machine shows what saturates on the target.
        """
        guard = guarded(scheme, target, on_target=on_target)
        indices, truth = self._selection[: samples or None], self._inputs.truth
        key = {
            **self.key(runtime, scheme), "guard": guard, "selection": list(indices),
            "inputs": self._memory.digest(self._inputs.calibration_inputs), "source": self._inputs.source.key,
            "classes": truth.classes, "groups": msgspec.to_builtins(truth.groups),
        }  # fmt: skip

        def make() -> Trial:
            if guard:
                self._refuse_saturation(runtime, scheme)
            artifact = self._artifact(runtime, scheme)
            return self._trial(scheme, artifact, self._screened(artifact, samples))

        try:
            return self._memory.figures("trial", key, Trial, make)
        except ConversionError as error:
            self._note(target, runtime, "failed", f"{scheme.text}: {error.message}", error.stage or "quantization")
            return None

    def _trial(self, scheme: Scheme, artifact: Artifact, comparison: Comparison) -> Trial:
        classes = self._inputs.truth.classes
        grouped = by_group(comparison, classes=classes)
        return Trial(
            name=scheme.name, speed_class=speed_class(scheme), error=error_of(comparison, grouped=grouped),
            by_group=grouped, faulty=faulty(comparison, classes=classes), size_bytes=artifact.size_bytes,
        )  # fmt: skip

    def times_ms(self, runtime: str, candidates: Sequence[Scheme]) -> dict[str, float]:
        """Median latency of candidates in one interleaved run on this machine, by their schemes' names."""
        key = {"cpu": cpu_name(), "of": [self.key(runtime, each) for each in candidates],
               "samples": self._memory.digest(self._inputs.calibration_inputs)}  # fmt: skip
        return self._memory.figures("screening", key, dict[str, float], lambda: self._timed(runtime, candidates))

    def _timed(self, runtime: str, candidates: Sequence[Scheme]) -> dict[str, float]:
        opened = {each.name: verify.open_artifact(self._artifact(runtime, each), self._prober) for each in candidates}
        try:
            runs = {name: bound.run for name, bound in opened.items()}
            times = measure(runs, self._inputs.calibration_inputs, _SCREEN, self._progress)
        finally:
            for bound in opened.values():
                bound.close()
        return {name: latency.p50_ms for name, latency in times.items()}

    def key(self, runtime: str, scheme: Scheme) -> dict[str, Any]:
        """What a quantized file depends on: the float file, the samples that set ranges, how it is made.

        Raises:
            ConversionError: there is no float file.
        """
        return {"float": self._memory.key_of(self._artifact(runtime, None)), "scheme": msgspec.to_builtins(scheme),
                "samples": self._memory.digest(self._job(runtime).samples)}  # fmt: skip

    def calibration(self, runtime: str) -> Calibration:
        """What a runtime's float file and the calibration samples say.

        Raises:
            ConversionError: there is no float file.
        """
        float_artifact = self._artifact(runtime, None)
        found = self._backend(runtime).calibration(self._job(runtime), float_artifact)
        found.told = partial(self._progress.count, f"ranges {runtime}")
        return found

    def _operators(self, runtime: str) -> tuple[Operator, ...]:
        """Of the float file, sized."""
        key = {"float": self._memory.key_of(self._artifact(runtime, None)),
               "samples": self._memory.digest(self._job(runtime).samples)}  # fmt: skip
        kind = tuple[Outline, ...]
        return restored(
            self._memory.figures("operators", key, kind, lambda: outlined(self.calibration(runtime).operators))
        )

    @property
    def progress(self) -> Progress:
        """Who is told."""
        return self._progress

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
        self._prober.close()

    def _job(self, runtime: str) -> Job:
        if runtime not in self._jobs:
            inputs = self._inputs
            samples, checks, expected = inputs.steps(self._ranges)
            self._jobs[runtime] = Job(
                source=inputs.source, samples=samples, checks=checks, expected=expected, folder=self._folder / runtime
            )
        return self._jobs[runtime]

    def _effort(self, runtime: str, operators: Sequence[Operator]) -> Effort:
        """The effort that was asked for, the runtime's own tools, and fewer samples a candidate where each is dear."""
        effort = EFFORT[self._goals.effort]
        effort = structs.replace(effort, tools=tuple(tool for tool in effort.tools if tool in _TOOLS[runtime]),
                                 per_tensor=effort.per_tensor and runtime in _PER_TENSOR,
                                 symmetric=runtime in _SYMMETRIC)  # fmt: skip
        work = sum(each.multiplications for each in operators)
        affordable = int(_PROXY_WORK / work) if work else effort.proxy_samples
        samples = min(effort.proxy_samples, max(affordable, _FEWEST_SAMPLES))
        # 0 stands for all: where a candidate sees all of them anyway, it runs once
        return structs.replace(effort, proxy_samples=samples if samples < len(self._selection) else 0)

    def _converted(self, backend: Backend, job: Job, runtime: str) -> Artifact:
        """The float artifact by the first route that keeps the source's meaning.

        Raises:
            ConversionError: none does; the reason is the last route's.
        """
        source = self._inputs.source
        if source.format == "tflite" and source.quantized and runtime != "litert":
            reason = "a quantized TFLite file is passed through to LiteRT alone: build from its float model"
            raise ConversionError(reason, target=runtime)
        if source.state and inputs_are_sequences(self._inputs.contracts) and runtime != "litert":
            reason = f"the file hides its state from step to step ({source.state}); {runtime} would need it as an input"
            raise ConversionError(f"{reason} and an output", target=runtime)
        from edgeship.build.float_forms import FloatForms  # ONNX: a build that finds everything reads no graph

        found = FloatForms(self._forms, self._progress).best(backend, job, runtime)
        # what was quantized before is called by what it is, and compared with nothing but itself
        return structs.replace(found, precision="int8") if source.quantized else found

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

    def _backend(self, runtime: str) -> Backend:
        """Opened when something has to be made."""
        if runtime not in self._backends:
            self._backends[runtime] = open_backend(runtime, self._inputs.contracts)
        return self._backends[runtime]

    def _make(self, runtime: str, scheme: Scheme | None) -> Artifact:
        job = self._job(runtime)
        if scheme is not None:
            with at("quantization"):
                return self._backend(runtime).quantize(job, self._artifact(runtime, None), scheme)
        source = self._inputs.source
        if not source.is_lasting:
            return self._converted(self._backend(runtime), job, runtime)
        key = {
            "source": source.key, "runtime": runtime, "contracts": msgspec.to_builtins(self._inputs.contracts),
            "checks": self._memory.digest(job.checks), "expected": self._memory.digest(job.expected),
        }  # fmt: skip
        return self._memory.artifact(
            "convert", key, self._folder, lambda: self._converted(self._backend(runtime), job, runtime)
        )

    def _final(self, runtime: str, scheme: Scheme) -> Artifact:
        """A quantized file that is judged, and may ship: the only ones that are kept for later builds."""
        made = self._memory.artifact(
            "quantize", self.key(runtime, scheme), self._folder, lambda: self._artifact(runtime, scheme)
        )
        self._artifacts[runtime, scheme.name] = made
        return made

    def _refuse_saturation(self, runtime: str, scheme: Scheme) -> None:
        """Raise ConversionError where products could saturate without VNNI."""
        key = (runtime, scheme.name)
        if key not in self._saturating:
            self._saturating[key] = self.calibration(runtime).saturating(scheme)
        if found := self._saturating[key]:
            raise ConversionError(f"8-bit products could saturate without VNNI in {len(found)} layers, such as "
                                  f"{found[0]}", target=runtime)  # fmt: skip

    def _screened(self, artifact: Artifact, samples: int) -> Comparison:
        key = (artifact.model, samples)
        if key not in self._trials:
            try:
                self._trials[key] = self._screen(artifact, self._selection[: samples or None])
            except (ConversionError, EngineError) as error:
                self._trials[key] = (
                    error
                    if isinstance(error, ConversionError)
                    else ConversionError(error.sentence(), target=artifact.runtime)
                )
        found = self._trials[key]
        if isinstance(found, ConversionError):
            raise found
        return found

    def _screen(self, artifact: Artifact, indices: Sequence[int]) -> Comparison:
        bound = verify.open_artifact(artifact, self._prober)
        try:
            outputs = verify.run_all(bound.run, [self._inputs.calibration_inputs[index] for index in indices],
                                     f"{SELECT} {artifact.runtime}", self._progress)  # fmt: skip
        finally:
            bound.close()
        whole = self._inputs.truth
        reference = {name: array[list(indices)] for name, array in self._inputs.calibration_outputs.items()}
        metric = "agreement" if whole.classes else "closeness"
        truth = Truth(outputs=reference, labels=None, classes=whole.classes, metric=metric,
                      closeness_limit=whole.closeness_limit, groups=whole.groups)  # fmt: skip
        return verify.compare(truth, outputs)

    def _record(self, target: Target, runtime: str, outcome: Outcome, operator_count: int) -> None:
        """What was tried and not taken, the closest first."""
        taken = outcome.trials[outcome.chosen.name]
        others = [each for each in outcome.trials.values() if each.name != taken.name]
        for trial in sorted(others, key=lambda each: (each.faulty, each.error)):
            self._note(target, runtime, "not chosen",
                       f"{outcome.schemes[trial.name].text}: {said(trial)} on the selection samples; "
                       f"taken: {said(taken)}")  # fmt: skip

        if outcome.left_out:
            self._note(target, runtime, "left out", left_out_words(outcome.left_out, operator_count))

    def _note(self, target: Target, runtime: str, outcome: str, reason: str, stage: str = "") -> None:
        reason = named(reason, self._inputs.source.path.name)
        self.tried.append(Attempt(target=target.id, runtime=runtime, precision="int8", outcome=outcome, reason=reason,
                                  stage=stage))  # fmt: skip

    def _run(self, artifact: Artifact) -> Built:
        key = (artifact.model, artifact.reference)
        if key not in self._built:
            bound = LazyModel(artifact, self._prober)
            outputs = self._verified(bound, artifact)
            self._built[key] = Built(
                artifact=artifact,
                comparison=verify.compare(self._inputs.truth, outputs),
                bound=bound,
                classes=self._inputs.truth.classes,
                disagreements=self._disagreements(bound, artifact),
            )
        return self._built[key]

    def _verified(self, bound: LazyModel, artifact: Artifact) -> dict[str, Array]:
        """What an artifact says to the evaluation samples, the same at each load."""
        inputs, label = self._inputs.evaluation_inputs, f"verify {artifact.runtime} {artifact.precision}"

        def run() -> list[Mapping[str, Array]]:
            answers = verify.run_each(bound.run, inputs, label, self._progress)
            verify.check_loads_agree(artifact, inputs, stacked(answers, label))
            return answers

        key = {"artifact": self._memory.key_of(artifact), "samples": self._memory.digest(inputs)}
        try:
            return stacked(self._memory.answers("verify", key, run), label)
        except EngineError as error:
            raise ConversionError(error.sentence(), target=artifact.runtime) from error

    def _disagreements(self, bound: LazyModel, artifact: Artifact) -> Mapping[int, AnswerSet] | None:
        field = self._inputs.field
        if field is None or artifact.precision == "fp32":
            return None
        label = f"unlabelled {artifact.runtime} {artifact.precision}"
        key = {"artifact": self._memory.key_of(artifact), "samples": list(field.digests), "k": field.k,
               "source": list(field.source)}  # fmt: skip
        return self._memory.figures(
            "unlabelled", key, dict[int, AnswerSet], lambda: field.variant(bound, label, self._progress)
        )


def as_on(target: Target, artifact: Artifact) -> Artifact:
    """An artifact as it is verified for a target: for TensorFlow Lite Micro with kernels of its arithmetic."""
    if target.format != C_ARRAY or artifact.precision == "fp32":
        return artifact
    note = ("verified with LiteRT's reference kernels, whose arithmetic TensorFlow Lite Micro has; what they take here "
            "says nothing of the device")  # fmt: skip
    return structs.replace(artifact, reference=True, notes=(*artifact.notes, note))


def left_out_words(count: int, operator_count: int) -> str:
    """What the bound on a large graph's search left out.

    >>> left_out_words(9, 1_250)
    '9 candidates left out: the graph has 1,250 operators; a higher --effort tries more'
    """
    word = f"{count} candidate{'' if count == 1 else 's'}"
    return f"{word} left out: the graph has {operator_count:,} operators; a higher --effort tries more"


class _Trials:
    """The workshop as one runtime's search sees it; ``plan``: what stays in float in any case, attempts to expect."""

    def __init__(
        self, workshop: Workshop, target: Target, runtime: str, *, on_target: bool, plan: tuple[Sequence[str], int]
    ) -> None:
        self._workshop = workshop
        self._target = target
        self._runtime = runtime
        self._on_target = on_target
        self._keep, self._most = plan
        self._attempts = 0

    def attempt(self, scheme: Scheme, samples: int) -> Trial | None:
        """One candidate on some of the selection samples."""
        self._workshop.progress.count(
            f"{self._runtime} {CANDIDATES}", self._attempts, max(self._most, self._attempts + 1)
        )
        self._attempts += 1
        made = kept(scheme, self._keep)
        trial = self._workshop.attempt(self._target, self._runtime, made, samples, on_target=self._on_target)
        return None if trial is None else structs.replace(trial, name=scheme.name, speed_class=speed_class(scheme))

    def times_ms(self, schemes: Sequence[Scheme]) -> dict[str, float]:
        """Latency on this machine, where that says something about the target."""
        if not self._on_target:
            return {}
        names = {kept(each, self._keep).name: each.name for each in schemes}
        times = self._workshop.times_ms(self._runtime, [kept(each, self._keep) for each in schemes])
        return {names[name]: time_ms for name, time_ms in times.items()}
