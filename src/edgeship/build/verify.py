"""Running an artifact in its own runtime, by the code that runs on the device, and comparing it with the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Final

import numpy as np
from msgspec import Struct

from edgeship.build import metrics
from edgeship.build.backends.base import Artifact, Samples
from edgeship.build.metrics.groups import Group, group_errors, has_groups
from edgeship.build.oracle import stacked
from edgeship.build.probing import Prober
from edgeship.build.progress import Progress, Silence
from edgeship.build.schema import ClassRecall, ConfusionReport, MetricFigures
from edgeship.build.stages import at
from edgeship_agent.contract.errors import ConversionError, EngineError
from edgeship_agent.contract.manifest import Golden, MetricClaim, Variant
from edgeship_agent.runtime import EngineOptions, open_engine, runtime_version
from edgeship_agent.runtime.bound import BoundModel
from edgeship_agent.runtime.engine import Array

#: A file is loaded so often again, and asked so many samples, whether it still says the same.
_AGAIN_LOADS: Final = 2
_AGAIN_SAMPLES: Final = 16
_AGAIN_RMS: Final = 1e-3
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]
_EVERY: Final = 50


class Truth(Struct, frozen=True, kw_only=True):
    """What an evaluation set says of the source.

    Attributes:
        outputs: name → [N, …], the source's outputs, the first output first.
        labels: right class per sample, or None.
        classes: whether the first output is read as classes.
        metric: name of the task metric.
        closeness_limit: relative RMS within which a single sample counts as close.
        task: the task metric itself, where it is not one of ``top1``, ``agreement`` and ``closeness``.
        class_names: of the classes, empty where unknown.
        groups: channel groups of the first output, where the task's decoding names them.
        one_score: how the first output is read as two classes, where it has one score a sample and the task judges
            classes.
    """

    outputs: Mapping[str, Array]
    labels: Sequence[int] | None
    classes: bool
    metric: str
    closeness_limit: float
    task: metrics.Metric | None = None
    class_names: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    one_score: metrics.OneScore | None = None

    def judged(self, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Outputs as the task reads them."""
        return self.one_score.read(outputs) if self.one_score is not None else outputs

    @property
    def judge(self) -> metrics.Metric:
        """The task metric."""
        if self.task is not None:
            return self.task
        if self.metric == "closeness":
            return metrics.Closeness(limit=self.closeness_limit)
        if self.metric == "agreement" or self.labels is None:
            return metrics.Agreement()
        return metrics.Top(labels=tuple(self.labels))


class Comparison(Struct, frozen=True, kw_only=True):
    """One artifact against the source on one data set.

    Attributes:
        relative_rms: of the first output; None where it is not finite.
        other_outputs: name → relative RMS of the other outputs; of those in ``exact`` the share of values that differ.
        worst_group, worst_group_name: largest relative RMS of one channel group of the first output, and whose it is.
        exact: output that holds classes, counts or flags → share of its values that differ.
        first_is_exact: whether the first output is one of them.
        balanced_rms: of the channel groups, each measured by its own size; None where one is not finite.
        groups: channel group → relative RMS, where the task's decoding names them.
        grouped: whether the first output has channel groups; see :func:`has_groups`.
        paired: the task metric, with what its interval is made from.
        samples: in the data set.
        differing: on how many of them the variant gives another answer than the source, where the metric judges answers
            and labels of such samples alone could decide about it.
        class_recalls: of every class that has samples, where the first output is read as classes.
        cosine: of the first output; None where it is zero or not finite.
        agreement: samples whose highest class is the source's; None where the output is not read as classes.
        confusion: which classes are answered with which; likewise.
    """

    relative_rms: float | None
    sqnr_db: float | None
    worst_group: float | None
    other_outputs: Mapping[str, float | None]
    grouped: bool
    distinct_predictions: int
    distinct_reference: int
    paired: metrics.Paired
    samples: int
    differing: int | None = None
    class_recalls: tuple[ClassRecall, ...] = ()
    cosine: float | None = None
    agreement: int | None = None
    worst_group_name: str = ""
    exact: Mapping[str, float] = {}
    first_is_exact: bool = False
    balanced_rms: float | None = None
    groups: Mapping[str, float | None] = {}
    confusion: ConfusionReport | None = None

    @property
    def metric(self) -> MetricFigures:
        """The task metric's figures."""
        return self.paired.figures


@at("runtime")
def run_all(run: Run, inputs: Samples, label: str, progress: Progress) -> dict[str, Array]:
    """Every sample through a model: name → [N, …]; the batch axis of 1 gives way to the samples' axis.

    Raises:
        EngineError: the runtime failed, or an output changes its size from sample to sample.
    """
    return stacked(run_each(run, inputs, label, progress), label)


def run_each(run: Run, inputs: Samples, label: str, progress: Progress) -> list[Mapping[str, Array]]:
    """Every sample through a model, batch axes included.

    Raises:
        EngineError: the runtime failed.
    """
    answers: list[Mapping[str, Array]] = []
    for index, sample in enumerate(inputs):
        answers.append({name: np.array(array) for name, array in run(sample).items()})
        if (index + 1) % _EVERY == 0 or index + 1 == len(inputs):
            progress.count(label, index + 1, len(inputs))
    return answers


@at("runtime")
def open_artifact(artifact: Artifact, prober: Prober | None = None, *, threads: int = 1) -> BoundModel:
    """The artifact as a device runs it, held to fp32 arithmetic around its int8 operators.

    Args:
        artifact: any file.
        prober: loads it once beforehand in a process of its own; None for one that is made for this file.
        threads: of the runtime.

    Raises:
        ConversionError: it crashes its runtime, or is refused by it.
    """
    if prober is not None:
        prober.check(artifact)
    else:
        with closing(Prober()) as own:
            own.check(artifact)
    try:
        options = EngineOptions(threads=threads, reference=artifact.reference)
        engine = open_engine(artifact.runtime, artifact.model, options)
        return BoundModel(engine, draft_variant(artifact))
    except EngineError as error:
        raise ConversionError(f"{artifact.runtime} refuses it: {error.message}", target=artifact.runtime) from error


@at("runtime")
def check_loads_agree(artifact: Artifact, inputs: Samples, outputs: Mapping[str, Array]) -> None:
    """Load the file again and refuse it if it answers something else than before.

    OpenVINO 2026.4.1 does so with int8 chains of matrix products on one thread (relative RMS .28 to .59 on the ToyCar
    autoencoder, another answer at each load), and a lucky load would pass every other rule.

    Args:
        artifact: the file.
        inputs: prepared samples, of which the first few are run again.
        outputs: what it said to all of them, name → [N, …].

    Raises:
        ConversionError: the answers differ.
        EngineError: the runtime failed.
    """
    few = inputs[:_AGAIN_SAMPLES]
    for _ in range(_AGAIN_LOADS):
        engine = open_engine(artifact.runtime, artifact.model, EngineOptions(reference=artifact.reference))
        with closing(BoundModel(engine, draft_variant(artifact))) as bound:
            again = run_all(bound.run, few, "again", Silence())
        for name, array in again.items():
            error = metrics.relative_rms(array, outputs[name][: len(few)])
            if error is not None and error > _AGAIN_RMS:
                raise ConversionError(f"{artifact.runtime} answers something else each time that it loads the file "
                                      f"(relative RMS {error:.3g})", target=artifact.runtime)  # fmt: skip


def draft_variant(artifact: Artifact) -> Variant:
    """The manifest's entry of an artifact, as far as running it needs one."""
    nothing = MetricClaim(name="", value=0.0, low=0.0, high=1.0, n=0, drop=0.0, drop_low=-1.0, drop_high=1.0)
    return Variant(
        target="",
        runtime=artifact.runtime,
        precision=artifact.precision,
        arch="",
        runtime_version=runtime_version(artifact.runtime) or "",
        runtime_range="",
        min_memory_bytes=0,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        files=(),
        golden=Golden(relative_rms=0.0, isa_class="", other_isa_relative_rms=0.0),
        metric=nothing,
        relative_rms=0.0,
        state=artifact.state,
    )


def compare(truth: Truth, outputs: Mapping[str, Array]) -> Comparison:
    """An artifact's outputs against the source's.

    Args:
        truth: of the same samples.
        outputs: name → [N, …].

    Raises:
        ConversionError: an output has another shape than the source's, as a quantizer may leave it.
    """
    for name, meant in truth.outputs.items():
        if outputs[name].shape != meant.shape:
            raise ConversionError(f"its output {name} is {list(outputs[name].shape[1:])} a sample, "
                                  f"the source's {list(meant.shape[1:])}")  # fmt: skip
    first, *others = truth.outputs
    reference, candidate = truth.outputs[first], outputs[first]
    rms = metrics.relative_rms(candidate, reference)
    read = [truth.judged({name: each[name] for name in truth.outputs}) for each in (truth.outputs, outputs)]
    scores = read[0][first], read[1][first]
    in_classes = truth.classes or truth.one_score is not None
    said = metrics.predictions(candidate, classes=truth.classes)
    told = metrics.predictions(reference, classes=truth.classes)
    groups = group_errors(candidate, reference, truth.groups)
    worst_name, worst = groups.worst
    return Comparison(
        relative_rms=rms,
        sqnr_db=metrics.sqnr_db(rms),
        worst_group=worst,
        worst_group_name=worst_name,
        balanced_rms=groups.balanced,
        groups=groups.errors if truth.groups else {},
        other_outputs={name: metrics.output_error(outputs[name], truth.outputs[name]) for name in others},
        exact={
            name: metrics.differing_share(outputs[name], meant)
            for name, meant in truth.outputs.items()
            if metrics.is_exact(meant)
        },
        first_is_exact=metrics.is_exact(reference),
        grouped=has_groups(reference),
        distinct_predictions=len(set(said)),
        distinct_reference=len(set(told)),
        paired=truth.judge.compare(*read),
        samples=len(reference),
        differing=_differing(truth.judge, *scores),
        class_recalls=_class_recalls(truth, *scores) if in_classes else (),
        cosine=metrics.cosine(candidate, reference),
        agreement=sum(a == b for a, b in zip(said, told, strict=True)) if truth.classes else None,
        confusion=metrics.confusion(truth.labels, *scores, truth.class_names) if in_classes else None,
    )


def _differing(judge: metrics.Metric, reference: Array, candidate: Array) -> int | None:
    if not isinstance(judge, metrics.Top):
        return None
    pairs = zip(metrics.answers(reference, judge.k), metrics.answers(candidate, judge.k), strict=True)
    return sum(one != other for one, other in pairs)


def _class_recalls(truth: Truth, reference: Array, candidate: Array) -> tuple[ClassRecall, ...]:
    """Recall of each class, by the labels or else by what the source says; NaN is never right."""
    said = metrics.answers(reference, 1)
    labels = tuple(truth.labels) if truth.labels is not None else tuple(answer[0] for answer in said)
    right = metrics.Top(labels=labels)
    return metrics.class_recalls(labels, right.right(reference), right.right(candidate), truth.class_names)
