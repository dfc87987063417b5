"""Everything that a build reads, checked and joined before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct, structs

from edgeship.build import (
    data,
    folding,
    metrics,
    oracle,
    preprocess,
    sources,
    target_files,
    understanding,
    unlabelled,
    verify,
)
from edgeship.build.backends.base import Samples
from edgeship.build.cache import Cache
from edgeship.build.cache.memory import Memory, remembering
from edgeship.build.data import Dataset
from edgeship.build.features import features_of
from edgeship.build.metrics.average_precision import MeanAveragePrecision
from edgeship.build.metrics.groups import Group, decoded_groups
from edgeship.build.options import BuildOptions
from edgeship.build.progress import Progress
from edgeship.build.reading.tables import check_names
from edgeship.build.schema import DataReport, MetricFigures, SourceReport
from edgeship.build.sources import SourceModel
from edgeship.build.verify import Truth
from edgeship_agent.contract.errors import ConfigError, ConversionError, EdgeshipError, EngineError, InputError
from edgeship_agent.contract.manifest import Feature, InputContract, OutputContract
from edgeship_agent.runtime.engine import Array

#: Samples on which a converted file's layout is found and compared.
LAYOUT_SAMPLES: Final = 4
#: Formats whose name is not what people call them.
FORMAT_WORDS: Final = {"onnx": "ONNX", "tflite": "TFLite", "torch": "PyTorch", "keras": "Keras",
                       "saved_model": "SavedModel", "frozen_graph": "TensorFlow graph",
                       "sklearn": "scikit-learn", "xgboost": "XGBoost", "lightgbm": "LightGBM"}  # fmt: skip
#: Metrics of outputs that are no classes.
_OF_NUMBERS: Final = frozenset({"map", "map50", "rmse", "mae", "snr"})
#: Metrics whose drop is measured in something of their own.
_NO_FRACTIONS: Final = frozenset({"snr", "cost"})
TASKS: Final = ("auto", "classification", "raw")


class Inputs(Struct, frozen=True, kw_only=True):
    """What a build works from.

    Attributes:
        contracts: what the device does of the preprocessing; the folded steps are in the files.
        calibration_inputs, evaluation_inputs: as the files take them, batch axis of 1 included.
        source_inputs: the calibration set as the source takes it; the same where nothing is folded.
        truth: the source on the evaluation set.
        calibration_outputs: name → [N, …], the source on the calibration set.
        answers: what the source says to the first calibration samples, batch axes and all.
        memory: of earlier builds.
        field: unlabelled samples and what the source says of them, where the build was given some.
    """

    source: SourceModel
    contracts: tuple[InputContract, ...]
    features: dict[str, tuple[Feature, ...]]
    output: OutputContract
    calibration: Dataset
    evaluation: Dataset
    calibration_inputs: tuple[dict[str, Array], ...]
    evaluation_inputs: tuple[dict[str, Array], ...]
    source_inputs: tuple[dict[str, Array], ...]
    calibration_outputs: Mapping[str, Array]
    answers: tuple[Mapping[str, Array], ...]
    truth: Truth
    memory: Memory
    field: unlabelled.Field | None = None

    def steps(self, indices: Sequence[int]) -> tuple[Samples, Samples, Samples]:
        """For backends: calibration samples, a few to check with, and what the source says to those; single steps."""
        samples = [self.source_inputs[index] for index in indices]
        checks = self.source_inputs[: len(self.answers)]
        if not inputs_are_sequences(self.contracts):
            return samples, checks, self.answers
        flat = [{name: array[step] for name, array in each.items()}
                for each in samples for step in range(len(next(iter(each.values()))))]  # fmt: skip
        # the state is new at the first step of each
        firsts = [
            [{name: array[0] for name, array in each.items()} for each in some] for some in (checks, self.answers)
        ]
        return flat, firsts[0], firsts[1]

    @property
    def source_metric(self) -> MetricFigures:
        """The source's own figures on the evaluation set."""
        first = next(iter(self.truth.outputs))
        return verify.compare(self.truth, {first: self.truth.outputs[first], **self.truth.outputs}).metric

    def source_report(self) -> SourceReport:
        """For build.json."""
        source = self.source
        return SourceReport(
            file=source.address or str(source.path.absolute()), format=source.format, digest=source.digest,
            size_bytes=source.size_bytes, opset=source.opset, operators=source.operators,
            parameters=source.parameters, metric=self.source_metric,
        )  # fmt: skip

    def data_report(self) -> tuple[DataReport, ...]:
        """For build.json."""
        return tuple(
            DataReport(file=str(each.path.absolute()), role=role, samples=len(each), digest=each.digest)
            for role, each in (("calibration", self.calibration), ("evaluation", self.evaluation))
        )


def read(options: BuildOptions, folder: Path, progress: Progress, memory: Memory | None = None) -> Inputs:
    """Read the source and the data, and run the source on both sets.

    Args:
        options: what to read.
        folder: for the private copy that the oracle runs.
        progress: told what was read.
        memory: of earlier builds; None for none.

    Raises:
        InputError: something cannot be used.
        ConfigError: a TOML file or an option does not fit.
        ConversionError: the source cannot be run.
    """
    memory = memory or Memory(Cache(None), folder / "memory")
    metrics.check_name(options.metric)
    understanding.check_labels(options.labels)
    source = sources.load(options.request, remembering(memory))
    progress.step("read", _described(source))
    for note in source.notes:
        progress.step("note", note, "note")
    contracts = _contracts(options, source)
    if source.state:
        contracts = data.as_sequences(options.calibration, contracts)
        if inputs_are_sequences(contracts):
            progress.step("input", "each sample is a sequence: a new state, then step by step", "note")
    calibration, evaluation = _sets(options, contracts, source)
    calibration_inputs = _prepared(calibration, contracts, source)
    evaluation_inputs = _prepared(evaluation, contracts, source)
    understanding.tell(options, progress, calibration, evaluation)
    with closing(oracle.RememberedOracle(source, folder, memory)) as opened:
        answers = [_answered(opened, samples, source, progress) for samples in (calibration_inputs, evaluation_inputs)]
        calibration_outputs, outputs = (_stacked(each, source) for each in answers)
        _check_finite(outputs, source)
        first = next(iter(outputs.values()))
        options, evaluation = understanding.judged(options, evaluation, evaluation_inputs, first, progress)
        fed = _fold(options, (contracts, source), (calibration, evaluation), (calibration_inputs, evaluation_inputs))
        for sentence in fed.sentences:
            progress.step("input", sentence, "note")
        output = _output_contract(options, source, evaluation, calibration_outputs)
        one_score = understanding.one_score(options, evaluation, next(iter(outputs.values())), progress)
        seen, read_as = _judged_as(outputs, output, one_score)
        task = _metric(options, evaluation, evaluation_inputs, seen, read_as)
        understanding.doubt(task, evaluation, (calibration_inputs, evaluation_inputs), (outputs, seen),
                            (read_as, opened, progress))  # fmt: skip
        known = (contracts, fed.contracts, calibration, source.takes_gaps)
        field = _field(options, known, opened, (task, one_score), progress)
    return Inputs(
        source=source,
        contracts=fed.contracts,
        features=features_of(options, contracts, calibration),
        output=_postprocessed(output, task),
        calibration=calibration,
        evaluation=evaluation,
        calibration_inputs=fed.calibration,
        evaluation_inputs=fed.evaluation,
        source_inputs=calibration_inputs,
        calibration_outputs=calibration_outputs,
        answers=tuple(answers[0][:LAYOUT_SAMPLES]),
        truth=Truth(
            outputs=outputs,
            labels=_labels(evaluation, seen, read_as),
            classes=output.kind == "classification",
            metric=task.name,
            closeness_limit=options.max_relative_rms,
            task=task,
            class_names=read_as.labels,
            groups=_groups(task, outputs),
            one_score=one_score,
        ),
        memory=memory,
        field=field,
    )


def _contracts(options: BuildOptions, source: SourceModel) -> tuple[InputContract, ...]:
    """Of every input: what the file says, else as the model takes it."""
    if options.preprocess:
        return preprocess.read_contracts(options.preprocess, source.inputs)
    return preprocess.fed_as_is(source.inputs)


def _sets(options: BuildOptions, contracts: tuple[InputContract, ...], source: SourceModel) -> tuple[Dataset, Dataset]:
    """Calibration and evaluation data; labels of the latter in the order of the model's output."""
    calibration, evaluation = (
        data.load(path, contracts, role, gaps=source.takes_gaps, names=source.features)
        for path, role in ((options.calibration, "calibration"), (options.evaluation, "evaluation"))
    )
    for each in (calibration, evaluation):
        check_names(each.columns, contracts, source.features, each.path)
    evaluation = data.renumbered(evaluation, _classes(options, source, (calibration, evaluation)))
    understanding.check_columns(calibration, evaluation)
    data.check_disjoint(calibration, evaluation)
    return calibration, evaluation


def inputs_are_sequences(contracts: Sequence[InputContract]) -> bool:
    """Whether a sample is a sequence of steps."""
    return any(each.sequence for each in contracts)


def _described(source: SourceModel) -> str:
    opset = f" opset {source.opset}" if source.opset else ""
    return (f"{FORMAT_WORDS.get(source.format, source.format)}{opset} · {source.operators} operators · "
            f"{_short(source.parameters)} parameters")  # fmt: skip


def _prepared(
    dataset: Dataset, contracts: Sequence[InputContract], source: SourceModel
) -> tuple[dict[str, Array], ...]:
    """Prepared samples, checked against the model's inputs."""
    try:
        prepared = tuple(dataset.prepared(contracts))
    except EdgeshipError as error:
        raise ConfigError(f"the preprocessing contract does not fit the data: {error}", file=dataset.path,
                          next_step="correct the steps in --preprocess FILE.toml") from error  # fmt: skip
    for spec in source.inputs:
        array = prepared[0][spec.name]
        wanted = (*array.shape[:1], *spec.call_shape) if inputs_are_sequences(contracts) else spec.call_shape
        if array.shape != wanted or array.dtype.name != spec.dtype:
            raise InputError(
                "what the preprocessing contract makes is not what the model takes",
                file=dataset.path,
                key=spec.name,
                expected=f"{spec.dtype} {list(wanted)}",
                got=f"{array.dtype} {list(array.shape)}",
                next_step="add steps to --preprocess FILE.toml (cast, scale, reshape, transpose, …)",
            )
    return prepared


class _Fed(Struct, frozen=True, kw_only=True):
    """What the files take.

    Attributes:
        sentences: what was folded, or why not; none where there is no arithmetic.
    """

    contracts: tuple[InputContract, ...]
    calibration: tuple[dict[str, Array], ...]
    evaluation: tuple[dict[str, Array], ...]
    sentences: tuple[str, ...] = ()


def _fold(
    options: BuildOptions,
    known: tuple[tuple[InputContract, ...], SourceModel],
    sets: tuple[Dataset, Dataset],
    prepared: tuple[tuple[dict[str, Array], ...], tuple[dict[str, Array], ...]],
) -> _Fed:
    """The contracts with their arithmetic folded where it is exact: proven on every sample of both sets."""
    contracts, source = known
    plain = _Fed(contracts=contracts, calibration=prepared[0], evaluation=prepared[1])
    if not options.fold_normalisation:
        return plain
    shorter = [folding.shorten(each, spec) for each, spec in zip(contracts, source.inputs, strict=True)]
    sentences = [
        f"{each.tensor}: its arithmetic stays on the device: {short}"
        for each, short in zip(contracts, shorter, strict=True)
        if isinstance(short, str) and short
    ]
    folded = tuple(each if isinstance(short, str) else short for each, short in zip(contracts, shorter, strict=True))
    if folded == contracts:
        return structs.replace(plain, sentences=tuple(sentences))
    if refusing := _without_bytes(options):
        return structs.replace(plain, sentences=(f"the arithmetic stays on the device: {refusing} takes no bytes",))
    fed = [tuple(dataset.prepared(folded)) for dataset in sets]
    for taken, wanted in zip(fed, prepared, strict=True):
        for sample, whole in zip(taken, wanted, strict=True):
            again = folding.source_sample(folded, sample)
            if not all(np.array_equal(again[name], whole[name]) for name in whole):
                return structs.replace(
                    plain, sentences=("the arithmetic stays on the device: bytes give other numbers",)
                )
    sentences += [f"{each.tensor}: files take bytes; in them: {folding.words(each.folded)}; on the device: "
                  f"{folding.words(each.steps) or 'nothing'}" for each in folded if each.folded]  # fmt: skip
    return _Fed(contracts=folded, calibration=fed[0], evaluation=fed[1], sentences=tuple(sentences))


def _without_bytes(options: BuildOptions) -> str:
    """A target that must have its inputs otherwise; empty where bytes are of use to one and no trouble to any."""
    targets = [target_files.load(name) for name in options.targets]
    refusing = [each for each in targets if each.dtypes.io and "uint8" not in each.dtypes.io]
    # where even floats are refused, files have int8 inputs and the arithmetic in their bindings
    strict = [each.id for each in refusing if "float32" in each.dtypes.io or len(refusing) == len(targets)]
    return strict[0] if strict else ""


def _answered(
    opened: oracle.Oracle, samples: Sequence[Mapping[str, Array]], source: SourceModel, progress: Progress
) -> list[Mapping[str, Array]]:
    try:
        return opened.run(samples, "source", progress)
    except EngineError as error:
        raise ConversionError(f"the source cannot be run: {error.message}", file=source.path,
                              next_step="run it on this data in its own framework first") from error  # fmt: skip


def _stacked(answers: list[Mapping[str, Array]], source: SourceModel) -> dict[str, Array]:
    try:
        return oracle.stacked(answers, "")
    except EngineError as error:
        raise InputError(error.message, file=source.path, expected="one size", got=error.got,
                         next_step=error.next_step) from error  # fmt: skip


def _check_finite(outputs: Mapping[str, Array], source: SourceModel) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError("the source itself answers NaN or infinity on the evaluation data", file=source.path,
                             key=name, next_step="check the preprocessing contract and the model")  # fmt: skip


def _output_contract(
    options: BuildOptions, source: SourceModel, evaluation: Dataset, outputs: Mapping[str, Array]
) -> OutputContract:
    first = outputs[source.outputs[0].name]
    count = int(first[0].size)
    kind = options.task if options.task != "auto" else _kind(options.metric, evaluation, first)
    if kind == "raw":
        return OutputContract(kind="raw")
    if first.ndim > len(source.outputs[0].shape) + 1 - source.outputs[0].batched and source.state:
        raise InputError("the answers to a sequence are judged as numbers, step by step", file=evaluation.path,
                         next_step="add --task raw, and leave y out")  # fmt: skip
    if count < 2:
        raise InputError("a classification needs an output with one entry per class", file=source.path,
                         key=source.outputs[0].name, got=f"{count} entry",
                         next_step="add --metric auc where it scores two classes (labels 0 and 1; without --task also "
                                   "top1, f1:1, recall:1 and cost), --metric rmse where it says a number, a metric of "
                                   "yours (--metric MODULE:FUNCTION), or --task raw; with more classes, end the model "
                                   "in one entry per class")  # fmt: skip
    labels = options.labels or source.classes or evaluation.class_names
    if labels and len(labels) != count:
        folders = () if options.labels or source.classes else (options.calibration, options.evaluation)
        raise understanding.wrong_number_of_classes(labels, count, folders)
    sums = first.reshape(len(first), -1).sum(axis=1)
    shares = bool((first >= 0).all() and (np.abs(sums - 1.0) <= understanding.SUM_TOLERANCE).all())
    return OutputContract(kind=kind, labels=labels, activation="none" if shares else "softmax")


def _judged_as(
    outputs: Mapping[str, Array], output: OutputContract, one_score: metrics.OneScore | None
) -> tuple[Mapping[str, Array], OutputContract]:
    """Outputs as the metric reads them: one score as two classes, although it ships as the number that it is."""
    if one_score is None:
        return outputs, output
    return one_score.read(outputs), OutputContract(kind="classification", labels=one_score.names)


def _classes(options: BuildOptions, source: SourceModel, sets: tuple[Dataset, Dataset]) -> tuple[str, ...]:
    """The model's classes in the order of its output, by whoever says so; empty where nobody does."""
    calibration, evaluation = sets
    return options.labels or source.classes or classes_of_sets(evaluation, calibration)


def classes_of_sets(evaluation: Dataset, calibration: Dataset) -> tuple[str, ...]:
    """Classes that two sets name, in the order of the set that has all: columns stand in the order of the output.

    Where each set lacks a class that the other has, those of both in alphabetical order; empty where one names none.
    """
    if not evaluation.class_names or not calibration.class_names:
        return ()
    larger = max(evaluation.class_names, calibration.class_names, key=len)
    united = {*evaluation.class_names, *calibration.class_names}
    return larger if len(larger) == len(united) else tuple(sorted(united))


def _kind(metric: str, evaluation: Dataset, first: Array) -> str:
    """What the first output is, where nobody says so: labels of anomalies are no classes of the model.

    Integers are said as they are: a class's own number has no scores that a device could rank.
    """
    anomalies = metric == "auc" and first[0].size != 2
    one_score = first[0].size == 1 and not metrics.of_classes(metric)  # for a metric of the user's own
    one_score = one_score or metrics.is_one_score(metric, evaluation.labels, first)
    if evaluation.labels is None or metric in _OF_NUMBERS or anomalies or one_score or metrics.is_exact(first):
        return "raw"
    return "classification"


def _labels(evaluation: Dataset, outputs: Mapping[str, Array], output: OutputContract) -> tuple[int, ...] | None:
    if output.kind != "classification" or evaluation.labels is None:
        return None
    classes = int(next(iter(outputs.values()))[0].size)
    if max(evaluation.labels) >= classes:
        raise InputError("a class that the model does not have", file=evaluation.path, key="y",
                         expected=f"0 … {classes - 1}", got=max(evaluation.labels),
                         next_step="number the classes in the order of the model's output")  # fmt: skip
    return evaluation.labels


def _metric(
    options: BuildOptions,
    evaluation: Dataset,
    prepared: Sequence[Mapping[str, Array]],
    outputs: Mapping[str, Array],
    output: OutputContract,
) -> metrics.Metric:
    """The task metric; ``auto`` takes what the evaluation data allows."""
    name = options.metric
    if name not in _NO_FRACTIONS and (options.max_drop or 0.0) > 1.0:
        raise ConfigError("not a fraction", key="max_drop", expected="0 … 1, such as 0.01 for one point",
                          got=f"{options.max_drop:g}", next_step="divide by 100")  # fmt: skip
    if name == "auto":
        first = next(iter(outputs.values()))
        classes = output.kind == "classification" or (evaluation.labels is not None and metrics.names_class(first))
        labelled = "top1" if evaluation.labels else "agreement"
        name = labelled if classes else "closeness" if evaluation.targets is None else "rmse"
    return metrics.choose(
        metrics.MetricRequest(
            name=name, labels=evaluation.labels, targets=evaluation.targets, outputs=outputs, inputs=prepared,
            class_names=output.labels, softmax=output.activation == "softmax",
            closeness_limit=options.max_relative_rms, cost_matrix=options.cost_matrix,
            postprocess=options.postprocess, ground_truth=options.ground_truth, evaluation=evaluation.path,
            files=evaluation.files,
        )
    )  # fmt: skip


def _field(
    options: BuildOptions,
    known: tuple[Sequence[InputContract], tuple[InputContract, ...], Dataset, bool],
    opened: oracle.Oracle,
    judged: tuple[metrics.Metric, metrics.OneScore | None],
    progress: Progress,
) -> unlabelled.Field | None:
    """The unlabelled samples with the source's answers.

    Args:
        options: say where they are.
        known: contracts of the source and of the files, the calibration data, and whether the model itself takes NaN.
        opened: the source.
        judged: the metric, and how one score is read as two classes, where it is.
        progress: told how far it is.

    Raises:
        ConfigError: the metric is not one that labels of disagreements decide.
        InputError: the samples cannot be used.
    """
    if options.unlabelled is None:
        return None
    task, one_score = judged
    if not isinstance(task, metrics.Top | metrics.Agreement):
        raise ConfigError("labels of disagreements decide about answers alone", key="unlabelled",
                          expected="--metric top1, or another top-k", got=f"--metric {task.name}",
                          next_step="leave --unlabelled out, or choose --metric top1")  # fmt: skip
    contracts, fed, calibration, gaps = known
    samples = unlabelled.open_samples(options.unlabelled, contracts, gaps=gaps)
    k = task.k if isinstance(task, metrics.Top) else 1
    return structs.replace(unlabelled.read_field(samples, opened, k, calibration, progress, one_score), fed=fed)


def _postprocessed(output: OutputContract, task: metrics.Metric) -> OutputContract:
    """With the steps from raw outputs to boxes, where the metric reads boxes."""
    steps = getattr(getattr(task, "decoding", None), "steps", ())
    return structs.replace(output, postprocessing=steps) if steps else output


def _groups(task: metrics.Metric, outputs: Mapping[str, Array]) -> tuple[Group, ...]:
    """Channel groups of the first output, where the metric's decoding names them."""
    if not isinstance(task, MeanAveragePrecision):
        return ()
    first = next(iter(outputs))
    return decoded_groups(task.decoding, first, outputs[first].shape)


def _short(count: int) -> str:
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
