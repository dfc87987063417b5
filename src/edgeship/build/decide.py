"""One target: its candidates built, judged, and one of them chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct, structs

from edgeship.build import assemble, gate, select
from edgeship.build.bench import Benches
from edgeship.build.candidates import Built, Workshop
from edgeship.build.gate import Candidate, Limits
from edgeship.build.measure import Latency
from edgeship.build.metric_gate import FieldEvidence, claims_of
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Progress
from edgeship.build.schema import Attempt, MeasuredOn, TargetVerdict, VariantReport
from edgeship.build.select import Choice, Judged
from edgeship.build.stages import named, named_in, said
from edgeship.build.target_gates import target_gates
from edgeship.build.trials import Bench, Trials
from edgeship.build.unlabelled import Field
from edgeship.build.verify import Comparison
from edgeship.build.words import chosen_line, fp32_lines, int8_lines, slow_lines
from edgeship.statistics import Disagreements
from edgeship.targets import RuntimeEntry, Target
from edgeship_agent.contract.errors import ConversionError
from edgeship_agent.runtime import runtime_version
from edgeship_agent.runtime.isa import isa_class, isa_class_of

_HALF: Final = "fp16"
#: Precisions without products of integers.
_FLOATS: Final = frozenset({"fp32", _HALF})
#: Runtime → precisions besides int8, fp16 and fp32, in order of preference; made on request or with the effort
#: ``thorough``.
MORE: Final = {
    "litert": ("int8io", "int16x8", "dynamic"),
    "onnxruntime": ("dynamic", "int4"),
    "openvino": ("int4",),
}
#: Of those: smaller than int8, and about as small but closer to the source.
_SMALLER: Final = frozenset({"int4"})
_CLOSER: Final = frozenset({"int16x8", "dynamic"})


class Assessed(Struct, frozen=True, kw_only=True):
    """A candidate with everything that is known of it.

    Attributes:
        fp32: the float candidate of the same target and runtime, for comparison.
        place: where it was measured and judged.
        notes: about that place.
    """

    target: Target
    entry: RuntimeEntry
    built: Built
    latency: Latency
    fp32: Built
    fp32_latency: Latency
    judged: Judged
    on_target: bool
    place: MeasuredOn
    notes: tuple[str, ...] = ()

    def report(self, file: str, *, chosen: bool) -> VariantReport:
        """What build.json says of it.

        Args:
            file: absolute path of the model.
            chosen: whether it ships.
        """
        artifact, comparison = self.built.artifact, self.built.comparison
        broken = select.broken(self.judged.gates)
        return VariantReport(
            target=self.target.id,
            runtime=self.entry.name,
            precision=artifact.precision,
            file=file,
            size_bytes=artifact.size_bytes,
            latency_p50_ms=self.latency.p50_ms,
            latency_p99_ms=self.latency.p99_ms,
            measured_on=self.place,
            on_target=self.on_target,
            metric=comparison.metric,
            relative_rms=comparison.relative_rms,
            sqnr_db=comparison.sqnr_db,
            verdict=self.judged.verdict,
            chosen=chosen,
            reason=broken[0] if broken else "holds to every rule" if chosen else "holds to every rule, not needed",
            worst_group_rms=comparison.worst_group,
            distinct_predictions=comparison.distinct_predictions,
            distinct_reference=comparison.distinct_reference,
            scheme=artifact.scheme,
            runtime_version=self.place.runtimes.get(self.entry.name) or runtime_version(self.entry.name) or "",
            speedup=self.fp32_latency.p50_ms / self.latency.p50_ms,
            latency_queries=len(self.latency.times_ms),
            memory_bytes=assemble.memory_bytes(self.entry.name, self.built),
            notes=(*artifact.notes, *self.notes, *_conditions(self)),
            class_recalls=comparison.class_recalls,
            confusion=None if artifact.precision == "fp32" else comparison.confusion,
        )


def _conditions(one: Assessed) -> tuple[str, ...]:
    """Under which conditions a variant was judged, where they are not the target's."""
    artifact, target = one.built.artifact, one.target
    if not one.on_target and "vnni" in target.isa and may_saturate(artifact.runtime, artifact.precision):
        return ("judged without VNNI, where 8-bit products saturate; with VNNI it is as close or closer",)
    return ()


def may_saturate(runtime: str, precision: str) -> bool:
    """Whether a runtime may add pairs of a file's 8-bit products in 16 bits here: not LiteRT, on x86 without VNNI."""
    return precision not in _FLOATS and runtime != "litert" and isa_class() == "x86_64"


class Decision(Struct, frozen=True, kw_only=True):
    """What was decided for a target, and from what.

    Attributes:
        refused: sentences about candidates that could not be built.
    """

    target: Target
    choice: Choice
    assessed: tuple[Assessed, ...]
    refused: tuple[str, ...] = ()

    @property
    def shipped(self) -> Assessed | None:
        """What ships, or None."""
        return next((each for each in self.assessed if each.judged.label == self.choice.chosen), None)

    @property
    def verdict(self) -> TargetVerdict:
        """What build.json says of it."""
        return TargetVerdict(
            target=self.target.id, verdict=self.choice.verdict, chosen=self.choice.chosen, reason=self.choice.reason
        )


def decide(workshop: Workshop, target: Target, options: BuildOptions, benches: Benches, progress: Progress) -> Decision:
    """Build and judge a target's candidates, its runtimes in their order of preference.

    A target that nothing can be built for fails with its reason; the others' results are worth having all the same.
    """
    assessed: list[Assessed] = []
    refused: list[str] = []
    for entry in target.runtimes:
        quantized = sum(each.built.artifact.precision != "fp32" for each in assessed)
        place = _Place(target=target, entry=entry, bench=benches.of(target), position=quantized + 1)
        found, reasons = _assess(workshop, place, options)
        assessed += found
        refused += reasons
        _tell(found, reasons, progress)
        if any(each.judged.verdict == "pass" for each in found):
            break
    choice = select.choose([each.judged for each in assessed], strict=options.strict, refused=refused)
    if not assessed:
        choice = structs.replace(choice, reason=f"there is no way from this model to {target.id}: {refused[-1]}")
    decision = Decision(target=target, choice=choice, assessed=tuple(assessed), refused=tuple(refused))
    shipped = decision.shipped.report("", chosen=True) if decision.shipped else None
    for line in (chosen_line(target.id, choice, shipped), *slow_lines(shipped)):
        progress.step(*line)
    return decision


def stopped(workshop: Workshop, target: Target, reason: str, progress: Progress) -> Decision:
    """A target that a check ruled out: nothing is built for it."""
    workshop.tried.append(
        Attempt(target=target.id, runtime=target.runtimes[0].name, precision="fp32", outcome="refused", reason=reason,
                stage="check")
    )  # fmt: skip
    progress.step("refused", f"{target.id}: {reason}", "failed")
    choice = Choice(verdict="fail", chosen="", reason=f"there is no way from this model to {target.id}: {reason}")
    progress.step(*chosen_line(target.id, choice, None))
    return Decision(target=target, choice=choice, assessed=())


class _Place(Struct, frozen=True, kw_only=True):
    """Where the candidates of one runtime of a target are tried.

    Attributes:
        position: of the next quantized candidate among those of the target, from 1.
    """

    target: Target
    entry: RuntimeEntry
    bench: Bench
    position: int

    @property
    def label(self) -> str:
        """``target/runtime``."""
        return f"{self.target.id}/{self.entry.name}"


def _assess(workshop: Workshop, place: _Place, options: BuildOptions) -> tuple[list[Assessed], list[str]]:
    """The candidates of one runtime, judged, in order of preference; and what could not be built, in words.

    Int8 and what was asked for besides come first. Half precision is made where none of them is proven, and what else a
    size budget asks for where nothing holds to it; full precision is what everything is compared with.
    """
    try:
        reference = workshop.float_variant(place.entry.name, place.target)
    except ConversionError as error:
        return [], [_refuse(workshop, place, "fp32", error.message, error.stage or "conversion")]
    for each in reference.artifact.fallbacks:
        workshop.tried.append(
            Attempt(target=place.target.id, runtime=place.entry.name, precision=reference.artifact.precision,
                    outcome="fallback", reason=f"{each}; the next route was taken", stage=named_in(each))
        )  # fmt: skip
    wanted = tuple(dict.fromkeys(("int8", *options.precisions)))
    if options.effort == "thorough":
        wanted = tuple(dict.fromkeys((*wanted, *MORE[place.entry.name], _HALF)))
    if workshop.inputs.source.quantized:
        _refuse(workshop, place, "int8", "the source is quantized already: it is passed through, never quantized twice")
        wanted = ()
    found, refused = _stage(workshop, place, options, reference, wanted)
    for ask in (_half, _asked_by_size) if wanted else ():
        if later := ask(found, place.entry.name):
            behind = structs.replace(place, position=place.position + len(found) - 1)
            more, reasons = _stage(workshop, behind, options, reference, later)
            found = [*found[:-1], *more[:-1], found[-1]]
            refused += reasons
    return found, refused


def _half(found: Sequence[Assessed], _runtime: str) -> tuple[str, ...]:
    """Half precision, where nothing smaller than full precision is proven."""
    made = _precisions(found)
    proven = any(each.judged.verdict == "pass" for each in found[:-1])
    return () if not found or proven or _HALF in made else (_HALF,)


def _asked_by_size(found: Sequence[Assessed], runtime: str) -> tuple[str, ...]:
    """What else a size budget asks for where nothing holds to every rule and full precision is too large.

    Four bits where eight are too large, too; else what is as small as int8 and closer to the source.
    """
    large = _precisions([each for each in found if _too_large(each)])
    if not found or found[-1].built.artifact.precision not in large:
        return ()
    if any(each.judged.verdict == "pass" for each in found):
        return ()
    wanted = _SMALLER if "int8" in large else _CLOSER
    return tuple(each for each in MORE[runtime] if each in wanted and each not in _precisions(found))


def _too_large(each: Assessed) -> bool:
    return any(gate.id == "size_bytes" and gate.holds is False for gate in each.judged.gates)


def _precisions(found: Sequence[Assessed]) -> set[str]:
    return {each.built.artifact.precision for each in found}


def _stage(
    workshop: Workshop, place: _Place, options: BuildOptions, reference: Built, precisions: Sequence[str]
) -> tuple[list[Assessed], list[str]]:
    """Candidates of these precisions and the reference, tried in one interleaved run; the reference is the last."""
    target, entry = place.target, place.entry
    wanted = isa_class_of(target.arch, target.isa)
    name = reference.artifact.precision
    refused: list[str] = []
    built: dict[str, Built] = {}
    for precision in precisions:
        try:
            built[precision] = workshop.quantized_variant(
                target, entry.name, precision, on_target=wanted == isa_class()
            )
        except ConversionError as error:
            sentence = _refuse(workshop, place, precision, error.message, error.stage or "quantization")
            refused += [sentence] if precision not in options.precisions else []
    built[name] = reference
    trials = place.bench.try_all(place.label, built, workshop.inputs, target.measure)
    refused += [_refuse(workshop, place, label, reason, "runtime") for label, reason in trials.refused.items()]
    if name not in trials.tried:  # what every other figure of this runtime is compared with
        return [], refused
    found = [
        _judged(place, trials, name, (precision, position), (workshop, options))
        for position, precision in enumerate((each for each in built if each in trials.tried), start=place.position)
    ]
    return found, refused


def _judged(
    place: _Place, trials: Trials, reference: str, which: tuple[str, int], context: tuple[Workshop, BuildOptions]
) -> Assessed:
    """One candidate against every rule.

    Args:
        place: where it was tried.
        trials: of all candidates of the run.
        reference: precision of the one that the others are compared with.
        which: its precision, and its position among the target's quantized ones.
        context: what holds the samples without labels, and the budgets.
    """
    (precision, position), (workshop, options), target = which, context, place.target
    trial, float_trial = trials.tried[precision], trials.tried[reference]
    on_target = isa_class_of(target.arch, target.isa) == place.bench.place.isa
    candidate = Candidate(
        target=target.id,
        runtime=place.entry.name,
        precision=precision,
        size_bytes=trial.built.artifact.size_bytes,
        comparison=trial.built.comparison,
        latency=trial.latency,
        on_target=on_target,
        classes=trial.built.classes,
        fp32_size_bytes=float_trial.built.artifact.size_bytes,
        fp32_latency=float_trial.latency,
        position=position,
        field=field_evidence(workshop.field, trial.built, claims=claims_of(position, len(target.runtimes))),
        passed_through=precision == reference,
        other_kernels=trial.built.artifact.reference,
        rounds_elsewhere=workshop.inputs.source.rounds_elsewhere,
        may_saturate=may_saturate(place.entry.name, precision),
    )
    gates = (*gate.judge(candidate, limits_of(options, target)),
             *target_gates(target, place.entry, trial.built.artifact))  # fmt: skip
    judged = Judged(label=f"{place.label}/{precision}", verdict=gate.verdict_of(gates), gates=gates,
                    fallbacks=trial.built.artifact.fallbacks)  # fmt: skip
    return Assessed(target=target, entry=place.entry, built=trial.built, latency=trial.latency, fp32=float_trial.built,
                    fp32_latency=float_trial.latency, judged=judged, on_target=on_target, place=place.bench.place,
                    notes=trial.notes)  # fmt: skip


def _refuse(workshop: Workshop, place: _Place, precision: str, reason: str, stage: str = "check") -> str:
    """Record a candidate that cannot be had, and say so in one sentence."""
    reason = named(reason, workshop.inputs.source.path.name)
    workshop.tried.append(
        Attempt(target=place.target.id, runtime=place.entry.name, precision=precision, outcome="refused",
                reason=reason, stage=stage)
    )  # fmt: skip
    return f"{place.label}/{precision}: {said(stage, reason)}"


def limits_of(options: BuildOptions, target: Target) -> Limits:
    """The command line's budgets, and the target's own where it says nothing."""
    budgets = target.defaults
    return Limits(
        max_drop=budgets.max_drop if options.max_drop is None else options.max_drop,
        max_relative_rms=options.max_relative_rms,
        latency_p99_ms=budgets.latency_p99_ms if options.latency_p99_ms is None else options.latency_p99_ms,
        explicit_latency=options.latency_p99_ms is not None,
        accept_proxy_latency=options.accept_proxy_latency,
        size_bytes=budgets.size_bytes if options.size_bytes is None else options.size_bytes,
        max_drop_db=gate.MAX_DROP_DB if options.max_drop is None else options.max_drop,
    )


def field_evidence(field: Field | None, built: Built, *, claims: int) -> FieldEvidence | None:
    """What unlabelled samples say of a variant before any of them has a label; the rates are the evaluation set's."""
    if field is None or built.disagreements is None:
        return None
    counts = Disagreements(samples=len(field.samples), found=len(built.disagreements))
    return FieldEvidence(counts=counts, metric=field.metric, claims=claims, rates=rates_of(built.comparison))


def rates_of(comparison: Comparison) -> Disagreements | None:
    """Who is right on the evaluation samples on which a variant's answer differs, where they have labels."""
    cells = comparison.paired.cells
    if cells is None or not comparison.differing:
        return None
    rest = comparison.differing - cells.only_reference - cells.only_candidate
    return Disagreements(samples=comparison.samples, found=comparison.differing, only_reference=cells.only_reference,
                         only_candidate=cells.only_candidate, neither=rest)  # fmt: skip


def _tell(found: list[Assessed], refused: list[str], progress: Progress) -> None:
    for each in found:
        report = each.report("", chosen=False)
        if each is found[-1]:
            lines = fp32_lines(report, each.judged.gates)
        else:
            lines = int8_lines(report, found[-1].report("", chosen=False), each.judged.gates)
        for line in lines:
            progress.step(*line)
    for reason in refused:
        progress.step("refused", reason, "failed")
