"""``edgeship.toml``: everything that a build is told, in one file beside the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from edgeship.build.inputs import TASKS
from edgeship.build.options import MAX_RELATIVE_RMS, MOST_JOBS, BuildOptions
from edgeship.build.search.space import EFFORTS
from edgeship.build.sources import InputShape, InputValue
from edgeship.build.strict import convert, read_table
from edgeship_agent.contract.errors import ConfigError

FILE_NAME: Final = "edgeship.toml"
SCHEMA_VERSION: Final = 1
PRECISIONS: Final = ("fp16", "dynamic", "int4", "int16x8", "int8io")
_READ: Final = "read docs/reference/project-file.md, or let edgeship init write one"


class Model(Struct, frozen=True, kw_only=True):
    """The trained model.

    Attributes:
        source: its file or folder, ``package.module:factory`` or a tracker's address.
        name: of the model in the bundle; empty for the file's name.
        version: of the model in the bundle.
        task: ``classification``, ``raw``, or ``auto``: classification where the evaluation data has labels.
        labels: class names in the order of the output; empty for those that the data tells.
        input_shapes: shapes that the source leaves open, as ``[NAME=]1,3,224,224[:DTYPE]``.
        input_values: inputs that are to be constants, as ``NAME=NUMBER``; ONNX alone.
        weights: state dict for a ``package.module:factory`` source; empty for none.
        allow_pickle: read files that can run code when they are read.
        input_tensors, output_tensors: where to cut the graph; empty for its own ends.
        signature: of a SavedModel that has several; empty for its default one.
        license: SPDX expression of its licence, such as ``Apache-2.0``.
        lineage: facts about its origin, as ``KEY=VALUE``; they are part of the bundle.
        card: Markdown file for the model card: intended use, training data, limits; empty for none.
    """

    source: str
    name: str = ""
    version: str = "1.0.0"
    task: str = "auto"
    labels: tuple[str, ...] = ()
    input_shapes: tuple[str, ...] = ()
    input_values: tuple[str, ...] = ()
    weights: str = ""
    allow_pickle: bool = False
    input_tensors: tuple[str, ...] = ()
    output_tensors: tuple[str, ...] = ()
    signature: str = ""
    license: str = ""
    lineage: tuple[str, ...] = ()
    card: str = ""


class Data(Struct, frozen=True, kw_only=True):
    """The two data sets; they must not share a sample.

    Attributes:
        calibration: for ranges, selection and the drift baseline: an .npz, .npy, .csv or .parquet file, or a folder.
        evaluation: held out, for every claim; with labels where there are any.
        unlabelled: samples without labels, on whose disagreements the claim is made; empty for none.
    """

    calibration: str
    evaluation: str
    unlabelled: str = ""


class Preprocessing(Struct, frozen=True, kw_only=True):
    """From a raw sample to the model's inputs; without it an array is fed as it is.

    Attributes:
        file: a TOML file with the contract, as for ``--preprocess``; empty where it stands here.
        input: or the contract itself, one table for each model input, as in that file.
    """

    file: str = ""
    input: tuple[dict[str, Any], ...] = ()


class InputSchema(Struct, frozen=True, kw_only=True):
    """Name, unit, meaning and range of the features.

    Attributes:
        file: a TOML file with the features, as for ``--input-schema``; empty where they stand here.
        feature: or the features themselves, one table for each, as in that file.
    """

    file: str = ""
    feature: tuple[dict[str, Any], ...] = ()


class Metric(Struct, frozen=True, kw_only=True):
    """What a variant must keep.

    Attributes:
        name: as for ``--metric``; ``auto`` takes what the evaluation data allows.
        max_drop: largest drop that must be proven, as a fraction (for ``snr`` in dB); none for the target's own.
        cost_matrix: TOML or CSV file: what each confusion costs, for ``cost``; empty for none.
        postprocess: TOML file: from raw outputs to boxes, for ``map``; empty for none.
        ground_truth: boxes, as COCO JSON or a folder of YOLO text files, for ``map``; empty for none.
    """

    name: str = "auto"
    max_drop: float | None = None
    cost_matrix: str = ""
    postprocess: str = ""
    ground_truth: str = ""


class Budgets(Struct, frozen=True, kw_only=True):
    """Hard limits of a variant.

    Attributes:
        latency_p99_ms: 99th percentile of one call in ms; none for the target's own.
        size_bytes: of everything that the runtime loads; none for the target's own.
        max_relative_rms: largest relative RMS of a quantized variant against the source.
        accept_proxy_latency: let a latency of another ISA class judge the budget.
    """

    latency_p99_ms: float | None = None
    size_bytes: int | None = None
    max_relative_rms: float = MAX_RELATIVE_RMS
    accept_proxy_latency: bool = False


class Project(Struct, frozen=True, kw_only=True):
    """A file named ``edgeship.toml``. Paths in it are relative to its own folder.

    Attributes:
        schema_version: of this format: 1.
        targets: ids or TOML files of hardware targets, in order.
        output: folder for the results.
        strict: a fallback is a failure.
        effort: how much the search for the best int8 may try: ``quick``, ``normal`` or ``thorough``.
        precisions: made and judged too: ``fp16``, ``dynamic``, ``int4``, ``int16x8``, ``int8io``.
        keep_float: names of operators that int8 leaves in float, as the report's sensitivity gives them.
        measure: ``ssh://user@host`` of a device that candidates are run on; empty for this machine.
        cache: use results of earlier builds, and keep this one's.
        fold_normalisation: let the files do the arithmetic between bytes and floats, where that is exact.
        fp32_fallback: let a bundle hold full precision beside a quantized variant, for devices that it fails on.
        log_mlflow: tell the MLflow run that the source comes from (or a new one) what became of it.
        jobs: processes that build for different runtimes at the same time.
    """

    model: Model
    data: Data
    schema_version: int = SCHEMA_VERSION
    targets: tuple[str, ...] = ()
    output: str = "build"
    strict: bool = False
    effort: str = "normal"
    precisions: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    measure: str = ""
    fold_normalisation: bool = True
    fp32_fallback: bool = True
    cache: bool = True
    log_mlflow: bool = False
    jobs: int = 1
    preprocessing: Preprocessing = Preprocessing()
    input_schema: InputSchema = InputSchema()
    metric: Metric = Metric()
    budgets: Budgets = Budgets()


def read(path: Path) -> Project:
    """Read a project file.

    Raises:
        ConfigError: not there, an unknown or a missing key, or a value that cannot be.
    """
    table = read_table(path, _READ)
    version = table.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ConfigError("unknown version", file=path, key="schema_version", expected=SCHEMA_VERSION, got=version,
                          next_step=f"write schema_version = {SCHEMA_VERSION}")  # fmt: skip
    project = convert(table, Project, path, _READ)
    _check_choices(project, path)
    _check_ranges(project, path)
    _check_once(project, path)
    return project


def options_of(project: Project, path: Path) -> BuildOptions:
    """What the file tells a build.

    Raises:
        ConfigError: an input shape that cannot be read.
    """
    folder = path.parent
    model, budgets = project.model, project.budgets
    return BuildOptions(
        source=_source(model.source, folder),
        targets=tuple(_target(name, folder) for name in project.targets),
        calibration=folder / project.data.calibration,
        evaluation=folder / project.data.evaluation,
        preprocess=_file_or_here(project.preprocessing.file, project.preprocessing.input, path),
        input_schema=_file_or_here(project.input_schema.file, project.input_schema.feature, path),
        unlabelled=_path(project.data.unlabelled, folder),
        metric=project.metric.name,
        max_drop=project.metric.max_drop,
        cost_matrix=_path(project.metric.cost_matrix, folder),
        postprocess=_path(project.metric.postprocess, folder),
        ground_truth=_path(project.metric.ground_truth, folder),
        max_relative_rms=budgets.max_relative_rms,
        latency_p99_ms=budgets.latency_p99_ms,
        size_bytes=budgets.size_bytes,
        accept_proxy_latency=budgets.accept_proxy_latency,
        strict=project.strict,
        fold_normalisation=project.fold_normalisation,
        fp32_fallback=project.fp32_fallback,
        cache=project.cache,
        jobs=project.jobs,
        effort=project.effort,
        precisions=project.precisions,
        keep_float=project.keep_float,
        task=model.task,
        labels=model.labels,
        name=model.name,
        version=model.version,
        output=folder / project.output,
        measure=project.measure,
        log_mlflow=project.log_mlflow,
        input_shapes=tuple(InputShape.parse(text) for text in model.input_shapes),
        input_values=tuple(InputValue.parse(text) for text in model.input_values),
        weights=_path(model.weights, folder),
        allow_pickle=model.allow_pickle,
        input_tensors=model.input_tensors,
        output_tensors=model.output_tensors,
        signature=model.signature,
        license=model.license,
        lineage=model.lineage,
        card=_path(model.card, folder),
    )


def _source(text: str, folder: Path) -> Path:
    """A path beside the project file, a factory's file included; an address or a module stays what it is."""
    before, colon, _ = text.partition(":")
    address = colon and not before.endswith(".py") and not (folder / text).exists()
    return Path(text) if address else folder / text


def _path(text: str, folder: Path) -> Path | None:
    return folder / text if text else None


def _target(name: str, folder: Path) -> str:
    """A target's file beside the project file, or an id."""
    return str(folder / name) if name.endswith(".toml") else name


def _file_or_here(file: str, tables: tuple[dict[str, Any], ...], path: Path) -> Path | None:
    """The named file; the project file itself where the tables stand in it."""
    return path.parent / file if file else path if tables else None


def _check_choices(project: Project, path: Path) -> None:
    chosen = [("model.task", project.model.task, TASKS), ("effort", project.effort, EFFORTS),
              *(("precisions", name, PRECISIONS) for name in project.precisions)]  # fmt: skip
    for key, value, known in chosen:
        if value not in known:
            raise ConfigError("unknown value", file=path, key=key, expected=" | ".join(known), got=value,
                              next_step=_READ)  # fmt: skip
    for key, value in {"model.source": project.model.source, "data.calibration": project.data.calibration,
                       "data.evaluation": project.data.evaluation, "output": project.output}.items():  # fmt: skip
        if not value:
            raise ConfigError("is empty", file=path, key=key, expected="a path", got="nothing", next_step=_READ)


def _check_ranges(project: Project, path: Path) -> None:
    drop, budgets = project.metric.max_drop, project.budgets
    if drop is not None and not 0 <= drop < math.inf:
        raise ConfigError("out of range", file=path, key="metric.max_drop", expected="0 or more, and finite", got=drop,
                          next_step=_READ)  # fmt: skip
    positive = {"latency_p99_ms": budgets.latency_p99_ms, "size_bytes": budgets.size_bytes,
                "max_relative_rms": budgets.max_relative_rms}  # fmt: skip
    if not 1 <= project.jobs <= MOST_JOBS:
        raise ConfigError("out of range", file=path, key="jobs", expected=f"1 to {MOST_JOBS}", got=project.jobs,
                          next_step=_READ)  # fmt: skip
    for key, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError("out of range", file=path, key=f"budgets.{key}", got=value,
                              expected="more than 0, and finite", next_step=_READ)  # fmt: skip


def _check_once(project: Project, path: Path) -> None:
    """One place for each contract."""
    both = {"preprocessing": (project.preprocessing.file, project.preprocessing.input, "input"),
            "input_schema": (project.input_schema.file, project.input_schema.feature, "feature")}  # fmt: skip
    for key, (file, tables, name) in both.items():
        if file and tables:
            raise ConfigError("stands in two places", file=path, key=key, expected=f"file or [[{key}.{name}]]",
                              got="both", next_step="take one of them out")  # fmt: skip
